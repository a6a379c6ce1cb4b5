"""compute="int8" on GPUs: x quantized by row and block of k, int32 sums a block, float32 sums in the blocks' order.

Bit for bit what the CPU computes: each operation rounded to float32, none contracted (enable_fp_fusion=False).
"""

import triton
import triton.language as tl

from deepseek_fast.kernels.int4_matmul.triton_decode import integers
from deepseek_fast.kernels.int4_matmul.triton_float import end_tile, tile_of, weight_rows


@triton.jit
def _int4_quantize_x(
    x, x_q, x_scale, K, blocks, x_stride, x_q_stride, x_scale_stride, BLOCK_K: tl.constexpr, BLOCKS: tl.constexpr
):
    """x_q: (M, blocks * BLOCK_K) int8, zeros from K on; x_scale: (blocks, M)."""
    parts = tl.cdiv(blocks, BLOCKS)  # of a row: a program's
    row = (tl.program_id(0) // parts).to(tl.int64)
    block = tl.program_id(0) % parts * BLOCKS + tl.arange(0, BLOCKS)
    k = block[:, None] * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    v = tl.load(x + row * x_stride + k, k < K, 0.0).to(tl.float32)
    # amax = x.abs().amax(-1): as bits, of which NaN's are the largest
    size = v.to(tl.uint32, bitcast=True) & 0x7FFFFFFF
    amax = tl.max(size, 1).to(tl.float32, bitcast=True)
    finite = amax < float("inf")
    # inverse = 127 / amax, 0 below 2^-100; q = round(x * inverse), scale = amax / 127
    counts = finite & (amax >= 7.888609052210118e-31)
    inverse = tl.where(counts, tl.div_rn(127.0, tl.where(counts, amax, 1.0)), 0.0)
    # Adding 1.5 * 2^23 rounds to an integer, half to even, in the low bits.
    sum_ = tl.where(finite[:, None], v, 0.0) * inverse[:, None] + 12582912.0
    code = sum_.to(tl.int32, bitcast=True) - 0x4B400000
    inside = block < blocks
    tl.store(x_q + row * x_q_stride + k, code.to(tl.int8), inside[:, None])
    step = tl.where(finite, tl.div_rn(amax, 127.0), float("nan"))
    tl.store(x_scale + block.to(tl.int64) * x_scale_stride + row, step, inside)


@triton.jit
def _int4_int8_tile(
    x_q, x_scale, q, scale, zeros, y, bias, residual,
    M, N, K, x_q_stride, x_scale_stride, q_stride, scale_stride, zeros_stride, group_step, y_stride, residual_stride,
    BLOCK_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
    HAS_ZEROS: tl.constexpr, ACTIVATION: tl.constexpr, GATED: tl.constexpr, HAS_BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
):  # fmt: skip
    """Many rows of x, K a multiple of BLOCK_K. group_step: 1, or 0 where one scale serves the whole row."""
    tile_m, tile_n = tile_of(tl.program_id(0), M, N, BLOCK_M, BLOCK_N // 2 if GATED else BLOCK_N)
    weight_row = weight_rows(tile_n, N, BLOCK_N, GATED)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    j = tl.arange(0, BLOCK_K // 2)
    # Rows beyond the last are the last one's.
    x_row = tl.minimum(m, M - 1).to(tl.int64)
    x_at = x_q + x_row[None, :] * x_q_stride + k[:, None]
    x_scale_at = x_scale + x_row
    q_at = q + weight_row[:, None] * q_stride + j[None, :]
    scale_at = scale + weight_row * scale_stride
    blocks = K // BLOCK_K
    if HAS_ZEROS:  # in the order of the steps beside each other: after the first of 32, from L1
        zeros_at = zeros + weight_row * zeros_stride
    total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for _ in tl.range(0, blocks, num_stages=STAGES):
        codes = tl.load(q_at)
        x_tile = tl.load(x_at)
        step = tl.load(scale_at)
        x_step = tl.load(x_scale_at)
        zero = tl.full([BLOCK_N, 1], 8, tl.uint8)
        if HAS_ZEROS:
            zero = tl.load(zeros_at)[:, None]
            zeros_at += group_step
        w = integers(codes, tl.broadcast_to(zero, [BLOCK_N, BLOCK_K // 2])).reshape(BLOCK_N, BLOCK_K)
        acc = tl.dot(w, x_tile, out_dtype=tl.int32)
        total += (_float(acc) * x_step[None, :]) * step[:, None]
        q_at += BLOCK_K // 2
        x_at += BLOCK_K
        scale_at += group_step
        x_scale_at += x_scale_stride
    end_tile(
        total, y, y_stride, bias, residual, residual_stride, m, tile_n, M, N,
        BLOCK_M, BLOCK_N, ACTIVATION, GATED, HAS_BIAS, RESIDUAL,
    )  # fmt: skip


@triton.jit
def _int4_int8_few(
    x_q, x_scale, q, scale, zeros, y, bias, residual,
    M, N, K, x_q_stride, x_scale_stride, q_stride, scale_stride, zeros_stride, group_step, y_stride, residual_stride,
    BLOCK_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr, EVEN: tl.constexpr,
    HAS_ZEROS: tl.constexpr, ACTIVATION: tl.constexpr, GATED: tl.constexpr, HAS_BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
):  # fmt: skip
    """A few rows of x: eight blocks of k at a time, a warp each, whose terms are then added in their order.

    EVEN: K is a multiple of 8 * BLOCK_K.
    """
    SLICES: tl.constexpr = 8
    weight_row = weight_rows(tl.program_id(0), N, BLOCK_N, GATED)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    slice_ = tl.arange(0, SLICES)
    k = tl.arange(0, BLOCK_K)
    j = tl.arange(0, BLOCK_K // 2)
    x_row = m.to(tl.int64)
    x_at = x_q + x_row[None, None, :] * x_q_stride + slice_[:, None, None] * BLOCK_K + k[None, :, None]
    x_scale_at = x_scale + slice_.to(tl.int64)[:, None] * x_scale_stride + x_row[None, :]
    q_at = q + weight_row[None, :, None] * q_stride + slice_[:, None, None] * (BLOCK_K // 2) + j[None, None, :]
    scale_at = scale + weight_row[None, :] * scale_stride + slice_[:, None] * group_step
    blocks = tl.cdiv(K, BLOCK_K)
    if HAS_ZEROS:  # bytes cannot be copied asynchronously: they are loaded a step ahead
        zeros_at = zeros + weight_row[None, :] * zeros_stride + slice_[:, None] * group_step
        next_zero = tl.load(zeros_at, (slice_ < blocks)[:, None], 0)
    total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for first in tl.range(0, blocks, SLICES, num_stages=STAGES):
        if EVEN:
            codes = tl.load(q_at)
            x_tile = tl.load(x_at, (m < M)[None, None, :], 0)
            step = tl.load(scale_at)
            x_step = tl.load(x_scale_at, (m < M)[None, :], 0.0)
        else:
            at = first + slice_
            codes = tl.load(q_at, (at[:, None] * (BLOCK_K // 2) + j[None, :] < (K + 1) // 2)[:, None, :], 0)
            x_tile = tl.load(x_at, (at < blocks)[:, None, None] & (m < M)[None, None, :], 0)
            step = tl.load(scale_at, (at < blocks)[:, None], 0.0)
            x_step = tl.load(x_scale_at, (at < blocks)[:, None] & (m < M)[None, :], 0.0)
        zero = tl.full([SLICES, BLOCK_N, 1], 8, tl.uint8)
        if HAS_ZEROS:
            zero = next_zero[:, :, None]
            zeros_at += SLICES * group_step
            next_zero = tl.load(zeros_at, (first + SLICES + slice_ < blocks)[:, None], 0)
        w = integers(codes, tl.broadcast_to(zero, [SLICES, BLOCK_N, BLOCK_K // 2]))
        acc = tl.dot(w.reshape(SLICES, BLOCK_N, BLOCK_K), x_tile, out_dtype=tl.int32)
        terms = (_float(acc) * x_step[:, None, :]) * step[:, :, None]
        # A slice beyond the last block has the term 0, which changes nothing: total is never -0.
        even, odd = tl.split(terms.permute(1, 2, 0).reshape(BLOCK_N, BLOCK_M, 2, 2, 2))
        even, odd = tl.split(even), tl.split(odd)
        first_half, second_half = _by_halves(even, odd)
        for i in tl.static_range(4):
            total += first_half[i]
        for i in tl.static_range(4):
            total += second_half[i]
        q_at += SLICES * (BLOCK_K // 2)
        x_at += SLICES * BLOCK_K
        scale_at += SLICES * group_step
        x_scale_at += SLICES * x_scale_stride
    end_tile(
        total, y, y_stride, bias, residual, residual_stride, m, tl.program_id(0), M, N,
        BLOCK_M, BLOCK_N, ACTIVATION, GATED, HAS_BIAS, RESIDUAL,
    )  # fmt: skip


@triton.jit
def _by_halves(even, odd):
    """Terms 0 to 3 and 4 to 7, from pairs (0, 4), (2, 6) and (1, 5), (3, 7)."""
    t0, t4 = tl.split(even[0])
    t2, t6 = tl.split(even[1])
    t1, t5 = tl.split(odd[0])
    t3, t7 = tl.split(odd[1])
    return (t0, t1, t2, t3), (t4, t5, t6, t7)


@triton.jit
def _float(acc):
    """int32 to float32 by the mantissa of 1.5 * 2^23: exact, |acc| is below 2^18."""
    return (acc + 0x4B400000).to(tl.float32, bitcast=True) - 12582912.0
