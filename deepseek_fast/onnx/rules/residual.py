"""Residual: the sum of a product and a tensor of its shape.

    t = FusedMatmul(x, W, b, 0); y = Add(t, r)  or  Add(r, t)      r computed, of t's shape
    -> y = FusedMatmul(x, W, b, r)                                 the same for Int8Matmul

No cycle can arise: t has no reader but the Add, so r does not depend on t.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek_fast.onnx._notes import Refusal
from deepseek_fast.onnx._rewriter import is_fused
from deepseek_fast.onnx._shapes import shape_text, surely_equal

if TYPE_CHECKING:
    import onnx_ir as ir

    from deepseek_fast.onnx._rewriter import Rewriter

NAME = "Residual"
LEVEL = 3


def rewrite(node: ir.Node, rewriter: Rewriter) -> str | None:
    if node.op_type != "Add" or node.domain:
        return None
    refusal = None
    for product, residual in (node.inputs, node.inputs[::-1]):
        fused = _open_product(product, rewriter)
        if fused is None or residual is None or rewriter.constants.array(residual) is not None:
            continue
        try:
            rewriter.check_only_consumer(fused.outputs[0])
            _check_same_shape(fused.outputs[0], residual)
        except Refusal as error:
            refusal = error
            continue
        inputs = [*fused.inputs[:-1], residual]
        attributes = {name: attribute.value for name, attribute in fused.attributes.items()}
        rewriter.fuse(fused.op_type, inputs, attributes, [fused, node])
        return f"{fused.op_type} with residual '{residual.name}'"
    if refusal is not None:
        raise refusal
    return None


def _open_product(value: ir.Value | None, rewriter: Rewriter) -> ir.Node | None:
    """The node of ours that makes `value`, if it has no residual yet."""
    node = value.producer() if value is not None else None
    if node is None or not is_fused(node) or node.graph is not rewriter.graph:
        return None
    return node if rewriter.constants.scalar(node.inputs[-1]) == 0 else None


def _check_same_shape(output: ir.Value, residual: ir.Value) -> None:
    if not surely_equal(output.shape, residual.shape):
        got = f"got {shape_text(residual.shape)} for {shape_text(output.shape)}"
        raise Refusal(f"residual must surely have the output's shape; {got}")
