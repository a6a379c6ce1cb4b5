"""Fp8QuantizeLinear: a QuantizeLinear to float8 after a Relu or Clip, in whose place ONNX Runtime would put it.

    q = QuantizeLinear(Relu(x), s, 0)          0 of float8; Clip too, and either in a product of ours
    -> q = QuantizeLinear(Relu(x), s, output_dtype=float8), from opset 21 on
    -> q = Cast(Div(Relu(x), s)) before, with s one value

The same bits. ONNX Runtime 1.31 drops a Relu before a zero point of 0 as before one of uint8, and the negative values
come back: wrong numbers without a word. After a Clip, and below opset 21 after an
operator that moves values, it fails to load the model (see _fp8_pairs.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deepseek_fast.onnx._fp8_pairs import MOVES_CODES_OPSET, is_bounded, is_moved_before, is_quantize
from deepseek_fast.onnx._notes import Refusal
from deepseek_fast.onnx._rewriter import is_float8, number

if TYPE_CHECKING:
    import onnx_ir as ir

    from deepseek_fast.onnx._rewriter import Rewriter

NAME = "Fp8QuantizeLinear"
LEVEL = 1
OUTPUT_DTYPE_OPSET = 21  # from here on QuantizeLinear may say its type without a zero point


def rewrite(node: ir.Node, rewriter: Rewriter) -> str | None:
    import onnx_ir as ir

    if not is_quantize(node):
        return None
    x, scale, zero_point = (*node.inputs, None, None)[:3]
    if x is None or scale is None or zero_point is None or not is_float8(zero_point):
        return None
    if not is_bounded(x) and not (rewriter.opset < MOVES_CODES_OPSET and is_moved_before(x)):
        return None
    assert zero_point.dtype is not None  # see is_float8
    zeros = rewriter.constants.array(zero_point)
    if zeros is None or (zeros.astype("float32") != 0).any():
        raise Refusal("zero point must be constant and 0")
    if rewriter.opset >= OUTPUT_DTYPE_OPSET:
        attributes: dict[str, Any] = {name: attribute.value for name, attribute in node.attributes.items()}
        attributes["output_dtype"] = zero_point.dtype.value
        rewriter.fuse("QuantizeLinear", [x, scale], attributes, [node], domain="")
        return "QuantizeLinear without a zero point, which keeps the bounds"
    if scale.shape is None or scale.shape.rank() != 0 or scale.dtype != ir.DataType.FLOAT:
        raise Refusal(f"scale must be one float32 value below opset {OUTPUT_DTYPE_OPSET}")
    divide = ir.Node("", "Div", [x, scale])
    divide.outputs[0].name = rewriter.unique(f"{x.name}_scaled")
    divide.outputs[0].shape, divide.outputs[0].type = x.shape, x.type
    node.prepend(divide)
    attributes = {"to": zero_point.dtype.value, "saturate": int(number(node, "saturate", 1))}
    rewriter.fuse("Cast", [divide.outputs[0]], attributes, [node], domain="")
    return "Div and Cast, which keep the bounds"
