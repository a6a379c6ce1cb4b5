"""ProductReshape: rows folded before a product and unfolded after it, which our operators do themselves.

    t = FusedMatmul(Reshape(x, [-1, K]), W, b, 0); y = Reshape(t, [B, S, N])      x (B, S, K)
    -> y = FusedMatmul(x, W, b, 0)                                                the same for Int8Matmul

Exporters write it for addmm (GPT-2's Conv1D); without it an activation or a sum after the Reshape could not be fused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek_fast.onnx._notes import Refusal
from deepseek_fast.onnx._rewriter import is_fused
from deepseek_fast.onnx._shapes import shape_text, surely_equal_dim

if TYPE_CHECKING:
    import onnx_ir as ir

    from deepseek_fast.onnx._rewriter import Rewriter

NAME = "ProductReshape"
LEVEL = 3


def rewrite(node: ir.Node, rewriter: Rewriter) -> str | None:
    if not is_fused(node) or rewriter.constants.scalar(node.inputs[-1]) != 0:
        return None
    folded, product = node.inputs[0], node.outputs[0]
    fold = _reshape_of(folded)
    x = fold.inputs[0] if fold is not None else None
    unfold = next((use.node for use in product.uses() if use.node.op_type == "Reshape" and not use.node.domain), None)
    if folded is None or x is None or unfold is None or unfold.inputs[0] is not product:
        return None
    rewriter.check_only_consumer(product)
    _check_rows_kept(x, folded, product, unfold.outputs[0])
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    rewriter.fuse(node.op_type, [x, *node.inputs[1:]], attributes, [node, unfold])
    return f"{node.op_type} without Reshape"


def _reshape_of(value: ir.Value | None) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == "Reshape" and not node.domain else None


def _check_rows_kept(x: ir.Value, folded: ir.Value, product: ir.Value, unfolded: ir.Value) -> None:
    """A Refusal unless `unfolded` has x's dimensions but for the last, which the product makes of x's last."""
    known = [value.shape for value in (x, folded, product, unfolded)]
    x_shape, folded_shape, product_shape, unfolded_shape = known
    kept = (
        x_shape is not None
        and folded_shape is not None
        and product_shape is not None
        and unfolded_shape is not None
        and (folded_shape.rank(), product_shape.rank()) == (2, 2)
        and x_shape.rank() == unfolded_shape.rank() > 0
        and isinstance(x_shape[-1], int)
        and x_shape[-1] == folded_shape[1]
        and unfolded_shape[-1] == product_shape[1]
        and all(surely_equal_dim(a, b) for a, b in zip(x_shape[:-1], unfolded_shape[:-1], strict=True))
    )
    if not kept:
        got = f"got {shape_text(unfolded_shape)} of {shape_text(x_shape)}"
        raise Refusal(f"'{unfolded.name}' must surely have the rows of '{x.name}'; {got}")
