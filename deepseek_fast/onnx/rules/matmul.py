"""MatMul: a product with a constant weight and no bias.

y = MatMul(x, W)                                    W (K, N) constant
-> y = FusedMatmul(x, W^T, 0, 0)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek_fast.onnx._attach import DEFAULTS
from deepseek_fast.onnx._constants import is_overridable

if TYPE_CHECKING:
    import onnx_ir as ir

    from deepseek_fast.onnx._rewriter import Rewriter

NAME = "MatMul"
LEVEL = 1


def rewrite(node: ir.Node, rewriter: Rewriter) -> str | None:
    if node.op_type != "MatMul" or node.domain:
        return None
    if rewriter.constants.array(node.inputs[1]) is None and not is_overridable(node.inputs[1]):
        return None  # a product of two computed values
    x = rewriter.check_input(node.inputs[0])
    weight = rewriter.check_weight(node.inputs[1], transposed=False)
    inputs = [x, rewriter.weight(weight), rewriter.zeros(weight.N, weight.dtype), rewriter.zeros(1, weight.dtype)]
    rewriter.fuse("FusedMatmul", inputs, DEFAULTS["FusedMatmul"], [node])
    return "FusedMatmul"
