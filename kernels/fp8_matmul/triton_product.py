"""fp8_matmul's product: z = sum over steps of k of ((codes or numbers of x) @ codes of the weight^T) * their scales."""

import triton
import triton.language as tl

from deepseek_fast.gpu.linear import finish
from deepseek_fast.gpu.numbers import dot
from deepseek_fast.kernels.fp8_matmul.triton_decode import as_scale, decode, dot_f32

ONE, WIDE, GATED_PAIR = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


# Not specialized: what follows from M, so that another batch needs no compiling.
@triton.jit(do_not_specialize=["M", "x_scale_k", "num_programs"])
def _fp8_matmul(
    x, x_scale, weight, weight_2, scale, y, bias, residual,
    M, N, K, x_stride, weight_stride, y_stride, residual_stride,
    x_scale_m, x_scale_k, scale_n, scale_k, block_n, num_programs,
    X_FORMAT: tl.constexpr, FORMAT: tl.constexpr, X_BLOCK_M: tl.constexpr, X_STEPS: tl.constexpr, STEPS: tl.constexpr,
    ONE_SCALE: tl.constexpr, WHOLE_K: tl.constexpr, TILES: tl.constexpr,
    ACTIVATION: tl.constexpr, GATED: tl.constexpr, HAS_BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    TMA: tl.constexpr, SWAP: tl.constexpr, PERSISTENT: tl.constexpr, NUM_STAGES: tl.constexpr,
):  # fmt: skip
    """A program: tiles of BLOCK_M rows of x by BLOCK_N rows of the weight, and perhaps a second tile beside each.

    weight_2: the weight again, for TMA with the second tile's shape. X_FORMAT: -1 for numbers.
    X_STEPS, STEPS: steps of BLOCK_K to a column of the scale, 0 for one column in all.
    ONE_SCALE: the rows of a tile of the weight share their scales. TILES: ONE, WIDE (one and a half) or
    GATED_PAIR (the second in the second half of the weight). SWAP: the products are weight @ x^T.
    """
    WIDTH: tl.constexpr = BLOCK_N + BLOCK_N // 2 if TILES == WIDE else BLOCK_N
    tiles_m, tiles_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, WIDTH)
    if PERSISTENT:
        for tile in tl.range(tl.program_id(0), tiles_m * tiles_n, num_programs, flatten=True):
            first_m, first_n = _place(tile, tiles_m, tiles_n, BLOCK_M, WIDTH, GROUP_M)
            _tile(
                x, x_scale, weight, weight_2, scale, y, bias, residual, first_m, first_n,
                M, N, K, x_stride, weight_stride, y_stride, residual_stride,
                x_scale_m, x_scale_k, scale_n, scale_k, block_n,
                X_FORMAT, FORMAT, X_BLOCK_M, X_STEPS, STEPS, ONE_SCALE, WHOLE_K, TILES,
                ACTIVATION, GATED, HAS_BIAS, RESIDUAL,
                BLOCK_M, BLOCK_N, BLOCK_K, TMA, SWAP, NUM_STAGES,
            )  # fmt: skip
    else:
        first_m, first_n = _place(tl.program_id(0), tiles_m, tiles_n, BLOCK_M, WIDTH, GROUP_M)
        _tile(
            x, x_scale, weight, weight_2, scale, y, bias, residual, first_m, first_n,
            M, N, K, x_stride, weight_stride, y_stride, residual_stride,
            x_scale_m, x_scale_k, scale_n, scale_k, block_n,
            X_FORMAT, FORMAT, X_BLOCK_M, X_STEPS, STEPS, ONE_SCALE, WHOLE_K, TILES,
                ACTIVATION, GATED, HAS_BIAS, RESIDUAL,
            BLOCK_M, BLOCK_N, BLOCK_K, TMA, SWAP, NUM_STAGES,
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
    x, x_scale, weight, weight_2, scale, y, bias, residual, first_m, first_n,
    M, N, K, x_stride, weight_stride, y_stride, residual_stride,
    x_scale_m, x_scale_k, scale_n, scale_k, block_n,
    X_FORMAT: tl.constexpr, FORMAT: tl.constexpr, X_BLOCK_M: tl.constexpr, X_STEPS: tl.constexpr, STEPS: tl.constexpr,
    ONE_SCALE: tl.constexpr, WHOLE_K: tl.constexpr, TILES: tl.constexpr,
    ACTIVATION: tl.constexpr, GATED: tl.constexpr, HAS_BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, TMA: tl.constexpr, SWAP: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):  # fmt: skip
    WIDTH_2: tl.constexpr = BLOCK_N // 2 if TILES == WIDE else BLOCK_N
    num_rows = N * 2 if TILES == GATED_PAIR else N
    if TILES == WIDE:  # every second place begins within BLOCK_N: there the half tile comes first
        late = first_n % BLOCK_N
        second_n = first_n + tl.where(late == 0, BLOCK_N, 0)
        first_n = tl.multiple_of(first_n + late, BLOCK_N // 2)
        second_n = tl.multiple_of(second_n, BLOCK_N // 2)
    else:
        second_n = first_n + N
    m = first_m + tl.arange(0, BLOCK_M)
    n = first_n + tl.arange(0, BLOCK_N)
    n_2 = second_n + tl.arange(0, WIDTH_2)
    # Rows past the end: of x they count as zeros, of the weight as its last row; neither is stored.
    in_m = m < M
    row_m, row_n, row_2 = tl.minimum(m, M - 1), tl.minimum(n, N - 1), tl.minimum(n_2, num_rows - 1)
    x_at = row_m // X_BLOCK_M * x_scale_m if X_FORMAT >= 0 else row_m
    if ONE_SCALE:  # the same place BLOCK_M times: scalar loads race in Triton's pipeline of three stages and more
        like = tl.zeros_like(row_m)
        at = (like + tl.minimum(first_n, N - 1)) // block_n * scale_n
        at_2 = (like + tl.minimum(second_n, num_rows - 1)) // block_n * scale_n
    else:
        at, at_2 = row_n // block_n * scale_n, row_2 // block_n * scale_n
    rows_m, rows_n, rows_2 = row_m.to(tl.int64), row_n.to(tl.int64), row_2.to(tl.int64)

    R: tl.constexpr = BLOCK_N if SWAP else BLOCK_M
    C: tl.constexpr = BLOCK_M if SWAP else BLOCK_N
    z = tl.zeros([R, C], tl.float32)
    z_2 = tl.zeros([R, C] if TILES != WIDE else [BLOCK_M, WIDTH_2], tl.float32)
    # num_stages here, not of the launch alone: so the scales' loads are pipelined as well as the matrices'.
    for step in tl.range(0, tl.cdiv(K, BLOCK_K), num_stages=NUM_STAGES):
        k = step * BLOCK_K
        if TMA:
            a = x.load([first_m, k])
            b = weight.load([first_n, k])
        else:
            a = _rows(x, rows_m, x_stride, k, K, in_m, BLOCK_K, WHOLE_K, True)
            b = _rows(weight, rows_n, weight_stride, k, K, in_m, BLOCK_K, WHOLE_K, False)
        x_factor = _scales(x_scale, x_at, x_scale_k, step, X_STEPS) if X_FORMAT >= 0 else 0.0
        factor = _scales(scale, at, scale_k, step, STEPS)
        z += _product(a, b, X_FORMAT, FORMAT, SWAP) * _both(x_factor, factor, X_FORMAT, ONE_SCALE, SWAP)
        if TILES != ONE:
            if TMA:
                b_2 = weight_2.load([second_n, k])
            else:
                b_2 = _rows(weight, rows_2, weight_stride, k, K, in_m, BLOCK_K, WHOLE_K, False)
            factor_2 = _scales(scale, at_2, scale_k, step, STEPS)
            z_2 += _product(a, b_2, X_FORMAT, FORMAT, SWAP) * _both(x_factor, factor_2, X_FORMAT, ONE_SCALE, SWAP)
    if SWAP:
        z, z_2 = tl.trans(z), tl.trans(z_2)
    finish(z, z_2, y, y_stride, bias, residual, residual_stride, m, n, M, N, ACTIVATION, GATED, HAS_BIAS, RESIDUAL)
    if TILES == WIDE:
        finish(
            z_2, z_2, y, y_stride, bias, residual, residual_stride, m, n_2, M, N,
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
def _scales(scale, at, stride, step, STEPS: tl.constexpr):
    """A step's scales."""
    return as_scale(tl.load(scale + (at + (step // STEPS * stride if STEPS > 0 else 0))))


@triton.jit
def _both(x_factor, factor, X_FORMAT: tl.constexpr, ONE_SCALE: tl.constexpr, SWAP: tl.constexpr):
    """What a step's sums are multiplied by: x's scales times the weight's, rounded to float32."""
    if ONE_SCALE:
        both = x_factor * factor
        return both[None, :] if SWAP else both[:, None]
    elif X_FORMAT >= 0:
        return x_factor[None, :] * factor[:, None] if SWAP else x_factor[:, None] * factor[None, :]
    else:
        return factor[:, None] if SWAP else factor[None, :]
