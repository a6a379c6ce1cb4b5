"""Inside fp8_matmul's kernels: FP8 codes as the numbers that a product takes, exactly, and scales."""

import triton
import triton.language as tl

from deepseek_fast.gpu.codes import decode_e4m3, decode_e8m0
from deepseek_fast.gpu.numbers import INTERPRET, dot

E4M3, E5M2 = tl.constexpr(0), tl.constexpr(1)


def _e4m3_pairs(shift: int, size: int, one: int, up: int, down: int, scale: str) -> str:
    """PTX that makes four codes of e4m3fn, a register, two registers of 16-bit floats.

    A code comes into the upper byte of its half; there its seven bits go down by shift, under the mask size, to where
    the format has exponent and mantissa, and `scale`, a product with a power of two, corrects the exponent, also of
    subnormal codes. Of 0x7F alone the sum with `one`, a mantissa's last bit, reaches the bit above: that bit shifted up
    less the same shifted down is a NaN.
    """

    def half(out: str, bytes_: str) -> str:
        return f"""
            prmt.b32 t, $2, 0, {bytes_};
            shr.b32 s, t, {shift};
            and.b32 s, s, {size:#010x};
            add.u32 n, s, {one:#010x};
            and.b32 n, n, {~size & (size + one):#010x};
            {scale}
            shl.b32 u, n, {up};
            shr.b32 n, n, {down};
            sub.u32 n, u, n;
            and.b32 t, t, 0x80008000;
            or.b32 s, s, t;
            or.b32 {out}, s, n;"""

    return "{.reg .b32 t, s, n, u, v;" + half("$0", "0x1404") + half("$1", "0x3424") + "}"


# 2^8 and 2^120: what the biases 15 and 127 are above e4m3's, 7. Products with subnormal numbers are exact in both.
E4M3_F16 = tl.constexpr(_e4m3_pairs(1, 0x3F803F80, 0x00800080, 1, 5, "mov.b32 u, 0x5C005C00; mul.f16x2 s, s, u;"))
E4M3_BF16 = tl.constexpr(
    _e4m3_pairs(
        4, 0x07F007F0, 0x00100010, 4, 5, "mov.b32 u, 0x7B807B80; mov.b32 v, 0x80008000; fma.rn.bf16x2 s, s, u, v;"
    )
)


@triton.jit
def decode(code, FORMAT: tl.constexpr, dtype: tl.constexpr):
    """Codes to bfloat16 or float16, each of which holds every number of both formats; float32 in the interpreter.

    code: uint8, or the chip's own type, whose conversion is an instruction from compute capability 8.9 on.
    """
    if INTERPRET:
        return _decode_f32(code, FORMAT)
    elif code.dtype != tl.uint8:
        return _from_f16(code.to(tl.float16), dtype)
    elif FORMAT == E5M2:  # the upper byte of a float16
        return _from_f16((code.to(tl.uint16) << 8).to(tl.float16, bitcast=True), dtype)
    elif dtype == tl.float16:
        return tl.inline_asm_elementwise(E4M3_F16, "=r,=r,r", [code], tl.float16, is_pure=True, pack=4)
    else:
        return tl.inline_asm_elementwise(E4M3_BF16, "=r,=r,r", [code], tl.bfloat16, is_pure=True, pack=4)


@triton.jit
def _from_f16(x, dtype: tl.constexpr):
    """By way of float32: the instruction from float16 to bfloat16 runs at a quarter of the rate of the two."""
    return x if dtype == tl.float16 else x.to(tl.float32).to(dtype)


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
