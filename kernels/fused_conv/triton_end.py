"""Inside kernels: what follows the sums of a convolution, as cpu.h writes it down; and where a result lies.

floats   z + bias, + residual ("before"), activation, + residual ("after"), in float32
8 bits   the same in y's unit, each operation rounded, then a code; the bits of the CPU's kernels
"""

import triton
import triton.language as tl

from deepseek_fast.gpu.activation import activate
from deepseek_fast.gpu.numbers import round_to

ROUND = tl.constexpr(12582912.0)  # 1.5 * 2^23: added, it leaves a number rounded half to even in the low bits
ROUND_BITS = tl.constexpr(0x4B400000)


@triton.jit
def end(
    sums, bias, multiplier, residual, inside,
    param0, param1, y_scale, residual_scale, residual_zero_point, y_zero_point,
    ACTIVATION: tl.constexpr, RESIDUAL: tl.constexpr, INT8: tl.constexpr, LOWEST: tl.constexpr,
):  # fmt: skip
    """float32 values of y, or its codes as float32 where INT8.

    sums: float32, or int32 with the bias in them. bias, multiplier: what broadcasts to them. residual: pointers, a
    tile, read where inside. RESIDUAL: "none", "before", "after". LOWEST: the lowest code of y's dtype.
    """
    z = sums.to(tl.float32) * multiplier if INT8 else sums + bias
    if RESIDUAL != "none":
        added = tl.load(residual, inside, 0.0 if not INT8 else 0).to(tl.float32)
        if INT8:
            added = (added - residual_zero_point) * tl.div_rn(residual_scale, y_scale)
    if RESIDUAL == "before":
        z += added
    if INT8:
        z = _activate_scaled(z, y_scale, param0, param1, ACTIVATION)
    else:
        z = conv_activate(z, param0, param1, ACTIVATION)
    if RESIDUAL == "after":
        z += added
    if INT8:
        z = limited(z, LOWEST - y_zero_point, LOWEST + 255 - y_zero_point)
        code = (z + ROUND).to(tl.int32, bitcast=True) - ROUND_BITS + y_zero_point
        z = code.to(tl.float32)
    return z


@triton.jit
def stored(value, dtype: tl.constexpr):
    """float32 as y's dtype."""
    if dtype == tl.int8 or dtype == tl.uint8:
        return value.to(tl.int32).to(dtype)
    else:
        return round_to(value, dtype)


@triton.jit
def limited(z, least, most):
    """NaN stays NaN."""
    z = tl.where(z < least, least, z)
    return tl.where(z > most, most, z)


@triton.jit
def conv_activate(z, param0, param1, NAME: tl.constexpr):
    if NAME == "leaky_relu":
        return tl.where(z < 0, param0 * z, z)
    elif NAME == "clip":
        return limited(z, param0, param1)
    elif NAME == "hardsigmoid":
        return limited(param0 * z + param1, 0.0, 1.0)
    else:
        return activate(z, NAME)


@triton.jit
def _activate_scaled(z, y_scale, param0, param1, NAME: tl.constexpr):
    """ref_int8.activate_scaled: limits over y_scale; of a curve act(z * y_scale) / y_scale."""
    if NAME == "none":
        return z
    elif NAME == "leaky_relu":
        return tl.where(z < 0, param0 * z, z)
    elif NAME == "relu":
        return tl.where(z < 0, 0.0, z)
    elif NAME == "relu6":
        return limited(z, 0.0, tl.div_rn(6.0, y_scale))
    elif NAME == "clip":
        return limited(z, tl.div_rn(param0, y_scale), tl.div_rn(param1, y_scale))
    else:
        # Of curves a step of y is allowed: their own error is larger than that of a division.
        return conv_activate(z * y_scale, param0, param1, NAME) / y_scale


@triton.jit
def larger(a, b):
    """NaN where one is."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def place_in(y, n, channel, row, column, channels, rows, columns, PIXELS: tl.constexpr):
    """Pointers into a dense (N, C, H, W): channels_last where PIXELS. n: int64; they broadcast."""
    # A term of the pixel and one of the channel: each is computed for a row or a column of a tile.
    if PIXELS:
        return y + ((n * rows + row) * columns + column) * channels + channel
    else:
        plane = (tl.zeros([], tl.int64) + rows) * columns
        return y + (n * channels * plane + row * columns + column) + channel * plane
