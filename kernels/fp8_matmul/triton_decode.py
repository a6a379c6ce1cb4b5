"""Inside fp8_matmul's kernels: FP8 codes as the numbers that a product takes, exactly, and scales."""

import triton
import triton.language as tl

from deepseek_fast.gpu.codes import decode_e4m3, decode_e8m0
from deepseek_fast.gpu.numbers import INTERPRET, dot

E4M3, E5M2 = tl.constexpr(0), tl.constexpr(1)


@triton.jit
def decode(code, FORMAT: tl.constexpr, dtype: tl.constexpr):
    """Codes to bfloat16 or float16, each of which holds every number of both formats; float32 in the interpreter.

    code: uint8, or the chip's own type, whose conversion is an instruction from compute capability 8.9 on.
    """
    if INTERPRET:
        return _decode_f32(code, FORMAT)
    elif code.dtype != tl.uint8:
        return code.to(dtype)
    elif FORMAT == E5M2:  # the upper byte of a float16
        return (code.to(tl.uint16) << 8).to(tl.float16, bitcast=True).to(dtype)
    elif dtype == tl.float16:
        bits = code.to(tl.uint16)
        size = ((bits & 0x7F) << 7).to(tl.float16, bitcast=True) * 256.0
        size = tl.where((bits & 0x7F) == 0x7F, 0x7E00, size.to(tl.uint16, bitcast=True))
        return (size | ((bits & 0x80) << 8)).to(tl.float16, bitcast=True)
    else:
        return decode_e4m3(code).to(dtype)


@triton.jit
def _decode_f32(code, FORMAT: tl.constexpr):
    if FORMAT == E4M3:
        return decode_e4m3(code)
    else:
        # As a float32 the seven bits are 2^-112 times the number; 31 in the exponent are infinity and NaN.
        bits = code.to(tl.uint32)
        size = ((bits & 0x7F) << 21).to(tl.float32, bitcast=True) * 5.192296858534828e33  # 2^112
        size = tl.where((bits & 0x7F) >= 0x7C, (0x7F800000 | ((bits & 3) << 21)).to(tl.float32, bitcast=True), size)
        return (size.to(tl.uint32, bitcast=True) | ((bits & 0x80) << 24)).to(tl.float32, bitcast=True)


@triton.jit
def as_scale(value):
    """float32 of what a scale holds: float32, or e8m0 as uint8."""
    if value.dtype == tl.uint8:
        return decode_e8m0(value)
    else:
        return value


@triton.jit
def dot_f32(x, w, SWAP: tl.constexpr):
    """x @ w^T for float32 x: three products of its bfloat16 parts with w, whose numbers bfloat16 holds.

    8 + 8 + 8 bits are all that x has, so each product is exact; parts of less than 2^-133 are lost. SWAP: w @ x^T.
    """
    if INTERPRET:
        return dot(w, tl.trans(x), None) if SWAP else dot(x, tl.trans(w), None)
    else:
        high = _upper(x)
        rest = tl.where(high == x, 0.0, x - high)  # infinity is its own upper part; NaN leaves NaN
        middle = _upper(rest)
        low = rest - middle
        sums = _dot_part(low, w, None, SWAP)
        sums = _dot_part(middle, w, sums, SWAP)
        return _dot_part(high, w, sums, SWAP)


@triton.jit
def _dot_part(x, w, sums, SWAP: tl.constexpr):
    part = x.to(tl.bfloat16)
    return tl.dot(w, tl.trans(part), sums) if SWAP else tl.dot(part, tl.trans(w), sums)


@triton.jit
def _upper(x):
    """The upper 16 bits, a bfloat16: cut off, not rounded, so that nothing becomes infinity."""
    return (x.to(tl.uint32, bitcast=True) & 0xFFFF0000).to(tl.float32, bitcast=True)
