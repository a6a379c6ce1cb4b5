"""Inside int4_matmul's kernels: bytes of q to the numbers that tensor cores multiply, code - zero, in the order of k.

A code is 128 + code as a bfloat16 (1024 + code as a float16) once it lies in the low bits of the mantissa: two codes of
a byte take a multiplication or a byte permutation, a mask, and one packed FMA that takes 128 + zero off, exactly. Pairs
of k lie side by side in a register, as the products read them, so that nothing is shuffled.
"""

import triton
import triton.language as tl

from deepseek_fast.gpu.numbers import INTERPRET, dot

# A pair in a register, its byte b alone in a register: b * 4097 has the low code at bit 0 and the high one at bit 16.
_PAIR = """{{
    .reg .b32 codes, one;
    mov.b32 one, {one};
    mul.lo.u32 codes, $1, 4097;
    lop3.b32 codes, codes, 0x000F000F, {magic}, 0xEA;
    fma.rn.{type} $0, codes, one, $2;
}}"""
# Four pairs, of four bytes that came in one load.
_FOUR_PAIRS = """{{
    .reg .b32 high, a, b, c, d, one;
    mov.b32 one, {one};
    shr.u32 high, $4, 4;
    prmt.b32 a, $4, high, 0x4400;
    prmt.b32 b, $4, high, 0x5511;
    prmt.b32 c, $4, high, 0x6622;
    prmt.b32 d, $4, high, 0x7733;
    lop3.b32 a, a, 0x000F000F, {magic}, 0xEA;
    lop3.b32 b, b, 0x000F000F, {magic}, 0xEA;
    lop3.b32 c, c, 0x000F000F, {magic}, 0xEA;
    lop3.b32 d, d, 0x000F000F, {magic}, 0xEA;
    fma.rn.{type} $0, a, one, $5;
    fma.rn.{type} $1, b, one, $6;
    fma.rn.{type} $2, c, one, $7;
    fma.rn.{type} $3, d, one, $8;
}}"""
_BF16 = {"one": "0x3F803F80", "magic": "0x43004300", "type": "bf16x2"}
_F16 = {"one": "0x3C003C00", "magic": "0x64006400", "type": "f16x2"}
_PAIR_BF16, _PAIR_F16 = tl.constexpr(_PAIR.format(**_BF16)), tl.constexpr(_PAIR.format(**_F16))
_FOUR_BF16, _FOUR_F16 = tl.constexpr(_FOUR_PAIRS.format(**_BF16)), tl.constexpr(_FOUR_PAIRS.format(**_F16))
_MINUS_BF16 = tl.constexpr(0xC300C300 - (1 << 32))  # a pair of -(128 + zero), zero in the low bits
_MINUS_F16 = tl.constexpr(0xE400E400 - (1 << 32))
# Pairs of int8 of four bytes. A byte 128 + code - zero borrows from no other; its top bit turned is code - zero.
_INT8 = tl.constexpr("""{
    .reg .b32 low, high;
    shr.u32 high, $2, 4;
    lop3.b32 low, $2, 0x0F0F0F0F, 0x80808080, 0xEA;
    lop3.b32 high, high, 0x0F0F0F0F, 0x80808080, 0xEA;
    sub.u32 low, low, $3;
    sub.u32 high, high, $3;
    xor.b32 low, low, 0x80808080;
    xor.b32 high, high, 0x80808080;
    prmt.b32 $0, low, high, 0x5140;
    prmt.b32 $1, low, high, 0x7362;
}""")


@triton.jit
def floats(codes, zero, DTYPE: tl.constexpr, WORDS: tl.constexpr):
    """codes: (..., J) bytes, zero: int32 of that shape; (..., J, 2) of DTYPE, bfloat16 or float16: code - zero.

    WORDS: the layout of the product reads four bytes at a time (mma.sync, not wgmma). Interpreted: float32.
    """
    if INTERPRET:
        return tl.join((codes & 15).to(tl.int32) - zero, (codes >> 4).to(tl.int32) - zero).to(tl.float32)
    IS_BF16: tl.constexpr = DTYPE is tl.bfloat16
    minus = zero * 0x10001 + (_MINUS_BF16 if IS_BF16 else _MINUS_F16)
    if WORDS:
        pairs = tl.inline_asm_elementwise(
            _FOUR_BF16 if IS_BF16 else _FOUR_F16, "=r,=r,=r,=r,r,r,r,r,r", [codes, minus],
            dtype=tl.int32, is_pure=True, pack=4,
        )  # fmt: skip
    else:
        pairs = tl.inline_asm_elementwise(
            _PAIR_BF16 if IS_BF16 else _PAIR_F16, "=r,r,r", [codes.to(tl.int32), minus],
            dtype=tl.int32, is_pure=True, pack=1,
        )  # fmt: skip
    low = (pairs & 0xFFFF).to(tl.uint16).to(DTYPE, bitcast=True)
    high = (pairs >> 16).to(tl.uint16).to(DTYPE, bitcast=True)
    return tl.join(low, high)


@triton.jit
def integers(codes, zero):
    """codes: (..., J) bytes, zero: uint8 of that shape, up to 15; (..., J, 2) int8: code - zero."""
    if INTERPRET:
        zero = zero.to(tl.int32)
        return tl.join((codes & 15).to(tl.int32) - zero, (codes >> 4).to(tl.int32) - zero).to(tl.int8)
    pairs = tl.inline_asm_elementwise(
        _INT8, "=r,=r,r,r", [codes, zero], dtype=tl.int16, is_pure=True, pack=4
    )  # fmt: skip
    return tl.join((pairs & 0xFF).to(tl.int8), (pairs >> 8).to(tl.int8))


@triton.jit
def product(w, x, acc):
    """acc + w @ x, products exact, sums in float32. x of float32 is the exact sum of three bfloat16."""
    if x.dtype == tl.float32:
        first = _truncated(x)
        finite = tl.abs(x) < float("inf")
        rest = tl.where(finite, x, 0.0) - tl.where(finite, first, 0.0)
        second = _truncated(rest)
        acc = dot(w, (rest - second).to(w.dtype), acc)
        acc = dot(w, second.to(w.dtype), acc)
        return dot(w, first.to(w.dtype), acc)
    else:
        return dot(w, x, acc)


@triton.jit
def _truncated(x):
    """x to the bits of a bfloat16, still float32; NaN stays NaN."""
    return tl.where(x != x, x, (x.to(tl.uint32, bitcast=True) & 0xFFFF0000).to(tl.float32, bitcast=True))
