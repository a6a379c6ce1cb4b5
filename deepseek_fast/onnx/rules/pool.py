"""Pool: windows that follow no convolution, in a graph that has convolutions of ours.

    y = MaxPool(x), AveragePool(x), GlobalMaxPool(x) or GlobalAveragePool(x)      x (N, C, H, W)
    -> y = Pool2d(x; kind, kernel, stride, padding, ceil_mode, count_include_pad)      x float, of MaxPool also bytes

A global one only where H and W are known; else the rule ConvLayout takes it along as a mean of axes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deepseek_fast.onnx import _convs
from deepseek_fast.onnx._notes import Refusal
from deepseek_fast.onnx._rewriter import number

if TYPE_CHECKING:
    import onnx_ir as ir

    from deepseek_fast.onnx._rewriter import Rewriter

NAME = "Pool"
LEVEL = 3
KINDS = {"MaxPool": "max", "GlobalMaxPool": "max", "AveragePool": "average", "GlobalAveragePool": "average"}
DTYPES = ("FLOAT", "BFLOAT16")
BYTES = ("UINT8", "INT8")  # of a largest value


def rewrite(node: ir.Node, rewriter: Rewriter) -> str | None:
    kind = KINDS.get(node.op_type)
    if kind is None or node.domain or not any(_is_any_conv(other) for other in rewriter.graph):
        return None
    x = node.inputs[0]
    if x is None or x.shape is None or x.shape.rank() != 4:
        raise Refusal("x must have 4 dimensions")
    if x.dtype is None or x.dtype.name not in (DTYPES if kind == "average" else (*DTYPES, *BYTES)):
        raise Refusal(f"x must be float32 or bfloat16; got {x.dtype.name.lower() if x.dtype else 'an unknown type'}")
    if x.dtype.name == "BFLOAT16":
        rewriter.check_16_bit_opset(x.dtype.numpy())
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        raise Refusal("Indices must be unused")
    window = _whole(x) if node.op_type.startswith("Global") else _convs.pool_window(node)
    if kind == "average":
        window["count_include_pad"] = int(number(node, "count_include_pad", 0))
    rewriter.fuse("Pool2d", [x], _convs.attributes("Pool2d", kind=kind, **window), [node])
    return "Pool2d"


def _is_any_conv(node: ir.Node) -> bool:
    return _convs.is_conv(node) or _convs.is_conv_int8(node)


def _whole(x: ir.Value) -> dict[str, Any]:
    sizes = tuple(x.shape[2:]) if x.shape is not None else ()
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        raise Refusal("rows and columns must be known")
    return {"kernel": sizes, "stride": sizes}
