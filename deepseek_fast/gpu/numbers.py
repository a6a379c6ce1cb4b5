"""Inside kernels: numbers that come out the same on a chip and in Triton's interpreter.

The interpreter keeps bfloat16 as bits: its products, sums and roundings of that type are wrong without a word. So a
kernel widens what it loads to float32, multiplies with `dot`, rounds with `round_to` (tests/test_gpu_numbers.py).
On a chip each of them is the one instruction it looks like.
"""

import triton
import triton.language as tl

from deepseek_fast.gpu.register import interpreted

INTERPRET = tl.constexpr(interpreted())


@triton.jit
def dot(a, b, acc):
    """acc + a @ b. bfloat16, float16: products exact, sums in float32; float32: three products of TF32 parts.

    Relative error of a product of float32: 5 * 2^-22, as the low parts are cut off to TF32 and their product left out.
    """
    if INTERPRET:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    elif a.dtype == tl.float32:
        return tl.dot(a, b, acc, input_precision="tf32x3")
    else:
        return tl.dot(a, b, acc)


@triton.jit
def round_to(x, dtype: tl.constexpr):
    """float32 to float32, bfloat16 or float16, half to even; NaN stays NaN, float16 overflows to infinity."""
    if INTERPRET and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
        return tl.where(is_nan, (bits >> 16) | 0x40, rounded).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(dtype)


@triton.jit
def widen(x):
    """float32, bfloat16 or float16 to float32, exactly; NaN keeps its sign, which the instructions do not promise.

    The interpreter's conversion of bfloat16 loses subnormal numbers.
    """
    if x.dtype == tl.bfloat16:
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    elif x.dtype == tl.float16:
        sign = (x.to(tl.uint16, bitcast=True).to(tl.uint32) & 0x8000) << 16
        return (x.to(tl.float32).to(tl.uint32, bitcast=True) & 0x7FFFFFFF | sign).to(tl.float32, bitcast=True)
    else:
        return x


@triton.jit
def power_of_two(exponent):
    """2^exponent as float32, for integers from -126 to 127: its bits."""
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)
