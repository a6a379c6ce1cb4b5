"""Products of rows with the rows of a weight, x @ w^T, and the ends of their tiles: kernels that linear rooms share.

Both factors have their K values contiguous. x and w of float32, bfloat16, float16: sums in float32; both int8: in
int32, exact; w alone int8: it becomes x's dtype in registers, exactly. SCALES: z = sums, times scale[n] from 1 on,
the row's x_scale[m] before it at 2. What follows is deepseek_fast.gpu.linear.finish.

    _tile        a block a tile; loads through pointers, of any stride and alignment
    _tile_tma    a block a multiprocessor, which takes tile after tile; loads by TMA
    _end_parts   the end of tiles whose K was split over SPLITS blocks: their sums, added in the order of K
"""

import triton
import triton.language as tl

from deepseek_fast.gpu import numbers
from deepseek_fast.gpu.linear import finish
from deepseek_fast.gpu.numbers import INTERPRET

ROW_SCALES = 2  # SCALES: of the rows of x, beside those of the weight


@triton.jit
def _tile(
    x, w, x_scale, scale, y, bias, residual,
    x_stride, w_stride, y_stride, residual_stride, M, N, K, span,
    SCALES: tl.constexpr, ACTIVATION: tl.constexpr, GATED: tl.constexpr, HAS_BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr, INT8: tl.constexpr, SWAPPED: tl.constexpr, SPLITS: tl.constexpr, WHOLE: tl.constexpr,
    SLICES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """WHOLE: K is SPLITS spans, so that nothing is masked. SLICES: as for _tile_tma, and as many registers less.

    SWAPPED: the weight is the product's left factor, of which 9.0 takes 64 rows at a time, and may take from registers.
    """
    m_tile, n_tile = _place(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), GROUP_M)
    m = m_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    n = n_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.program_id(1) * span + tl.arange(0, BLOCK_K)
    # Rows past the end repeat the last one: what comes of them is not stored.
    x_at = x + tl.minimum(m, M - 1).to(tl.int64)[:, None] * x_stride + k[None, :]
    w_rows = tl.minimum(n, N - 1)
    w_at = w + w_rows.to(tl.int64)[:, None] * w_stride + k[None, :]
    up_at = w + (N + w_rows).to(tl.int64)[:, None] * w_stride + k[None, :]
    acc = _zeros(INT8, BLOCK_M, BLOCK_N, SWAPPED)
    up = acc
    for first in range(0, span, BLOCK_K):
        if WHOLE:
            x_tile, w_tile = tl.load(x_at), tl.load(w_at)
        else:
            inside = (first + k < K)[None, :]
            x_tile, w_tile = tl.load(x_at, inside, 0), tl.load(w_at, inside, 0)
        acc = _dot(x_tile, w_tile, acc, SWAPPED)
        if GATED:
            up_tile = tl.load(up_at) if WHOLE else tl.load(up_at, inside, 0)
            up = _dot(x_tile, up_tile, up, SWAPPED)
            up_at += BLOCK_K
        x_at += BLOCK_K
        w_at += BLOCK_K
    if SWAPPED:
        acc, up = tl.trans(acc), tl.trans(up)
    _end_slices(
        acc, up, x_scale, scale, y, y_stride, bias, residual, residual_stride, m, n_tile * BLOCK_N, M, N,
        tl.program_id(1), SCALES, ACTIVATION, GATED, HAS_BIAS, RESIDUAL, SPLITS, SLICES, BLOCK_M, BLOCK_N,
    )  # fmt: skip


@triton.jit
def _tile_tma(
    x, w, x_scale, scale, y, bias, residual, y_stride, residual_stride, M, N, span,
    SCALES: tl.constexpr, ACTIVATION: tl.constexpr, GATED: tl.constexpr, HAS_BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr, INT8: tl.constexpr, SPLITS: tl.constexpr, FLATTEN: tl.constexpr, SLICES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """x: descriptor of (M, K) in tiles (BLOCK_M, BLOCK_K), w: of (N or 2 N, K) in tiles (BLOCK_N, BLOCK_K).

    FLATTEN: the next tile's first loads are asked for before this one ends. SLICES: a tile ends in that many pieces
    of columns, which need as much less shared memory on their way to y. Past the end of a tensor TMA gives zeros.
    """
    tl.assume(span > 0)  # or the compiler adds all ends of tiles once more, for sums of nothing
    m_tiles, n_tiles = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    for index in tl.range(tl.program_id(0), m_tiles * n_tiles * SPLITS, tl.num_programs(0), flatten=FLATTEN):
        part = index % SPLITS
        m_tile, n_tile = _place(index // SPLITS, m_tiles, n_tiles, GROUP_M)
        acc = _zeros(INT8, BLOCK_M, BLOCK_N, False)
        up = acc
        for first in range(0, span, BLOCK_K):
            k = part * span + first
            x_tile = x.load([m_tile * BLOCK_M, k])
            acc = _dot(x_tile, w.load([n_tile * BLOCK_N, k]), acc, False)
            if GATED:
                up = _dot(x_tile, w.load([N + n_tile * BLOCK_N, k]), up, False)
        m = m_tile * BLOCK_M + tl.arange(0, BLOCK_M)
        _end_slices(
            acc, up, x_scale, scale, y, y_stride, bias, residual, residual_stride, m, n_tile * BLOCK_N, M, N, part,
            SCALES, ACTIVATION, GATED, HAS_BIAS, RESIDUAL, SPLITS, SLICES, BLOCK_M, BLOCK_N,
        )  # fmt: skip


@triton.jit
def _end_slices(
    acc, up, x_scale, scale, y, y_stride, bias, residual, residual_stride, m, n_first, M, N, part,
    SCALES: tl.constexpr, ACTIVATION: tl.constexpr, GATED: tl.constexpr, HAS_BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr, SPLITS: tl.constexpr, SLICES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    if SLICES > 1:
        half: tl.constexpr = COLUMNS // 2
        left, right = tl.split(tl.permute(tl.reshape(acc, [ROWS, 2, half]), [0, 2, 1]))
        up_left, up_right = left, right
        if GATED:
            up_left, up_right = tl.split(tl.permute(tl.reshape(up, [ROWS, 2, half]), [0, 2, 1]))
        _end_slices(
            left, up_left, x_scale, scale, y, y_stride, bias, residual, residual_stride, m, n_first, M, N, part,
            SCALES, ACTIVATION, GATED, HAS_BIAS, RESIDUAL, SPLITS, SLICES // 2, ROWS, half,
        )  # fmt: skip
        _end_slices(
            right, up_right, x_scale, scale, y, y_stride, bias, residual, residual_stride, m, n_first + half, M, N,
            part, SCALES, ACTIVATION, GATED, HAS_BIAS, RESIDUAL, SPLITS, SLICES // 2, ROWS, half,
        )  # fmt: skip
    else:
        n = n_first + tl.arange(0, COLUMNS)
        if SPLITS > 1:
            _store_part(acc, up, y, part, m, n, M, N, GATED)
        else:
            _end(
                acc, up, x_scale, scale, y, y_stride, bias, residual, residual_stride, m, n, M, N,
                SCALES, ACTIVATION, GATED, HAS_BIAS, RESIDUAL,
            )  # fmt: skip


@triton.jit
def _end_parts(
    parts, x_scale, scale, y, bias, residual, y_stride, residual_stride, M, N,
    SCALES: tl.constexpr, ACTIVATION: tl.constexpr, GATED: tl.constexpr, HAS_BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr, SPLITS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """parts: (SPLITS, M, N or 2 N), of float32 or int32."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = _sum_parts(parts, m, n, 0, M, N, GATED, SPLITS)
    up = acc
    if GATED:
        up = _sum_parts(parts, m, n, N, M, N, GATED, SPLITS)
    _end(
        acc, up, x_scale, scale, y, y_stride, bias, residual, residual_stride, m, n, M, N,
        SCALES, ACTIVATION, GATED, HAS_BIAS, RESIDUAL,
    )  # fmt: skip


@triton.jit
def _place(tile, m_tiles, n_tiles, GROUP_M: tl.constexpr):
    """(row, column) of a tile: GROUP_M rows of tiles together, so that those of one moment share x and w in L2."""
    group = tile // (GROUP_M * n_tiles)
    height = tl.minimum(m_tiles - group * GROUP_M, GROUP_M)
    inside = tile % (GROUP_M * n_tiles)
    return group * GROUP_M + inside % height, inside // height


@triton.jit
def _zeros(INT8: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SWAPPED: tl.constexpr):
    dtype: tl.constexpr = tl.int32 if INT8 else tl.float32
    if SWAPPED:
        return tl.zeros([BLOCK_N, BLOCK_M], dtype)
    else:
        return tl.zeros([BLOCK_M, BLOCK_N], dtype)


@triton.jit
def _dot(x, w, acc, SWAPPED: tl.constexpr):
    """acc + x @ w^T, or its transpose where SWAPPED."""
    if w.dtype != x.dtype and (x.dtype == tl.float16 or not INTERPRET):
        w = _widened(w, x.dtype)
    if SWAPPED:
        a, b = w, tl.trans(x)
    else:
        a, b = x, tl.trans(w)
    if acc.dtype == tl.int32:
        return tl.dot(a, b, acc, out_dtype=tl.int32)
    else:
        return numbers.dot(a, b, acc)


@triton.jit
def _widened(codes, dtype: tl.constexpr):
    """int8 to bfloat16, float16 or float32, exactly."""
    if dtype == tl.float16:
        # 0x6400 | byte is 1024 + byte: two operations on pairs, in place of a conversion of each.
        biased = codes.to(tl.uint8, bitcast=True).to(tl.uint16) ^ 0x6480
        return biased.to(tl.float16, bitcast=True) - 1152.0
    else:
        return codes.to(dtype)


@triton.jit
def _end(
    acc, up, x_scale, scale, y, y_stride, bias, residual, residual_stride, m, n, M, N,
    SCALES: tl.constexpr, ACTIVATION: tl.constexpr, GATED: tl.constexpr, HAS_BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
):  # fmt: skip
    z = _scaled(acc, x_scale, scale, m, n, M, N, 0, SCALES)
    other = z
    if GATED:
        other = _scaled(up, x_scale, scale, m, n, M, N, N, SCALES)
    finish(
        z, other, y, y_stride, bias, residual, residual_stride, m, n, M, N,
        ACTIVATION, GATED, HAS_BIAS, RESIDUAL,
    )  # fmt: skip


@triton.jit
def _scaled(acc, x_scale, scale, m, n, M, N, column, SCALES: tl.constexpr):
    z = acc.to(tl.float32)
    if SCALES == 2:
        z = z * tl.load(x_scale + m, m < M, 0.0)[:, None]
    if SCALES >= 1:
        z = z * tl.load(scale + column + n, n < N, 0.0)[None, :]
    return z


@triton.jit
def _store_part(acc, up, parts, part, m, n, M, N, GATED: tl.constexpr):
    columns = N * (1 + GATED)
    at = parts + (part * M + m).to(tl.int64)[:, None] * columns + n[None, :]
    inside = (m < M)[:, None] & (n < N)[None, :]
    tl.store(at, acc, inside)
    if GATED:
        tl.store(at + N, up, inside)


@triton.jit
def _sum_parts(parts, m, n, column, M, N, GATED: tl.constexpr, SPLITS: tl.constexpr):
    inside = (m < M)[:, None] & (n < N)[None, :]
    columns = N * (1 + GATED)
    at = parts + (column + n)[None, :]
    total = tl.load(at + m.to(tl.int64)[:, None] * columns, inside, 0)
    for part in tl.static_range(1, SPLITS):
        total += tl.load(at + (part * M + m).to(tl.int64)[:, None] * columns, inside, 0)
    return total
