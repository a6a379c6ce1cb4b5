"""QuantizeLinear and DequantizeLinear of float8: which of them ONNX Runtime 1.31 takes for those of integers.

It joins them with what stands between to integer operators, which know no float8 (the model fails to load), and takes a
QuantizeLinear with a zero point for the bounds of a Relu or Clip before it: the Relu goes, as if no code were below 0
(wrong numbers), the Clip fails to load. It follows them through operators that only move values, and lets those move
codes, which below opset 21 they do not know (the model fails to load).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek_fast.onnx._rewriter import is_float8, is_fused, text

if TYPE_CHECKING:
    import onnx_ir as ir

MOVES = ("Expand", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
MOVES_CODES_OPSET = 21
BOUNDS, OUR_BOUNDS = ("Clip", "Relu"), ("relu", "relu6")
# Joined with a DequantizeLinear of their first input, whatever follows; a MatMul and an Add are a Gemm to it.
FIRST_INPUT = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def is_quantize(node: ir.Node) -> bool:
    return node.op_type == "QuantizeLinear" and not node.domain


def is_dequantize(node: ir.Node) -> bool:
    return node.op_type == "DequantizeLinear" and not node.domain


def is_joined(value: ir.Value) -> bool:
    """Whether a DequantizeLinear of float8 that makes `value` would become part of an integer operator."""
    for use in value.uses():
        node = use.node
        if _moves(node):
            if any(is_joined(output) or _is_quantized(output) for output in node.outputs):
                return True
        elif (node.op_type in FIRST_INPUT and not node.domain) or (is_fused(node) and node.op_type != "Fp8Matmul"):
            if use.idx == 0:
                return True
        elif node.op_type == "MaxPool" and not node.domain:
            return True
        elif not is_quantize(node) and not is_fused(node):
            inputs_are = all(_is_dequantized(x) for x in node.inputs if x is not None and not _is_constant(x))
            if inputs_are and any(_is_quantized(output) for output in node.outputs):
                return True
    return False


def is_moved_before(value: ir.Value) -> bool:
    """Whether an operator that moves values makes `value`."""
    node = value.producer()
    return node is not None and _moves(node)


def is_moved_after(value: ir.Value) -> bool:
    return any(_moves(use.node) for use in value.uses())


def is_bounded(value: ir.Value) -> bool:
    """Whether a Relu or Clip makes `value`, or a product of ours whose body ends with one."""
    node = _source(value)
    if node is None:
        return False
    if is_fused(node):
        return text(node, "activation", "none") in OUR_BOUNDS
    return node.op_type in BOUNDS and not node.domain


def _is_quantized(value: ir.Value) -> bool:
    for use in value.uses():
        node = use.node
        if is_quantize(node) or (_moves(node) and any(_is_quantized(output) for output in node.outputs)):
            return True
    return False


def _is_dequantized(value: ir.Value) -> bool:
    node = _source(value)
    return node is not None and is_dequantize(node) and is_float8(node.inputs[0])


def _moves(node: ir.Node) -> bool:
    return node.op_type in MOVES and not node.domain


def _is_constant(value: ir.Value) -> bool:
    node = value.producer()
    return value.is_initializer() or (node is not None and node.op_type == "Constant")


def _source(value: ir.Value | None) -> ir.Node | None:
    """The node that makes the values, wherever they were moved since."""
    node = value.producer() if value is not None else None
    while node is not None and _moves(node) and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node
