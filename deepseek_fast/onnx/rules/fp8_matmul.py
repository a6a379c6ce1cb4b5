"""Fp8MatMul: a product with a weight in FP8, which stays one byte a value.

    y = MatMul(x, DequantizeLinear(W, s))       W (K, N) constant, float8e4m3fn or float8e5m2; s constant: one value,
                                                one a column, or one a block of K
    -> y = Fp8Matmul(x, W^T, s, 0, 0)

x may come from a QuantizeLinear and a DequantizeLinear of its own, which stay: the numbers are those of the model.
ONNX Runtime 1.31 makes an integer operator of such a product, which knows no float8, and fails to load the model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek_fast.onnx._fp8_weight import find_fp8_weight, fuse_fp8_matmul

if TYPE_CHECKING:
    import onnx_ir as ir

    from deepseek_fast.onnx._rewriter import Rewriter

NAME = "Fp8MatMul"
LEVEL = 1


def rewrite(node: ir.Node, rewriter: Rewriter) -> str | None:
    if node.op_type != "MatMul" or node.domain:
        return None
    weight = find_fp8_weight(node.inputs[1], rewriter, transposed=False)
    if weight is None:
        return None
    fuse_fp8_matmul(rewriter.check_input(node.inputs[0]), weight, None, node, rewriter)
    return "Fp8Matmul"
