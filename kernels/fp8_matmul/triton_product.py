"""fp8_matmul's product: z = sum over steps of k of (codes or numbers of x) @ codes of the weight, times their scales."""

import triton
import triton.language as tl

from deepseek_fast.gpu.linear import finish
from deepseek_fast.gpu.numbers import INTERPRET, dot
from deepseek_fast.kernels.fp8_matmul.triton_decode import as_scale, decode, dot_f32

ONE, WIDE, GATED_PAIR = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def _fp8_matmul(
    x, x_scale, weight, scale, y, bias, residual,
    M, N, K, x_stride, weight_stride, y_stride, residual_stride,
    x_scale_m, x_scale_k, scale_n, scale_k, block_n, num_programs,
    X_FORMAT: tl.constexpr, FORMAT: tl.constexpr, X_BLOCK_M: tl.constexpr, X_STEPS: tl.constexpr, STEPS: tl.constexpr,
    ONE_SCALE: tl.constexpr, WHOLE_K: tl.constexpr, TILES: tl.constexpr,
    ACTIVATION: tl.constexpr, GATED: tl.constexpr, HAS_BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    TMA: tl.constexpr, SWAP: tl.constexpr, PERSISTENT: tl.constexpr,
):  # fmt: skip
    """A program: tiles of BLOCK_M rows by TILES * BLOCK_N rows of the weight.

    X_FORMAT: -1 for numbers. X_STEPS, STEPS: steps of BLOCK_K to a column of the scale, 0 for one column in all.
    ONE_SCALE: the rows of a tile of the weight share their scales. TILES: ONE, WIDE (two beside each other) or
    GATED_PAIR (the second in the second half of the weight). SWAP: the products are weight @ x^T.
    """
    WIDTH: tl.constexpr = BLOCK_N * 2 if TILES == WIDE else BLOCK_N
    tiles_m, tiles_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, WIDTH)
    if PERSISTENT:
        for tile in tl.range(tl.program_id(0), tiles_m * tiles_n, num_programs, flatten=True):
            first_m, first_n = _place(tile, tiles_m, tiles_n, BLOCK_M, WIDTH, GROUP_M)
            _tile(
                x, x_scale, weight, scale, y, bias, residual, first_m, first_n,
                M, N, K, x_stride, weight_stride, y_stride, residual_stride,
                x_scale_m, x_scale_k, scale_n, scale_k, block_n,
                X_FORMAT, FORMAT, X_BLOCK_M, X_STEPS, STEPS, ONE_SCALE, WHOLE_K, TILES,
                ACTIVATION, GATED, HAS_BIAS, RESIDUAL,
                BLOCK_M, BLOCK_N, BLOCK_K, TMA, SWAP,
            )  # fmt: skip
    else:
        first_m, first_n = _place(tl.program_id(0), tiles_m, tiles_n, BLOCK_M, WIDTH, GROUP_M)
        _tile(
            x, x_scale, weight, scale, y, bias, residual, first_m, first_n,
            M, N, K, x_stride, weight_stride, y_stride, residual_stride,
            x_scale_m, x_scale_k, scale_n, scale_k, block_n,
            X_FORMAT, FORMAT, X_BLOCK_M, X_STEPS, STEPS, ONE_SCALE, WHOLE_K, TILES,
                ACTIVATION, GATED, HAS_BIAS, RESIDUAL,
            BLOCK_M, BLOCK_N, BLOCK_K, TMA, SWAP,
        )  # fmt: skip


@triton.jit
def _place(tile, tiles_m, tiles_n, BLOCK_M: tl.constexpr, WIDTH: tl.constexpr, GROUP_M: tl.constexpr):
    """First row and column of a tile: GROUP_M tiles of rows go through the columns together and share them in L2."""
    group = tile // (GROUP_M * tiles_n)
    rows = tl.minimum(tiles_m - group * GROUP_M, GROUP_M)
    inside = tile - group * (GROUP_M * tiles_n)
    return (group * GROUP_M + inside % rows) * BLOCK_M, inside // rows * WIDTH


@triton.jit
def _tile(
    x, x_scale, weight, scale, y, bias, residual, first_m, first_n,
    M, N, K, x_stride, weight_stride, y_stride, residual_stride,
    x_scale_m, x_scale_k, scale_n, scale_k, block_n,
    X_FORMAT: tl.constexpr, FORMAT: tl.constexpr, X_BLOCK_M: tl.constexpr, X_STEPS: tl.constexpr, STEPS: tl.constexpr,
    ONE_SCALE: tl.constexpr, WHOLE_K: tl.constexpr, TILES: tl.constexpr,
    ACTIVATION: tl.constexpr, GATED: tl.constexpr, HAS_BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, TMA: tl.constexpr, SWAP: tl.constexpr,
):  # fmt: skip
    m = first_m + tl.arange(0, BLOCK_M)
    n = first_n + tl.arange(0, BLOCK_N)
    # Rows past the end: of x they count as zeros, of the weight as its last row; neither is stored.
    in_m = m < M
    row_m = tl.minimum(m, M - 1)
    num_rows = N * 2 if TILES == GATED_PAIR else N
    second = N if TILES == GATED_PAIR else BLOCK_N
    row_n = tl.minimum(n, N - 1)
    row_2 = tl.minimum(n + second, num_rows - 1)
    x_scales = x_scale + (row_m // X_BLOCK_M).to(tl.int64) * x_scale_m if X_FORMAT >= 0 else x_scale
    if ONE_SCALE:  # the same address BLOCK_M times: Triton's pipeliner may not be trusted with a scalar load
        like = tl.zeros_like(row_m)
        scales = scale + (like + first_n // block_n).to(tl.int64) * scale_n
        scales_2 = scale + (like + tl.minimum(first_n + second, num_rows - 1) // block_n).to(tl.int64) * scale_n
    else:
        scales = scale + (row_n // block_n).to(tl.int64) * scale_n
        scales_2 = scale + (row_2 // block_n).to(tl.int64) * scale_n
    rows_m, rows_n, rows_2 = row_m.to(tl.int64), row_n.to(tl.int64), row_2.to(tl.int64)

    R: tl.constexpr = BLOCK_N if SWAP else BLOCK_M
    C: tl.constexpr = BLOCK_M if SWAP else BLOCK_N
    z = tl.zeros([R, C], tl.float32)
    z_2 = tl.zeros([R, C], tl.float32)
    steps = tl.cdiv(K, BLOCK_K)
    # A step's scales are loaded while the products of the one before it run.
    x_factor = _x_factor(x_scales, 0, steps, x_scale_k, X_FORMAT, X_STEPS)
    factor = _factor(scales, 0, steps, scale_k, STEPS)
    factor_2 = _factor(scales_2, 0, steps, scale_k, STEPS) if TILES != ONE else factor
    for step in range(0, steps):
        k = step * BLOCK_K
        if TMA:
            a = x.load([first_m, k])
            b = weight.load([first_n, k])
        else:
            a = _rows(x, rows_m, x_stride, k, K, in_m, BLOCK_K, WHOLE_K, True)
            b = _rows(weight, rows_n, weight_stride, k, K, in_m, BLOCK_K, WHOLE_K, False)
        next_x = _x_factor(x_scales, step + 1, steps, x_scale_k, X_FORMAT, X_STEPS)
        next_factor = _factor(scales, step + 1, steps, scale_k, STEPS)
        z += _product(a, b, X_FORMAT, FORMAT, SWAP) * _both(x_factor, factor, X_FORMAT, ONE_SCALE, SWAP)
        factor = next_factor
        if TILES != ONE:
            if TMA:
                b_2 = weight.load([first_n + second, k])
            else:
                b_2 = _rows(weight, rows_2, weight_stride, k, K, in_m, BLOCK_K, WHOLE_K, False)
            next_2 = _factor(scales_2, step + 1, steps, scale_k, STEPS)
            z_2 += _product(a, b_2, X_FORMAT, FORMAT, SWAP) * _both(x_factor, factor_2, X_FORMAT, ONE_SCALE, SWAP)
            factor_2 = next_2
        x_factor = next_x
    if SWAP:
        z, z_2 = tl.trans(z), tl.trans(z_2)
    finish(z, z_2, y, y_stride, bias, residual, residual_stride, m, n, M, N, ACTIVATION, GATED, HAS_BIAS, RESIDUAL)
    if TILES == WIDE:
        finish(
            z_2, z_2, y, y_stride, bias, residual, residual_stride, m, n + BLOCK_N, M, N,
            ACTIVATION, GATED, HAS_BIAS, RESIDUAL,
        )  # fmt: skip


@triton.jit
def _rows(at, rows, stride, first, K, inside, BLOCK_K: tl.constexpr, WHOLE_K: tl.constexpr, MASKED: tl.constexpr):
    """(rows, BLOCK_K) from column first on; zeros past K and, where MASKED, of rows that are not inside."""
    k = first + tl.arange(0, BLOCK_K)
    places = at + rows[:, None] * stride + k[None, :]
    if MASKED:
        if WHOLE_K:
            return tl.load(places, inside[:, None], 0.0)
        else:
            return tl.load(places, inside[:, None] & (k < K)[None, :], 0.0)
    elif WHOLE_K:
        return tl.load(places)
    else:
        return tl.load(places, (k < K)[None, :], 0.0)


@triton.jit
def _product(a, b, X_FORMAT: tl.constexpr, FORMAT: tl.constexpr, SWAP: tl.constexpr):
    """a @ b^T, or b @ a^T where SWAP: one step's sums."""
    if X_FORMAT >= 0 and a.dtype != tl.uint8:  # the chip multiplies codes
        return tl.dot(b, tl.trans(a)) if SWAP else tl.dot(a, tl.trans(b))
    elif X_FORMAT >= 0:
        a_, b_ = decode(a, X_FORMAT, tl.float16), decode(b, FORMAT, tl.float16)
        return dot(b_, tl.trans(a_), None) if SWAP else dot(a_, tl.trans(b_), None)
    elif a.dtype == tl.float32:
        return dot_f32(a, decode(b, FORMAT, tl.bfloat16), SWAP)
    else:
        b_ = decode(b, FORMAT, a.dtype)
        return dot(b_, tl.trans(a), None) if SWAP else dot(a, tl.trans(b_), None)


@triton.jit
def _x_factor(at, step, steps, stride, X_FORMAT: tl.constexpr, STEPS: tl.constexpr):
    if X_FORMAT >= 0:
        return _factor(at, step, steps, stride, STEPS)
    else:
        return 1.0


@triton.jit
def _factor(at, step, steps, stride, STEPS: tl.constexpr):
    """Scales of a step, of the last one for those past it."""
    if STEPS > 0:
        return as_scale(tl.load(at + (tl.minimum(step, steps - 1) // STEPS).to(tl.int64) * stride))
    else:
        return as_scale(tl.load(at))


@triton.jit
def _both(x_factor, factor, X_FORMAT: tl.constexpr, ONE_SCALE: tl.constexpr, SWAP: tl.constexpr):
    """What a step's sums are multiplied by: x's scales times the weight's, rounded to float32."""
    if ONE_SCALE:
        both = factor * x_factor
        return both[None, :] if SWAP else both[:, None]
    elif X_FORMAT >= 0:
        return x_factor[None, :] * factor[:, None] if SWAP else x_factor[:, None] * factor[None, :]
    else:
        return factor[:, None] if SWAP else factor[None, :]
