"""int8_matmul on CUDA tensors: deepseek_fast/gpu/gemm_kernels.py with this room's tiles and scales.

W8A8 has the CPU's bits; rows of x and of a weight are quantized by int8_cast's kernel, whose rule they share.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deepseek_fast.gpu.gemm import Forms, Product, multiply
from deepseek_fast.gpu.linear import as_rows, end_of
from deepseek_fast.gpu.tiles import Row, Table
from deepseek_fast.kernels.fp8_cast.triton_kernel import int8_cast

KEY = "bytes gated M N K"
TWO = 2  # bytes of bfloat16 and float16
_FEW = {"BLOCK_N": 64, "BLOCK_K": 256, "num_warps": 4}
INTEGER = Forms(
    few=Table(
        "int8_matmul_few",
        KEY,
        (
            Row({**_FEW, "BLOCK_M": 16, "num_stages": 4}, M=16, why="derived: 64 KiB of the weight on their way"),
            Row({**_FEW, "BLOCK_M": 64, "num_stages": 3}, why="derived: three stages of 32 KiB fit any chip"),
        ),
    ),
    tiles=Table(
        "int8_matmul_tiles",
        KEY,
        (
            Row(
                {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 128, "num_warps": 8, "num_stages": 3},
                gated=0,
                why="derived",
            ),
            Row({"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 128, "num_warps": 8, "num_stages": 3}, why="derived"),
        ),
    ),
    tma=Table(
        "int8_matmul_tma",
        KEY,
        (
            Row(
                {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 128, "num_warps": 8, "num_stages": 5, "FLATTEN": True, "SLICES": 1},
                M=128,
                gated=0,
                why="derived",
            ),
            Row(
                {"BLOCK_M": 128, "BLOCK_N": 256, "BLOCK_K": 128, "num_warps": 8, "num_stages": 4, "FLATTEN": True, "SLICES": 2},
                gated=0,
                why="derived",
            ),
            Row(
                {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 128, "num_warps": 8, "num_stages": 4, "FLATTEN": True, "SLICES": 1},
                why="derived",
            ),
        ),
    ),
)
FLOAT = Forms(
    few=Table(
        "int8_matmul_float_few",
        KEY,
        (
            Row({"BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_K": 128, "num_warps": 4, "num_stages": 4}, bytes=TWO, M=16, why="derived"),
            Row({"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 128, "num_warps": 4, "num_stages": 3}, bytes=TWO, why="derived"),
            Row({"BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": 4}, M=16, why="derived"),
            Row({"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32, "num_warps": 4, "num_stages": 3}, why="derived"),
        ),
    ),
    tiles=Table(
        "int8_matmul_float_tiles",
        KEY,
        (
            Row({"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64, "num_warps": 8, "num_stages": 3}, gated=0, bytes=TWO, why="derived"),
            Row({"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 8, "num_stages": 3}, bytes=TWO, why="derived"),
            Row({"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32, "num_warps": 8, "num_stages": 3}, why="derived"),
        ),
    ),
)


def int8_matmul(
    x: Tensor,
    q: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    residual: Tensor | None = None,
    activations: str = "int8",
    gated: bool = False,
) -> Tensor:
    N = q.shape[0] // 2 if gated else q.shape[0]
    end = end_of(x, N, bias, residual, activation, gated)
    rows, weight, scale = as_rows(x), as_rows(q), scale.contiguous()
    if activations == "int8":
        x_q, x_scale = int8_cast(rows)
        y = multiply(Product(x_q, weight, end, x_scale, scale), INTEGER)
    else:
        y = multiply(Product(rows, weight, end, scale=scale, swapped=True), FLOAT)
    return y.reshape(*x.shape[:-1], N)


def int8_quantize_weight(w: Tensor) -> tuple[Tensor, Tensor]:
    q, scale = int8_cast(w)
    return q, scale.reshape(-1)


OPS: dict[str, Callable[..., Any]] = {"int8_matmul": int8_matmul, "int8_quantize_weight": int8_quantize_weight}
