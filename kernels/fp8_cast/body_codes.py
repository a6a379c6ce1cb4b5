"""The codes of Fp8Cast's and Fp8Dequantize's bodies: encode.h in plain ai.onnx, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from deepseek_fast.kernels.fp8_cast.body_scales import E4M3, E4M3FNUZ, E5M2, E5M2FNUZ, POWERS, number_of_byte, table
from deepseek_fast.onnx._body import MAX_INT64

if TYPE_CHECKING:
    from deepseek_fast.onnx._body import BodyWriter

FP4_MIDPOINTS = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)
FP4_NUMBERS = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
FP4_NAN, FP4_SIGN, FP4_CODES = 7.0, 8.0, 16.0


def _below(value: float) -> float:
    return float(np.nextafter(np.float32(value), np.float32(0)))


# The largest float that rounds to a number, and what is above becomes.
FITS = {E4M3: 464.0, E4M3FNUZ: _below(248.0), E5M2: _below(61440.0), E5M2FNUZ: _below(61440.0)}
OVERFLOW = {E4M3: np.nan, E4M3FNUZ: np.nan, E5M2: np.inf, E5M2FNUZ: np.nan}


def fp8_values(body: BodyWriter, x: str, v: str, dtype: str, saturates: str) -> str:
    """What Cast, saturating or not, turns into the codes of v; a NaN gets x's sign.

    ONNX Runtime 1.31 casts -480 to -448 without saturate, and 61440 to a NaN in float8e5m2: so nothing that overflows
    is left to it.
    """
    nan, zero = body.constant(np.nan), body.constant(0.0)
    negative_nan = body.constant(-np.nan)
    nan_of_x = body.op("Where", _is_negative(body, x), negative_nan, nan)
    nan_of_x = body.op("Where", body.op("IsNaN", x), x, nan_of_x)
    v = body.op("Where", body.op("IsNaN", v), nan_of_x, v)

    limit = body.op("Where", saturates, body.constant(np.inf), table(body, FITS, dtype))
    size = table(body, OVERFLOW, dtype)
    signed = body.op("Where", body.op("Less", v, zero), body.op("Neg", size), size)
    return body.op("Where", body.op("Greater", body.op("Abs", v), limit), signed, v)


def _is_negative(body: BodyWriter, x: str) -> str:
    """Whether x, if it is no NaN, has a sign: -0 has."""
    zero = body.constant(0.0)
    return body.op("Or", body.op("Less", x, zero), body.op("Less", body.op("Reciprocal", x), zero))


def fp4_bytes(body: BodyWriter, x: str, v: str, is_deepgemm: str) -> str:
    """Two codes a byte, as a float, the first in the low half.

    DeepGEMM takes midpoints down, and gives zero and NaN no sign. The sign of a NaN in x cannot be seen: it counts as
    positive.
    """
    size, zero = body.op("Abs", v), body.constant(0.0)
    code = zero
    for i, midpoint in enumerate(FP4_MIDPOINTS):
        limit = body.constant(midpoint)
        above = body.op("Greater", size, limit)
        if i % 2:  # a tie goes to the even code, here the upper one
            above = body.op("Or", above, body.op("And", body.op("Equal", size, limit), body.op("Not", is_deepgemm)))
        code = body.op("Add", code, body.to_float(above))
    is_nan = body.op("IsNaN", v)
    code = body.op("Where", is_nan, body.constant(FP4_NAN), code)
    negative = _is_negative(body, x)
    unsigned = body.op("And", is_deepgemm, body.op("Or", is_nan, body.op("Equal", code, zero)))
    negative = body.op("And", negative, body.op("Not", unsigned))
    code = body.op("Add", code, body.op("Mul", body.to_float(negative), body.constant(FP4_SIGN)))
    one, two, axis = (body.constant(value, "int64") for value in (1, 2, -1))
    pairs = body.op("Div", body.op("Gather", body.op("Shape", v), axis), two)
    first = body.op("Mul", body.op("Range", body.constant(0, "int64"), pairs, one), two)
    low, high = (body.op("Gather", code, places, axis=-1) for places in (first, body.op("Add", first, one)))
    return body.op("Add", low, body.op("Mul", high, body.constant(FP4_CODES)))


def is_uint8(body: BodyWriter, value: str) -> str:
    half = body.to_float(body.op("CastLike", body.constant(0.5), value))
    return body.op("Equal", half, body.constant(0.0))


def numbers_of_codes(body: BodyWriter, codes: str) -> str:
    """float32 of codes; of uint8 two each."""
    value = body.to_float(codes)

    def fp4() -> str:
        from onnx import TensorProto

        high = body.op("Floor", body.op("Mul", value, body.constant(1 / FP4_CODES)))
        low = body.op("Sub", value, body.op("Mul", high, body.constant(FP4_CODES)))
        last = body.constant([-1], "int64")
        pairs = body.op("Concat", body.op("Unsqueeze", low, last), body.op("Unsqueeze", high, last), axis=-1)
        numbers = body.constant([*FP4_NUMBERS, *(-number for number in FP4_NUMBERS)])
        is_code = body.op("Less", body.op("Abs", pairs), body.constant(FP4_CODES))
        place = body.op("Cast", body.op("Where", is_code, pairs, body.constant(0.0)), to=TensorProto.INT64)
        shape = body.op("Shape", value)
        columns = body.op(
            "Mul", body.op("Slice", shape, last, body.constant([MAX_INT64], "int64")), body.constant([2], "int64")
        )
        outer = body.op("Slice", shape, body.constant([0], "int64"), last)
        shape = body.op("Concat", outer, columns, axis=0)
        return body.op("Reshape", body.op("Gather", numbers, place), shape, allowzero=1)

    return body.choose(is_uint8(body, codes), fp4, lambda: value)


def numbers_of_scale(body: BodyWriter, scale: str) -> str:
    """float32 of scales: uint8 are exponents."""
    value = body.to_float(scale)
    return body.op("Where", is_uint8(body, scale), number_of_byte(body, value, body.constant(POWERS)), value)
