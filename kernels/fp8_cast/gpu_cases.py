"""fp8_cast on GPUs: what is compiled ahead of time, what its code must have, and what is measured."""

from collections.abc import Callable
from typing import Any

import torch

from deepseek_fast.gpu.cases import Call, Expect
from deepseek_fast.kernels.fp8_cast.gpu_bench import BENCH as BENCH

BF16, E4M3, E5M2, E2M1 = torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float4_e2m1fn_x2
EXPECTS = {
    name: Expect()  # no products; loads go to registers: each value is used at once
    for name in ("_cast_blocks", "_amax", "_encode", "_inverse_rms", "_cast_pair", "_dequantize", "_int8_cast")
}


def _cast(
    name: str,
    M: int,
    K: int,
    block: tuple[int, int] | None,
    *options: Any,
    x_dtype: torch.dtype = BF16,
    dtype: torch.dtype = E4M3,
    given: Callable[[], torch.Tensor] | None = None,
    tensor_scale: bool = False,
) -> Call:
    def arguments() -> tuple[Any, ...]:
        one = torch.empty(1) if tensor_scale else None
        rows, columns = block or (0, 0)
        x = torch.empty(M, K, dtype=x_dtype)
        return (x, given() if given else None, one, rows, columns, block is None, dtype, *options)

    return Call(name, "fp8_cast", arguments)


def _fused(name: str, op: str, K: int, block: tuple[int, int], M: int = 8192) -> Call:
    def arguments() -> tuple[Any, ...]:
        if op == "silu_mul_cast":
            return (torch.empty(M, 2 * K, dtype=BF16), None, *block, E4M3)
        return (torch.empty(M, K, dtype=BF16), torch.empty(K, dtype=BF16), None, 1e-6, *block, E4M3)

    return Call(name, op, arguments)


def _dequantize(
    name: str, codes: torch.dtype, scale: torch.dtype | None, block: tuple[int, int], y: torch.dtype
) -> Call:
    def arguments() -> tuple[Any, ...]:
        M, K = 8192, 7168
        parts = (1 if block[0] < 0 else M // block[0], 1 if block[1] < 0 else K // block[1])
        columns = K // 2 if codes == E2M1 else K
        known = None if scale is None else torch.empty(parts, dtype=scale)
        return torch.empty(M, columns, dtype=codes), known, None, *block, y

    return Call(name, "fp8_dequantize", arguments)


COMPILED = (
    _cast("1x128", 8192, 7168, (1, 128)),
    _cast("1x128-few", 16, 7168, (1, 128)),
    _cast("1x128-v3-float32", 8192, 7168, (1, 128), "f32", "v3", x_dtype=torch.float32),
    _cast("1x128-packed", 8192, 7168, (1, 128), "ue8m0", "deepgemm", True, "packed"),
    _cast("128x128", 8192, 7168, (128, 128)),
    _cast("row", 8192, 7168, (1, -1)),
    _cast("mx", 8192, 7168, (1, 32), "ue8m0", "torchao"),
    _cast("nvfp4", 8192, 7168, (1, 16), "e4m3", "torchao", dtype=E2M1, tensor_scale=True),
    _cast("3x7-e5m2-float16", 300, 500, (3, 7), "f32", "te", False, x_dtype=torch.float16, dtype=E5M2),
    _cast("1x128-stochastic", 8192, 7168, (1, 128), "f32", "deepgemm", True, "row", "stochastic"),
    _cast("tensor", 8192, 7168, (-1, -1)),
    _cast("tensor-few", 512, 512, (-1, -1)),
    _cast("plain", 8192, 7168, None),
    _cast("given-128x128", 8192, 7168, (128, 128), given=lambda: torch.empty(64, 56)),
    _fused("silu_mul-1x128", "silu_mul_cast", 2048, (1, 128)),
    _fused("rms_norm-1x128", "rms_norm_cast", 7168, (1, 128)),
    _fused("rms_norm-long", "rms_norm_cast", 100_000, (1, -1), 64),
    Call("pair-128", "fp8_cast_transposed", lambda: (torch.empty(8192, 7168, dtype=BF16), 1, 128, E4M3)),
    Call("pair-32", "fp8_cast_transposed", lambda: (torch.empty(8192, 7168, dtype=BF16), 1, 32, E4M3, "ue8m0")),
    _dequantize("128x128", E4M3, torch.float32, (128, 128), BF16),
    _dequantize("mx-float32", E4M3, torch.float8_e8m0fnu, (1, 32), torch.float32),
    _dequantize("nvfp4", E2M1, E4M3, (1, 16), BF16),
    Call("plain-few", "fp8_dequantize", lambda: (torch.empty(16, 7168, dtype=E5M2), None, None, -1, -1, BF16)),
    Call("row", "int8_cast", lambda: (torch.empty(8192, 7168, dtype=BF16),)),
    Call("row-4096", "int8_cast", lambda: (torch.empty(8192, 4096, dtype=BF16),)),
    Call("row-short", "int8_cast", lambda: (torch.empty(64, 384),)),
)
