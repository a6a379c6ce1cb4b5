"""ConvBatchNorm: a normalization after a convolution, folded into its weight and bias in float64.

t = FusedConv(x, W, b, 0); y = BatchNormalization(t, gamma, beta, mean, variance)
-> y = FusedConv(x, W * s, b * s + beta - mean * s, 0)                  s = gamma / sqrt(variance + epsilon)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek_fast.onnx import _convs
from deepseek_fast.onnx._notes import Refusal
from deepseek_fast.onnx._rewriter import number

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from deepseek_fast.onnx._rewriter import Rewriter

NAME = "ConvBatchNorm"
LEVEL = 1


def rewrite(node: ir.Node, rewriter: Rewriter) -> str | None:
    if node.op_type != "BatchNormalization" or node.domain:
        return None
    t = node.inputs[0]
    conv = _convs.made_by_conv(t, rewriter)
    if t is None or conv is None or not _convs.is_bare(conv, rewriter) or not _convs.in_planes(conv):
        return None
    rewriter.check_only_consumer(t)
    scale, shift = scale_and_shift(node, rewriter)
    _convs.fold(conv, scale, shift, node, rewriter)
    return "FusedConv with BatchNormalization"


def scale_and_shift(node: ir.Node, rewriter: Rewriter) -> tuple[np.ndarray, np.ndarray]:
    """What a BatchNormalization multiplies by and adds, one number a channel."""
    import numpy as np

    if number(node, "training_mode", 0):
        raise Refusal("training_mode must be 0; got 1")
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        raise Refusal("outputs after the first must be unused")
    arrays = [rewriter.constants.array(value) for value in node.inputs[1:]]
    if any(array is None for array in arrays):
        raise Refusal("scale, bias, mean and variance must be constant")
    gamma, beta, mean, variance = (np.asarray(array, np.float64) for array in arrays)
    with np.errstate(all="ignore"):
        scale = gamma / np.sqrt(variance + number(node, "epsilon", 1e-5))
        return scale, beta - mean * scale
