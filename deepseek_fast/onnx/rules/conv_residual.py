"""ConvResidual: the sum of a convolution and a tensor of its shape, before or after its activation.

    t = FusedConv(x, W, b, 0, activation); y = Add(t, r), Add(r, t) or Sum(t, r)      r computed, of t's shape
    -> y = FusedConv(x, W, b, r, activation, residual_at)                 "before" where activation is none, so that
                                                                          one after the sum can follow
Of two convolutions the last one takes the other's result, and rather one that has no activation yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek_fast.onnx import _convs
from deepseek_fast.onnx._notes import Refusal
from deepseek_fast.onnx._shapes import shape_text, surely_equal

if TYPE_CHECKING:
    import onnx_ir as ir

    from deepseek_fast.onnx._rewriter import Rewriter

NAME = "ConvResidual"
LEVEL = 3


def rewrite(node: ir.Node, rewriter: Rewriter) -> str | None:
    if node.op_type not in ("Add", "Sum") or node.domain or len(node.inputs) != 2:
        return None
    pairs = [pair for pair in (node.inputs, node.inputs[::-1]) if _open_conv(pair[0], rewriter) is not None]
    refusal = None
    for t, residual in sorted(pairs, key=lambda pair: _rank(pair[0], rewriter)):
        conv = _open_conv(t, rewriter)
        if conv is None or t is None or residual is None or rewriter.constants.array(residual) is not None:
            continue
        try:
            rewriter.check_only_consumer(t)
            _check_same_shape(t, residual)
        except Refusal as error:
            refusal = error
            continue
        place = "before" if _convs.value_of(conv, "activation") == "none" else "after"
        inputs = [*conv.inputs[: _convs.RESIDUAL], residual]
        rewriter.fuse("FusedConv", inputs, _convs.changed(conv, residual_at=place), [conv, node])
        return f"FusedConv with residual '{residual.name}' {place} its activation"
    if refusal is not None:
        raise refusal
    return None


def _open_conv(value: ir.Value | None, rewriter: Rewriter) -> ir.Node | None:
    """The FusedConv that makes `value`, if it has neither a residual nor a pool yet."""
    conv = _convs.made_by_conv(value, rewriter)
    if conv is None or _convs.has_pool(conv) or _convs.has_residual(conv, rewriter):
        return None
    return conv


def _rank(value: ir.Value | None, rewriter: Rewriter) -> tuple[bool, int]:
    """First convolutions without activation, of these the largest kernel, which has the most to do."""
    conv = _open_conv(value, rewriter)
    assert conv is not None  # see rewrite
    weight = rewriter.constants.array(conv.inputs[_convs.WEIGHT])
    return _convs.value_of(conv, "activation") != "none", -(weight.size if weight is not None else 0)


def _check_same_shape(output: ir.Value, residual: ir.Value) -> None:
    if not surely_equal(output.shape, residual.shape):
        got = f"got {shape_text(residual.shape)} for {shape_text(output.shape)}"
        raise Refusal(f"residual must surely have the output's shape; {got}")
