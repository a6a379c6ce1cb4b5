"""Fp8Gemm: a Gemm with a weight in FP8, which stays one byte a value.

y = Gemm(x, DequantizeLinear(W, s), C, transB)      W and s as in fp8_matmul.py, C constant or absent
-> y = Fp8Matmul(x, W as (N, K), s, C, 0)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek_fast.onnx._fp8_weight import find_fp8_weight, fuse_fp8_matmul
from deepseek_fast.onnx._notes import Refusal
from deepseek_fast.onnx._rewriter import number

if TYPE_CHECKING:
    import onnx_ir as ir

    from deepseek_fast.onnx._rewriter import Rewriter

NAME = "Fp8Gemm"
LEVEL = 1


def rewrite(node: ir.Node, rewriter: Rewriter) -> str | None:
    if node.op_type != "Gemm" or node.domain:
        return None
    x, w, c = (*node.inputs, None)[:3]
    weight = find_fp8_weight(w, rewriter, transposed=bool(number(node, "transB", 0)))
    if weight is None:
        return None
    if number(node, "transA", 0):
        raise Refusal("transA must be 0; got 1")
    for name in ("alpha", "beta"):
        if number(node, name, 1.0) != 1 and (name == "alpha" or c is not None):
            raise Refusal(f"{name} must be 1 beside a weight in FP8; got {number(node, name, 1.0):g}")
    bias = None if c is None else rewriter.check_bias(c, weight.N, node.outputs[0])
    fuse_fp8_matmul(rewriter.check_input(x), weight, bias, node, rewriter)
    return "Fp8Matmul"
