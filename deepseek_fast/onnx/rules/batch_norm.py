"""BatchNorm: a normalization that follows no convolution, as one of 1 x 1 with a channel a group.

    y = BatchNormalization(x, gamma, beta, mean, variance)              x (N, C, H, W)
    -> y = FusedConv(x, s (C, 1, 1, 1), beta - mean * s, 0, groups=C)   s = gamma / sqrt(variance + epsilon), in float64

In a graph that has convolutions of ours: what follows it, a scale and an activation as in a DenseNet, takes no pass of
its own, and neither does the layout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek_fast.onnx import _convs
from deepseek_fast.onnx._notes import Refusal
from deepseek_fast.onnx.rules.conv_batch_norm import scale_and_shift

if TYPE_CHECKING:
    import onnx_ir as ir

    from deepseek_fast.onnx._rewriter import Rewriter

NAME = "BatchNorm"
LEVEL = 1
DTYPES = ("FLOAT", "BFLOAT16")


def rewrite(node: ir.Node, rewriter: Rewriter) -> str | None:
    import numpy as np

    if (
        node.op_type != "BatchNormalization"
        or node.domain
        or not any(_convs.is_conv(other) for other in rewriter.graph)
    ):
        return None
    x = node.inputs[0]
    if x is None or x.shape is None or x.shape.rank() != 4:
        raise Refusal("x must have 4 dimensions")
    if x.dtype is None or x.dtype.name not in DTYPES:
        raise Refusal(f"x must be float32 or bfloat16; got {x.dtype.name.lower() if x.dtype else 'an unknown type'}")
    dtype = x.dtype.numpy()
    rewriter.check_16_bit_opset(dtype)
    scale, shift = scale_and_shift(node, rewriter)
    if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
        raise Refusal("the folded scale and bias must be finite")
    name = node.outputs[0].name
    weight = rewriter.initializer(f"{name}_scale", scale.reshape(-1, 1, 1, 1).astype(dtype))
    bias = rewriter.initializer(f"{name}_shift", shift.astype(dtype))
    inputs = [x, weight, bias, rewriter.zeros(_convs.NO_RESIDUAL_SHAPE, dtype)]
    rewriter.fuse("FusedConv", inputs, _convs.attributes("FusedConv", groups=len(scale)), [node])
    return "FusedConv with a channel a group"
