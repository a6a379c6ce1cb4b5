"""ConvWinograd: 3x3 sums by Winograd's F(4x4, 3x3), a quarter of the products, where that takes less time.

FusedConv(x, W, ...; stride 1, dilation 1) in float32, W (F, C, 3, 3) -> the same with algorithm="winograd"

Its errors are 4 to 6 times those of the direct sums (rms; up to 10 times the largest, kernels/fused_conv/README.md), so
a caller who wants the direct ones leaves this rule out of fuse_ops.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek_fast.onnx import _convs
from deepseek_fast.onnx._notes import Refusal

if TYPE_CHECKING:
    import onnx_ir as ir

    from deepseek_fast.onnx._rewriter import Rewriter

NAME = "ConvWinograd"
LEVEL = 3
# Four times the weights are read once an image: of 7x7 pixels they take longer than the products that they save
# (512 channels, Zen 5, 2026-11: 7x7 1.7 times the direct time, 14x14 0.8).
MIN_PIXELS = 100
# Below, turning tiles takes the time that products were.
MIN_CHANNELS = 16


def rewrite(node: ir.Node, rewriter: Rewriter) -> str | None:
    if not _convs.is_conv(node) or node.op_type != "FusedConv" or _convs.value_of(node, "algorithm") != "direct":
        return None
    weight = rewriter.constants.array(node.inputs[1])
    if weight is None or weight.shape[2:] != (3, 3) or weight.dtype != "float32":
        return None
    ones = _convs.value_of(node, "stride") + _convs.value_of(node, "dilation")
    if _convs.value_of(node, "groups") != 1 or any(step != 1 for step in ones):
        return None
    if min(weight.shape[:2]) < MIN_CHANNELS:
        raise Refusal(f"W must have at least {MIN_CHANNELS} channels in and out; got shape {weight.shape}")
    x = node.inputs[0]
    sizes = None if x is None or x.shape is None else tuple(x.shape)[2:]
    if sizes is None or not all(isinstance(size, int) for size in sizes):
        raise Refusal("X must have known rows and columns")
    top, left, bottom, right = _convs.value_of(node, "padding")
    pixels = (sizes[0] + top + bottom - 2) * (sizes[1] + left + right - 2)
    if pixels < MIN_PIXELS:
        raise Refusal(f"Y must have at least {MIN_PIXELS} pixels before a pool; got {pixels}")
    node.attributes["algorithm"] = _convs.changed(node, algorithm="winograd")["algorithm"]
    return "FusedConv by F(4x4, 3x3)"
