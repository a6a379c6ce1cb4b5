"""Bias: a constant row added to a product that has no bias yet.

    t = Fp8Matmul(x, W, s, 0, 0); y = Add(t, b)  or  Add(b, t)      b constant, one row or one value
    -> y = Fp8Matmul(x, W, s, b, 0)                                 the same for our other products

After rules that look at the product alone, and where a Reshape stood between the product and its bias.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek_fast.onnx._constants import is_overridable
from deepseek_fast.onnx._notes import Refusal
from deepseek_fast.onnx._rewriter import is_fused, number, text

if TYPE_CHECKING:
    import onnx_ir as ir

    from deepseek_fast.onnx._rewriter import Rewriter

NAME = "Bias"
LEVEL = 1
BIAS_INPUT, RESIDUAL_INPUT = -2, -1  # of all our products


def rewrite(node: ir.Node, rewriter: Rewriter) -> str | None:
    if node.op_type != "Add" or node.domain:
        return None
    for product, bias in (node.inputs, node.inputs[::-1]):
        fused = product.producer() if product is not None else None
        if fused is None or not _takes_bias(fused, rewriter):
            continue
        if is_overridable(bias) or rewriter.constants.array(bias) is not None:
            return _fuse(fused, bias, node, rewriter)
    return None


def _takes_bias(node: ir.Node, rewriter: Rewriter) -> bool:
    if not is_fused(node) or node.graph is not rewriter.graph or number(node, "gated", 0):
        return False
    bias = rewriter.constants.array(node.inputs[BIAS_INPUT])
    has_none = bias is not None and not bias.any() and rewriter.constants.scalar(node.inputs[RESIDUAL_INPUT]) == 0
    return has_none and text(node, "activation", "none") == "none"


def _fuse(fused: ir.Node, bias: ir.Value | None, add: ir.Node, rewriter: Rewriter) -> str:
    product = fused.outputs[0]
    rewriter.check_only_consumer(product)
    zeros = rewriter.constants.array(fused.inputs[BIAS_INPUT])
    assert zeros is not None  # see _takes_bias
    bias = rewriter.check_bias(bias, zeros.size, product)
    if zeros.ndim != 1:
        raise Refusal(f"the product's own bias must be one row; got shape {zeros.shape}")
    attributes = {name: attribute.value for name, attribute in fused.attributes.items()}
    inputs = [*fused.inputs[:BIAS_INPUT], rewriter.bias(bias, zeros.size), fused.inputs[RESIDUAL_INPUT]]
    rewriter.fuse(fused.op_type, inputs, attributes, [fused, add])
    return f"{fused.op_type} with bias"
