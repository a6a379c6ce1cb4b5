"""fp8_matmul on GPUs: what is compiled ahead of time, what its code must have, and what is measured."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from deepseek_fast.gpu.cases import Bench, Call, Expect, Goal, Peer

BF16, E4M3, E5M2 = torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2
TENSOR, ROW, PER_128, PER_128X128 = 0, 1, 4, 5  # torch.nn.functional.ScalingType

EXPECTS = {
    "_fp8_matmul": Expect(tensor_cores=True, async_copies=True, warpgroups=lambda _: True, max_bytes=224 * 1024),
    "_cast_rows": Expect(),
}


def _scaled_mm(
    M: int, N: int, K: int, recipes: tuple[int, int] = (PER_128, PER_128X128), dtypes: tuple[Any, Any] = (E4M3, E4M3),
    *, spare: int = 0, output_dtype: torch.dtype = BF16,
) -> tuple[tuple[Any, ...], dict[str, Any]]:  # fmt: skip
    """Arguments of fp8_scaled_mm; rows of mat_a have `spare` bytes between them."""
    a, b = torch.empty(M, K + spare, dtype=dtypes[0])[:, :K], torch.empty(N, K, dtype=dtypes[1])
    steps = -(-K // 128)
    scales = {TENSOR: (1, -1), ROW: (1, None), PER_128: (steps, None), PER_128X128: (steps, 128)}

    def scale(recipe: int, rows: int) -> torch.Tensor:
        columns, block = scales[recipe]
        block = rows if block == -1 else block
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
    _call("codes-128-narrow", _scaled_mm, 128, 4096, 7168, archs=WARPGROUP),
    _call("codes-128-middle", _scaled_mm, 128, 7168, 2048, archs=WARPGROUP),
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

# DeepGEMM's shapes: M of a token, a small batch, one tile and prefill; (N, K) of DeepSeek-V3's layers.
BENCH_M = (1, 64, 128, 4096)
BENCH_NK = ((2112, 7168), (576, 7168), (24576, 1536), (32768, 512), (7168, 16384), (4096, 7168), (7168, 2048))
BENCH_NUMBERS = ((4096, 7168), (7168, 2048), (24576, 1536), (8192, 8192))
FEW_ROWS = 64
CHECKED_ROWS = 64  # compared in float64: the first, which lie in whole tiles, and the last, which may not
# What casting normal numbers to both blocks leaves is 6.8e-4 to 6.9e-4; few outputs scatter: DeepGEMM's limit.
MOST_DIFFERENCE, MOST_OF_FEW = 7e-4, 1e-3
SCALED_MM, LINEAR = "torch.nn.functional.scaled_mm", "torch.nn.functional.linear, bfloat16"


def _codes_inputs(M: int, N: int, K: int) -> dict[str, Any]:
    """fp8_scaled_mm's arguments in torch's layouts, and what they were cast from."""
    from torch.nn.functional import ScalingType

    from deepseek_fast.gpu.launch import has_fp8
    from deepseek_fast.kernels.fp8_matmul.triton_cast import cast_rows

    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = (torch.randn(rows, K, device=device).to(BF16) for rows in (M, N))
    codes, scale_a = cast_rows(a, has_fp8())
    padded = torch.nn.functional.pad(b.float(), (0, -K % 128, 0, -N % 128))
    blocks = padded.reshape(padded.shape[0] // 128, 128, -1, 128)
    scale_b = blocks.abs().amax((1, 3)).clamp_min(1e-4) / 448
    weight = (blocks / scale_b[:, None, :, None]).clamp(-448, 448).reshape(padded.shape)[:N, :K].to(E4M3)
    memory = scale_b.new_zeros(scale_b.shape[0], -(-scale_b.shape[1] // 4) * 4)  # as cuBLASLt wants it
    memory[:, : scale_b.shape[1]] = scale_b
    return {
        "mat_a": codes, "mat_b": weight.contiguous().t(), "scale_a": scale_a,
        "scale_recipe_a": ScalingType.BlockWise1x128, "scale_b": memory.t(),
        "scale_recipe_b": ScalingType.BlockWise128x128, "exact": (a, b),
    }  # fmt: skip


def _scaled_mm_of(function: Callable[..., Tensor], inputs: dict[str, Any]) -> Callable[[], Tensor]:
    given = {name: value for name, value in inputs.items() if name != "exact"}
    return partial(function, **given, output_dtype=BF16)


def _ours_scaled_mm(exact: Any, **given: Any) -> Tensor:
    import deepseek_fast

    return deepseek_fast.fp8_scaled_mm(**given, output_dtype=BF16)


def _torch_scaled_mm(inputs: dict[str, Any]) -> Callable[[], Tensor]:
    return _scaled_mm_of(torch.nn.functional.scaled_mm, inputs)


def _checked(M: int) -> Tensor:
    return torch.arange(M) if M <= CHECKED_ROWS else torch.cat([torch.arange(32), torch.arange(M - 32, M)])


def _codes_error(inputs: dict[str, Any], result: Tensor) -> float:
    """The larger of: errors over ref.py's bound with what tensor cores add; the difference to the uncast product."""
    from deepseek_fast.kernels.fp8_matmul.ref import _sum_bound, scaled_mm_steps, tensor_core_bound
    from deepseek_fast.kernels.fused_matmul.ref import epilogue_bound

    rows, got = _checked(len(result)), result.double()
    K = inputs["mat_a"].shape[1]
    scale_b = inputs["scale_b"].t()[:, : -(-K // 128)]
    a, scale_a, b = inputs["mat_a"].view(torch.uint8)[rows].view(E4M3), inputs["scale_a"][rows], inputs["mat_b"].t()
    steps = list(scaled_mm_steps(a, scale_a, b, scale_b, (1, 128), (128, 128)))
    z = torch.zeros_like(got[rows])
    for step in steps:
        z += (step.x @ step.weight.T) * step.factor
    bound = _sum_bound(steps, False, z) + tensor_core_bound(steps, fp8=True)
    limit = epilogue_bound(z, bound, BF16, bias=False, activation="none", residual=None)
    over = float(((got[rows] - z).abs() / limit).max())
    exact_a, exact_b = inputs["exact"]
    want = exact_a[rows].double() @ exact_b.double().T
    difference = float(1 - 2 * (got[rows] * want).sum() / (got[rows].square() + want.square()).sum())
    return max(over, difference / (MOST_DIFFERENCE if len(result) >= FEW_ROWS else MOST_OF_FEW))


def _numbers_inputs(M: int, N: int, K: int) -> dict[str, Any]:
    inputs = _codes_inputs(1, N, K)
    device = inputs["mat_b"].device
    scale = inputs["scale_b"].t()[:, : -(-K // 128)].contiguous()
    return {"x": torch.randn(M, K, device=device).to(BF16), "weight": inputs["mat_b"].t(), "scale": scale}


def _ours_numbers(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    import deepseek_fast

    return deepseek_fast.fp8_matmul(x, weight, scale)


def _torch_linear(inputs: dict[str, Any]) -> Callable[[], Tensor]:
    from deepseek_fast.kernels.fp8_matmul.ref import expand_scale

    weight = inputs["weight"]
    wide = (weight.float() * expand_scale(inputs["scale"].cpu(), (128, 128), *weight.shape).to(weight.device)).to(BF16)
    return partial(torch.nn.functional.linear, inputs["x"], wide)


def _numbers_error(inputs: dict[str, Any], result: Tensor) -> float:
    from deepseek_fast.kernels.fp8_matmul.ref import bound, fp8_matmul_ref

    on_cpu = {name: value.cpu() for name, value in inputs.items()}
    error = (result.cpu().double() - fp8_matmul_ref(**on_cpu)).abs()
    return float((error / bound(**on_cpu, tensor_cores=True)).max())


def _scale_bytes(N: int, K: int) -> int:
    return 4 * -(-N // 128) * -(-K // 128)


BENCH = tuple(
    Bench(
        f"scaled_mm-{M}x{N}x{K}", partial(_codes_inputs, M, N, K), _ours_scaled_mm, _codes_error,
        bytes=M * K + N * K + 2 * M * N + 4 * M * -(-K // 128) + _scale_bytes(N, K), flops=2 * M * N * K,
        peers=(Peer(SCALED_MM, _torch_scaled_mm),), goal=Goal(2.0 if M <= FEW_ROWS else 1.0, SCALED_MM),
    )
    for M in BENCH_M
    for N, K in BENCH_NK
) + tuple(
    Bench(
        f"numbers-{M}x{N}x{K}", partial(_numbers_inputs, M, N, K), _ours_numbers, _numbers_error,
        bytes=2 * M * K + N * K + 2 * M * N + _scale_bytes(N, K), flops=2 * M * N * K,
        peers=(Peer(LINEAR, _torch_linear),), goal=Goal(1.5, LINEAR),
    )
    for M in (1, 16)
    for N, K in BENCH_NUMBERS
)  # fmt: skip
