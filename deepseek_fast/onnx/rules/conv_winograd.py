"""ConvWinograd: 3x3 sums by Winograd's F(4x4, 3x3), a quarter of the products, where that takes less time.

FusedConv(x, W, ...; stride 1, dilation 1) in float32, W (F, C, 3, 3) -> the same with algorithm="winograd"

Its errors are up to 6 times those of the direct sums (rms, kernels/fused_conv/README.md), so a caller who wants the
direct ones leaves this rule out of fuse_ops.
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
# Its time over that of direct sums, best of 40 rounds in turn, one thread (Zen 5, 2026-11):
#   channels, filters    7x7    10x10   14x14   28x28   56x56
#   8, 8                 1.01    0.99    0.94    0.74    0.75
#   8, 256               1.18    1.12    0.95    0.73    0.71
#   16, 16               0.98    0.91    0.81    0.57    0.56
#   16, 512              1.19    0.90    0.71    0.53    0.52
#   32, 32               0.92    0.79    0.69    0.51    0.45
#   64, 3                0.93    0.80    0.65    0.46    0.44
#   64, 64               0.86    0.68    0.57    0.39    0.36
#   512, 512             1.47    0.94    0.64    0.31    0.30
# 7x7 pixels are 4 tiles, whose four times larger weights are read for few products each.
MIN_PIXELS = 100
# Turning the tiles of few channels takes the time that their products were; of filters there may be few.
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
    if weight.shape[1] < MIN_CHANNELS:
        raise Refusal(f"W must have at least {MIN_CHANNELS} channels; got shape {weight.shape}")
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
