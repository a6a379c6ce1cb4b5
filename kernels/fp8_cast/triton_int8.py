"""int8_cast: a row's codes and scale."""

import triton
import triton.language as tl

from deepseek_fast.gpu.numbers import widen


@triton.jit
def _int8_cast(x, q, scale, x_stride, K, BLOCK_K: tl.constexpr, WHOLE: tl.constexpr):
    """WHOLE: a row is one block, and is read once."""
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK_K)
    # amax = x.abs().amax(-1), NaN where there is one: NaN's bits are the largest
    v = widen(tl.load(x + row * x_stride + k, k < K, 0.0))
    largest = v.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    if not WHOLE:
        for first in range(BLOCK_K, K, BLOCK_K):
            v = widen(tl.load(x + row * x_stride + first + k, first + k < K, 0.0))
            largest = tl.maximum(largest, v.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
    amax = tl.max(largest, 0).to(tl.float32, bitcast=True)
    # q = round(x * (127 / amax)), zeros where amax is below 2^-100 or not finite: 127 / amax must stay finite
    finite = amax < float("inf")
    inverse = tl.where(finite & (amax >= 7.888609052210118e-31), tl.div_rn(127.0, amax), 0.0)
    if WHOLE:
        tl.store(q + row * K + k, _code(v, inverse, finite), k < K)
    else:
        for first in range(0, K, BLOCK_K):
            v = widen(tl.load(x + row * x_stride + first + k, first + k < K, 0.0))
            tl.store(q + row * K + first + k, _code(v, inverse, finite), first + k < K)
    tl.store(scale + row, tl.where(finite, tl.div_rn(amax, 127.0), float("nan")))


@triton.jit
def _code(v, inverse, finite):
    # Adding 1.5 * 2^23 rounds to an integer, half to even, in the low bits.
    total = tl.where(finite, v * inverse, 0.0) + 12582912.0
    return (total.to(tl.int32, bitcast=True) - 0x4B400000).to(tl.int8)
