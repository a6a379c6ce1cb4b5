"""The values of a graph that are the same in every run, and their arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

FOLDABLE = ("Cast", "DequantizeLinear", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
FOLDING_OPSET = 21  # onnx's reference has no older DequantizeLinear; the operators above mean the same from 13 on


class Constants:
    """Arrays of initializers, Constant nodes, and FOLDABLE operators of such; each computed once."""

    def __init__(self, opset: int) -> None:
        self._opset = max(opset, FOLDING_OPSET)
        self._arrays: dict[ir.Value, np.ndarray | None] = {}

    def array(self, value: ir.Value | None) -> np.ndarray | None:
        """The array of `value`, or None where a run may change it."""
        if value is None:
            return None
        if value not in self._arrays:
            self._arrays[value] = self._evaluate(value)
        return self._arrays[value]

    def run(self, node: ir.Node) -> np.ndarray | None:
        """The output of a node of ai.onnx that need not be FOLDABLE, or None where an input is not constant."""
        inputs = [self.array(value) for value in node.inputs]
        if any(v is not None and array is None for v, array in zip(node.inputs, inputs, strict=True)):
            return None
        return _run_node(node, inputs, self._opset)

    def scalar(self, value: ir.Value | None) -> float | None:
        """The number in a one-element constant that raises no rank, else None."""
        array = self.array(value)
        return float(array.reshape(())) if array is not None and array.size == 1 and array.ndim <= 1 else None

    def stored_bytes(self, value: ir.Value) -> int:
        """Bytes of the tensor in the file from which `value` is folded."""
        node = value.producer()
        if node is not None and node.op_type in FOLDABLE and node.inputs[0] is not None:
            return self.stored_bytes(node.inputs[0])
        array = self.array(value)
        return 0 if array is None else array.nbytes

    def _evaluate(self, value: ir.Value) -> np.ndarray | None:
        import onnx_ir as ir

        if value.is_initializer():
            return None if is_overridable(value) or value.const_value is None else value.const_value.numpy()
        node = value.producer()
        if node is None or node.domain:
            return None
        if node.op_type == "Constant":
            tensor = ir.convenience.get_const_tensor(value)
            return None if tensor is None else tensor.numpy()
        return self.run(node) if node.op_type in FOLDABLE else None


def is_overridable(value: ir.Value | None) -> bool:
    """Whether `value` is an initializer that a caller may replace, as it is a graph input too."""
    return value is not None and value.is_initializer() and value.is_graph_input()


def _run_node(node: ir.Node, inputs: list[np.ndarray | None], opset: int) -> np.ndarray | None:
    """The one output of a node on constant inputs, or None where onnx's reference cannot compute it."""
    import onnx_ir as ir
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    names = ["" if array is None else f"input_{i}" for i, array in enumerate(inputs)]
    feeds = {name: array for name, array in zip(names, inputs, strict=True) if array is not None}
    copy = helper.make_node(node.op_type, names, ["output"])
    copy.attribute.extend(ir.to_proto(node).attribute)
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feeds.items()
    ]
    graph = helper.make_graph([copy], "constant", infos, [helper.make_empty_tensor_value_info("output")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    try:
        outputs: Any = ReferenceEvaluator(model).run(None, feeds)
    except Exception:  # the reference raises many types; a value that it cannot fold is no constant to us
        return None
    return outputs[0]
