"""The scales of Fp8Cast's body: scale_rules.h in plain ai.onnx, one value a block.

Powers of two are looked up and exponents found by comparisons: ai.onnx has no bits of a float before opset 26.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from deepseek_fast.onnx._body import BodyWriter

F32_MAX, BF16_MAX = float(np.finfo(np.float32).max), (2 - 2.0**-7) * 2.0**127
SMALLEST_NORMAL = 2.0**-126
NAN_BYTE = 255
POWERS = [*(2.0 ** (byte - 127) for byte in range(NAN_BYTE)), np.nan]  # what an e8m0 byte means
INVERSE_POWERS = [*(2.0 ** (127 - byte) for byte in range(NAN_BYTE)), np.nan]
# By TensorProto type of the codes; UINT8 holds two of float4e2m1.
UINT8, E4M3, E4M3FNUZ, E5M2, E5M2FNUZ = 2, 17, 18, 19, 20
LARGEST = {UINT8: 6.0, E4M3: 448.0, E4M3FNUZ: 240.0, E5M2: 57344.0, E5M2FNUZ: 57344.0}
VLLM_LARGEST = LARGEST | {E4M3FNUZ: 224.0}
LARGEST_EXPONENT = {UINT8: 2.0, E4M3: 8.0, E4M3FNUZ: 7.0, E5M2: 15.0, E5M2FNUZ: 15.0}
# From here on a number in [1, 2) rounds up to 2 when its mantissa is cut to the format's bits.
ROUNDS_TO_TWO = {UINT8: 1.75, E4M3: 1.9375, E4M3FNUZ: 1.9375, E5M2: 1.875, E5M2FNUZ: 1.875}
FLOORS = {"te": 0.0, "vllm": 1e-10, "torchao": 1e-12}
FLOOR, TILEKERNELS_FP4_FLOOR = 1e-4, 6 * SMALLEST_NORMAL  # of the other modes
SMALLEST_E4M3, LARGEST_E4M3 = 2.0**-6, 448.0  # of NVFP4's scales
TORCHAO_MX = ("torchao", "torchao_ceil", "torchao_even", "torchao_rceil")
DIVIDES = ("v3", "v32", "vllm")
PROPAGATES = ("deepgemm", *TORCHAO_MX)  # a NaN makes its block's amax NaN; the others take the rest's


@dataclass(frozen=True)
class Amax:
    """What the scales are made of, by name: amax and any_nan (blocks of rows, blocks of columns), and the options."""

    amax: str  # of the values that are no NaN
    any_nan: str
    mode: Mapping[str, str]  # name of a mode -> whether it is the node's
    largest: str
    dtype: str
    is_mx: str  # blocks of (1, 32) or (32, 1)
    x: str
    tensor_scale: str  # one value
    inverse_powers: str  # INVERSE_POWERS


def table(body: BodyWriter, values: Mapping[int, float], dtype: str) -> str:
    """The entry of a TensorProto type."""
    return body.op("Gather", body.constant([values.get(i, 0.0) for i in range(max(values) + 1)]), dtype)


def any_of(body: BodyWriter, conditions: Mapping[str, str], names: tuple[str, ...]) -> str:
    found = conditions[names[0]]
    for name in names[1:]:
        found = body.op("Or", found, conditions[name])
    return found


def with_nan(body: BodyWriter, a: Amax) -> str:
    is_nan = body.op("And", a.any_nan, any_of(body, a.mode, PROPAGATES))
    return body.op("Where", is_nan, body.constant(np.nan), a.amax)


def floored(body: BodyWriter, a: Amax, amax: str) -> str:
    floor = body.constant(FLOOR)
    is_fp4 = body.op("Equal", a.dtype, body.constant(UINT8, "int64"))
    fp4_floor = body.op("And", is_fp4, a.mode["tilekernels"])
    floor = body.op("Where", fp4_floor, body.constant(TILEKERNELS_FP4_FLOOR), floor)
    for mode, value in FLOORS.items():
        floor = body.op("Where", a.mode[mode], body.constant(value), floor)
    return body.op("Where", body.op("Less", amax, floor), floor, amax)


def f32(body: BodyWriter, a: Amax) -> tuple[str, str]:
    """(scale, factor): scales_f32()."""
    amax = floored(body, a, with_nan(body, a))
    scale = body.op(
        "Where",
        a.mode["v32"],
        body.op("Mul", amax, body.op("Reciprocal", a.largest)),
        body.op("Div", amax, a.largest),
    )
    from_factor = body.op("Or", a.mode["te"], a.mode["torchao"])
    factor = body.op("Where", a.mode["te"], _te_factor(body, a), body.op("Div", a.largest, amax))
    # Not 1 / scale: ONNX Runtime would make one Div of it and the Mul behind it, which rounds otherwise.
    own = body.op("Or", from_factor, a.mode["tilekernels"])
    return (
        body.op("Where", from_factor, body.op("Reciprocal", factor), scale),
        body.op("Where", own, factor, body.op("Reciprocal", scale)),
    )


def _te_factor(body: BodyWriter, a: Amax) -> str:
    """largest / amax, at most the largest number of X's type (float16 counts as float), and 1 of 0 and infinity."""
    probe = body.to_float(body.op("CastLike", body.constant(1 + 2.0**-10), a.x))  # 1 in bfloat16 only
    is_bf16 = body.op("Equal", probe, body.constant(1.0))
    most, f32_max = body.op("Where", is_bf16, body.constant(BF16_MAX), body.constant(F32_MAX)), body.constant(F32_MAX)
    factor = body.op("Div", a.largest, a.amax)
    factor = body.op("Where", body.op("Greater", factor, f32_max), most, factor)
    is_number = body.op("And", body.op("Greater", a.amax, body.constant(0.0)), body.op("LessOrEqual", a.amax, f32_max))
    return body.op("Where", is_number, factor, body.constant(1.0))


def ue8m0(body: BodyWriter, a: Amax) -> tuple[str, str]:
    """(byte, factor), the byte as a float: e8m0_of()."""
    amax, inverse = with_nan(body, a), body.op("Reciprocal", a.largest)
    above, scaled = floored(body, a, amax), body.op("Mul", amax, inverse)
    number = body.op("Where", a.mode["v32"], body.op("Mul", above, inverse), body.op("Div", above, a.largest))
    exact, rceil, te = any_of(body, a.mode, TORCHAO_MX[:-1]), a.mode["torchao_rceil"], a.mode["te"]
    of_te = body.op("Where", a.is_mx, scaled, _te_factor(body, a))
    for is_mode, value in ((rceil, scaled), (exact, amax), (te, of_te)):
        number = body.op("Where", is_mode, value, number)

    field, significand = _split(body, number)
    up = body.to_float(body.op("Greater", significand, body.constant(1.0)))
    raised, most = body.op("Add", field, up), body.constant(254.0)
    # Of a subnormal number: whether it is above half of the smallest power whose byte is not 0.
    half = body.to_float(body.op("Greater", number, body.constant(SMALLEST_NORMAL / 2)))
    from_zero = body.op("Where", body.op("Equal", field, body.constant(0.0)), half, raised)
    of_te = body.op("Where", a.is_mx, body.op("Min", from_zero, most), body.op("Sub", most, field))
    byte = body.op("Max", body.op("Min", raised, most), body.constant(1.0))
    for is_mode, value in ((rceil, from_zero), (exact, _torchao_byte(body, a, field, significand, up)), (te, of_te)):
        byte = body.op("Where", is_mode, value, byte)
    return byte, number_of_byte(body, byte, a.inverse_powers)


def _torchao_byte(body: BodyWriter, a: Amax, field: str, significand: str, up: str) -> str:
    rounds = body.op("GreaterOrEqual", significand, table(body, ROUNDS_TO_TWO, a.dtype))
    even = body.op("And", a.mode["torchao_even"], rounds)
    rounded = body.op("Add", field, body.to_float(even))
    up = body.op("Mul", up, body.to_float(a.mode["torchao_ceil"]))
    byte = body.op("Sub", body.op("Add", rounded, up), table(body, LARGEST_EXPONENT, a.dtype))
    byte = body.op("Max", byte, body.constant(0.0))
    is_nan = body.op("GreaterOrEqual", rounded, body.constant(float(NAN_BYTE)))
    return body.op("Where", is_nan, body.constant(float(NAN_BYTE)), byte)


def _split(body: BodyWriter, v: str) -> tuple[str, str]:
    """(exponent field as a float, significand in [1, 2)) of v >= 0; (255, 1) if not finite, (0, 1) below 2^-126.

    Each step multiplies by a power of two where v is beyond it, which is exact.
    """
    one = body.constant(1.0)
    small = body.op("Less", v, body.constant(SMALLEST_NORMAL))
    normal = body.op("And", body.op("LessOrEqual", v, body.constant(F32_MAX)), body.op("Not", small))
    rest, field = body.op("Where", normal, v, one), body.constant(127.0)
    steps = [("Less", 1.0, -64.0)] * 2 + [("GreaterOrEqual", 2.0**k, float(k)) for k in (64, 32, 16, 8, 4, 2, 1)]
    for compare, limit, exponent in steps:
        beyond = body.op(compare, rest, body.constant(limit))
        rest = body.op("Mul", rest, body.op("Where", beyond, body.constant(2.0**-exponent), one))
        field = body.op("Add", field, body.op("Where", beyond, body.constant(exponent), body.constant(0.0)))
    other = body.op("Where", small, body.constant(0.0), body.constant(255.0))
    return body.op("Where", normal, field, other), rest


def e4m3(body: BodyWriter, a: Amax) -> tuple[str, str]:
    """(scale, factor), the scale as a float: scales_e4m3()."""
    from onnx import TensorProto

    low, high = body.constant(SMALLEST_E4M3), body.constant(LARGEST_E4M3)
    scale = body.op("Div", body.op("Div", with_nan(body, a), a.largest), a.tensor_scale)
    scale = body.op("Where", body.op("Less", scale, low), low, scale)
    scale = body.op("Where", body.op("Greater", scale, high), high, scale)
    scale = body.to_float(body.op("Cast", scale, to=TensorProto.FLOAT8E4M3FN))
    return scale, body.op("Div", body.op("Reciprocal", a.tensor_scale), scale)


def number_of_byte(body: BodyWriter, byte: str, powers: str) -> str:
    """The entry of a table. byte: a float, 0 to 255; anything else counts as 0."""
    from onnx import TensorProto

    is_byte = body.op(
        "And",
        body.op("GreaterOrEqual", byte, body.constant(0.0)),
        body.op("LessOrEqual", byte, body.constant(float(NAN_BYTE))),
    )
    byte = body.op("Where", is_byte, byte, body.constant(0.0))
    return body.op("Gather", powers, body.op("Cast", byte, to=TensorProto.INT64))
