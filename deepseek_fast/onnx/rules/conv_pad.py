"""ConvPad: zeros around the rows and columns before a convolution, which pads itself.

t = Pad(x, [0, 0, top, left, 0, 0, bottom, right]); y = FusedConv(t, W, b, r, padding)
-> y = FusedConv(x, W, b, r, padding + (top, left, bottom, right))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek_fast.onnx import _convs
from deepseek_fast.onnx._notes import Refusal
from deepseek_fast.onnx._rewriter import text

if TYPE_CHECKING:
    import onnx_ir as ir

    from deepseek_fast.onnx._rewriter import Rewriter

NAME = "ConvPad"
LEVEL = 1
PADS, VALUE, AXES = 1, 2, 3  # inputs of Pad
RANK = 4


def rewrite(node: ir.Node, rewriter: Rewriter) -> str | None:
    t = node.inputs[0] if _convs.is_conv(node) else None
    pad = t.producer() if t is not None else None
    if t is None or pad is None or pad.op_type != "Pad" or pad.domain or pad.graph is not rewriter.graph:
        return None
    if _convs.value_of(node, "x_layout") != "NCHW":
        return None
    rewriter.check_only_consumer(t)
    before, after = _amounts(pad, rewriter)
    if any(before[:2] + after[:2]):
        raise Refusal("pads must leave the batch and the channels alone")
    padding = tuple(a + b for a, b in zip(_convs.value_of(node, "padding"), before[2:] + after[2:], strict=True))
    if min(before + after) < 0:
        raise Refusal("pads must not be negative")
    x = pad.inputs[0]
    rewriter.fuse("FusedConv", [x, *node.inputs[1:]], _convs.changed(node, padding=padding), [pad, node])
    return "FusedConv with padding"


def _amounts(pad: ir.Node, rewriter: Rewriter) -> tuple[list[int], list[int]]:
    """What a Pad with zeros puts before and after each of 4 dimensions."""
    inputs = [*pad.inputs, None, None][: AXES + 1]
    if text(pad, "mode", "constant") != "constant":
        raise Refusal(f"mode must be constant; got {text(pad, 'mode', '')}")
    if inputs[VALUE] is not None and rewriter.constants.scalar(inputs[VALUE]) != 0:
        raise Refusal("the value must be a constant 0")
    pads = rewriter.constants.array(inputs[PADS])
    axes = rewriter.constants.array(inputs[AXES]) if inputs[AXES] is not None else list(range(RANK))
    if pads is None or axes is None:
        raise Refusal("pads and axes must be constant")
    before, after = [0] * RANK, [0] * RANK
    for i, axis in enumerate(axes):
        before[int(axis) % RANK], after[int(axis) % RANK] = int(pads[i]), int(pads[len(axes) + i])
    return before, after
