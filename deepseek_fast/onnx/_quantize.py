"""FusedMatmul -> Int8Matmul: the weight in int8 with one scale an output channel.

y = FusedMatmul(x, W, b, r, activation)
-> y = Int8Matmul(x, Q, S, b, r, activation, activations)      (Q, S) = int8_quantize_weight(W)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek_fast.onnx._body import DOMAIN
from deepseek_fast.onnx._notes import Note, Refusal
from deepseek_fast.onnx._rewriter import Rewriter, number, text

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

SCHEMES = {"w8a8": "int8", "w8a16": "float"}  # quantize -> what Int8Matmul's activations says


def quantize_weights(rewriter: Rewriter, scheme: str, rewritten: list[Note], refused: list[Note]) -> None:
    done: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
    for node in list(rewriter.graph):
        if node.op_type != "FusedMatmul" or node.domain != DOMAIN:
            continue
        tail = node.outputs[0].name or ""
        try:
            _quantize(node, scheme, rewriter, done)
            rewritten.append(Note(scheme, tail, "Int8Matmul"))
        except Refusal as refusal:
            refused.append(Note(scheme, tail, str(refusal)))


def _quantize(node: ir.Node, scheme: str, rewriter: Rewriter, done: dict[ir.Value, tuple[ir.Value, ir.Value]]) -> None:
    from deepseek_fast.kernels.int8_matmul.body import MAX_K

    x, weight, bias, residual = node.inputs
    array = rewriter.constants.array(weight)
    if weight is None or array is None:
        raise Refusal("weight must be constant; got a computed one")
    if scheme == "w8a8" and array.shape[1] > MAX_K:
        raise Refusal(f"weight must have at most {MAX_K} columns for w8a8; got shape {array.shape}")
    if weight not in done:
        q, scale = quantize_weight(array)
        done[weight] = (
            rewriter.initializer(f"{weight.name}_q", q),
            rewriter.initializer(f"{weight.name}_scale", scale),
        )
    attributes: dict[str, str | int] = {
        "activation": text(node, "activation", "none"),
        "activations": SCHEMES[scheme],
        "gated": int(number(node, "gated", 0)),
    }
    rewriter.fuse("Int8Matmul", [x, *done[weight], bias, residual], attributes, [node])


def quantize_weight(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The library's int8_quantize_weight."""
    from deepseek_fast.numpy import int8_quantize_weight

    q, scale = int8_quantize_weight(weight)
    return q, scale
