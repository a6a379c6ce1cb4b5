"""fused_matmul on CUDA tensors: deepseek_fast/gpu/gemm_kernels.py with this room's tiles."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from deepseek_fast.gpu.gemm import Forms, Product, multiply
from deepseek_fast.gpu.linear import as_rows, end_of
from deepseek_fast.gpu.tiles import Config, Row, Table

TWO = 2  # bytes of bfloat16 and float16
KEY = "bytes gated M N K"


def _tile(block_m: int, block_n: int, block_k: int, warps: int, stages: int, **more: Any) -> Config:
    return {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k, "num_warps": warps, "num_stages": stages} | more


# A stage is a tile of x and one of the weight, or two where gated. On 9.0 and 10.0 num_stages of them are in shared
# memory, elsewhere one less.
FORMS = Forms(
    few=Table(
        "fused_matmul_few",
        KEY,
        (
            Row(
                _tile(16, 32, 128, 4, 5), bytes=TWO, M=16, N=4096, why="derived: tiles enough for every multiprocessor"
            ),
            Row(_tile(16, 64, 128, 4, 5), bytes=TWO, M=16, gated=0, why="derived: 64 KiB of the weight on their way"),
            Row(_tile(16, 32, 128, 4, 5), bytes=TWO, M=16, why="derived: gated, the same bytes on their way"),
            Row(_tile(64, 32, 128, 4, 4), bytes=TWO, N=4096, gated=0, why="derived: as for 16 rows"),
            Row(_tile(64, 64, 128, 4, 3), bytes=TWO, why="derived: two stages of 48 KiB where gated fit any chip"),
            Row(_tile(16, 32, 64, 4, 4), M=16, why="derived: the bytes of 128 bfloat16, parts of TF32 in registers"),
            Row(_tile(64, 32, 32, 4, 4), why="derived: parts of TF32 in registers"),
        ),
    ),
    tiles=Table(
        "fused_matmul_tiles",
        KEY,
        (
            Row(_tile(128, 128, 64, 8, 4, SLICES=2), bytes=TWO, gated=0, why="derived: three stages fit any chip"),
            Row(_tile(128, 64, 64, 8, 4), bytes=TWO, why="derived: the same with two factors"),
            Row(_tile(128, 64, 32, 8, 3), gated=0, why="derived: registers for the parts of TF32"),
            Row(_tile(64, 64, 16, 8, 4), why="derived: registers for the parts of TF32 of three tiles"),
        ),
    ),
    tma=Table(
        "fused_matmul_tma",
        KEY,
        (
            Row(_tile(128, 128, 64, 8, 5, FLATTEN=True, SLICES=2), M=256, gated=0, why="derived: more tiles"),
            Row(_tile(128, 256, 64, 8, 4, FLATTEN=True, SLICES=2), gated=0, why="derived: 171 operations a byte of L2"),
            Row(_tile(128, 128, 64, 8, 4, FLATTEN=True, SLICES=2), why="derived: the same with two factors"),
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
