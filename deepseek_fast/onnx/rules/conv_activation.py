"""ConvActivation: what follows a convolution, or its sum with a residual, in whatever nodes an exporter wrote it.

    t = FusedConv(x, W, b, r); y = act(t)                       act any of FusedConv but none
    -> y = FusedConv(x, W, b, r, activation=act)

As the rule Activation, and LeakyRelu, PRelu with one slope, Clip and HardSigmoid with their numbers.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from deepseek_fast.onnx import _activation_algebra as algebra
from deepseek_fast.onnx import _convs
from deepseek_fast.onnx._notes import Refusal
from deepseek_fast.onnx._rewriter import number
from deepseek_fast.onnx.rules.activation import function_alone, require_closed, single_node

if TYPE_CHECKING:
    import onnx_ir as ir

    from deepseek_fast.onnx._rewriter import Rewriter

NAME = "ConvActivation"
LEVEL = 2

Found = tuple[str, tuple[float, ...], list["ir.Node"]]


def rewrite(node: ir.Node, rewriter: Rewriter) -> str | None:
    if not _convs.is_conv(node) or _convs.value_of(node, "activation") != "none" or _convs.has_pool(node):
        return None
    if _convs.has_residual(node, rewriter) and _convs.value_of(node, "residual_at") != "before":
        return None
    y = node.outputs[0]
    found = find_activation(y, rewriter)
    if found is None:
        return None
    activation, params, chain = found
    require_closed([node, *chain])
    attributes = _convs.changed(node, activation=activation, activation_params=params)
    rewriter.fuse("FusedConv", node.inputs, attributes, [node, *chain])
    return f"FusedConv with {activation}"


def find_activation(y: ir.Value, rewriter: Rewriter) -> Found | None:
    """The activation that nodes after `y` compute, its parameters, and those nodes, the last one last."""
    return _without_numbers(y, rewriter) or _with_numbers(y, rewriter) or _alone(y)


def _without_numbers(y: ir.Value, rewriter: Rewriter) -> Found | None:
    found = single_node(y) or algebra.find_activation(y, rewriter)
    return (found[0], (), found[1]) if found is not None else None


def _alone(y: ir.Value) -> Found | None:
    found = function_alone(y)
    return (found[0], (), found[1]) if found is not None else None


def _with_numbers(y: ir.Value, rewriter: Rewriter) -> Found | None:
    for use in y.uses():
        node = use.node
        if node.domain or use.idx != 0:
            continue
        if node.op_type == "LeakyRelu":
            return "leaky_relu", (number(node, "alpha", 0.01),), [node]
        if node.op_type == "HardSigmoid":
            return "hardsigmoid", (number(node, "alpha", 0.2), number(node, "beta", 0.5)), [node]
        if node.op_type == "PRelu":
            slope = rewriter.constants.array(node.inputs[1])
            if slope is None or slope.size != 1:
                raise Refusal("PRelu must have one constant slope")
            return "leaky_relu", (float(slope.reshape(())),), [node]
        if node.op_type == "Clip":
            return "clip", _limits(node, rewriter), [node]
    return None


def _limits(node: ir.Node, rewriter: Rewriter) -> tuple[float, float]:
    limits = [-math.inf, math.inf]
    for i, value in enumerate(node.inputs[1:]):
        if value is not None:
            limit = rewriter.constants.scalar(value)
            if limit is None:
                raise Refusal("the limits of Clip must be constant")
            limits[i] = limit
    return limits[0], limits[1]
