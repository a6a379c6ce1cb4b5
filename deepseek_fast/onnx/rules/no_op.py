"""NoOp: nodes that change nothing.

y = Identity(x);  y = Dropout(x) without training
-> x wherever y was
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek_fast.onnx._notes import Refusal

if TYPE_CHECKING:
    import onnx_ir as ir

    from deepseek_fast.onnx._rewriter import Rewriter

NAME = "NoOp"
LEVEL = 1
TRAINING_INPUT = 2  # of Dropout


def rewrite(node: ir.Node, rewriter: Rewriter) -> str | None:
    if node.op_type not in ("Identity", "Dropout") or node.domain:
        return None
    x, y = node.inputs[0], node.outputs[0]
    if x is None or any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        raise Refusal("the mask must be unused")
    training = node.inputs[TRAINING_INPUT] if len(node.inputs) > TRAINING_INPUT else None
    if training is not None and rewriter.constants.scalar(training) != 0:
        raise Refusal("training_mode must be false")
    if y.is_graph_output():
        raise Refusal(f"'{y.name}' is also a graph output")
    y.replace_all_uses_with(x)
    rewriter.graph.remove(node, safe=True)
    return f"'{x.name}'"
