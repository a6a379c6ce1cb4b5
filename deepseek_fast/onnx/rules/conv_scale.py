"""ConvScale: numbers that multiply or move a convolution's channels, folded into its weight and bias in float64.

    t = FusedConv(x, W, b, 0); y = Mul(t, m), Div(t, m), Add(t, m) or Sub(t, m)      m constant, one number a channel
    -> y = FusedConv(x, W * m, b * m, 0)  or  FusedConv(x, W, b + m, 0)

A bias that stands apart, and the scale and shift that Caffe writes after a BatchNormalization.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek_fast.onnx import _convs
from deepseek_fast.onnx._constants import is_overridable
from deepseek_fast.onnx._notes import Refusal

if TYPE_CHECKING:
    import onnx_ir as ir

    from deepseek_fast.onnx._rewriter import Rewriter

NAME = "ConvScale"
LEVEL = 1


def rewrite(node: ir.Node, rewriter: Rewriter) -> str | None:
    import numpy as np

    if node.op_type not in ("Mul", "Div", "Add", "Sub") or node.domain:
        return None
    orders = [(node.inputs[0], node.inputs[1])]
    if node.op_type in ("Mul", "Add"):
        orders.append((node.inputs[1], node.inputs[0]))
    for t, m in orders:
        conv, array = _convs.made_by_conv(t, rewriter), rewriter.constants.array(m)
        if t is None or conv is None or not _convs.is_bare(conv, rewriter) or not _convs.in_planes(conv):
            continue
        if is_overridable(m):
            raise Refusal("the constant must be constant; got an overridable graph input")
        if array is None:
            continue
        rewriter.check_only_consumer(t)
        bias = rewriter.constants.array(conv.inputs[_convs.BIAS])
        if bias is None:
            raise Refusal("bias must be constant")
        numbers = _convs.per_channel(array, bias.size).astype(np.float64)
        zeros, ones = np.zeros(bias.size), np.ones(bias.size)
        with np.errstate(all="ignore"):
            folded = {
                "Mul": (numbers, zeros),
                "Div": (1 / numbers, zeros),
                "Add": (ones, numbers),
                "Sub": (ones, -numbers),
            }
        _convs.fold(conv, *folded[node.op_type], node, rewriter)
        return f"FusedConv with {node.op_type}"
    return None
