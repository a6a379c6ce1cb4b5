"""ConvPool: the largest values of a convolution's windows, taken before it is written.

t = FusedConv(x, W, b, r, activation); y = MaxPool(t; kernel_shape, strides, pads or auto_pad, ceil_mode)
-> y = FusedConv(x, W, b, r, activation, pool_kernel, pool_stride, pool_padding, pool_ceil_mode)
A FusedConvInt8 likewise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek_fast.onnx import _convs
from deepseek_fast.onnx._notes import Refusal

if TYPE_CHECKING:
    import onnx_ir as ir

    from deepseek_fast.onnx._rewriter import Rewriter

NAME = "ConvPool"
LEVEL = 3


def rewrite(node: ir.Node, rewriter: Rewriter) -> str | None:
    if node.op_type != "MaxPool" or node.domain:
        return None
    t = node.inputs[0]
    conv = _convs.made_by_conv(t, rewriter, or_int8=True)
    if t is None or conv is None or _convs.has_pool(conv) or not _convs.in_planes(conv):
        return None
    rewriter.check_only_consumer(t)
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        raise Refusal("Indices must be unused")
    window = {f"pool_{name}": value for name, value in _convs.pool_window(node).items()}
    rewriter.fuse(conv.op_type, conv.inputs, _convs.changed(conv, **window), [conv, node])
    return f"{conv.op_type} with MaxPool"
