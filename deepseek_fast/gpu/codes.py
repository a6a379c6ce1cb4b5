"""Inside kernels: FP8 and FP4 codes (uint8) from float32 and back, in integer operations that run everywhere.

Compute capability 8.0 and 8.6 have no FP8 conversion, and the interpreter's is wrong. A format goes by its name:
e4m3fn, e5m2, e4m3fnuz, e5m2fnuz, e2m1.
"""

import triton
import triton.language as tl

# (bits of mantissa, bias of the exponent, the largest number, what overflows: the number that the code after it were)
FORMATS = {
    "e4m3fn": (3, 7, 448.0, 480.0),
    "e5m2": (2, 15, 57344.0, 65536.0),
    "e4m3fnuz": (3, 8, 240.0, 256.0),
    "e5m2fnuz": (2, 16, 57344.0, 65536.0),
    "e2m1": (1, 1, 6.0, 6.0),  # neither infinity nor NaN
}


@triton.constexpr_function
def mantissa_of(FORMAT):
    return FORMATS[FORMAT][0]


@triton.constexpr_function
def bias_of(FORMAT):
    return FORMATS[FORMAT][1]


@triton.constexpr_function
def largest_of(FORMAT, SATURATE=True):
    """What sizes above it become."""
    return FORMATS[FORMAT][2 if SATURATE else 3]


@triton.jit
def encode_fp8(x, MANTISSA: tl.constexpr = 3, BIAS: tl.constexpr = 7, LARGEST: tl.constexpr = 448.0):
    """float32 to codes of e4m3fn (or e5m2: 2, 15, 57344), half to even; sizes above LARGEST become it, infinity too.

    NaN becomes the code 0x7F with x's sign.
    """
    code = nearest_code(x, MANTISSA, BIAS, LARGEST)
    bits = x.to(tl.uint32, bitcast=True)
    code = tl.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7F, code)
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def nearest_code(x, MANTISSA: tl.constexpr, BIAS: tl.constexpr, LARGEST: tl.constexpr):
    """The code without sign of |x| as uint32, half to even, of sizes above LARGEST that of LARGEST; anything for NaN,
    of e2m1 (whose LARGEST is 6) that of LARGEST.

    With e the power of two at or below |x|, not below the smallest normal number, the sum |x| + e * 2^(23 - MANTISSA)
    ends where the format does: the addition rounds, and leaves the units in the low bits, e in the exponent.
    """
    KEPT: tl.constexpr = 23 - MANTISSA
    SMALLEST: tl.constexpr = (128 - BIAS) << 23  # bits of the smallest normal number
    OFFSET: tl.constexpr = (128 - BIAS + KEPT) << MANTISSA
    if MANTISSA == 1:  # by bits, NaN's above all: e2m1 has its largest for NaN
        size = tl.minimum(x.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 0x40C00000).to(tl.float32, bitcast=True)
    else:
        size = tl.minimum(tl.abs(x), LARGEST)
    power = tl.maximum(size.to(tl.int32, bitcast=True) & 0x7F800000, SMALLEST).to(tl.float32, bitcast=True)
    total = tl.fma(power, float(1 << KEPT), size).to(tl.uint32, bitcast=True)  # the product is exact, fused or not
    return ((total >> KEPT) + total - OFFSET) & 0xFF  # the units are below 2^KEPT: the shift leaves e's bits alone


@triton.jit
def encode(
    v, x, random, FORMAT: tl.constexpr, SATURATE: tl.constexpr = True, DOWN: tl.constexpr = False,
    HARDWARE: tl.constexpr = False,
):  # fmt: skip
    """float32 v to codes of a format, one each, with the sign of x: v is made of it and may be a NaN of any sign.

    SATURATE: sizes above the largest number become it; without, NaN or infinity. random: 32 bits each for stochastic
    rounding, or None. DOWN: half towards zero, and no sign for zero and NaN (DeepGEMM's e2m1).
    HARDWARE: the instruction that capabilities from 8.9 on have, where it gives the same bits.
    """
    if HARDWARE and FORMAT == "e4m3fn" and SATURATE and random is None and v.numel >= 4:
        return _encode_e4m3(v, x)
    else:
        FNUZ: tl.constexpr = FORMAT == "e4m3fnuz" or FORMAT == "e5m2fnuz"
        if random is not None:
            code = _stochastic_code(v, random, FORMAT)
        elif DOWN:
            code = _midpoints_below(v)
        else:
            code = nearest_code(v, mantissa_of(FORMAT), bias_of(FORMAT), largest_of(FORMAT, SATURATE))
        bits = x.to(tl.uint32, bitcast=True)
        sign = (bits >> 28) & 0x8 if FORMAT == "e2m1" else (bits >> 24) & 0x80
        NAN: tl.constexpr = 0x80 if FNUZ else (0x7 if FORMAT == "e2m1" else 0x7F)
        is_nan = (v.to(tl.uint32, bitcast=True) & 0x7FFFFFFF) > 0x7F800000
        if FORMAT == "e2m1" and random is None and not DOWN:
            code = code | sign
        elif FNUZ or DOWN:
            code = tl.where(is_nan, NAN, tl.where(code == 0, code, code | sign))
        else:
            code = tl.where(is_nan, NAN, code) | sign
        return code.to(tl.uint8)


@triton.jit
def _encode_e4m3(v, x):
    """cvt.rn.satfinite, four values to a register.

    PTX ISA 8.7, cvt: rounds to nearest even, keeps subnormal numbers, gives sizes above 448 as 448 with their sign and
    NaN as a NaN of the format; of e4m3 those are 0x7F and 0xFF, so that x's sign in bit 7 makes it the one that is
    wanted, and changes nothing where v is a number: its sign is x's. e5m2 has three NaN, and the manual names none.
    """
    return tl.inline_asm_elementwise(
        """{
        .reg .b16 low, high;
        .reg .b32 all, s01, s23, signs;
        cvt.rn.satfinite.e4m3x2.f32 low, $2, $1;
        cvt.rn.satfinite.e4m3x2.f32 high, $4, $3;
        mov.b32 all, {low, high};
        prmt.b32 s01, $5, $6, 0x0073;
        prmt.b32 s23, $7, $8, 0x0073;
        prmt.b32 signs, s01, s23, 0x5410;
        lop3.b32 $0, all, signs, 0x80808080, 0xF8;
        }""",  # 0xF8: all | (signs & 0x80808080)
        "=r,r,r,r,r,r,r,r,r",
        [v, x],
        dtype=tl.uint8,
        is_pure=True,
        pack=4,
    )


@triton.jit
def _midpoints_below(v):
    """Code of e2m1: how many of the midpoints lie below |v|, so that a midpoint goes down."""
    size = tl.abs(v)
    code = tl.where(size > 0.25, 1, 0) + tl.where(size > 0.75, 1, 0) + tl.where(size > 1.25, 1, 0)
    code += tl.where(size > 1.75, 1, 0) + tl.where(size > 2.5, 1, 0) + tl.where(size > 3.5, 1, 0)
    return (code + tl.where(size > 5.0, 1, 0)).to(tl.uint32)


@triton.jit
def _stochastic_code(v, random, FORMAT: tl.constexpr):
    """Code without sign of |v|, rounded up with the probability of the part that is cut off."""
    MANTISSA: tl.constexpr = mantissa_of(FORMAT)
    BIAS: tl.constexpr = bias_of(FORMAT)
    KEPT: tl.constexpr = 23 - MANTISSA
    SMALLEST: tl.constexpr = (128 - BIAS) << 23
    MOST: tl.constexpr = 0x7F if FORMAT == "e4m3fnuz" or FORMAT == "e5m2fnuz" else (
        0x7E if FORMAT == "e4m3fn" else (0x7B if FORMAT == "e5m2" else 0x7)
    )  # fmt: skip
    size = tl.minimum(tl.abs(v), largest_of(FORMAT))
    bits = size.to(tl.uint32, bitcast=True)
    normal = ((bits + (random >> (32 - KEPT))) >> KEPT) - ((127 - BIAS) << MANTISSA)
    # In units of the smallest number, of which 24 bits of the fraction are kept; only subnormal numbers count.
    small = tl.where(bits < SMALLEST, size, 0.0)
    UNITS: tl.constexpr = (126 + BIAS + MANTISSA + 24) << 23  # bits of 2^24 units
    units = (small * tl.full([], UNITS, tl.uint32).to(tl.float32, bitcast=True)).to(tl.int32).to(tl.uint32)
    subnormal = (units + (random >> 8)) >> 24
    return tl.minimum(tl.where(bits < SMALLEST, subnormal, normal), MOST)


@triton.jit
def decode(code, FORMAT: tl.constexpr):
    """Codes (uint8; e2m1: of four bits each) to float32, exactly."""
    if FORMAT == "e5m2":
        return (code.to(tl.uint16) << 8).to(tl.float16, bitcast=True).to(tl.float32)  # float16's upper half
    else:
        SIZE: tl.constexpr = 0x7 if FORMAT == "e2m1" else 0x7F
        bits = code.to(tl.uint32)
        # As a float32 the bits are the number over 2^(127 - bias), subnormal ones included.
        size = ((bits & SIZE) << (23 - mantissa_of(FORMAT))).to(tl.float32, bitcast=True)
        POWER: tl.constexpr = (254 - bias_of(FORMAT)) << 23
        size *= tl.full([], POWER, tl.uint32).to(tl.float32, bitcast=True)
        sign = (bits & (SIZE + 1)) << (28 if FORMAT == "e2m1" else 24)
        value = (size.to(tl.uint32, bitcast=True) | sign).to(tl.float32, bitcast=True)
        if FORMAT == "e4m3fn":
            value = tl.where((bits & 0x7F) == 0x7F, float("nan"), value)
        elif FORMAT != "e2m1":
            value = tl.where(bits == 0x80, float("nan"), value)
        return value


@triton.jit
def decode_e4m3(code):
    """Codes of e4m3fn (uint8) to float32, exactly; 0x7F and 0xFF to NaN."""
    return decode(code, "e4m3fn")


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
