"""fp8_cast and its family on CUDA tensors, with the CPU kernels' bits: the ops.

triton_cast.py says which kernels a cast takes, triton_tiles.py with which tiles.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deepseek_fast.gpu.launch import has_fp8, launch
from deepseek_fast.gpu.linear import as_rows
from deepseek_fast.kernels.fp8_cast.cuda_kernel import cast_1x128
from deepseek_fast.kernels.fp8_cast.meta import codes_like, new_scale
from deepseek_fast.kernels.fp8_cast.triton_cast import FORMATS, IGNORES_NAN, Cast, run, scale_bytes
from deepseek_fast.kernels.fp8_cast.triton_dequantize import _dequantize
from deepseek_fast.kernels.fp8_cast.triton_int8 import _int8_cast
from deepseek_fast.kernels.fp8_cast.triton_pair import _cast_pair
from deepseek_fast.kernels.fp8_cast.triton_tiles import (
    DEQUANTIZE,
    INT8,
    PAIR,
    grid,
    group,
    is_wide,
    length,
    power,
    tile,
)

SCALE_KINDS = {
    torch.float32: "f32",
    torch.float8_e8m0fnu: "e8m0",
    torch.float8_e4m3fn: "e4m3",
    torch.int32: "packed",
}


def fp8_cast(
    x: Tensor,
    given: Tensor | None,
    tensor_scale: Tensor | None,
    block_rows: int,
    block_cols: int,
    plain: bool,
    dtype: torch.dtype,
    scale: str = "f32",
    mode: str = "deepgemm",
    saturate: bool = True,
    layout: str = "row",
    rounding: str = "nearest",
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    if not plain and given is None and rounding == "nearest":
        made = cast_1x128(x, (block_rows, block_cols), dtype, scale, mode, saturate, layout)
        if made is not None:
            return made
    K = x.shape[-1]
    kind = "f32" if plain or given is not None else scale
    codes = codes_like(x, dtype, K)
    scales = (
        x.new_empty((1, 1), dtype=torch.float32) if plain else new_scale(x, block_rows, block_cols, kind, layout, K=K)
    )
    block = None if plain else (block_rows, block_cols)
    call = Cast(
        "x", as_rows(x), K, codes.view(torch.uint8), scales, block, dtype, kind, mode, saturate,
        rounding == "stochastic", seed, given, tensor_scale,
    )  # fmt: skip
    run(call)
    return codes, scales


def silu_mul_cast(
    x: Tensor,
    tensor_scale: Tensor | None,
    block_rows: int,
    block_cols: int,
    dtype: torch.dtype,
    scale: str = "f32",
    mode: str = "deepgemm",
    layout: str = "row",
    rounding: str = "nearest",
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    K = x.shape[-1] // 2
    codes, scales = codes_like(x, dtype, K), new_scale(x, block_rows, block_cols, scale, layout, K=K)
    call = Cast(
        "silu_mul", as_rows(x), K, codes.view(torch.uint8), scales, (block_rows, block_cols), dtype, scale, mode,
        True, rounding == "stochastic", seed, None, tensor_scale,
    )  # fmt: skip
    run(call)
    return codes, scales


def rms_norm_cast(
    x: Tensor,
    weight: Tensor,
    tensor_scale: Tensor | None,
    eps: float,
    block_rows: int,
    block_cols: int,
    dtype: torch.dtype,
    scale: str = "f32",
    mode: str = "deepgemm",
    layout: str = "row",
    rounding: str = "nearest",
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    K = x.shape[-1]
    codes, scales = codes_like(x, dtype, K), new_scale(x, block_rows, block_cols, scale, layout, K=K)
    call = Cast(
        "rms_norm", as_rows(x), K, codes.view(torch.uint8), scales, (block_rows, block_cols), dtype, scale, mode,
        True, rounding == "stochastic", seed, None, tensor_scale, weight.contiguous(), eps,
    )  # fmt: skip
    run(call)
    return codes, scales


def fp8_amax(x: Tensor, block_rows: int, block_cols: int) -> Tensor:
    K = x.shape[-1]
    amax = new_scale(x, block_rows, block_cols, "f32", "row", K=K)
    run(Cast("x", as_rows(x), K, None, amax, (block_rows, block_cols), torch.float8_e4m3fn))
    return amax


def fp8_cast_transposed(
    x: Tensor,
    block_rows: int,
    block_cols: int,
    dtype: torch.dtype,
    scale: str = "f32",
    mode: str = "deepgemm",
    saturate: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = as_rows(x)
    M, K = rows.shape
    down, across = -(-M // block_cols), -(-K // block_cols)
    codes, codes_t = codes_like(x, dtype, K), x.new_empty((K, M), dtype=dtype)
    scales = new_scale(x, 1, block_cols, scale, "row", K=K)
    scales_t = scales.new_empty((K, down))
    call = Cast("x", rows, K, codes.view(torch.uint8), scales, (1, block_cols), dtype, scale, mode, saturate)
    rules = call.rules()
    for name in ("SOURCE", "DOWN", "STOCHASTIC", "PACKED"):
        del rules[name]
    part = power(block_cols)
    config = PAIR.choose(PART=part)
    parts = config.pop("TILE") // part
    launch(
        _cast_pair, grid(-(-down // parts), -(-across // parts)),
        rows, call.codes, scale_bytes(scales)[0], codes_t.view(torch.uint8), scale_bytes(scales_t)[0],
        M, K, rows.stride(0), block_cols, down, across, PART=part, PARTS=parts, EXACT=part == block_cols,
        IGNORE_NAN=mode in IGNORES_NAN, **rules, **config, enable_fp_fusion=False,
    )  # fmt: skip
    return codes, scales, codes_t, scales_t


def fp8_dequantize(
    codes: Tensor,
    scale: Tensor | None,
    tensor_scale: Tensor | None,
    block_rows: int,
    block_cols: int,
    dtype: torch.dtype,
) -> Tensor:
    per_byte = 2 if codes.dtype == torch.float4_e2m1fn_x2 else 1
    rows = as_rows(codes.view(torch.uint8))
    M, K = rows.shape[0], rows.shape[1] * per_byte
    y = codes.new_empty((*codes.shape[:-1], K), dtype=dtype)
    if y.numel() == 0:
        return y
    block_rows, block_cols = length(block_rows, M), length(block_cols, K)
    kind, strides = "nothing", (0, 0)
    if scale is not None:
        kind = SCALE_KINDS[scale.dtype]
        flat = scale if scale.dim() == 2 else scale.reshape(-(-M // block_rows), -1)
        strides = (flat.stride(0), flat.stride(1))
        scale = flat if scale.element_size() == 4 else flat.view(torch.uint8)
    elif rows.stride(0) * per_byte == K and not is_wide(1, M * K):  # one long row
        M, K = 1, M * K
    config = DEQUANTIZE.choose(TOTAL=M * K)
    tile_m, tile_k = tile(M, K, config.pop("VALUES"))
    launch(
        _dequantize, grid(-(-M // tile_m), -(-K // tile_k)),
        rows, scale, tensor_scale, y, M, K, rows.stride(0), block_rows, block_cols, *strides,
        TILE_M=tile_m, TILE_K=tile_k, ROW_GROUP=group(block_rows, M, tile_m), COL_GROUP=group(block_cols, K, tile_k),
        WIDE=is_wide(M, K), KIND=kind, FORMAT=FORMATS[codes.dtype], HARDWARE=has_fp8(), **config,
        enable_fp_fusion=False,
    )  # fmt: skip
    return y


def int8_cast(x: Tensor) -> tuple[Tensor, Tensor]:
    rows = as_rows(x)
    M, K = rows.shape
    q, scale = x.new_empty(x.shape, dtype=torch.int8), x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
    config = INT8.choose(K=K)
    # The bits of the CPU's kernel: nothing may be contracted.
    launch(
        _int8_cast, (M,), rows, q, scale, rows.stride(0), K, WHOLE=config["BLOCK_K"] >= K, **config,
        enable_fp_fusion=False,
    )  # fmt: skip
    return q, scale


OPS: dict[str, Callable[..., Any]] = {
    "fp8_cast": fp8_cast,
    "silu_mul_cast": silu_mul_cast,
    "rms_norm_cast": rms_norm_cast,
    "fp8_cast_transposed": fp8_cast_transposed,
    "fp8_amax": fp8_amax,
    "fp8_dequantize": fp8_dequantize,
    "int8_cast": int8_cast,
}
