"""Activation: what follows a product, in whatever nodes an exporter wrote it.

    t = FusedMatmul(x, W, b, 0); y = act(t)             act any of ours but none
    -> y = FusedMatmul(x, W, b, 0, activation=act)      the same for Int8Matmul

Relu, Gelu, Swish, HardSwish, and Sigmoid and Tanh alone are taken as they are; chains of Mul, Add, Sub, Div, Pow, Erf,
Tanh, Sigmoid, Clip and HardSigmoid are recognised by what they compute (see _activation_algebra.py), so the order in
which an exporter multiplies does not matter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek_fast.onnx import _activation_algebra as algebra
from deepseek_fast.onnx._notes import Refusal
from deepseek_fast.onnx._rewriter import is_fused, number, text

if TYPE_CHECKING:
    import onnx_ir as ir

    from deepseek_fast.onnx._rewriter import Rewriter

NAME = "Activation"
LEVEL = 2
RESIDUAL_INPUT = -1  # of FusedMatmul and of Int8Matmul


def rewrite(node: ir.Node, rewriter: Rewriter) -> str | None:
    if not is_fused(node) or text(node, "activation", "none") != "none" or number(node, "gated", 0):
        return None
    if rewriter.constants.scalar(node.inputs[RESIDUAL_INPUT]) != 0:
        return None  # the activation would come before the residual
    y = node.outputs[0]
    found = single_node(y) or algebra.find_activation(y, rewriter) or function_alone(y)
    if found is None:
        return None
    activation, chain = found
    require_closed([node, *chain])
    attributes = {name: attribute.value for name, attribute in node.attributes.items()} | {"activation": activation}
    rewriter.fuse(node.op_type, node.inputs, attributes, [node, *chain])
    return f"{node.op_type} with {activation}"


def single_node(value: ir.Value) -> tuple[str, list[ir.Node]] | None:
    for use in value.uses():
        node = use.node
        if node.domain:
            continue
        if node.op_type == "Relu":
            return "relu", [node]
        if node.op_type == "HardSwish":
            return "hardswish", [node]
        if node.op_type == "Gelu":
            return ("gelu_tanh" if text(node, "approximate", "none") == "tanh" else "gelu"), [node]
        if node.op_type == "Swish":
            if number(node, "alpha", 1.0) != 1.0:
                raise Refusal(f"Swish must have alpha 1; got {number(node, 'alpha', 1.0):g}")
            return "silu", [node]
    return None


def function_alone(value: ir.Value) -> tuple[str, list[ir.Node]] | None:
    """Sigmoid or Tanh; after the chains of which they are a part."""
    for use in value.uses():
        if not use.node.domain and use.node.op_type in ("Sigmoid", "Tanh"):
            return use.node.op_type.lower(), [use.node]
    return None


def require_closed(nodes: list[ir.Node]) -> None:
    """A Refusal where a value between the first and the last node is needed elsewhere."""
    inside = set(nodes)
    for node in nodes[:-1]:
        value = node.outputs[0]
        if value.is_graph_output():
            raise Refusal(f"'{value.name}' is also a graph output")
        if any(use.node not in inside for use in value.uses()):
            raise Refusal(f"'{value.name}' has other uses and must stay")
