"""int4_matmul on CUDA tensors: which kernel, with which tiles."""

from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

from deepseek_fast.gpu.launch import arch, launch
from deepseek_fast.gpu.linear import DTYPES, End, as_rows, end_of
from deepseek_fast.gpu.tiles import Config, Row, Table
from deepseek_fast.kernels.int4_matmul.triton_float import _int4_few, _int4_sum, _int4_tile
from deepseek_fast.kernels.int4_matmul.triton_int8 import _int4_int8_few, _int4_int8_tile, _int4_quantize_x

WHOLE_ROW_BLOCK = 128  # values of k that are summed at a time where one scale serves the whole row
FEW_ROWS = 16  # of x, up to which the weight's bytes bound the time: the form that keeps most of them under way
SLICES = 8  # blocks of k that the form for few rows sums side by side, for every M, so that rows keep their bits
WARPGROUP = (90, 100)  # chips whose products take 64 rows of the left factor

# Nothing here is measured. Sizes: M, N (outputs), K, BYTES (of a value of x). num_stages is for blocks of 128 values.
# Shared memory of the few rows' form: SLICES * 128 * (BLOCK_N / 2 + BLOCK_M * BYTES) for each stage but one.
MOST_STAGES = 6  # of shorter blocks: enough for the latency of memory, and each lengthens the code before the loop
FEW = Table(
    "int4_matmul_few",
    "M N K BYTES",
    (
        Row(
            {"BLOCK_M": 8, "BLOCK_N": 16, "num_warps": 8, "num_stages": 4},
            M=8, N=4096, BYTES=2, why="derived: 256 programs at N = 4096, 75 KB, 64 registers: three an SM",
        ),
        Row(
            {"BLOCK_M": 8, "BLOCK_N": 32, "num_warps": 8, "num_stages": 3},
            M=8, BYTES=2, why="derived: one mma.sync is 8 rows wide; 68 KB, 80 registers: three programs an SM",
        ),
        Row(
            {"BLOCK_M": 16, "BLOCK_N": 32, "num_warps": 8, "num_stages": 3},
            N=16384, BYTES=2, why="derived: 100 KB, 98 registers, two programs an SM",
        ),
        Row(
            {"BLOCK_M": 16, "BLOCK_N": 64, "num_warps": 8, "num_stages": 3},
            BYTES=2, archs=(80, 90, 100), why="derived: 135 KB, 170 registers; x is read half as often",
        ),
        Row({"BLOCK_M": 16, "BLOCK_N": 32, "num_warps": 8, "num_stages": 3}, BYTES=2, why="derived: as above, 100 KB"),
        Row(
            {"BLOCK_M": 8, "BLOCK_N": 32, "num_warps": 8, "num_stages": 2},
            why="derived: float32 x, three products: 50 KB and 186 registers, also for chips with 100 KB",
        ),
    ),
)  # fmt: skip
TILE = Table(
    "int4_matmul_tile",
    "M N K BYTES",
    (
        Row(
            {"BLOCK_M": 64, "BLOCK_N": 128, "SPLITS": 4, "num_warps": 8, "num_stages": 3},
            M=64, N=16384, BYTES=2, why="derived: 256 programs at N = 8192; each would wait for itself without splits",
        ),
        Row(
            {"BLOCK_M": 64, "BLOCK_N": 128, "SPLITS": 1, "num_warps": 8, "num_stages": 3},
            M=256, BYTES=2, why="derived: tiles for every SM before larger tiles; 75 KB with zero points",
        ),
        Row(
            {"BLOCK_M": 128, "BLOCK_N": 64, "SPLITS": 1, "num_warps": 4, "num_stages": 3},
            M=1024, BYTES=2, archs=(90,), why="derived: two programs an SM: one decodes while the other multiplies",
        ),
        Row(
            {"BLOCK_M": 128, "BLOCK_N": 128, "SPLITS": 1, "num_warps": 8, "num_stages": 3},
            BYTES=2, archs=WARPGROUP, why="derived: two warpgroups decode 64 rows of W each, for 128 rows of x",
        ),
        Row(
            {"BLOCK_M": 64, "BLOCK_N": 128, "SPLITS": 1, "num_warps": 8, "num_stages": 3},
            BYTES=2, why="derived: 174 registers, where 128 x 128 spills: warps decode the same rows twice",
        ),
        Row(
            {"BLOCK_M": 32, "BLOCK_N": 128, "SPLITS": 1, "num_warps": 8, "num_stages": 3},
            archs=WARPGROUP, why="derived: float32 x, three products of parts in shared memory: 160 registers",
        ),
        Row(
            {"BLOCK_M": 16, "BLOCK_N": 128, "SPLITS": 1, "num_warps": 8, "num_stages": 3},
            why="derived: float32 x, three products of parts in registers, 154; more rows spill",
        ),
    ),
)  # fmt: skip
INT8_FEW = Table(
    "int4_matmul_int8_few",
    "M N K",
    (
        Row(
            {"BLOCK_M": 8, "BLOCK_N": 32, "num_warps": 8, "num_stages": 3},
            M=8, why="derived: one mma.sync is 8 rows wide; 60 KB, 54 registers: three programs an SM",
        ),
        Row(
            {"BLOCK_M": 16, "BLOCK_N": 32, "num_warps": 8, "num_stages": 3},
            why="derived: 85 KB, 100 registers, two programs an SM",
        ),
    ),
)  # fmt: skip
INT8_TILE = Table(
    "int4_matmul_int8_tile",
    "M N K",
    (
        Row(
            {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 4, "num_stages": 4},
            M=256, why="derived: tiles for every SM before larger tiles, as k cannot be split: its order is fixed",
        ),
        Row(
            {"BLOCK_M": 128, "BLOCK_N": 64, "num_warps": 4, "num_stages": 3},
            archs=(90,), why="derived: two programs an SM: one decodes and scales while the other multiplies",
        ),
        Row(
            {"BLOCK_M": 128, "BLOCK_N": 128, "num_warps": 8, "num_stages": 3},
            why="derived: 242 registers at most; scaling a block costs as much as decoding 64 columns of it",
        ),
    ),
)  # fmt: skip


def int4_matmul(
    x: Tensor,
    q: Tensor,
    scale: Tensor,
    zeros: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    group_size: int = 32,
    in_features: int = -1,
    activation: str = "none",
    residual: Tensor | None = None,
    compute: str = "int8",
    gated: bool = False,
) -> Tensor:
    N = q.shape[0] // 2 if gated else q.shape[0]
    end = end_of(x, N, bias, residual, activation, gated)
    if end.y.numel():
        run = _int8 if compute == "int8" else _float
        run(as_rows(x), _Weight(q, scale, zeros, group_size), end)
    return end.y.reshape(*x.shape[:-1], N)


class _Weight:
    """The plain weight, its rows contiguous, and how blocks of k go through it."""

    def __init__(self, q: Tensor, scale: Tensor, zeros: Tensor | None, group_size: int) -> None:
        self.q, self.scale, self.zeros = as_rows(q), as_rows(scale), None if zeros is None else as_rows(zeros)
        self.block_k = WHOLE_ROW_BLOCK if group_size < 0 else group_size
        self.group_step = 0 if group_size < 0 else 1

    def in_whole_blocks(self) -> "_Weight":
        self.q = _in_whole_blocks(self.q, self.block_k // 2)
        return self

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor | None]:
        return self.q, self.scale, self.zeros

    @property
    def strides(self) -> tuple[int, int, int, int]:
        zeros_stride = 0 if self.zeros is None else self.zeros.stride(0)
        return self.q.stride(0), self.scale.stride(0), zeros_stride, self.group_step


def _in_whole_blocks(rows: Tensor, block: int) -> Tensor:
    """Rows of whole blocks that begin at multiples of 16 bytes, as the form for many rows reads them: else a copy.

    Zeros fill it up. Beside so many products a copy is little, and few models have such sizes.
    """
    M, K = rows.shape
    if K % block == 0 and rows.stride(0) * rows.itemsize % 16 == 0:
        return rows
    whole = rows.new_zeros((M, triton.cdiv(K, block) * block))
    whole[:, :K] = rows
    return whole


def _float(x: Tensor, weight: _Weight, end: End) -> None:
    if x.shape[0] > FEW_ROWS:
        x, weight = _in_whole_blocks(x, weight.block_k), weight.in_whole_blocks()
    (M, K), N, block_k = x.shape, end.y.shape[1], weight.block_k
    sizes = {"M": M, "N": N, "K": K, "BYTES": x.itemsize}
    constants = {
        **end.constants,
        "BLOCK_K": block_k,
        "DTYPE": DTYPES[torch.float16 if x.dtype == torch.float16 else torch.bfloat16],
        "HAS_ZEROS": weight.zeros is not None,
    }
    tensors = (x, *weight.tensors, end.y, end.bias, end.residual)
    strides = (x.stride(0), *weight.strides, end.y.stride(0), end.residual_stride)
    if M <= FEW_ROWS:
        config = _staged(FEW.choose(**sizes), block_k)
        grid = (_tiles(N, config, end), triton.cdiv(M, config["BLOCK_M"]))
        constants |= {"EVEN": K % (SLICES * block_k) == 0, "SLICES": SLICES}
        launch(_int4_few, grid, *tensors, M, N, K, *strides, **constants, **config)
        return
    config = _staged(TILE.choose(**sizes), block_k)
    splits = config["SPLITS"]
    blocks = triton.cdiv(triton.cdiv(K, block_k), splits)
    partial = x.new_empty((splits, weight.q.shape[0], M), dtype=torch.float32) if splits > 1 else None
    grid = (_tiles(N, config, end) * triton.cdiv(M, config["BLOCK_M"]), splits)
    constants |= {"WORDS": not _is_wgmma(config)}
    launch(_int4_tile, grid, *tensors, partial, M, N, K, *strides, blocks, **constants, **config)
    if partial is not None:
        _sum(partial, M, N, end)


def _sum(partial: Tensor, M: int, N: int, end: End) -> None:
    config = {"BLOCK_M": 32, "BLOCK_N": 64, "num_warps": 4}  # 16 sums of each split a thread
    grid = (_tiles(N, config, end), triton.cdiv(M, config["BLOCK_M"]))
    launch(
        _int4_sum, grid, partial, end.y, end.bias, end.residual, M, N, end.y.stride(0), end.residual_stride,
        SPLITS=partial.shape[0], **end.constants, **config,
    )  # fmt: skip


def _int8(x: Tensor, weight: _Weight, end: End) -> None:
    (M, K), N, block_k = x.shape, end.y.shape[1], weight.block_k
    blocks, few = triton.cdiv(K, block_k), M <= FEW_ROWS
    x_q = x.new_empty((M, blocks * block_k), dtype=torch.int8)
    x_scale = x.new_empty((blocks, M), dtype=torch.float32)
    at_a_time = max(1, 1024 // block_k)  # blocks of k: 8 values a thread
    launch(
        _int4_quantize_x, (M * triton.cdiv(blocks, at_a_time),), x, x_q, x_scale, K, blocks,
        x.stride(0), x_q.stride(0), x_scale.stride(0), BLOCK_K=block_k, BLOCKS=at_a_time,
        num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    if not few:
        weight, K = weight.in_whole_blocks(), blocks * block_k
    tensors = (x_q, x_scale, *weight.tensors, end.y, end.bias, end.residual)
    strides = (x_q.stride(0), x_scale.stride(0), *weight.strides, end.y.stride(0), end.residual_stride)
    config = _staged((INT8_FEW if few else INT8_TILE).choose(M=M, N=N, K=K), block_k)
    tiles_n, tiles_m = _tiles(N, config, end), triton.cdiv(M, config["BLOCK_M"])
    constants = {**end.constants, "BLOCK_K": block_k, "HAS_ZEROS": weight.zeros is not None}
    kernel, grid = (_int4_int8_few, (tiles_n, tiles_m)) if few else (_int4_int8_tile, (tiles_n * tiles_m, 1))
    if few:
        constants["EVEN"] = K % (SLICES * block_k) == 0
    launch(kernel, grid, *tensors, M, N, K, *strides, **constants, **config, enable_fp_fusion=False)


def _staged(config: Config, block_k: int) -> Config:
    """As many bytes under way with shorter blocks of k; STAGES is for the loop, which so copies scales ahead, too."""
    stages = 1 + (config["num_stages"] - 1) * WHOLE_ROW_BLOCK // block_k
    stages = max(config["num_stages"], min(stages, MOST_STAGES))
    return {**config, "num_stages": stages, "STAGES": stages}


def _tiles(N: int, config: Config, end: End) -> int:
    """Tiles of the output's columns; half of a gated tile's rows are the other factor's."""
    rows = config["BLOCK_N"]
    return int(triton.cdiv(N, rows // 2 if end.constants["GATED"] else rows))


def _is_wgmma(config: Config) -> bool:
    return arch() == 90 and config["BLOCK_N"] >= 64 and config["num_warps"] >= 4


OPS: dict[str, Callable[..., Any]] = {"int4_matmul": int4_matmul}
