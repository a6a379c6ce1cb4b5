"""Conv: a convolution in 2 dimensions with a constant weight.

y = Conv(x, W, B; strides, pads or auto_pad, dilations, group)      W (F, C / group, R, S), B perhaps absent
-> y = FusedConv(x, W, B, 0)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek_fast.onnx import _convs
from deepseek_fast.onnx._notes import Refusal
from deepseek_fast.onnx._rewriter import number, overridable_text

if TYPE_CHECKING:
    import onnx_ir as ir

    from deepseek_fast.onnx._rewriter import Rewriter

NAME = "Conv"
LEVEL = 1
DTYPES = ("float32", "bfloat16")


def rewrite(node: ir.Node, rewriter: Rewriter) -> str | None:
    if node.op_type != "Conv" or node.domain:
        return None
    x, w, b = (*node.inputs, None)[:3]
    array = rewriter.constants.array(w)
    if w is None or array is None:
        raise Refusal(f"weight must be constant; got '{w.name if w is not None else ''}'{overridable_text(w)}")
    x = rewriter.check_input(x)
    if str(array.dtype) not in DTYPES:
        raise Refusal(f"weight must be float32 or bfloat16; got dtype {array.dtype}")
    rewriter.check_16_bit_opset(array.dtype)
    if array.ndim != 4 or 0 in array.shape:
        raise Refusal(f"weight must have 4 dimensions, none empty; got shape {array.shape}")
    rewriter.check_stored(w, array)
    window = _convs.window(node, array.shape[2:])
    weight = w if w.is_initializer() else rewriter.initializer(f"{w.name}_folded", array)
    bias = b if b is not None else rewriter.zeros(array.shape[0], array.dtype)
    inputs = [x, weight, bias, rewriter.zeros(_convs.NO_RESIDUAL_SHAPE, array.dtype)]
    groups = int(number(node, "group", 1))
    rewriter.fuse("FusedConv", inputs, _convs.attributes("FusedConv", groups=groups, **window), [node])
    return "FusedConv"
