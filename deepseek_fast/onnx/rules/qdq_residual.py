"""QdqResidual: the sum of a convolution of bytes and a tensor of bytes, taken before either is rounded.

    y1 = FusedConvInt8(X, ...); t = DequantizeLinear(y1); t = Add(t, DequantizeLinear(R)); t = act(t); t = MaxPool(t)
    y = QuantizeLinear(t)
    -> y = FusedConvInt8(X, ..., R, ...; residual_at, activation, pool)        act and MaxPool may be absent

The convolution is not rounded to y1 on the way, which the model has it: y may differ by a step of y and half a step of
y1. What y1's type cuts at zero, a ReLU that the quantizer dropped, is cut still; what it cuts above is not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deepseek_fast.onnx import _convs, _qdq
from deepseek_fast.onnx._notes import Refusal
from deepseek_fast.onnx._shapes import shape_text, surely_equal
from deepseek_fast.onnx.rules.qdq_conv import Chain, add_activation, close, is_needless

if TYPE_CHECKING:
    import onnx_ir as ir

    from deepseek_fast.onnx._qdq import Scale
    from deepseek_fast.onnx._rewriter import Rewriter

NAME = "QdqResidual"
LEVEL = 3
Y_SCALE, Y_ZERO_POINT, BIAS = 5, 6, 7  # inputs of FusedConvInt8
NONE = "none"


def rewrite(node: ir.Node, rewriter: Rewriter) -> str | None:
    if node.op_type not in ("Add", "Sum") or node.domain or len(node.inputs) != 2:
        return None
    pairs = [pair for pair in (node.inputs, node.inputs[::-1]) if _open_conv(pair[0], rewriter) is not None]
    refusal = None
    for t, r in pairs:
        try:
            return _rewrite(node, t, r, rewriter)
        except Refusal as error:
            refusal = refusal or error
    if refusal is not None:
        raise refusal
    return None


def _rewrite(node: ir.Node, t: ir.Value | None, r: ir.Value | None, rewriter: Rewriter) -> str:
    conv = _open_conv(t, rewriter)
    reader = t.producer() if t is not None else None
    other = r.producer() if r is not None else None
    assert t is not None and reader is not None and conv is not None  # see rewrite
    if other is None or r is None or not _qdq.reads_bytes(other):
        raise Refusal("the residual must come from DequantizeLinear")
    if rewriter.constants.array(r) is not None or not surely_equal(t.shape, r.shape):
        got = f"got {shape_text(r.shape)} for {shape_text(t.shape)}"
        raise Refusal(f"the residual must be computed and surely have the output's shape; {got}")
    for value in (conv.outputs[0], t):
        rewriter.check_only_consumer(value)
    of_inner = _qdq.one_scale("the sum", conv.inputs[Y_SCALE], conv.inputs[Y_ZERO_POINT], "UINT8", rewriter)
    if not of_inner.is_same(_qdq.scale_of(reader, "the sum", rewriter)):
        raise Refusal("the sum must be read in the scale in which it is written")
    chain = Chain([node])
    add_activation(chain, rewriter)
    close(chain, rewriter)
    of_y = _qdq.scale_of(chain.nodes[-1], "y", rewriter)
    of_r = _qdq.scale_of(other, "the residual", rewriter)
    if of_r.dtype != of_y.dtype:
        raise Refusal(f"the residual must have y's type {of_y.dtype}; got {of_r.dtype}")
    attributes = chain.attributes | _activation(conv, of_inner, chain.attributes, of_y)
    bytes_of_r = other.inputs[0]
    after = [of_y.scale, of_y.zero_point, conv.inputs[BIAS], bytes_of_r, of_r.scale, of_r.zero_point]
    inputs = [*conv.inputs[:Y_SCALE], *after]
    name = conv.outputs[0].name
    rewriter.fuse("FusedConvInt8", inputs, _convs.changed(conv, **attributes), [conv, reader, *chain.nodes])
    _qdq.drop_unread([other], rewriter)
    return f"FusedConvInt8 with residual '{bytes_of_r.name if bytes_of_r is not None else ''}', '{name}' not rounded"


def _open_conv(value: ir.Value | None, rewriter: Rewriter) -> ir.Node | None:
    """The FusedConvInt8 whose bytes are read as `value`, if it has neither a residual nor a pool yet."""
    reader = value.producer() if value is not None else None
    if reader is None or not _qdq.reads_bytes(reader):
        return None
    conv = _convs.made_by_conv(reader.inputs[0], rewriter, or_int8=True)
    if conv is None or not _convs.is_conv_int8(conv) or _convs.has_pool(conv) or not _convs.in_planes(conv):
        return None
    place = _convs.RESIDUAL_INPUTS[conv.op_type]
    residual, zero = (rewriter.constants.array(conv.inputs[i]) for i in (place, place + 2))
    has_none = residual is not None and zero is not None and residual.size == zero.size == 1
    return conv if has_none and residual.reshape(()) == zero.reshape(()) else None  # type: ignore[union-attr]


def _activation(conv: ir.Node, of_inner: Scale, after: dict[str, Any], of_y: Scale) -> dict[str, Any]:
    """The one activation, before the sum or after it."""
    import numpy as np

    limits = np.iinfo(of_inner.dtype)
    if of_inner.zero == limits.max:
        raise Refusal("the sum must have bytes above zero")
    first, params = _convs.value_of(conv, "activation"), _convs.value_of(conv, "activation_params")
    if first == NONE and of_inner.zero == limits.min:
        first, params = "relu", ()
    second = after.get("activation", NONE)
    if is_needless(second, of_y):
        second = NONE
    if NONE not in (first, second):
        raise Refusal(f"one activation must be enough; got {first} and {second}")
    if first != NONE:
        return {"activation": first, "activation_params": params, "residual_at": "after"}
    params = after.get("activation_params", ()) if second != NONE else ()
    return {"activation": second, "activation_params": params, "residual_at": "before"}
