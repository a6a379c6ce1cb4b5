"""Fp8DequantizeLinear: a DequantizeLinear of float8 that ONNX Runtime would take for one of integers.

    x = DequantizeLinear(q, s)                 q float8, s float32: one value, or constant, one for each of an axis
    -> x = Mul(Cast(q), s)                     the same bits

Only where an operator that is not ours reads x in a way in which ONNX Runtime 1.31 makes an integer operator of both,
which knows no float8, and below opset 21 where one moves x: the model fails to load (see _fp8_pairs.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek_fast.onnx._fp8_pairs import MOVES_CODES_OPSET, is_dequantize, is_joined, is_moved_after
from deepseek_fast.onnx._notes import Refusal
from deepseek_fast.onnx._rewriter import is_float8, number

if TYPE_CHECKING:
    import onnx_ir as ir

    from deepseek_fast.onnx._rewriter import Rewriter

NAME = "Fp8DequantizeLinear"
LEVEL = 1


def rewrite(node: ir.Node, rewriter: Rewriter) -> str | None:
    import onnx_ir as ir

    if not is_dequantize(node) or not is_float8(node.inputs[0]):
        return None
    made = node.outputs[0]
    if not is_joined(made) and not (rewriter.opset < MOVES_CODES_OPSET and is_moved_after(made)):
        return None
    codes, scale, zero_point = (*node.inputs, None, None)[:3]
    if made.dtype != ir.DataType.FLOAT:
        return None  # there is no integer operator of that type
    assert codes is not None  # a float8 value
    zeros = rewriter.constants.array(zero_point)
    if zero_point is not None and (zeros is None or (zeros.astype("float32") != 0).any()):
        raise Refusal(f"zero point of '{codes.name}' must be constant and 0")
    factor = _factor(node, codes, scale, rewriter)
    cast = ir.Node("", "Cast", [codes], ir.convenience.convert_attributes({"to": ir.DataType.FLOAT.value}))
    cast.outputs[0].name = rewriter.unique(f"{codes.name}_float")
    cast.outputs[0].shape, cast.outputs[0].type = codes.shape, ir.TensorType(ir.DataType.FLOAT)
    node.prepend(cast)
    rewriter.fuse("Mul", [cast.outputs[0], factor], {}, [node], domain="")
    return "Cast and Mul, which no integer operator takes in"


def _factor(node: ir.Node, codes: ir.Value, scale: ir.Value | None, rewriter: Rewriter) -> ir.Value:
    """The scale in a shape that multiplies the codes."""
    import numpy as np

    array = rewriter.constants.array(scale)
    if scale is not None and scale.shape is not None and scale.shape.rank() == 0:
        return scale
    if array is None or array.dtype != np.float32 or number(node, "block_size", 0):
        raise Refusal(f"scale of '{codes.name}' must be one float32 value, or constant and without blocks")
    if array.size == 1:
        return rewriter.initializer(f"{codes.name}_scale", array.reshape(()))
    if codes.shape is None:
        raise Refusal(f"'{codes.name}' must have a known rank; got an unknown shape")
    rank, axis = codes.shape.rank(), int(number(node, "axis", 1))
    shape = [1] * rank
    shape[axis % rank] = array.size
    return rewriter.initializer(f"{codes.name}_scale", array.reshape(shape))
