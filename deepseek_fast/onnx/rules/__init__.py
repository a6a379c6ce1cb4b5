"""The rewrite rules, in the order in which they run. One file, one rewrite.

A rule module has NAME (as fuse_ops says it), LEVEL (the lowest optim_level that runs it) and
`rewrite(node, rewriter) -> str | None`: it changes the graph around `node` and says what came out, returns None where
`node` is not the end of its pattern, or raises Refusal with the reason to leave a matching node alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from deepseek_fast.onnx.rules import (
    activation,
    attention_layout,
    batch_norm,
    bias,
    conv,
    conv_activation,
    conv_batch_norm,
    conv_layout,
    conv_pad,
    conv_pool,
    conv_residual,
    conv_scale,
    conv_winograd,
    fp8_dequantize,
    fp8_gemm,
    fp8_matmul,
    fp8_quantize,
    gemm,
    lrn,
    matmul,
    matmul_add,
    no_op,
    pool,
    product_reshape,
    qdq_conv,
    qdq_move,
    qdq_residual,
    residual,
)

if TYPE_CHECKING:
    import onnx_ir as ir

    from deepseek_fast.onnx._rewriter import Rewriter


class Rule(Protocol):
    NAME: str
    LEVEL: int

    def rewrite(self, node: ir.Node, rewriter: Rewriter) -> str | None: ...


BEFORE_PRECISION: tuple[Rule, ...] = (  # type: ignore[assignment]
    no_op,
    fp8_matmul,  # before those that would fold the weight, and count its growth
    fp8_gemm,
    matmul_add,
    gemm,
    matmul,
    product_reshape,
    bias,
    activation,
    residual,
    attention_layout,
    qdq_conv,  # before Conv, which leaves such convolutions alone
    qdq_residual,
    qdq_move,
    conv,
    conv_pad,
    conv_batch_norm,
    batch_norm,
    conv_scale,
    conv_activation,
    conv_residual,
    conv_activation,  # after a sum too
    conv_pool,
    pool,
    lrn,
)
AFTER_PRECISION: tuple[Rule, ...] = (  # type: ignore[assignment]
    conv_winograd,  # in float32 only
    conv_layout,  # Casts go along
    fp8_quantize,  # what is left of float8 when all products are ours
    fp8_dequantize,
)
RULES = (*BEFORE_PRECISION, *AFTER_PRECISION)
RULE_NAMES = tuple(dict.fromkeys(rule.NAME for rule in RULES))
QUANTIZABLE = (gemm.NAME, matmul.NAME)  # what optim_level 0 still rewrites when quantize is given
