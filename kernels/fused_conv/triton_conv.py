"""The implicit product: M pixels of y by N filters, K = taps by channels; x is never unfolded.

BLOCKS  channels lie side by side: a step of K is BLOCK_K channels of one tap, 16 bytes a copy
TAPS    few channels a group: a step of K is BLOCK_K of the filter's values, whatever tap and channel
"""

import triton
import triton.language as tl

from deepseek_fast.gpu.numbers import dot
from deepseek_fast.kernels.fused_conv.triton_end import end, larger, place_in, stored


@triton.jit
def pixels(m, per_image, columns):
    """Image (int64), row and column of pixels m."""
    inner = (m % per_image).to(tl.int32)
    return (m // per_image).to(tl.int64), inner // columns, inner % columns


@triton.jit
def _as_int8(x, inside, zero_point, IS_UNSIGNED: tl.constexpr):
    """x as int8, shifted by -128 where it is uint8; zero_point, shifted as well, outside."""
    if IS_UNSIGNED:
        x = (x ^ 0x80).to(tl.int8, bitcast=True)
    return tl.where(inside, x, zero_point.to(tl.int8))


@triton.jit
def _block_sums(
    x, weight, exists, h0, w0, C, H, W, x_c, x_h, x_w, w_c, w_r, w_s, x_zero_point, acc,
    R: tl.constexpr, S: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    PADDED: tl.constexpr, BLOCK_K: tl.constexpr, INT8: tl.constexpr,
):  # fmt: skip
    """acc + the sums. x: pointers of (BLOCK_M,), at each pixel's first tap; weight: of (BLOCK_N,), at each filter.

    exists: which pixels there are.
    """
    k = tl.arange(0, BLOCK_K)
    r, s, first = tl.zeros([], tl.int32), tl.zeros([], tl.int32), tl.zeros([], tl.int32)
    for _ in range(R * S * ((C + BLOCK_K - 1) // BLOCK_K)):
        c = first + k
        inside = exists
        if PADDED:
            h, w = h0 + r * DILATION_H, w0 + s * DILATION_W
            inside = inside & (h >= 0) & (h < H) & (w >= 0) & (w < W)
        inside = inside[:, None] & (c < C)[None, :]
        tap = (r * DILATION_H).to(tl.int64) * x_h + (s * DILATION_W).to(tl.int64) * x_w
        a = tl.load((x + tap)[:, None] + (c * x_c)[None, :], inside, 0)
        b = tl.load((weight + (r * w_r + s * w_s))[None, :] + (c * w_c)[:, None], (c < C)[:, None], 0)
        if INT8:
            a = _as_int8(a, inside, x_zero_point, x.dtype.element_ty == tl.uint8)
            acc = tl.dot(a, b, acc, out_dtype=tl.int32)
        else:
            acc = dot(a, b, acc)
        # The next channels of this tap, or the first of the next one.
        first += BLOCK_K
        ends = first >= C
        first = tl.where(ends, 0, first)
        s += ends.to(tl.int32)
        wraps = s == S
        s = tl.where(wraps, 0, s)
        r += wraps.to(tl.int32)
    return acc


@triton.jit
def _tap_sums(
    x, weight, exists, h0, w0, H, W, x_c, x_h, x_w, w_c, w_r, w_s, x_zero_point, acc,
    R: tl.constexpr, S: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    C: tl.constexpr, BLOCK_K: tl.constexpr, INT8: tl.constexpr,
):  # fmt: skip
    """As _block_sums."""
    for first in range(0, R * S * C, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        c, r, s = k % C, k // (C * S), (k // C) % S
        of_filter = k < R * S * C
        h, w = h0[:, None] + (r * DILATION_H)[None, :], w0[:, None] + (s * DILATION_W)[None, :]
        inside = exists[:, None] & of_filter[None, :] & (h >= 0) & (h < H) & (w >= 0) & (w < W)
        tap = (r * DILATION_H).to(tl.int64) * x_h + (s * DILATION_W).to(tl.int64) * x_w + c.to(tl.int64) * x_c
        a = tl.load(x[:, None] + tap[None, :], inside, 0)
        b = tl.load(weight[None, :] + (r * w_r + s * w_s + c * w_c)[:, None], of_filter[:, None], 0)
        if INT8:
            a = _as_int8(a, inside, x_zero_point, x.dtype.element_ty == tl.uint8)
            acc = tl.dot(a, b, acc, out_dtype=tl.int32)
        else:
            acc = dot(a, b, acc)
    return acc


@triton.jit(do_not_specialize=["x_zero_point", "residual_zero_point", "y_zero_point"])
def _conv(
    x, weight, bias, multiplier, residual, y, M, C, H, W, F, P, Q, rows, columns, per_image,
    x_n, x_c, x_h, x_w, w_f, w_c, w_r, w_s, r_n, r_c, r_h, r_w,
    param0, param1, y_scale, residual_scale, x_zero_point, residual_zero_point, y_zero_point,
    R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    TOP: tl.constexpr, LEFT: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    GROUPS: tl.constexpr, TAPS_C: tl.constexpr, PADDED: tl.constexpr, PIXELS: tl.constexpr, HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr, RESIDUAL: tl.constexpr, INT8: tl.constexpr, LOWEST: tl.constexpr, WIDE: tl.constexpr,
    POOL_H: tl.constexpr, POOL_W: tl.constexpr, POOL_TOP: tl.constexpr, POOL_LEFT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """C, F: channels and filters a group. P, Q: the convolution's rows and columns; rows, columns: y's, per_image
    their product.

    POOL_H 0: no pool; else the largest of POOL_H by POOL_W pixels that lie side by side. TAPS_C: C, or 0 for BLOCKS.
    multiplier, and bias less x_zero_point times the weights' sums, where INT8. WIDE: M passes 2^31.
    """
    per_group = (F + BLOCK_N - 1) // BLOCK_N
    block = tl.program_id(0)
    column_block, m_block = block % (per_group * GROUPS), block // (per_group * GROUPS)
    group = column_block // per_group
    m = (m_block.to(tl.int64) if WIDE else m_block) * BLOCK_M + tl.arange(0, BLOCK_M)
    f0 = (column_block % per_group) * BLOCK_N
    f = f0 + tl.arange(0, BLOCK_N)
    n, row, column = pixels(m, per_image, columns)
    # Filters beyond the last read what the last one reads, and are not stored.
    w_at = weight + (group * F + tl.minimum(f, F - 1)).to(tl.int64) * w_f
    x_at = x + n * x_n + (group * C).to(tl.int64) * x_c
    best = tl.full([BLOCK_M, BLOCK_N], float("-inf"), tl.float32)
    for place in range(POOL_H * POOL_W if POOL_H else 1):
        p, q = row, column
        inside = m < M
        if POOL_H:
            p = row * POOL_H - POOL_TOP + place // POOL_W
            q = column * POOL_W - POOL_LEFT + place % POOL_W
            inside = inside & (p >= 0) & (p < P) & (q >= 0) & (q < Q)
        h0, w0 = p * STRIDE_H - TOP, q * STRIDE_W - LEFT
        first = x_at + h0.to(tl.int64) * x_h + w0.to(tl.int64) * x_w
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.int32 if INT8 else tl.float32)
        if TAPS_C:
            acc = _tap_sums(
                first, w_at, inside, h0, w0, H, W, x_c, x_h, x_w, w_c, w_r, w_s, x_zero_point, acc,
                R, S, DILATION_H, DILATION_W, TAPS_C, BLOCK_K, INT8,
            )  # fmt: skip
        else:
            acc = _block_sums(
                first, w_at, inside, h0, w0, C, H, W, x_c, x_h, x_w, w_c, w_r, w_s, x_zero_point, acc,
                R, S, DILATION_H, DILATION_W, PADDED, BLOCK_K, INT8,
            )  # fmt: skip
        r_at = residual + n * r_n + p.to(tl.int64) * r_h + q.to(tl.int64) * r_w
        if POOL_H:
            value = _ended(
                acc, bias, multiplier, r_at, r_c, inside, group * F, f, F,
                param0, param1, y_scale, residual_scale, residual_zero_point, y_zero_point,
                HAS_BIAS, ACTIVATION, RESIDUAL, INT8, LOWEST,
            )  # fmt: skip
            best = tl.where(inside[:, None], larger(best, value), best)
        elif BLOCK_N >= 128:
            # In two parts: what ends a tile takes registers beside the sums.
            parts = tl.split(tl.permute(tl.reshape(acc, [BLOCK_M, 2, BLOCK_N // 2]), (0, 2, 1)))
            for part in tl.static_range(2):
                of_part = f0 + part * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
                value = _ended(
                    parts[part], bias, multiplier, r_at, r_c, inside, group * F, of_part, F,
                    param0, param1, y_scale, residual_scale, residual_zero_point, y_zero_point,
                    HAS_BIAS, ACTIVATION, RESIDUAL, INT8, LOWEST,
                )  # fmt: skip
                _store(y, value, n, row, column, rows, columns, m < M, group * F, of_part, F, GROUPS, PIXELS)
        else:
            value = _ended(
                acc, bias, multiplier, r_at, r_c, inside, group * F, f, F,
                param0, param1, y_scale, residual_scale, residual_zero_point, y_zero_point,
                HAS_BIAS, ACTIVATION, RESIDUAL, INT8, LOWEST,
            )  # fmt: skip
            _store(y, value, n, row, column, rows, columns, m < M, group * F, f, F, GROUPS, PIXELS)
    if POOL_H:
        _store(y, best, n, row, column, rows, columns, m < M, group * F, f, F, GROUPS, PIXELS)


@triton.jit
def _ended(
    sums, bias, multiplier, residual, r_c, inside, channel0, f, F,
    param0, param1, y_scale, residual_scale, residual_zero_point, y_zero_point,
    HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, RESIDUAL: tl.constexpr, INT8: tl.constexpr, LOWEST: tl.constexpr,
):  # fmt: skip
    """Values of y, of filters f of a group that begins at channel0. residual: pointers of (BLOCK_M,)."""
    channel = channel0 + f
    of_bias = (tl.load(bias + channel, f < F, 0) if HAS_BIAS else tl.zeros_like(channel))[None, :]
    of_sums = tl.load(multiplier + channel, f < F, 0.0)[None, :] if INT8 else 1.0
    if INT8:
        sums += of_bias
    r_at = residual[:, None] + (channel.to(tl.int64) * r_c)[None, :]
    return end(
        sums, of_bias.to(tl.float32), of_sums, r_at, inside[:, None] & (f < F)[None, :],
        param0, param1, y_scale, residual_scale, residual_zero_point, y_zero_point,
        ACTIVATION, RESIDUAL, INT8, LOWEST,
    )  # fmt: skip


@triton.jit
def _store(
    y, value, n, row, column, rows, columns, exists, channel0, f, F, GROUPS: tl.constexpr, PIXELS: tl.constexpr
):  # fmt: skip
    channel = (channel0 + f)[None, :]
    at = place_in(y, n[:, None], channel, row[:, None], column[:, None], F * GROUPS, rows, columns, PIXELS)
    tl.store(at, stored(value, y.dtype.element_ty), exists[:, None] & (f < F)[None, :])


@triton.jit(do_not_specialize=["x_zero_point"])
def _prepare_int8(
    weight, bias, scale, offset, multiplier, values, w_f, scale_step, x_scale, y_scale, x_zero_point,
    HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of filter f: offset = bias - x_zero_point * the sum of its values, which is what sums of codes lack, int32;
    multiplier = x_scale * scale / y_scale.
    """
    f = tl.program_id(0)
    k = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.int32)
    for first in range(0, values, BLOCK):
        total += tl.load(weight + f.to(tl.int64) * w_f + first + k, first + k < values, 0).to(tl.int32)
    result = -x_zero_point * tl.sum(total, 0)
    if HAS_BIAS:
        result += tl.load(bias + f)
    tl.store(offset + f, result)
    tl.store(multiplier + f, tl.div_rn(x_scale * tl.load(scale + f * scale_step), y_scale))
