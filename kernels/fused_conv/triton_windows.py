"""What moves more bytes than it computes: depthwise convolutions, pools, local response norms.

A tile is pixels by channels; along its last dimension, a warp's lanes, lies what is side by side in memory: channels
(channels_last), or pixels where PLANES.
"""

import triton
import triton.language as tl

from deepseek_fast.gpu.numbers import round_to
from deepseek_fast.kernels.fused_conv.triton_conv import pixels
from deepseek_fast.kernels.fused_conv.triton_end import end, larger, place_in, stored


@triton.jit
def _tile(M, C, WIDE: tl.constexpr, PLANES: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr):
    """Pixels m and channels c of this program, as (BLOCK_M, BLOCK_C) or its transpose, and which of them there are.

    Those beyond read what the last one reads.
    """
    block = tl.program_id(0)
    across = (C + BLOCK_C - 1) // BLOCK_C
    m_block = block // across
    m = (m_block.to(tl.int64) if WIDE else m_block) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = (block % across) * BLOCK_C + tl.arange(0, BLOCK_C)
    if PLANES:
        m, c = m[None, :], c[:, None]
    else:
        m, c = m[:, None], c[None, :]
    return tl.minimum(m, M - 1), tl.minimum(c, C - 1), (m < M) & (c < C)


@triton.jit
def _int64(i):
    return tl.zeros([], tl.int64) + i


@triton.jit(do_not_specialize=["x_zero_point", "residual_zero_point", "y_zero_point"])
def _depthwise(
    x, weight, bias, multiplier, residual, y, M, H, W, F, P, Q, per_image,
    x_n, x_c, x_h, x_w, w_f, w_r, w_s, r_n, r_c, r_h, r_w,
    param0, param1, y_scale, residual_scale, x_zero_point, residual_zero_point, y_zero_point,
    R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    TOP: tl.constexpr, LEFT: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    FILTERS: tl.constexpr, PIXELS: tl.constexpr, HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr, RESIDUAL: tl.constexpr, INT8: tl.constexpr, LOWEST: tl.constexpr, WIDE: tl.constexpr,
    UNROLLED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, PLANES: tl.constexpr,
):  # fmt: skip
    """One channel a group, FILTERS filters each; F: all of them."""
    m, f, stores = _tile(M, F, WIDE, PLANES, BLOCK_M, BLOCK_C)
    n, p, q = pixels(m, per_image, Q)
    h0, w0 = p * STRIDE_H - TOP, q * STRIDE_W - LEFT
    first = x + n * x_n + h0.to(tl.int64) * x_h + w0.to(tl.int64) * x_w + (f // FILTERS).to(tl.int64) * x_c
    w_at = weight + f.to(tl.int64) * w_f
    acc = (m + f).to(tl.int32 if INT8 else tl.float32) * 0
    for tap in tl.range(0, R * S, loop_unroll_factor=UNROLLED):
        r, s = tap // S, tap % S
        down, right = r * DILATION_H, s * DILATION_W
        h, w = h0 + down, w0 + right
        inside = stores & (h >= 0) & (h < H) & (w >= 0) & (w < W)
        a = tl.load(first + (_int64(down) * x_h + _int64(right) * x_w), inside, 0)
        b = tl.load(w_at + (r * w_r + s * w_s))
        if INT8:
            acc += tl.where(inside, a.to(tl.int32) - x_zero_point, 0) * b.to(tl.int32)
        else:
            acc += a.to(tl.float32) * b.to(tl.float32)
    of_bias = tl.load(bias + f) if HAS_BIAS else tl.zeros_like(f)
    if INT8:
        acc += of_bias
    r_at = residual + n * r_n + p.to(tl.int64) * r_h + q.to(tl.int64) * r_w + f.to(tl.int64) * r_c
    value = end(
        acc, of_bias.to(tl.float32), tl.load(multiplier + f) if INT8 else 0.0, r_at, stores,
        param0, param1, y_scale, residual_scale, residual_zero_point, y_zero_point,
        ACTIVATION, RESIDUAL, INT8, LOWEST,
    )  # fmt: skip
    tl.store(place_in(y, n, f, p, q, F, P, Q, PIXELS), stored(value, y.dtype.element_ty), stores)


@triton.jit
def _pool(
    x, y, M, C, H, W, rows, columns, per_image, x_n, x_c, x_h, x_w,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    TOP: tl.constexpr, LEFT: tl.constexpr, BOTTOM: tl.constexpr, RIGHT: tl.constexpr,
    AVERAGE: tl.constexpr, COUNT_PADDING: tl.constexpr, PIXELS: tl.constexpr, WIDE: tl.constexpr,
    UNROLLED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, PLANES: tl.constexpr,
):  # fmt: skip
    m, c, stores = _tile(M, C, WIDE, PLANES, BLOCK_M, BLOCK_C)
    n, row, column = pixels(m, per_image, columns)
    h0, w0 = row * STRIDE_H - TOP, column * STRIDE_W - LEFT
    first = x + n * x_n + h0.to(tl.int64) * x_h + w0.to(tl.int64) * x_w + c.to(tl.int64) * x_c
    value = tl.where(stores, 0.0 if AVERAGE else float("-inf"), 0.0)
    for place in tl.range(0, KERNEL_H * KERNEL_W, loop_unroll_factor=UNROLLED):
        down, right = place // KERNEL_W, place % KERNEL_W
        h, w = h0 + down, w0 + right
        inside = stores & (h >= 0) & (h < H) & (w >= 0) & (w < W)
        a = tl.load(first + (_int64(down) * x_h + _int64(right) * x_w), inside, 0).to(tl.float32)
        if AVERAGE:
            value += tl.where(inside, a, 0.0)
        else:
            value = tl.where(inside, larger(value, a), value)
    if AVERAGE:
        if COUNT_PADDING:
            high = tl.minimum(h0 + KERNEL_H, H + BOTTOM) - h0
            wide = tl.minimum(w0 + KERNEL_W, W + RIGHT) - w0
        else:
            high = tl.minimum(h0 + KERNEL_H, H) - tl.maximum(h0, 0)
            wide = tl.minimum(w0 + KERNEL_W, W) - tl.maximum(w0, 0)
        value = tl.div_rn(value, tl.zeros_like(value) + (high * wide).to(tl.float32))
    at = place_in(y, n, c, row, column, C, rows, columns, PIXELS)
    tl.store(at, stored(value, y.dtype.element_ty), stores)


@triton.jit
def _norm(
    x, y, M, C, H, W, per_image, x_n, x_c, x_h, x_w, before, after, scale, beta, k,
    POWER: tl.constexpr, PIXELS: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, PLANES: tl.constexpr,
):  # fmt: skip
    """POWER: "none" (beta 0), "half", "three_quarters", "one", or "any"."""
    m, c, stores = _tile(M, C, WIDE, PLANES, BLOCK_M, BLOCK_C)
    n, h, w = pixels(m, per_image, W)
    first = x + n * x_n + h.to(tl.int64) * x_h + w.to(tl.int64) * x_w
    squares = tl.where(stores, 0.0, 0.0)
    for i in range(before + 1 + after):
        neighbor = c - before + i
        inside = stores & (neighbor >= 0) & (neighbor < C)
        a = tl.load(first + neighbor.to(tl.int64) * x_c, inside, 0).to(tl.float32)
        squares += a * a
    d = tl.fma(squares, tl.zeros_like(squares) + scale, tl.zeros_like(squares) + k)
    own = tl.load(first + c.to(tl.int64) * x_c, stores, 0).to(tl.float32)
    value = tl.div_rn(own, _raised(d, beta, POWER))
    tl.store(place_in(y, n, c, h, w, C, H, W, PIXELS), round_to(value, y.dtype.element_ty), stores)


@triton.jit
def _raised(d, beta, POWER: tl.constexpr):
    if POWER == "none":
        return tl.zeros_like(d) + 1.0
    elif POWER == "half":
        return tl.sqrt_rn(d)
    elif POWER == "three_quarters":
        root = tl.sqrt_rn(d)
        return root * tl.sqrt_rn(root)
    elif POWER == "one":
        return d
    else:
        # In float64: in float32 the logarithm's rounding grows with the power.
        return tl.exp(beta * tl.log(d.to(tl.float64))).to(tl.float32)
