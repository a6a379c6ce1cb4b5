"""Int8Matmul in ONNX: the node, its schema, and its body in plain ai.onnx operators.

Y = activation(X @ (Q * S)^T + B) + R; the meaning, and the order of the float32 operations that the body replays, are
in cpu.h. With gated = 1, Q, S and B have 2 N rows. The body needs all five inputs, so a writer passes zeros for a B or
R that is not there: B of shape (N,), R of shape (1,).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek_fast.onnx._body import DOMAIN, DOMAIN_VERSION, FLOAT_TYPES, BodyWriter

if TYPE_CHECKING:
    import onnx

OP_TYPE = "Int8Matmul"
INPUTS = ("X", "Q", "S", "B", "R")
ATTRIBUTES = ("activation", "activations", "gated")
MAX_K = 131071  # columns of Q whose W8A8 sums fit int32
INT8_MAX = 127.0
MIN_AMAX = 2.0**-100  # a row whose largest magnitude is below this counts as zeros
UINT8_OFFSET = 128.0  # both factors are multiplied as uint8 with this zero point, see _int8_product


def function_proto(opset: int, *, gated: bool = False) -> onnx.FunctionProto:
    """The body of Int8Matmul in the ai.onnx operators of `opset`, 13 to 25; gated: for gated nodes, and the others."""
    body = BodyWriter(opset, gated=gated)
    x = body.to_float("X")
    is_float = body.equals(body.attribute("activations"), "float")
    acc = body.choose(is_float, lambda: _float_product(body, x), lambda: _int8_product(body, x))
    body.epilogue(body.op("Mul", acc, "S"))
    return body.function(OP_TYPE, INPUTS, ATTRIBUTES)


def _float_product(body: BodyWriter, x: str) -> str:
    return body.op("MatMul", x, body.op("Transpose", body.to_float("Q"), perm=[1, 0]))


def _int8_product(body: BodyWriter, x: str) -> str:
    """float(acc) * x_scale, in the order of cpu.h.

    Both factors go in as uint8 with zero point 128: MLAS multiplies uint8 by int8 with saturating 16-bit sums where
    the machine has no VNNI, and int8 by int8 in a scalar loop (20 times slower, measured on an AMD EPYC with VNNI).
    """
    from onnx import TensorProto

    rounded, x_scale = quantized_rows(body, x)
    x_q = body.op("Cast", body.op("Add", rounded, body.constant(UINT8_OFFSET)), to=TensorProto.UINT8)
    shifted = body.op("Add", body.to_float("Q"), body.constant(UINT8_OFFSET))
    weight = body.op("Transpose", body.op("Cast", shifted, to=TensorProto.UINT8), perm=[1, 0])
    zero_point = body.constant(UINT8_OFFSET, "uint8")
    acc = body.op("MatMulInteger", x_q, weight, zero_point, zero_point)
    return body.op("Mul", body.to_float(acc), x_scale)


def quantized_rows(body: BodyWriter, x: str) -> tuple[str, str]:
    """x in float: (its values as whole numbers, still float, their rows' scales, NaN where a row is not finite)."""
    row_shape = _row_shape(body, x)
    amax = _row_reduce(body, "ReduceMax", body.op("Abs", x), row_shape)
    # ReduceMax may drop a NaN; this sum of zeros is NaN where the row holds NaN or inf, and adds 0 elsewhere.
    not_finite = _row_reduce(body, "ReduceSum", body.op("Mul", x, body.constant(0.0)), row_shape)
    x_scale = body.op("Add", body.op("Div", amax, body.constant(INT8_MAX)), not_finite)
    is_zero = body.op("Less", amax, body.constant(MIN_AMAX))
    inverse = body.op(
        "Div",
        body.op("Where", is_zero, body.constant(0.0), body.constant(INT8_MAX)),
        body.op("Where", is_zero, body.constant(1.0), amax),
    )
    return body.op("Round", body.op("Mul", x, inverse)), x_scale


def _row_shape(body: BodyWriter, x: str) -> str:
    """x's shape with the last dimension 1."""
    outer = body.op("Slice", body.op("Shape", x), body.constant([0], "int64"), body.constant([-1], "int64"))
    return body.op("Concat", outer, body.constant([1], "int64"), axis=0)


def _row_reduce(body: BodyWriter, op_type: str, x: str, row_shape: str) -> str:
    """Reduces the last axis to 1. The Reshape is for no rows at all, whose shape ONNX Runtime returns unreduced."""
    return body.op("Reshape", body.reduce_last(op_type, x), row_shape)


def node(
    x: str,
    q: str,
    scale: str,
    bias: str,
    residual: str,
    y: str,
    *,
    activation: str = "none",
    activations: str = "int8",
    gated: bool = False,
) -> onnx.NodeProto:
    """An Int8Matmul node between named values; q is (N, K) int8, scale (N,) float."""
    from onnx import helper

    inputs = [x, q, scale, bias, residual]
    return helper.make_node(
        OP_TYPE, inputs, [y], domain=DOMAIN, activation=activation, activations=activations, gated=int(gated)
    )


def schema() -> onnx.defs.OpSchema:
    """The operator's schema, for tools that look operators up in onnx.defs."""
    from onnx import defs

    def parameter(name: str, kind: str, *, optional: bool = False) -> defs.OpSchema.FormalParameter:
        options = defs.OpSchema.FormalParameterOption
        return defs.OpSchema.FormalParameter(name, kind, param_option=options.Optional if optional else options.Single)

    return defs.OpSchema(
        OP_TYPE,
        DOMAIN,
        DOMAIN_VERSION,
        doc="Y = activation(X @ (Q * S)^T + B) + R",
        inputs=[
            parameter("X", "T"),
            parameter("Q", "tensor(int8)"),
            parameter("S", "tensor(float)"),
            parameter("B", "T", optional=True),
            parameter("R", "T", optional=True),
        ],
        outputs=[parameter("Y", "T")],
        type_constraints=[("T", FLOAT_TYPES, "one type for X, B, R and Y")],
        attributes=[
            defs.OpSchema.Attribute("activation", defs.OpSchema.AttrType.STRING, required=False),
            defs.OpSchema.Attribute("activations", defs.OpSchema.AttrType.STRING, required=False),
            defs.OpSchema.Attribute("gated", defs.OpSchema.AttrType.INT, required=False),
        ],
    )
