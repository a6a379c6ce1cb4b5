"""FusedConv and Pool2d in a model: what their bodies read."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from deepseek_fast.onnx._rewriter import Rewriter

OP_TYPES = ("FusedConv", "Pool2d")
BIAS, RESIDUAL = 2, 3  # inputs
NO_RESIDUAL_SHAPE = (1, 1, 1, 1)


def complete_conv(node: ir.Node, rewriter: Rewriter) -> None:
    """The node gets all its inputs and attributes."""
    from deepseek_fast.kernels.fused_conv.body import DEFAULTS, INPUTS
    from deepseek_fast.onnx._attach import zero_bias

    for name in DEFAULTS[node.op_type]:
        if name not in node.attributes:
            node.attributes[name] = default_attribute(node.op_type, name)
    lowest = 1 if node.op_type == "Pool2d" else 2
    names = INPUTS[node.op_type]
    if not lowest <= len(node.inputs) <= len(names) or None in node.inputs[:lowest]:
        rule = f"optimize: model must give {node.op_type} from {lowest} to {len(names)} inputs"
        raise ValueError(f"{rule}; got {len(node.inputs)} in '{node.name}'")
    if len(node.inputs) < len(names):
        node.resize_inputs(len(names))
    if node.op_type == "Pool2d":
        return
    dtype = _dtype(node)
    if node.inputs[BIAS] is None:
        node.replace_input_with(BIAS, zero_bias(node, dtype, rewriter))
    if node.inputs[RESIDUAL] is None:
        node.replace_input_with(RESIDUAL, rewriter.zeros(NO_RESIDUAL_SHAPE, dtype))


def default_attribute(op_type: str, name: str) -> ir.Attr:
    import onnx_ir as ir

    from deepseek_fast.kernels.fused_conv.body import DEFAULTS

    value = DEFAULTS[op_type][name]
    if name == "activation_params":  # an empty list tells no type
        return ir.AttrFloat32s(name, value)
    return ir.convenience.convert_attribute(name, value)


def _dtype(node: ir.Node) -> np.dtype:
    import numpy as np

    known = [v.dtype for v in (*node.inputs, node.outputs[0]) if v is not None and v.dtype]
    return known[0].numpy() if known else np.dtype(np.float32)
