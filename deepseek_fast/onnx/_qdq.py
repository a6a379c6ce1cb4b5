"""QuantizeLinear, DequantizeLinear and their scales, as the rules for products and pools of bytes read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deepseek_fast.onnx._notes import Refusal
from deepseek_fast.onnx._rewriter import number, overridable_text

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from deepseek_fast.onnx._rewriter import Rewriter

BYTES = ("UINT8", "INT8")
FLOAT_TYPE = 1  # of TensorProto


@dataclass(frozen=True)
class Scale:
    """(bytes - zero) * step: as values of the graph, and as the numbers that they are in every run."""

    scale: ir.Value
    zero_point: ir.Value
    step: np.float32
    zero: int
    dtype: np.dtype

    def is_same(self, other: Scale) -> bool:
        return (self.step, self.zero, self.dtype) == (other.step, other.zero, other.dtype)


def reads_bytes(node: ir.Node | None) -> bool:
    """Whether `node` is a DequantizeLinear of uint8 or int8."""
    if node is None or node.domain or node.op_type != "DequantizeLinear" or node.inputs[0] is None:
        return False
    kinds = [value.dtype for value in (node.inputs[0], *node.inputs[2:]) if value is not None and value.dtype]
    return bool(kinds) and kinds[0].name in BYTES


def one_scale(role: str, scale: ir.Value | None, zero_point: ir.Value | None, kind: str, rewriter: Rewriter) -> Scale:
    """The constant scale of a whole tensor. kind: the type of a zero point that is not there, "UINT8"."""
    import numpy as np

    array = rewriter.constants.array(scale)
    if scale is None or array is None:
        raise Refusal(f"{role}'s scale must be constant{overridable_text(scale)}")
    if array.dtype != np.float32 or array.size != 1:
        raise Refusal(f"{role}'s scale must be one float32 number; got {array.dtype} of shape {array.shape}")
    step = array.reshape(-1)[0]
    if not (np.isfinite(step) and step > 0):
        raise Refusal(f"{role}'s scale must be finite and above zero; got {step:g}")
    if zero_point is None:
        dtype = np.dtype(kind.lower())
        return Scale(scale, rewriter.zeros((), dtype), step, 0, dtype)
    zero = rewriter.constants.array(zero_point)
    if zero is None or zero.size != 1:
        raise Refusal(f"{role}'s zero point must be one constant number{overridable_text(zero_point)}")
    if str(zero.dtype).upper() not in BYTES:
        raise Refusal(f"{role} must be uint8 or int8; got {zero.dtype}")
    return Scale(scale, zero_point, step, int(zero.reshape(-1)[0]), zero.dtype)


def scale_of(node: ir.Node, role: str, rewriter: Rewriter) -> Scale:
    """Of a QuantizeLinear or a DequantizeLinear."""
    if number(node, "block_size", 0):
        raise Refusal(f"{role} must have one scale; got blocks")
    value, scale, zero_point = (*node.inputs, None)[:3]
    if node.op_type == "DequantizeLinear":
        kind = value.dtype.name if value is not None and value.dtype else "UINT8"
    else:
        kind = _output_kind(node)
    return one_scale(role, scale, zero_point, kind, rewriter)


def _output_kind(node: ir.Node) -> str:
    import onnx_ir as ir

    given = int(number(node, "output_dtype", 0))
    if int(number(node, "precision", 0)) not in (0, FLOAT_TYPE):
        raise Refusal("precision must be float32")
    kind = ir.DataType(given).name if given else "UINT8"
    if kind not in BYTES:
        raise Refusal(f"the result must be uint8 or int8; got {kind.lower()}")
    return kind


def drop_unread(nodes: list[ir.Node], rewriter: Rewriter) -> None:
    """Takes nodes that nothing reads any more out of the graph."""
    for node in dict.fromkeys(nodes):
        if node.graph is rewriter.graph and not any(v.uses() or v.is_graph_output() for v in node.outputs):
            rewriter.graph.remove(node, safe=True)
