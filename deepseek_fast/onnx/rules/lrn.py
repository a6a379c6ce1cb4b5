"""LRN: local response normalization, which ONNX Runtime does with one channel and one value at a time.

y = LRN(x; size, alpha, beta, bias)      x (N, C, H, W)
-> y = LocalResponseNorm(x; size, alpha, beta, k)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek_fast.onnx import _convs
from deepseek_fast.onnx._notes import Refusal
from deepseek_fast.onnx._rewriter import number

if TYPE_CHECKING:
    import onnx_ir as ir

    from deepseek_fast.onnx._rewriter import Rewriter

NAME = "LRN"
LEVEL = 1
DTYPES = ("FLOAT", "BFLOAT16")


def rewrite(node: ir.Node, rewriter: Rewriter) -> str | None:
    if node.op_type != "LRN" or node.domain:
        return None
    x = node.inputs[0]
    if x is None or x.shape is None or x.shape.rank() != 4:
        raise Refusal("x must have 4 dimensions")
    if x.dtype is None or x.dtype.name not in DTYPES:
        raise Refusal(f"x must be float32 or bfloat16; got {x.dtype.name.lower() if x.dtype else 'an unknown type'}")
    if x.dtype.name == "BFLOAT16":
        rewriter.check_16_bit_opset(x.dtype.numpy())
    options = {"alpha": number(node, "alpha", 1e-4), "beta": number(node, "beta", 0.75), "k": number(node, "bias", 1.0)}
    size = int(number(node, "size", 1))
    rewriter.fuse("LocalResponseNorm", [x], _convs.attributes("LocalResponseNorm", size=size, **options), [node])
    return "LocalResponseNorm"
