"""Fp8Cast, Fp8Dequantize and Int8Cast in ONNX: the nodes, their schemas, and their bodies in plain ai.onnx operators.

C, scale = Fp8Cast(X, S, T); Y = Fp8Dequantize(C, S, T); Q, scale = Int8Cast(X): the meaning is in cpu.h, and the bodies
replay its float32 operations, bit for bit. Two types of torch are uint8 here, as ONNX Runtime 1.31 has no operators
for them: scales of e8m0, a byte each, and codes of FP4, two a byte, the first in the low half.

The bodies read all inputs, so a writer passes a tensor of shape (0,) for an S or T that is not there. Fp8Cast's S is
then of the type that scale has: float, uint8 for "ue8m0", float8e4m3fn for "e4m3". No body rounds stochastically: such
a node runs with our library only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deepseek_fast.kernels.fp8_cast import body_codes, body_scales
from deepseek_fast.kernels.fp8_cast.body_scales import DIVIDES, E4M3, LARGEST, UINT8, VLLM_LARGEST, Amax
from deepseek_fast.kernels.int8_matmul.body import quantized_rows
from deepseek_fast.onnx._body import DOMAIN, DOMAIN_VERSION, FLOAT_TYPES, MAX_INT64, BodyWriter

if TYPE_CHECKING:
    import onnx

CAST, DEQUANTIZE, INT8_CAST = "Fp8Cast", "Fp8Dequantize", "Int8Cast"
INPUTS = {CAST: ("X", "S", "T"), DEQUANTIZE: ("C", "S", "T"), INT8_CAST: ("X",)}
OUTPUTS = {CAST: ("C", "scale"), DEQUANTIZE: ("Y",), INT8_CAST: ("Q", "scale")}
FLOAT, FLOAT16, BFLOAT16 = 1, 10, 16  # TensorProto types
# The attributes and their defaults.
DEFAULTS: dict[str, dict[str, Any]] = {
    CAST: {
        "block": (1, 128),
        "plain": 0,
        "dtype": E4M3,
        "scale": "f32",
        "mode": "deepgemm",
        "saturate": 1,
        "rounding": "nearest",
        "seed": 0,
    },
    DEQUANTIZE: {"block": (1, 128), "dtype": FLOAT},
    INT8_CAST: {},
}
MIN_OPSETS = {CAST: 19, DEQUANTIZE: 19, INT8_CAST: 13}  # 19: the first whose Cast knows float8
SCALE_TYPES = {"f32": FLOAT, "ue8m0": UINT8, "e4m3": E4M3}
MODES = (*DIVIDES, "tilekernels", "te", *body_scales.PROPAGATES)
# A number in float64 that the types of Y round to infinity, and that lies as far from the largest as they round.
INFINITE = {FLOAT: 2.0**128, BFLOAT16: 2.0**128, FLOAT16: 2.0**16}
NEAR = 2.0**-14  # more than the error of rounding to float32, less than half of the last place of Y's 16-bit types


def function_proto(opset: int, op_type: str = CAST) -> onnx.FunctionProto:
    """The body of an operator in the ai.onnx operators of `opset`, 19 to 25; from 13 of Int8Cast."""
    body = BodyWriter(opset, MIN_OPSETS[op_type])
    {CAST: _cast, DEQUANTIZE: _dequantize, INT8_CAST: _int8_cast}[op_type](body)
    return body.function(op_type, INPUTS[op_type], tuple(DEFAULTS[op_type]), OUTPUTS[op_type])


def problem(op_type: str, attributes: Mapping[str, Any]) -> str | None:
    """Why a node with these attributes has no body; None where it has one."""
    rounding = attributes.get("rounding", "nearest")
    if op_type == CAST and rounding != "nearest":
        return f"Fp8Cast: rounding must be 'nearest' for a body in ai.onnx; got {rounding!r}"
    return None


class _Blocks:
    """The rows of a float tensor (..., K), and the node's blocks of them; sizes are int64 of shape (1,) or (2,)."""

    def __init__(self, body: BodyWriter, values: str) -> None:
        self.body = body
        self._first, last, one = (body.constant([value], "int64") for value in (0, -1, 1))
        self.shape = body.op("Shape", values)
        self._outer = body.op("Slice", self.shape, self._first, last)
        self._columns = body.op("Slice", self.shape, last, body.constant([MAX_INT64], "int64"))
        rows = body.op("ReduceProd", body.op("Concat", one, self._outer, axis=0), keepdims=1)
        self._sizes = body.op("Concat", rows, self._columns, axis=0)
        self.rows = self.reshaped(values, self._sizes)
        self._given = body.integers("block")
        most = body.op("Max", self._sizes, one)
        is_all = body.op("Less", self._given, self._first)  # one block, even of nothing
        self._block = body.op("Max", body.op("Min", body.op("Where", is_all, most, self._given), most), one)
        count = body.op("Div", body.op("Add", self._sizes, body.op("Sub", self._block, one)), self._block)
        self.count = body.op("Where", is_all, one, count)

    def reshaped(self, values: str, shape: str) -> str:
        return self.body.op("Reshape", values, shape, allowzero=1)

    def like_values(self, rows: str) -> str:
        return self.reshaped(rows, self.shape)

    def shape_of_codes(self, is_fp4: str) -> str:
        """That of the values, of FP4 with half of the columns."""
        body = self.body
        half = body.op("Div", self._columns, body.constant([2], "int64"))
        return body.op("Concat", self._outer, body.op("Where", is_fp4, half, self._columns), axis=0)

    def _part(self, pair: str, axis: int | list[int]) -> str:
        return self.body.op("Gather", pair, self.body.constant(axis, "int64"))

    def amax(self) -> tuple[str, str]:
        """Each block's largest magnitude of what is no NaN, and whether it holds a NaN."""
        body = self.body
        missing = body.op("Sub", body.op("Mul", self.count, self._block), self._sizes)
        padded = body.op("Pad", self.rows, body.op("Concat", self._first, self._first, missing, axis=0))
        sizes = [self._part(pair, [axis]) for axis in (0, 1) for pair in (self.count, self._block)]
        blocks = self.reshaped(padded, body.op("Concat", *sizes, axis=0))
        is_nan, zero = body.op("IsNaN", blocks), body.constant(0.0)

        def largest(values: str) -> str:  # of no values ONNX Runtime returns the shape unreduced, hence the Reshape
            return self.reshaped(body.reduce("ReduceMax", values, [1, 3]), self.count)

        amax = largest(body.op("Where", is_nan, zero, body.op("Abs", blocks)))
        return amax, body.op("Greater", largest(body.to_float(is_nan)), zero)

    def is_32(self) -> str:
        """Whether the node's block is (1, 32) or (32, 1)."""
        body = self.body
        equal = [body.op("Equal", self._given, body.constant(way, "int64")) for way in ((1, 32), (32, 1))]
        return body.op("Or", *(body.op("And", self._part(way, 0), self._part(way, 1)) for way in equal))

    def of_each_value(self, scale: str) -> str:
        """(rows, columns): the scale, of any shape, of each value's block."""
        body, one = self.body, self.body.constant(1, "int64")
        scale = self.reshaped(scale, self.count)
        for axis in (0, 1):
            places = body.op("Range", body.constant(0, "int64"), self._part(self._sizes, axis), one)
            scale = body.op("Gather", scale, body.op("Div", places, self._part(self._block, axis)), axis=axis)
        return scale

    def shaped(self, scale: str) -> str:
        """(blocks of rows, blocks of columns); x's own leading dimensions, if more than one, where rows are blocks."""
        body, outer_rank = self.body, self.body.op("Size", self._outer)
        own = body.op(
            "And",
            body.op("Equal", self._part(self._given, 0), body.constant(1, "int64")),
            body.op("Greater", outer_rank, body.constant(1, "int64")),
        )
        # Out of the leading dimensions and the blocks of rows.
        first = body.op("Where", own, self._first, outer_rank)
        all_rows = body.op("Concat", self._outer, self._part(self.count, [0]), axis=0)
        end = body.op("Add", first, body.op("Where", own, outer_rank, body.constant(1, "int64")))
        rows = body.op("Slice", all_rows, first, end)
        return self.reshaped(scale, body.op("Concat", rows, self._part(self.count, [1]), axis=0))


def _cast(body: BodyWriter) -> None:
    blocks = _Blocks(body, body.to_float("X"))
    dtype, mode, kind = body.scalar("dtype"), body.attribute("mode"), body.attribute("scale")
    modes = {name: body.equals(mode, name) for name in MODES}
    is_e8m0, is_e4m3, is_32 = body.equals(kind, "ue8m0"), body.equals(kind, "e4m3"), blocks.is_32()
    plain, saturates = body.flag("plain"), body.flag("saturate")
    numbers, no_scale = _optional(body, "S", blocks.count)
    tensor_scale, _ = _optional(body, "T", body.constant([1], "int64"))
    tables = [body_scales.table(body, values, dtype) for values in (VLLM_LARGEST, LARGEST)]
    largest = body.op("Where", modes["vllm"], *tables)

    # Not within a branch: ONNX Runtime 1.24 to 1.30 loses constants above 127 bytes where it takes a branch for its If.
    powers = body.constant(body_scales.INVERSE_POWERS)

    def dynamic() -> str:
        amax = Amax(*blocks.amax(), modes, largest, dtype, is_32, "X", tensor_scale, powers)
        pairs = (write(body, amax) for write in (body_scales.ue8m0, body_scales.e4m3, body_scales.f32))
        power, e4m3, f32 = (_stacked(body, *pair) for pair in pairs)
        return body.op("Where", is_e8m0, power, body.op("Where", is_e4m3, e4m3, f32))

    is_dynamic = body.op("And", no_scale, body.op("Not", plain))
    amounts = body.choose(is_dynamic, dynamic, lambda: _stacked(body, numbers, body.op("Reciprocal", numbers)))
    scale, factor = (body.op("Gather", amounts, body.constant(i, "int64")) for i in (0, 1))
    by_scale = body.op("Not", body.op("And", is_e8m0, is_dynamic))
    values = body.choose(
        body.op("And", body_scales.any_of(body, modes, DIVIDES), by_scale),
        lambda: body.op("Div", blocks.rows, blocks.of_each_value(scale)),
        lambda: body.op("Mul", blocks.rows, blocks.of_each_value(factor)),
    )
    is_fp4 = body.op("Equal", dtype, body.constant(UINT8, "int64"))
    codes = body.choose(
        is_fp4,
        lambda: body_codes.fp4_bytes(body, blocks.rows, values, modes["deepgemm"]),
        lambda: body_codes.fp8_values(body, blocks.rows, values, dtype, saturates),
    )
    body.cast_as("dtype", blocks.reshaped(codes, blocks.shape_of_codes(is_fp4)), "C", saturate="saturate")
    # As many values as X has blocks: else it could be a constant, which ONNX Runtime 1.24 to 1.27 loses as an output.
    raw = body.to_float("S")
    flat = body.op("Reshape", raw, body.constant([-1], "int64"))
    count = body.op("ReduceProd", blocks.count, keepdims=1)
    as_given = body.op("Slice", flat, body.constant([0], "int64"), count)
    as_given_shape = body.op("Shape", raw)
    result = body.choose(
        plain,
        lambda: body.constant([[1.0]]),
        lambda: body.choose(no_scale, lambda: blocks.shaped(scale), lambda: blocks.reshaped(as_given, as_given_shape)),
    )
    body.op("CastLike", result, "S", output="scale")


def _optional(body: BodyWriter, value: str, shape: str) -> tuple[str, str]:
    """(The numbers of an input of scales, in this shape, or ones; whether it is the (0,) that stands for none)."""
    numbers = body_codes.numbers_of_scale(body, value)  # float: below opset 21 ONNX Runtime's Shape knows no float8
    is_vector = body.op("Equal", body.op("Size", body.op("Shape", numbers)), body.constant(1, "int64"))
    is_empty = body.op("Equal", body.op("Size", numbers), body.constant(0, "int64"))
    count = body.op("ReduceProd", shape, keepdims=1)
    ones = body.op("Expand", body.constant([1.0]), count)
    enough = body.op("Concat", body.op("Reshape", numbers, body.constant([-1], "int64")), ones, axis=0)
    first = body.op("Slice", enough, body.constant([0], "int64"), count)
    return body.op("Reshape", first, shape, allowzero=1), body.op("And", is_vector, is_empty)


def _stacked(body: BodyWriter, scale: str, factor: str) -> str:
    first = body.constant([0], "int64")
    return body.op("Concat", *(body.op("Unsqueeze", value, first) for value in (scale, factor)), axis=0)


def _dequantize(body: BodyWriter) -> None:
    """The product of a code and a scale is exact in float64, and rounded once from there."""
    from onnx import TensorProto

    def to_double(value: str) -> str:
        return body.op("Cast", value, to=TensorProto.DOUBLE)

    blocks = _Blocks(body, body_codes.numbers_of_codes(body, "C"))
    scale, _ = _optional(body, "S", blocks.count)
    tensor_scale, no_tensor_scale = _optional(body, "T", body.constant([1], "int64"))

    def product() -> str:
        return body.op("Mul", to_double(blocks.rows), to_double(blocks.of_each_value(scale)))

    def product_of_three() -> str:
        both = body.op("Mul", tensor_scale, scale)
        return to_double(body.op("Mul", blocks.rows, blocks.of_each_value(both)))

    exact = body.choose(no_tensor_scale, product, product_of_three, TensorProto.DOUBLE)
    body.cast_as("dtype", blocks.like_values(_rounded(body, exact, body.scalar("dtype"))), "Y")


def _rounded(body: BodyWriter, exact: str, dtype: str) -> str:
    """exact (float64) rounded to nearest even of dtype, still float64.

    ONNX Runtime casts by way of float32, which rounds twice. Both roundings together miss the nearest number by one
    place, if at all: so it is the nearest of those of exact and of numbers a little beside it.
    """
    from onnx import TensorProto

    infinite = body.op("Gather", body.constant([INFINITE.get(i, 0.0) for i in range(BFLOAT16 + 1)], "float64"), dtype)

    def number(value: str) -> str:
        cast = body.op("Cast", body.cast_as("dtype", value), to=TensorProto.DOUBLE)
        too_large = body.op("Greater", body.op("Abs", cast), infinite)
        sign = body.op("Where", body.op("Less", cast, zero), body.op("Neg", infinite), infinite)
        return body.op("Where", too_large, sign, cast)

    def distance(value: str) -> str:
        return body.op("Abs", body.op("Sub", exact, value))

    zero = body.constant(0.0, "float64")
    nearest = number(exact)
    for factor in (1 + NEAR, 1 - NEAR):
        other = number(body.op("Mul", exact, body.constant(factor, "float64")))
        is_nearer = body.op("Less", distance(other), distance(nearest))
        nearest = body.op("Where", is_nearer, other, nearest)
    return nearest


def _int8_cast(body: BodyWriter) -> None:
    from onnx import TensorProto

    x = body.to_float("X")
    first, last, one = (body.constant([value], "int64") for value in (0, -1, 1))
    shape = body.op("Shape", x)
    per_row = body.op("Concat", body.op("Slice", shape, first, last), one, axis=0)
    # A column of zeros more: ONNX Runtime finds no largest of nothing.
    wide = body.op("Concat", x, body.op("ConstantOfShape", per_row), axis=-1)
    rounded, scale = quantized_rows(body, wide)
    columns = body.op("Slice", shape, last, body.constant([MAX_INT64], "int64"))
    rounded = body.op("Slice", rounded, first, columns, last)
    is_finite = body.op("Equal", scale, scale)
    body.op("Cast", body.op("Where", is_finite, rounded, body.constant(0.0)), output="Q", to=TensorProto.INT8)
    body.op("Identity", scale, output="scale")


def cast_node(x: str, given: str, tensor_scale: str, codes: str, out_scale: str, **attributes: Any) -> onnx.NodeProto:
    """An Fp8Cast node between named values; attributes: those of DEFAULTS that differ."""
    return _node(CAST, [x, given, tensor_scale], [codes, out_scale], attributes)


def dequantize_node(codes: str, scale: str, tensor_scale: str, y: str, **attributes: Any) -> onnx.NodeProto:
    """An Fp8Dequantize node between named values; attributes: those of DEFAULTS that differ."""
    return _node(DEQUANTIZE, [codes, scale, tensor_scale], [y], attributes)


def int8_cast_node(x: str, q: str, out_scale: str) -> onnx.NodeProto:
    """An Int8Cast node between named values."""
    return _node(INT8_CAST, [x], [q, out_scale], {})


def _node(op_type: str, inputs: list[str], outputs: list[str], attributes: Mapping[str, Any]) -> onnx.NodeProto:
    from onnx import helper

    return helper.make_node(op_type, inputs, outputs, domain=DOMAIN, **(DEFAULTS[op_type] | dict(attributes)))


def schemas() -> list[onnx.defs.OpSchema]:
    """The operators' schemas, for tools that look operators up in onnx.defs."""
    from onnx import defs

    options, kinds = defs.OpSchema.FormalParameterOption, defs.OpSchema.AttrType
    attribute_kinds = {str: kinds.STRING, int: kinds.INT, tuple: kinds.INTS}
    codes = ["tensor(uint8)", *(f"tensor(float8{form})" for form in ("e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz"))]
    scales = ["tensor(float)", "tensor(uint8)", "tensor(float8e4m3fn)"]
    constraints = {"T": (FLOAT_TYPES, "numbers"), "F": (codes, "codes"), "Z": (scales, "scales")}
    types = {
        CAST: (("T", "Z", "tensor(float)"), ("F", "Z")),
        DEQUANTIZE: (("F", "Z", "tensor(float)"), ("T",)),
        INT8_CAST: (("T",), ("tensor(int8)", "tensor(float)")),
    }
    docs = {
        CAST: "C = encode(X / scale), a scale for each block of X",
        DEQUANTIZE: "Y = C * S * T",
        INT8_CAST: "Q = round(X / scale), a scale for each row of X",
    }

    def parameters(names: tuple[str, ...], kinds: tuple[str, ...]) -> list[defs.OpSchema.FormalParameter]:
        return [
            defs.OpSchema.FormalParameter(
                name, kind, param_option=options.Optional if name in ("S", "T") else options.Single
            )
            for name, kind in zip(names, kinds, strict=True)
        ]

    return [
        defs.OpSchema(
            op_type,
            DOMAIN,
            DOMAIN_VERSION,
            doc=docs[op_type],
            inputs=parameters(INPUTS[op_type], types[op_type][0]),
            outputs=parameters(OUTPUTS[op_type], types[op_type][1]),
            type_constraints=[
                (name, *constraints[name]) for name in constraints if name in (*types[op_type][0], *types[op_type][1])
            ],
            attributes=[
                defs.OpSchema.Attribute(name, attribute_kinds[type(value)], required=False)
                for name, value in DEFAULTS[op_type].items()
            ],
        )
        for op_type in INPUTS
    ]
