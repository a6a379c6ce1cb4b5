"""fp8_matmul on GPUs: what is compiled ahead of time, what its code must have, and what is measured."""

from functools import partial
from typing import Any

import torch

from deepseek_fast.gpu.cases import Call, Expect

BF16, E4M3, E5M2 = torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2
TENSOR, ROW, PER_128, PER_128X128 = 0, 1, 4, 5  # torch.nn.functional.ScalingType

EXPECTS = {
    "_fp8_matmul": Expect(tensor_cores=True, async_copies=True, warpgroups=lambda _: True, max_bytes=192 * 1024),
    "_cast_rows": Expect(),
}


def _scaled_mm(
    M: int, N: int, K: int, recipes: tuple[int, int] = (PER_128, PER_128X128), dtypes: tuple[Any, Any] = (E4M3, E4M3),
    *, spare: int = 0, output_dtype: torch.dtype = BF16,
) -> tuple[tuple[Any, ...], dict[str, Any]]:  # fmt: skip
    """Arguments of fp8_scaled_mm; rows of mat_a have `spare` bytes between them."""
    a, b = torch.empty(M, K + spare, dtype=dtypes[0])[:, :K], torch.empty(N, K, dtype=dtypes[1])
    steps = -(-K // 128)
    scales = {TENSOR: (1, 1), ROW: (1, None), PER_128: (steps, None), PER_128X128: (steps, 128)}

    def scale(recipe: int, rows: int) -> torch.Tensor:
        columns, block = scales[recipe]
        return torch.empty(columns, rows if block is None else -(-rows // block)).t()

    named = {"scale_recipe_a": recipes[0], "scale_recipe_b": recipes[1], "output_dtype": output_dtype}
    return (a, b, scale(recipes[0], M), scale(recipes[1], N)), named


def _matmul(
    M: int, N: int, K: int, dtype: torch.dtype = BF16, *, block: tuple[int, int] = (128, 128), spare: int = 0,
    weight: torch.dtype = E4M3, scale: torch.dtype = torch.float32, bias: bool = False, residual: bool = False,
    **named: Any,
) -> tuple[tuple[Any, ...], dict[str, Any]]:  # fmt: skip
    rows = N * (1 + named.get("gated", False))
    x = torch.empty(M, K + spare, dtype=dtype)[:, :K]
    parts = [1 if size < 0 else -(-total // size) for total, size in zip((rows, K), block, strict=True)]
    named |= {"block_n": block[0], "block_k": block[1]}
    if residual:
        named["residual"] = torch.empty(M, N, dtype=dtype)
    offset = torch.empty(rows, dtype=dtype) if bias else None
    return (x, torch.empty(rows, K, dtype=weight), torch.empty(parts, dtype=scale), offset), named


def _call(name: str, of: Any, *args: Any, archs: tuple[int, ...] | None = None, **named: Any) -> Call:
    made = partial(of, *args, **named)
    op = "fp8_matmul" if of is _matmul else "fp8_scaled_mm"
    return Call(name, op, lambda: made()[0], lambda: made()[1], archs)


WARPGROUP = (90, 100)  # chips with more tiles
COMPILED = (
    _call("codes-1", _scaled_mm, 1, 2112, 7168),
    _call("codes-64", _scaled_mm, 64, 7168, 2048),
    _call("codes-64-long", _scaled_mm, 64, 24576, 1536, archs=WARPGROUP),
    _call("codes-128", _scaled_mm, 128, 24576, 1536, archs=WARPGROUP),
    _call("codes-4096-short", _scaled_mm, 4096, 2112, 7168, archs=WARPGROUP),
    _call("codes-4096", _scaled_mm, 4096, 24576, 1536),
    _call("codes-unaligned", _scaled_mm, 4096, 2112, 7168, spare=8, archs=WARPGROUP),
    _call("codes-rows", _scaled_mm, 512, 4096, 4096, (ROW, ROW), (E5M2, E4M3)),
    _call("codes-tensor", _scaled_mm, 64, 4096, 4096, (TENSOR, TENSOR), output_dtype=torch.float32, archs=(80, 90)),
    _call("codes-1x128", _scaled_mm, 4096, 7168, 2048, (PER_128, PER_128), output_dtype=torch.float32),
    _call("cast-gated", _matmul, 4096, 8192, 7168, activations="fp8", gated=True, activation="silu"),
    _call("cast-gated-1", _matmul, 1, 2048, 7168, activations="fp8", gated=True, activation="silu"),
    _call(
        "cast-mx", _matmul, 64, 4096, 2048, torch.float32, block=(1, 32), weight=E5M2, scale=torch.float8_e8m0fnu,
        activations="fp8",
    ),
    _call("numbers-1", _matmul, 1, 4096, 7168),
    _call("numbers-64", _matmul, 64, 4096, 7168, bias=True, activation="gelu", residual=True),
    _call("numbers-4096", _matmul, 4096, 4096, 7168),
    _call("numbers-gated-1", _matmul, 1, 2048, 7168, gated=True, activation="silu"),
    _call(
        "numbers-mx", _matmul, 16, 4096, 4096, torch.float16, block=(1, 32), weight=E5M2, scale=torch.float8_e8m0fnu
    ),
    _call("numbers-f32-1", _matmul, 1, 4096, 4096, torch.float32),
    _call("numbers-f32", _matmul, 512, 4096, 4096, torch.float32),
    _call("numbers-unaligned", _matmul, 64, 4096, 4096, spare=4, archs=WARPGROUP),
)  # fmt: skip
