"""Scales of blocks from their largest sizes, in every convention: scale_rules.h in Triton, line by line.

Only exactly rounded operations, not contracted: the CPU's bits.
"""

import triton
import triton.language as tl

from deepseek_fast.gpu.codes import FORMATS, decode_e8m0, encode_fp8, mantissa_of

LARGEST_F32, LARGEST_BF16 = tl.constexpr(3.4028234663852886e38), tl.constexpr(3.3895313892515355e38)
# The float32 nearest to 1e-4, 1e-10 and 1e-12.
FLOOR, FLOOR_VLLM, FLOOR_TORCHAO = 9.999999747378752e-05, 1.000000013351432e-10, 9.999999960041972e-13
# Largest numbers: 1 over each as float32 has it, and the exponent of the power of two at or below.
INVERSES = {
    448.0: (0.0022321429569274187, 8),
    57344.0: (1.743861685099546e-05, 15),
    240.0: (0.004166666883975267, 7),
    224.0: (0.004464285913854837, 7),
    6.0: (0.1666666716337204, 2),
}


@triton.constexpr_function
def _largest_of(MODE, FORMAT):
    return 224.0 if MODE == "vllm" and FORMAT == "e4m3fnuz" else FORMATS[FORMAT][2]


@triton.constexpr_function
def _inverse_of(largest):
    return INVERSES[largest][0]


@triton.constexpr_function
def _exponent_of(largest):
    return INVERSES[largest][1]


@triton.constexpr_function
def _floor_of(MODE, FORMAT):
    """What amax is at least, where a mode has that."""
    if MODE == "tilekernels" and FORMAT == "e2m1":
        return 6 * 2.0**-126
    return FLOOR_VLLM if MODE == "vllm" else (FLOOR_TORCHAO if MODE == "torchao" else FLOOR)


@triton.jit
def scale_of(
    bits, tensor_scale, MODE: tl.constexpr, KIND: tl.constexpr, FORMAT: tl.constexpr, MX: tl.constexpr,
    BF16: tl.constexpr,
):  # fmt: skip
    """(scale, factor) of blocks whose largest sizes have these bits (int32): what is stored, float32 or the byte of
    e8m0 or e4m3, and what values are multiplied with (v3, v32 and vllm with float32 scales: divided by).

    tensor_scale: a float32 or None. MX: blocks of 32, for te. BF16: x is bfloat16, for te.
    """
    amax = bits.to(tl.float32, bitcast=True)
    LARGEST: tl.constexpr = _largest_of(MODE, FORMAT)
    if KIND == "e4m3":
        return _nvfp4(amax, tensor_scale, LARGEST)
    elif KIND == "ue8m0":
        byte = _byte_of(bits, amax, MODE, FORMAT, LARGEST, MX, BF16)
        return byte.to(tl.uint8), decode_e8m0(tl.where(byte == 255, 255, 254 - byte))
    elif MODE == "te":
        factor = _te_factor(bits, amax, LARGEST, BF16)
        return tl.div_rn(1.0, factor), factor
    else:
        LEAST: tl.constexpr = _floor_of(MODE, FORMAT)
        amax = tl.where(amax < LEAST, LEAST, amax)
        if MODE == "v32":
            scale = amax * _inverse_of(LARGEST)
            return scale, scale
        elif MODE == "torchao":
            factor = tl.div_rn(LARGEST, amax)
            return tl.div_rn(1.0, factor), factor
        else:
            scale = tl.div_rn(amax, LARGEST)
            if MODE == "tilekernels":
                return scale, tl.div_rn(LARGEST, amax)
            elif MODE == "deepgemm":
                return scale, tl.div_rn(1.0, scale)
            else:  # v3, vllm
                return scale, scale


@triton.jit
def _te_factor(bits, amax, LARGEST: tl.constexpr, BF16: tl.constexpr):
    factor = tl.div_rn(LARGEST, amax)
    factor = tl.where(factor == float("inf"), LARGEST_BF16 if BF16 else LARGEST_F32, factor)
    return tl.where((bits > 0) & (bits < 0x7F800000), factor, 1.0)


@triton.jit
def _byte_of(
    bits, amax, MODE: tl.constexpr, FORMAT: tl.constexpr, LARGEST: tl.constexpr, MX: tl.constexpr, BF16: tl.constexpr
):  # fmt: skip
    """The bytes of e8m0 scales as int32, 255 for NaN."""
    if MODE == "te":
        if MX:
            d = (amax * _inverse_of(LARGEST)).to(tl.int32, bitcast=True)
            field, mantissa = d >> 23, d & 0x7FFFFF
            up = (mantissa > 0) & (field != 254) & ((field != 0) | (mantissa > 0x400000))
            return tl.where(d > 0x7F800000, 255, tl.where(d == 0x7F800000, 254, field + up.to(tl.int32)))
        else:
            return 254 - (_te_factor(bits, amax, LARGEST, BF16).to(tl.int32, bitcast=True) >> 23)
    elif MODE == "torchao_rceil":
        d = (amax * _inverse_of(LARGEST)).to(tl.int32, bitcast=True)
        field, mantissa = d >> 23, d & 0x7FFFFF
        up = tl.where(field == 0, mantissa > 0x400000, mantissa != 0).to(tl.int32)
        return tl.where(d >= 0x7F800000, 255, field + up)
    elif MODE == "torchao" or MODE == "torchao_ceil" or MODE == "torchao_even":
        if MODE == "torchao_even":  # rounded to the format's mantissa, to infinity too
            bits = tl.where(bits >= 0x7F800000, bits, bits + (1 << (22 - mantissa_of(FORMAT))))
        exponent = (bits >> 23) - _exponent_of(LARGEST)
        if MODE == "torchao_ceil":
            exponent += ((bits & 0x7FFFFF) != 0).to(tl.int32)
        return tl.where(bits >= 0x7F800000, 255, tl.minimum(tl.maximum(exponent, 0), 255))
    else:
        LEAST: tl.constexpr = _floor_of(MODE, FORMAT)
        amax = tl.where(amax < LEAST, LEAST, amax)
        if MODE == "v32":
            scale = (amax * _inverse_of(LARGEST)).to(tl.int32, bitcast=True)
        else:
            scale = tl.div_rn(amax, LARGEST).to(tl.int32, bitcast=True)
        if MODE == "tilekernels":
            return tl.minimum(((scale - 1) >> 23) + 1, 254)
        else:
            field = (scale >> 23) + ((scale & 0x7FFFFF) != 0).to(tl.int32)
            return tl.minimum(tl.maximum(field, 1), 254)


@triton.jit
def _nvfp4(amax, tensor_scale, LARGEST: tl.constexpr):
    """Scales of e4m3, at least its smallest normal number; NaN stays NaN."""
    wanted = tl.div_rn(amax, LARGEST)
    one = tl.full([], 1.0, tl.float32)
    if tensor_scale is not None:
        wanted = tl.div_rn(wanted, tensor_scale)
        one = tl.div_rn(one, tensor_scale)
    byte = encode_fp8(tl.where(wanted < 0.015625, 0.015625, wanted))
    # The number of a normal code: its bits, with float32's bias.
    scale = ((byte.to(tl.uint32) << 20) + (120 << 23)).to(tl.float32, bitcast=True)
    scale = tl.where(wanted != wanted, wanted, scale)
    return byte, tl.div_rn(one, scale)
