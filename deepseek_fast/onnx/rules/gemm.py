"""Gemm: a product with a constant weight, alpha and beta folded into the constants.

    y = Gemm(x, W, C, alpha, beta, transA=0, transB)    W constant, C constant or absent
    -> y = FusedMatmul(x, alpha * W as (N, K), beta * C, 0)

Folding must be exact: every product alpha * W and beta * C must be a value of the weight's type.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from deepseek_fast.onnx._attach import DEFAULTS
from deepseek_fast.onnx._notes import Refusal
from deepseek_fast.onnx._rewriter import number

if TYPE_CHECKING:
    import onnx_ir as ir

    from deepseek_fast.onnx._rewriter import Rewriter

NAME = "Gemm"
LEVEL = 1


def rewrite(node: ir.Node, rewriter: Rewriter) -> str | None:
    if node.op_type != "Gemm" or node.domain:
        return None
    x, w, c = (*node.inputs, None)[:3]
    if number(node, "transA", 0):
        raise Refusal("transA must be 0; got 1")
    x = rewriter.check_input(x)
    weight = rewriter.check_weight(w, transposed=bool(number(node, "transB", 0)))
    alpha, beta = number(node, "alpha", 1.0), number(node, "beta", 1.0)
    bias = None if c is None else rewriter.check_bias(c, weight.N, node.outputs[0])
    scaled_bias = None if bias is None or beta == 0 else _times(bias, beta, "beta", rewriter)
    scaled = dataclasses.replace(weight, value=_times(weight.value, alpha, "alpha", rewriter))
    N, dtype = weight.N, weight.dtype
    bias_row = rewriter.zeros(N, dtype) if scaled_bias is None else rewriter.bias(scaled_bias, N)
    inputs = [x, rewriter.weight(scaled), bias_row, rewriter.zeros(1, dtype)]
    rewriter.fuse("FusedMatmul", inputs, DEFAULTS["FusedMatmul"], [node])
    return "FusedMatmul"


def _times(value: ir.Value, factor: float, name: str, rewriter: Rewriter) -> ir.Value:
    """factor * the checked constant, exactly, or a Refusal."""
    import numpy as np

    array = rewriter.constants.array(value)
    if factor == 1 or array is None:
        return value
    exact = array.astype(np.float64) * factor
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = exact.astype(array.dtype)
    if not np.array_equal(rounded.astype(np.float64), exact, equal_nan=True):
        raise Refusal(f"{name} must fold into '{value.name}' exactly; got {factor:g}")
    return rewriter.initializer(f"{value.name}_{name}", rounded)
