"""fp8_cast and its family on CUDA tensors, with the CPU kernels' bits."""

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepseek_fast.gpu.launch import launch
from deepseek_fast.gpu.linear import as_rows
from deepseek_fast.gpu.tiles import Row, Table

AMAX_MIN = 2.0**-100  # a row whose largest size is below counts as zeros: 127 / amax must stay finite

INT8 = Table(
    "int8_cast",
    "K",
    (
        Row({"BLOCK_K": 1024, "num_warps": 4}, K=1024, why="derived: one pass, 8 values a thread in 16-byte loads"),
        Row({"BLOCK_K": 4096, "num_warps": 8}, why="derived: 16 values a thread; longer rows are read again, from L2"),
    ),
)


def int8_cast(x: Tensor) -> tuple[Tensor, Tensor]:
    rows = as_rows(x)
    M, K = rows.shape
    q, scale = x.new_empty(x.shape, dtype=torch.int8), x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
    config = INT8.choose(K=K)
    # The bits of the CPU's kernel: nothing may be contracted.
    launch(_int8_cast, (M,), rows, q, scale, rows.stride(0), K, **config, enable_fp_fusion=False)
    return q, scale


@triton.jit
def _int8_cast(x, q, scale, x_stride, K, BLOCK_K: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK_K)
    # amax = x.abs().amax(-1), NaN where there is one
    largest = tl.zeros([BLOCK_K], tl.float32)
    for first in range(0, K, BLOCK_K):
        v = tl.load(x + row * x_stride + first + k, first + k < K, 0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.abs(v), propagate_nan=tl.PropagateNan.ALL)
    amax = tl.max(largest.to(tl.uint32, bitcast=True), 0).to(tl.float32, bitcast=True)  # NaN's bits are the largest
    # q = round(x * (127 / amax)), zeros where amax is below AMAX_MIN or not finite
    finite = amax < float("inf")
    inverse = tl.where(finite & (amax >= 7.888609052210118e-31), tl.div_rn(127.0, amax), 0.0)
    for first in range(0, K, BLOCK_K):
        v = tl.load(x + row * x_stride + first + k, first + k < K, 0.0).to(tl.float32)
        # Adding 1.5 * 2^23 rounds to an integer, half to even, in the low bits.
        sum_ = tl.where(finite, v * inverse, 0.0) + 12582912.0
        code = sum_.to(tl.int32, bitcast=True) - 0x4B400000
        tl.store(q + row * K + first + k, code.to(tl.int8), first + k < K)
    tl.store(scale + row, tl.where(finite, tl.div_rn(amax, 127.0), float("nan")))


OPS: dict[str, Callable[..., Any]] = {"int8_cast": int8_cast}
