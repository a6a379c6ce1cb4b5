"""Inside kernels: FP8 codes (uint8) from float32 and back, in integer operations that run everywhere.

Compute capability 8.0 and 8.6 have no FP8 conversion, and the interpreter's is wrong. A format is its bits of mantissa,
its exponent bias and its largest number: e4m3fn 3, 7, 448.
"""

import triton
import triton.language as tl


@triton.jit
def encode_fp8(x, MANTISSA: tl.constexpr = 3, BIAS: tl.constexpr = 7, LARGEST: tl.constexpr = 448.0):
    """float32 to codes of e4m3fn (or e5m2: 2, 15, 57344), half to even; sizes above LARGEST become it, infinity too.

    NaN becomes the code 0x7F with x's sign.
    """
    SHIFT: tl.constexpr = 23 - MANTISSA
    bits = x.to(tl.uint32, bitcast=True)
    size = bits & 0x7FFFFFFF
    is_nan = size > 0x7F800000
    capped = tl.minimum(size.to(tl.float32, bitcast=True), LARGEST)
    size = capped.to(tl.uint32, bitcast=True)
    normal = ((size + ((1 << (SHIFT - 1)) - 1) + ((size >> SHIFT) & 1)) >> SHIFT) - ((127 - BIAS) << MANTISSA)
    # Adding 2^(23 - MANTISSA + 1 - BIAS) leaves multiples of the smallest number in the low bits, rounded half to even.
    UNIT: tl.constexpr = (23 - MANTISSA + 1 - BIAS + 127) << 23
    small = (capped + tl.full([], UNIT, tl.uint32).to(tl.float32, bitcast=True)).to(tl.uint32, bitcast=True) - UNIT
    code = tl.where(size < ((1 - BIAS + 127) << 23), small, normal)
    code = tl.where(is_nan, 0x7F, code)
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def decode_e4m3(code):
    """Codes of e4m3fn (uint8) to float32, exactly; 0x7F and 0xFF to NaN."""
    bits = code.to(tl.uint32)
    # As a float32 the seven bits are 2^-120 times the number, subnormal ones included.
    size = ((bits & 0x7F) << 20).to(tl.float32, bitcast=True) * 1.329227995784916e36  # 2^120
    size = tl.where((bits & 0x7F) == 0x7F, float("nan"), size)
    return (size.to(tl.uint32, bitcast=True) | ((bits & 0x80) << 24)).to(tl.float32, bitcast=True)


@triton.jit
def decode_e4m3_f16(code):
    """Codes of e4m3fn (uint8) to float16, exactly; 0x7F and 0xFF to 480, where no NaN can come."""
    bits = code.to(tl.uint16)
    return (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).to(tl.float16, bitcast=True) * 256.0


@triton.jit
def decode_e8m0(code):
    """Powers of two of e8m0 (uint8) to float32: 2^(code - 127), 0 to the subnormal 2^-127, 255 to NaN."""
    bits = code.to(tl.uint32)
    value = tl.where(bits == 0, 0x00400000, bits << 23).to(tl.float32, bitcast=True)
    return tl.where(bits == 255, float("nan"), value)
