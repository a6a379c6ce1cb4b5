"""FusedMatmul in ONNX: the node, its schema, and its body in plain ai.onnx operators.

Y = activation(X @ W^T + B) + R, all in float32, rounded once to X's type; the meaning is in cpu.h. With gated = 1, W
and B have 2 N rows, whose first N outputs go through the activation and multiply the last N. The body needs all four
inputs, so a writer passes zeros for a B or R that is not there: B of shape (N,), R of shape (1,).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek_fast.onnx._body import DOMAIN, DOMAIN_VERSION, FLOAT_TYPES, BodyWriter

if TYPE_CHECKING:
    import onnx

OP_TYPE = "FusedMatmul"
INPUTS = ("X", "W", "B", "R")
ATTRIBUTES = ("activation", "gated")


def function_proto(opset: int, *, gated: bool = False) -> onnx.FunctionProto:
    """The body of FusedMatmul in the ai.onnx operators of `opset`, 13 to 25; gated: for gated nodes, and the others."""
    body = BodyWriter(opset, gated=gated)
    weight = body.op("Transpose", body.to_float("W"), perm=[1, 0])
    body.epilogue(body.op("MatMul", body.to_float("X"), weight))
    return body.function(OP_TYPE, INPUTS, ATTRIBUTES)


def node(
    x: str, weight: str, bias: str, residual: str, y: str, *, activation: str = "none", gated: bool = False
) -> onnx.NodeProto:
    """A FusedMatmul node between named values; weight is (N, K), gated (2 N, K)."""
    from onnx import helper

    inputs = [x, weight, bias, residual]
    return helper.make_node(OP_TYPE, inputs, [y], domain=DOMAIN, activation=activation, gated=int(gated))


def schema() -> onnx.defs.OpSchema:
    """The operator's schema, for tools that look operators up in onnx.defs."""
    from onnx import defs

    def parameter(name: str, option: defs.OpSchema.FormalParameterOption) -> defs.OpSchema.FormalParameter:
        return defs.OpSchema.FormalParameter(name, "T", param_option=option)

    single, optional = defs.OpSchema.FormalParameterOption.Single, defs.OpSchema.FormalParameterOption.Optional
    return defs.OpSchema(
        OP_TYPE,
        DOMAIN,
        DOMAIN_VERSION,
        doc="Y = activation(X @ W^T + B) + R",
        inputs=[parameter("X", single), parameter("W", single), parameter("B", optional), parameter("R", optional)],
        outputs=[parameter("Y", single)],
        type_constraints=[("T", FLOAT_TYPES, "one type for X, W, B, R and Y")],
        attributes=[
            defs.OpSchema.Attribute("activation", defs.OpSchema.AttrType.STRING, required=False),
            defs.OpSchema.Attribute("gated", defs.OpSchema.AttrType.INT, required=False),
        ],
    )
