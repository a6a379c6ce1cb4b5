"""QdqMove: a node that only moves values, between a DequantizeLinear and a QuantizeLinear of one scale: of the bytes.

    t = MaxPool(DequantizeLinear(X, s, z)); y = QuantizeLinear(t, s, z)          X uint8 or int8
    -> y = MaxPool(X)

Likewise Reshape, Transpose, Flatten, Squeeze and Unsqueeze. From there the rules ConvPool, Pool and ConvLayout take it
along, so only beside convolutions of bytes; elsewhere the runtime does as much.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek_fast.onnx import _convs, _qdq
from deepseek_fast.onnx._notes import Refusal

if TYPE_CHECKING:
    import onnx_ir as ir

    from deepseek_fast.onnx._rewriter import Rewriter

NAME = "QdqMove"
LEVEL = 1
MOVES = ("MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze")


def rewrite(node: ir.Node, rewriter: Rewriter) -> str | None:
    x = node.inputs[0] if node.op_type in MOVES and not node.domain else None
    reader = x.producer() if x is not None else None
    if reader is None or not _qdq.reads_bytes(reader) or not any(_convs.is_conv_int8(n) for n in rewriter.graph):
        return None
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        raise Refusal("Indices must be unused")
    last = rewriter.check_only_consumer(node.outputs[0])
    if last.op_type != "QuantizeLinear" or last.domain:
        raise Refusal(f"a QuantizeLinear must follow; got {last.op_type}")
    of_x, of_y = _qdq.scale_of(reader, "x", rewriter), _qdq.scale_of(last, "y", rewriter)
    if not of_x.is_same(of_y):
        raise Refusal(f"x and y must have one scale; got {of_x.step:g} and {of_y.step:g}")
    rewriter.fuse(node.op_type, [reader.inputs[0], *node.inputs[1:]], dict(node.attributes), [node, last], domain="")
    _qdq.drop_unread([reader], rewriter)
    return f"{node.op_type} of bytes"
