"""compute="float" on GPUs: x as it is, the weight decoded in registers, a float32 sum a block times the block's scale.

Both kernels multiply W @ x^T, so that the weight is the operand that tensor cores take from registers: y^T tiles of
BLOCK_N rows of W and BLOCK_M rows of x. A gated tile has rows of both factors, half and half.
"""

import triton
import triton.language as tl

from deepseek_fast.gpu.linear import finish
from deepseek_fast.kernels.int4_matmul.triton_decode import floats, product


@triton.jit
def _int4_few(
    x, q, scale, zeros, y, bias, residual,
    M, N, K, x_stride, q_stride, scale_stride, zeros_stride, group_step, y_stride, residual_stride,
    BLOCK_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SLICES: tl.constexpr, STAGES: tl.constexpr,
    EVEN: tl.constexpr, DTYPE: tl.constexpr, HAS_ZEROS: tl.constexpr, ACTIVATION: tl.constexpr, GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    """A few rows of x: bound by the weight's bytes. SLICES blocks of k at a time, a warp each, for enough in flight.

    EVEN: K is a multiple of SLICES * BLOCK_K. group_step: 1, or 0 where one scale serves the whole row.
    """
    weight_row = weight_rows(tl.program_id(0), N, BLOCK_N, GATED)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    slice_ = tl.arange(0, SLICES)
    k = tl.arange(0, BLOCK_K)
    j = tl.arange(0, BLOCK_K // 2)
    x_at = x + m.to(tl.int64)[None, None, :] * x_stride + slice_[:, None, None] * BLOCK_K + k[None, :, None]
    q_at = q + weight_row[None, :, None] * q_stride + slice_[:, None, None] * (BLOCK_K // 2) + j[None, None, :]
    scale_at = scale + weight_row[None, :] * scale_stride + slice_[:, None] * group_step
    blocks = tl.cdiv(K, BLOCK_K)
    if HAS_ZEROS:  # bytes cannot be copied asynchronously: they are loaded a step ahead
        zeros_at = zeros + weight_row[None, :] * zeros_stride + slice_[:, None] * group_step
        next_zero = tl.load(zeros_at, (slice_ < blocks)[:, None], 0)
    total = tl.zeros([SLICES, BLOCK_N, BLOCK_M], tl.float32)
    for first in tl.range(0, blocks, SLICES, num_stages=STAGES):
        if EVEN:
            codes = tl.load(q_at)
            x_tile = tl.load(x_at, (m < M)[None, None, :], 0.0)
            step = tl.load(scale_at)
        else:
            at = first + slice_
            codes = tl.load(q_at, (at[:, None] * (BLOCK_K // 2) + j[None, :] < (K + 1) // 2)[:, None, :], 0)
            inside = (at[:, None] * BLOCK_K + k[None, :] < K)[:, :, None] & (m < M)[None, None, :]
            x_tile = tl.load(x_at, inside, 0.0)
            step = tl.load(scale_at, (at < blocks)[:, None], 0.0)
        zero = tl.full([SLICES, BLOCK_N, 1], 8, tl.int32)
        if HAS_ZEROS:
            zero = next_zero.to(tl.int32)[:, :, None]
            zeros_at += SLICES * group_step
            next_zero = tl.load(zeros_at, (first + SLICES + slice_ < blocks)[:, None], 0)
        w = floats(codes, tl.broadcast_to(zero, [SLICES, BLOCK_N, BLOCK_K // 2]), DTYPE, True)
        acc = tl.zeros([SLICES, BLOCK_N, BLOCK_M], tl.float32)
        acc = product(w.reshape(SLICES, BLOCK_N, BLOCK_K), x_tile, acc)
        total += acc * step[:, :, None]
        q_at += SLICES * (BLOCK_K // 2)
        x_at += SLICES * BLOCK_K
        scale_at += SLICES * group_step
    end_tile(
        tl.sum(total, 0), y, y_stride, bias, residual, residual_stride, m, tl.program_id(0), M, N,
        BLOCK_M, BLOCK_N, ACTIVATION, GATED, HAS_BIAS, RESIDUAL,
    )  # fmt: skip


@triton.jit
def _int4_tile(
    x, q, scale, zeros, y, bias, residual, partial,
    M, N, K, x_stride, q_stride, scale_stride, zeros_stride, group_step, y_stride, residual_stride, blocks_a_split,
    BLOCK_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SPLITS: tl.constexpr, STAGES: tl.constexpr,
    WORDS: tl.constexpr, DTYPE: tl.constexpr, HAS_ZEROS: tl.constexpr, ACTIVATION: tl.constexpr, GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    """Many rows of x, K a multiple of BLOCK_K.

    SPLITS > 1: each program of axis 1 sums its blocks of k into partial, which _int4_sum adds up.
    """
    tile_m, tile_n = tile_of(tl.program_id(0), M, N, BLOCK_M, BLOCK_N // 2 if GATED else BLOCK_N)
    weight_row = weight_rows(tile_n, N, BLOCK_N, GATED)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    j = tl.arange(0, BLOCK_K // 2)
    begin = tl.program_id(1) * blocks_a_split
    end = tl.minimum(begin + blocks_a_split, K // BLOCK_K)
    # Rows beyond the last are the last one's, so that no load has a mask.
    x_at = x + tl.minimum(m, M - 1).to(tl.int64)[None, :] * x_stride + (k[:, None] + begin * BLOCK_K)
    q_at = q + weight_row[:, None] * q_stride + (j[None, :] + begin * (BLOCK_K // 2))
    scale_at = scale + weight_row * scale_stride + begin * group_step
    if HAS_ZEROS:  # in the order of the steps beside each other: after the first of 32, from L1
        zeros_at = zeros + weight_row * zeros_stride + begin * group_step
    total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for _ in tl.range(begin, end, num_stages=STAGES):
        codes = tl.load(q_at)
        x_tile = tl.load(x_at)
        step = tl.load(scale_at)
        zero = tl.full([BLOCK_N, 1], 8, tl.int32)
        if HAS_ZEROS:
            zero = tl.load(zeros_at).to(tl.int32)[:, None]
            zeros_at += group_step
        w = floats(codes, tl.broadcast_to(zero, [BLOCK_N, BLOCK_K // 2]), DTYPE, WORDS)
        acc = product(w.reshape(BLOCK_N, BLOCK_K), x_tile, tl.zeros([BLOCK_N, BLOCK_M], tl.float32))
        total += acc * step[:, None]
        q_at += BLOCK_K // 2
        x_at += BLOCK_K
        scale_at += group_step
    if SPLITS > 1:
        # partial: (SPLITS, weight rows, M)
        r = tl.arange(0, BLOCK_N)
        inside = (output_column(tile_n, r, BLOCK_N, GATED) < N)[:, None] & (m < M)[None, :]
        rows = N * 2 if GATED else N
        at = partial + (tl.program_id(1).to(tl.int64) * rows + weight_row)[:, None] * M + m[None, :]
        tl.store(at, total, inside)
    else:
        end_tile(
            total, y, y_stride, bias, residual, residual_stride, m, tile_n, M, N,
            BLOCK_M, BLOCK_N, ACTIVATION, GATED, HAS_BIAS, RESIDUAL,
        )  # fmt: skip


@triton.jit
def _int4_sum(
    partial, y, bias, residual, M, N, y_stride, residual_stride,
    SPLITS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, ACTIVATION: tl.constexpr, GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    """The splits' sums in their order, then the end of the tile."""
    weight_row = weight_rows(tl.program_id(0), N, BLOCK_N, GATED)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    rows = N * 2 if GATED else N
    total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for split in tl.static_range(SPLITS):
        at = partial + (weight_row + tl.full([], split, tl.int64) * rows)[:, None] * M + m[None, :]
        total += tl.load(at, (m < M)[None, :], 0.0)
    end_tile(
        total, y, y_stride, bias, residual, residual_stride, m, tl.program_id(0), M, N,
        BLOCK_M, BLOCK_N, ACTIVATION, GATED, HAS_BIAS, RESIDUAL,
    )  # fmt: skip


@triton.jit
def tile_of(program, M, N, BLOCK_M: tl.constexpr, COLUMNS: tl.constexpr):
    """The tile of a program: eight tiles of M after another for the same columns, so that the L2 cache serves both."""
    TOGETHER: tl.constexpr = 8
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, COLUMNS)
    first = program // (TOGETHER * tiles_n) * TOGETHER
    together = tl.minimum(tiles_m - first, TOGETHER)
    rest = program % (TOGETHER * tiles_n)
    return first + rest % together, rest // together


@triton.jit
def output_column(tile, r, BLOCK_N: tl.constexpr, GATED: tl.constexpr):
    if GATED:
        return tile * (BLOCK_N // 2) + r % (BLOCK_N // 2)
    else:
        return tile * BLOCK_N + r


@triton.jit
def weight_rows(tile, N, BLOCK_N: tl.constexpr, GATED: tl.constexpr):
    """Rows of the weight of a tile, int64; gated: as many of the other factor after them. Those past N are the last."""
    r = tl.arange(0, BLOCK_N)
    row = tl.minimum(output_column(tile, r, BLOCK_N, GATED), N - 1)
    if GATED:
        row += r // (BLOCK_N // 2) * N
    return row.to(tl.int64)


@triton.jit
def end_tile(
    total, y, y_stride, bias, residual, residual_stride, m, tile, M, N,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, ACTIVATION: tl.constexpr, GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    """total: (BLOCK_N, BLOCK_M) float32, the sums of weight_rows(tile) and rows m of x."""
    if GATED:
        n = tile * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
        gate, up = tl.split(total.reshape(2, BLOCK_N // 2, BLOCK_M).permute(2, 1, 0))
    else:
        n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        gate = total.trans()
        up = gate
    finish(
        gate, up, y, y_stride, bias, residual, residual_stride, m, n, M, N, ACTIVATION, GATED, HAS_BIAS, RESIDUAL
    )  # fmt: skip
