"""MatMul + Add: a product with a constant weight, and its bias.

t = MatMul(x, W); y = Add(t, b)  or  Add(b, t)      W (K, N) and b constant, b one row or one value
-> y = FusedMatmul(x, W^T, b, 0)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek_fast.onnx._attach import DEFAULTS
from deepseek_fast.onnx._constants import is_overridable

if TYPE_CHECKING:
    import onnx_ir as ir

    from deepseek_fast.onnx._rewriter import Rewriter

NAME = "MatMul+Add"
LEVEL = 1


def rewrite(node: ir.Node, rewriter: Rewriter) -> str | None:
    found = _match(node, rewriter)
    if found is None:
        return None
    matmul, bias = found
    product = matmul.outputs[0]
    x = rewriter.check_input(matmul.inputs[0])
    weight = rewriter.check_weight(matmul.inputs[1], transposed=False)
    rewriter.check_only_consumer(product)
    bias = rewriter.check_bias(bias, weight.N, product)
    inputs = [x, rewriter.weight(weight), rewriter.bias(bias, weight.N), rewriter.zeros(1, weight.dtype)]
    rewriter.fuse("FusedMatmul", inputs, DEFAULTS["FusedMatmul"], [matmul, node])
    return "FusedMatmul with bias"


def _match(node: ir.Node, rewriter: Rewriter) -> tuple[ir.Node, ir.Value | None] | None:
    """The MatMul by a constant and the constant bias of an Add."""
    if node.op_type != "Add" or node.domain:
        return None
    for product, bias in (node.inputs, node.inputs[::-1]):
        matmul = product.producer() if product is not None else None
        if matmul is None or matmul.op_type != "MatMul" or matmul.domain or matmul.graph is not rewriter.graph:
            continue
        if rewriter.constants.array(matmul.inputs[1]) is None:
            continue
        if is_overridable(bias) or rewriter.constants.array(bias) is not None:
            return matmul, bias
    return None
