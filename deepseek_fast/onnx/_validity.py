"""Refuses a graph that would not even load: values that nothing makes, tensors of another size than they say.

onnx.checker says so too, but it also refuses every operator of a runtime's own in the ai.onnx domain.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


def check_graph(graph: onnx.GraphProto, opset: int | None, subject: str, outer: frozenset[str] = frozenset()) -> None:
    """subject: "optimize: model", what the sentence of the ValueError begins with. opset: of ai.onnx, if any."""
    rule = f"{subject} must be a valid ONNX graph"
    for tensor in graph.initializer:
        _check_tensor(tensor, rule)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if not _is_type(value.type.tensor_type.elem_type):
            raise ValueError(f"{rule}; got type {value.type.tensor_type.elem_type} of '{value.name}', which is none")
    tensors = [*(tensor.name for tensor in graph.initializer), *(s.values.name for s in graph.sparse_initializer)]
    known = outer | {value.name for value in graph.input} | set(tensors)
    made: set[str] = set()
    for node in graph.node:
        what = f"{node.op_type} '{node.name}'"
        for text in (node.op_type, node.name, node.domain, *node.input, *node.output):
            if not isinstance(text, str):  # protobuf hands out bytes where they are no UTF-8
                raise ValueError(f"{rule}; got {what} with the name {text!r}, which is no text")
        if not _has_arity(node, opset):
            raise ValueError(f"{rule}; got {what} with {len(node.input)} inputs and {len(node.output)} outputs")
        for name in node.input:
            if name and name not in known and name not in made:
                raise ValueError(f"{rule}; got {what}, whose input {name!r} nothing before it makes")
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                check_graph(inner, opset, subject, known | made)
        for name in node.output:
            if name and (name in known or name in made):
                raise ValueError(f"{rule}; got {what}, whose output {name!r} is made twice")
            made.add(name)
    for value in graph.output:
        if value.name not in known and value.name not in made:
            raise ValueError(f"{rule}; got the output {value.name!r}, which nothing makes")


def _has_arity(node: onnx.NodeProto, opset: int | None) -> bool:
    """Whether a node of ai.onnx has as many inputs and outputs as it may; what onnx does not know may have any."""
    from onnx import defs

    if node.domain not in ("", "ai.onnx") or opset is None or not 0 < opset <= defs.onnx_opset_version():
        return True
    if not defs.has(node.op_type, opset):
        return True
    schema = defs.get_schema(node.op_type, opset)
    inputs = schema.min_input <= len(node.input) <= schema.max_input
    return inputs and schema.min_output <= len(node.output) <= schema.max_output


def num_bytes(tensor: onnx.TensorProto) -> int:
    """What the tensor's type and shape take."""
    import onnx_ir as ir

    return math.ceil(math.prod(tensor.dims) * ir.DataType(tensor.data_type).itemsize)


def _check_tensor(tensor: onnx.TensorProto, rule: str) -> None:
    import onnx

    if not _is_type(tensor.data_type) or min(tensor.dims, default=0) < 0:
        shape = tuple(tensor.dims)
        raise ValueError(f"{rule}; got tensor '{tensor.name}' of type {tensor.data_type} and shape {shape}")
    is_text = tensor.data_type in (onnx.TensorProto.STRING, onnx.TensorProto.UNDEFINED)
    if tensor.HasField("raw_data") and not is_text and len(tensor.raw_data) != num_bytes(tensor):
        got = f"{len(tensor.raw_data)} bytes of tensor '{tensor.name}' of {num_bytes(tensor)}"
        raise ValueError(f"{rule}; got {got}")


def _is_type(code: int) -> bool:
    import onnx

    return code in onnx.TensorProto.DataType.values()


def ai_onnx_opset(model: onnx.ModelProto) -> int | None:
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx"):
            return int(opset.version)
    return None
