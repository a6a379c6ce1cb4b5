"""int8_matmul on CUDA tensors: deepseek_fast/gpu/gemm_kernels.py with this room's tiles and scales.

W8A8 has the CPU's bits; rows of x and of a weight are quantized by int8_cast's kernel, whose rule they share.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from deepseek_fast.gpu.gemm import Forms, Product, multiply
from deepseek_fast.gpu.linear import as_rows, end_of
from deepseek_fast.gpu.tiles import Config, Row, Table
from deepseek_fast.kernels.fp8_cast.triton_kernel import int8_cast

TWO = 2  # bytes of bfloat16 and float16
KEY = "bytes gated M N K"


def _tile(block_m: int, block_n: int, block_k: int, warps: int, stages: int, **more: Any) -> Config:
    return {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k, "num_warps": warps, "num_stages": stages} | more


# A stage is a tile of x and one of the weight, or two where gated. On 9.0 and 10.0 num_stages of them are in shared
# memory, elsewhere one less; where products are mma.sync always one less.
INTEGER = Forms(
    few=Table(
        "int8_matmul_few",
        KEY,
        (
            Row(_tile(16, 32, 256, 4, 5), M=16, N=4096, why="derived: tiles enough for every multiprocessor"),
            Row(_tile(16, 64, 256, 4, 5), M=16, gated=0, why="derived: 64 KiB of the weight on their way"),
            Row(_tile(16, 32, 256, 4, 5), M=16, why="derived: gated, the same bytes on their way"),
            Row(_tile(64, 64, 256, 4, 3), why="derived: two stages of 48 KiB where gated fit any chip"),
        ),
    ),
    tiles=Table(
        "int8_matmul_tiles",
        KEY,
        (
            Row(_tile(128, 128, 128, 8, 4, SLICES=2), gated=0, why="derived: three stages fit any chip"),
            Row(_tile(128, 64, 128, 8, 4), why="derived: the same with two factors"),
        ),
    ),
    tma=Table(
        "int8_matmul_tma",
        KEY,
        (
            Row(
                _tile(128, 128, 128, 8, 5, FLATTEN=True, SLICES=2),
                M=128,
                gated=0,
                why="derived: x is read N / 128 times",
            ),
            Row(
                _tile(128, 256, 128, 8, 4, FLATTEN=True, SLICES=2),
                gated=0,
                K=4096,
                why="derived: 341 operations a byte",
            ),
            # Triton waits for every product of integers before the next one: half as many waits.
            Row(_tile(128, 256, 256, 8, 2, FLATTEN=True, SLICES=2), gated=0, why="derived: 96 KiB on their way"),
            Row(_tile(128, 128, 128, 8, 4, FLATTEN=True, SLICES=2), why="derived: the same with two factors"),
        ),
    ),
)
# The weight is the left factor, which comes from registers, where it becomes x's dtype.
FLOAT = Forms(
    few=Table(
        "int8_matmul_float_few",
        KEY,
        (
            Row(
                _tile(16, 32, 256, 4, 5), bytes=TWO, M=16, N=4096, why="derived: tiles enough for every multiprocessor"
            ),
            Row(_tile(16, 64, 256, 4, 4), bytes=TWO, M=16, gated=0, why="derived: 48 KiB of the weight on their way"),
            Row(_tile(16, 32, 256, 4, 4), bytes=TWO, M=16, why="derived: gated, the same bytes on their way"),
            Row(_tile(64, 64, 128, 4, 4), bytes=TWO, why="derived: three stages of 32 KiB where gated fit any chip"),
            Row(_tile(16, 32, 64, 4, 4), M=16, why="derived: parts of TF32 in registers"),
            Row(_tile(64, 32, 32, 4, 4), why="derived: parts of TF32 in registers"),
        ),
    ),
    tiles=Table(
        "int8_matmul_float_tiles",
        KEY,
        (
            Row(_tile(128, 128, 64, 8, 4, SLICES=2), gated=0, bytes=TWO, why="derived: three stages fit any chip"),
            Row(_tile(128, 64, 64, 8, 4), bytes=TWO, why="derived: the same with two factors"),
            Row(_tile(64, 64, 16, 8, 4), why="derived: registers for the parts of TF32 of three tiles"),
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
