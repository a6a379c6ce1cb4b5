"""Fp8Matmul in ONNX: the node, its schema, and its body in plain ai.onnx operators.

Y = activation(X @ (W * S)^T + B) + R; the meaning is in cpu.h. The body multiplies in float32: with activations "float"
the numbers agree within the rounding of its sums, with "fp8" X is cast by the float32 operations of cpu.h, bit for bit.
S has one value for each block of W and is of type float: Cast knows float8e8m0 from opset 24 only. The body needs all
five inputs, so a writer passes zeros for a B or R that is not there: B of shape (N,), R of shape (1,).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek_fast.onnx._body import DOMAIN, DOMAIN_VERSION, FLOAT_TYPES, BodyWriter

if TYPE_CHECKING:
    import onnx

OP_TYPE = "Fp8Matmul"
INPUTS = ("X", "W", "S", "B", "R")
ATTRIBUTES = ("activation", "activations", "block", "gated")
MIN_OPSET = 19  # the first whose Cast knows float8
STEP = 128  # values of X that share a scale
LARGEST = 448.0  # of float8e4m3fn
MIN_AMAX = 1e-4  # DeepGEMM's floor of a block's largest magnitude


def function_proto(opset: int, *, gated: bool = False) -> onnx.FunctionProto:
    """The body of Fp8Matmul in the ai.onnx operators of `opset`, 19 to 25; gated: for gated nodes, and the others."""
    body = BodyWriter(opset, MIN_OPSET, gated=gated)
    x = body.to_float("X")
    as_fp8 = body.equals(body.attribute("activations"), "fp8")
    x = body.choose(as_fp8, lambda: _cast(body, x), lambda: body.op("Identity", x))
    numbers = body.to_float("W")
    weight = body.op("Mul", numbers, _scale_of_each_value(body, numbers))
    body.epilogue(body.op("MatMul", x, body.op("Transpose", weight, perm=[1, 0])), apart=True)
    return body.function(OP_TYPE, INPUTS, ATTRIBUTES)


def _scale_of_each_value(body: BodyWriter, numbers: str) -> str:
    """(N, K): S[n / block[0], k / block[1]]; a block of -1 is the whole dimension.

    numbers: W in float32; below opset 21 ONNX Runtime's Shape knows no float8.
    """
    one = body.constant(1, "int64")
    shape, block = body.op("Shape", numbers), body.integers("block")
    is_all = body.op("Less", block, body.constant([0], "int64"))
    block = body.op("Where", is_all, body.op("Max", shape, one), block)
    scale = body.to_float("S")
    for axis in (0, 1):
        at = body.constant(axis, "int64")
        places = body.op("Range", body.constant(0, "int64"), body.op("Gather", shape, at), one)
        scale = body.op("Gather", scale, body.op("Div", places, body.op("Gather", block, at)), axis=axis)
    return scale


def _cast(body: BodyWriter, x: str) -> str:
    """x as float8e4m3fn times its scales, in blocks of 1 x 128, the last one filled up with zeros."""
    from onnx import TensorProto

    outer, K = (body.op("Shape", x, start=0, end=-1), body.op("Shape", x, start=-1))
    step = body.constant([STEP], "int64")
    missing = body.op("Mod", body.op("Sub", step, body.op("Mod", K, step)), step)
    zeros = body.op("ConstantOfShape", body.op("Concat", outer, missing, axis=0))
    full = body.op("Concat", x, zeros, axis=-1)
    full_shape = body.op("Shape", full)
    steps = body.op("Div", body.op("Add", K, missing), step)
    values = body.op("Reshape", full, body.op("Concat", outer, steps, step, axis=0), allowzero=1)
    # Of no rows at all ONNX Runtime returns the shape unreduced, hence the Reshape.
    per_step = body.op("Concat", outer, steps, body.constant([1], "int64"), axis=0)

    def reduced(op_type: str, of: str) -> str:
        return body.op("Reshape", body.reduce_last(op_type, of), per_step, allowzero=1)

    amax = reduced("ReduceMax", body.op("Abs", values))
    # ReduceMax may drop a NaN; this sum of zeros is NaN where the block holds NaN or inf, and adds 0 elsewhere.
    not_finite = reduced("ReduceSum", body.op("Mul", values, body.constant(0.0)))
    scale = body.op("Div", body.op("Max", amax, body.constant(MIN_AMAX)), body.constant(LARGEST))
    scale = body.op("Add", scale, not_finite)
    # Not 1 / scale: ONNX Runtime would make one Div of it and the Mul, which rounds otherwise.
    scaled = body.op("Mul", values, body.op("Reciprocal", scale))
    clipped = body.op("Clip", scaled, body.constant(-LARGEST), body.constant(LARGEST))
    numbers = body.to_float(body.op("Cast", clipped, to=TensorProto.FLOAT8E4M3FN))
    rows = body.op("Reshape", body.op("Mul", numbers, scale), full_shape, allowzero=1)
    return body.op("Slice", rows, body.constant([0], "int64"), K, body.constant([-1], "int64"))


def node(
    x: str,
    weight: str,
    scale: str,
    bias: str,
    residual: str,
    y: str,
    *,
    activation: str = "none",
    activations: str = "float",
    block: tuple[int, int] = (128, 128),
    gated: bool = False,
) -> onnx.NodeProto:
    """An Fp8Matmul node between named values; weight is (N, K) float8e4m3fn or float8e5m2, scale float."""
    from onnx import helper

    return helper.make_node(
        OP_TYPE,
        [x, weight, scale, bias, residual],
        [y],
        domain=DOMAIN,
        activation=activation,
        activations=activations,
        block=block,
        gated=int(gated),
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
        doc="Y = activation(X @ (W * S)^T + B) + R",
        inputs=[
            parameter("X", "T"),
            parameter("W", "F"),
            parameter("S", "tensor(float)"),
            parameter("B", "T", optional=True),
            parameter("R", "T", optional=True),
        ],
        outputs=[parameter("Y", "T")],
        type_constraints=[
            ("T", FLOAT_TYPES, "one type for X, B, R and Y"),
            ("F", ["tensor(float8e4m3fn)", "tensor(float8e5m2)"], "the type of W"),
        ],
        attributes=[
            defs.OpSchema.Attribute("activation", defs.OpSchema.AttrType.STRING, required=False),
            defs.OpSchema.Attribute("activations", defs.OpSchema.AttrType.STRING, required=False),
            defs.OpSchema.Attribute("gated", defs.OpSchema.AttrType.INT, required=False),
            defs.OpSchema.Attribute("block", defs.OpSchema.AttrType.INTS, required=False),
        ],
    )
