"""fused_matmul on CUDA tensors: deepseek_fast/gpu/gemm_kernels.py with this room's tiles."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from deepseek_fast.gpu.gemm import Forms, Product, multiply
from deepseek_fast.gpu.linear import as_rows, end_of
from deepseek_fast.gpu.tiles import Row, Table

TWO = 2  # bytes of bfloat16 and float16
_FEW = {"BLOCK_N": 64, "BLOCK_K": 128, "num_warps": 4}
FORMS = Forms(
    few=Table(
        "fused_matmul_few",
        "bytes gated M N K",
        (
            Row({**_FEW, "BLOCK_M": 16, "num_stages": 4}, bytes=TWO, M=16, why="derived: 64 KiB on their way"),
            Row({**_FEW, "BLOCK_M": 64, "num_stages": 3}, bytes=TWO, why="derived: three stages fit any chip"),
            Row({**_FEW, "BLOCK_M": 16, "BLOCK_K": 64, "num_stages": 4}, M=16, why="derived: the bytes of the first"),
            Row({**_FEW, "BLOCK_M": 64, "BLOCK_K": 32, "num_stages": 3}, why="derived: parts of TF32 in registers"),
        ),
    ),
    tiles=Table(
        "fused_matmul_tiles",
        "bytes gated M N K",
        (
            Row(
                {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64, "num_warps": 8, "num_stages": 3},
                bytes=TWO,
                gated=0,
                why="derived",
            ),
            Row(
                {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 8, "num_stages": 3},
                bytes=TWO,
                why="derived",
            ),
            Row({"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 32, "num_warps": 8, "num_stages": 3}, gated=0, why="derived"),
            Row({"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32, "num_warps": 8, "num_stages": 3}, why="derived"),
        ),
    ),
    tma=Table(
        "fused_matmul_tma",
        "bytes gated M N K",
        (
            Row(
                {"BLOCK_M": 128, "BLOCK_N": 256, "BLOCK_K": 64, "num_warps": 8, "num_stages": 3, "FLATTEN": True, "SLICES": 2},
                gated=0,
                why="derived",
            ),
            Row(
                {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64, "num_warps": 8, "num_stages": 3, "FLATTEN": True, "SLICES": 1},
                why="derived",
            ),
        ),
    ),
)


def fused_matmul(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    residual: Tensor | None = None,
    gated: bool = False,
) -> Tensor:
    N = weight.shape[0] // 2 if gated else weight.shape[0]
    end = end_of(x, N, bias, residual, activation, gated)
    return multiply(Product(as_rows(x), as_rows(weight), end), FORMS).reshape(*x.shape[:-1], N)


OPS: dict[str, Callable[..., Any]] = {"fused_matmul": fused_matmul}
