"""Completes our nodes and gives the model one body for each operator it uses."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from deepseek_fast.onnx import _attention_nodes, _casts, _convs, _indexer, _mla, _opset
from deepseek_fast.onnx._body import DOMAIN, MIN_OPSET
from deepseek_fast.onnx._rewriter import number

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from deepseek_fast.onnx._rewriter import Rewriter

# op type -> kernels/<room>/body.py
ROOMS = {
    "Fp8Matmul": "fp8_matmul",
    "FusedMatmul": "fused_matmul",
    "Int4Matmul": "int4_matmul",
    "Int8Matmul": "int8_matmul",
    **dict.fromkeys(_attention_nodes.OP_TYPES, "block_sparse_attention"),
    **dict.fromkeys(_casts.OP_TYPES, "fp8_cast"),
    **dict.fromkeys(_convs.OP_TYPES, "fused_conv"),
    **dict.fromkeys(_indexer.OP_TYPES, "lightning_indexer"),
    **dict.fromkeys(_mla.OP_TYPES, "sparse_mla"),
}
# What completes a node, where the room has several operators.
COMPLETE = {
    **dict.fromkeys(_attention_nodes.OP_TYPES, _attention_nodes.complete_attention),
    **dict.fromkeys(_casts.OP_TYPES, _casts.complete_cast),
    **dict.fromkeys(_convs.OP_TYPES, _convs.complete_conv),
    **dict.fromkeys(_indexer.OP_TYPES, _indexer.complete_indexer),
    **dict.fromkeys(_mla.OP_TYPES, _mla.complete_mla),
}
# Of these the last two, B and R, may be absent, and Int4Matmul's zero points.
NUM_INPUTS = {"Fp8Matmul": 5, "FusedMatmul": 4, "Int4Matmul": 6, "Int8Matmul": 5}
DEFAULTS: dict[str, dict[str, Any]] = {
    "Fp8Matmul": {"activation": "none", "activations": "float", "block": (128, 128), "gated": 0},
    "FusedMatmul": {"activation": "none", "gated": 0},
    "Int4Matmul": {"activation": "none", "compute": "int8", "group_size": 32, "in_features": -1, "gated": 0},
    "Int8Matmul": {"activation": "none", "activations": "int8", "gated": 0},
}
SCALE_INPUT, ZEROS_INPUT = 2, 3


def complete_nodes(rewriter: Rewriter) -> None:
    """Every node of ours gets all its inputs and attributes, as its body reads them all: zeros and defaults."""
    for node in [node for graph in rewriter.model.graphs() for node in graph]:
        if node.domain == DOMAIN and node.op_type in ROOMS:
            COMPLETE.get(node.op_type, _complete)(node, rewriter)


def attach_bodies(rewriter: Rewriter, rule: str = "optimize: model must import an ai.onnx opset") -> None:
    """The model gets one body for each operator of ours that it uses, the import and the IR version.

    An operator with a node that ai.onnx cannot express gets none: such a model needs our library.
    raises: ValueError, which begins with rule, where the model's opset is too early for a body.
    """
    import onnx_ir as ir

    model = rewriter.model
    nodes = [node for graph in model.graphs() for node in graph]
    ours = [node for node in nodes if node.domain == DOMAIN and node.op_type in ROOMS]
    used = {node.op_type for node in ours}
    gated = {node.op_type for node in ours if number(node, "gated", 0)}
    without_body = {node.op_type for node in ours if node.op_type in _casts.OP_TYPES and not _casts.has_body(node)}
    for identifier in [i for i in model.functions if i[0] == DOMAIN and i[1] in ROOMS]:
        del model.functions[identifier]
    for op_type in sorted(used - without_body):
        room = importlib.import_module(f"deepseek_fast.kernels.{ROOMS[op_type]}.body")
        lowest = getattr(room, "MIN_OPSETS", {}).get(op_type, getattr(room, "MIN_OPSET", MIN_OPSET))
        if rewriter.opset < lowest:
            raise ValueError(f"{rule} from {lowest} on for {op_type}; got {rewriter.opset}")
        options = {"op_type": op_type} if op_type in COMPLETE else {"gated": op_type in gated}
        function = ir.serde.deserialize_function(room.function_proto(rewriter.opset, **options))
        model.functions[function.identifier()] = function
    opsets = model.graph.opset_imports
    if used:
        _opset.import_our_domain(opsets)
    elif not any(identifier[0] == DOMAIN for identifier in model.functions):
        opsets.pop(DOMAIN, None)
    model.ir_version = _opset.ir_version_for(model.ir_version, opsets) if used else model.ir_version


def _complete(node: ir.Node, rewriter: Rewriter) -> None:
    import onnx_ir as ir

    for name, value in DEFAULTS[node.op_type].items():
        if name not in node.attributes:
            node.attributes[name] = ir.convenience.convert_attribute(name, value)
    num_inputs = NUM_INPUTS[node.op_type]
    if node.op_type == "Int4Matmul":
        _give_zero_points(node, rewriter)
    if not num_inputs - 2 <= len(node.inputs) <= num_inputs or None in node.inputs[: num_inputs - 2]:
        rule = f"optimize: model must give {node.op_type} from {num_inputs - 2} to {num_inputs} inputs"
        raise ValueError(f"{rule}; got {len(node.inputs)} in '{node.name}'")
    if len(node.inputs) < num_inputs:
        node.resize_inputs(num_inputs)
    if node.op_type == "Fp8Matmul":
        _widen_scale(node, rewriter)
    dtype = _dtype(node)
    weight = node.inputs[1]
    assert weight is not None  # see above
    if node.inputs[-2] is None:
        node.replace_input_with(num_inputs - 2, zero_bias(weight, dtype, node, rewriter))
    if node.inputs[-1] is None:
        node.replace_input_with(num_inputs - 1, rewriter.zeros(1, dtype))


def _give_zero_points(node: ir.Node, rewriter: Rewriter) -> None:
    """A 4-bit weight without zero points gets those that mean the same."""
    import numpy as np

    from deepseek_fast.kernels.int4_matmul.body import NO_ZERO_POINT

    if len(node.inputs) == ZEROS_INPUT:
        node.resize_inputs(ZEROS_INPUT + 1)
    scale = node.inputs[SCALE_INPUT] if len(node.inputs) > ZEROS_INPUT else None
    if scale is None or node.inputs[ZEROS_INPUT] is not None:
        return
    array = rewriter.constants.array(scale)
    value = np.full(1 if array is None else array.shape, NO_ZERO_POINT, np.uint8)
    if array is not None:
        zeros = rewriter.initializer(f"{scale.name}_zeros", value)
    else:
        zeros = _computed(node, rewriter, f"{scale.name}_zeros", scale, value)
    node.replace_input_with(ZEROS_INPUT, zeros)


def _computed(before: ir.Node, rewriter: Rewriter, stem: str, like: ir.Value, value: np.ndarray) -> ir.Value:
    """A tensor of like's shape, full of the one value."""
    import onnx_ir as ir

    shape = ir.Node("", "Shape", [like])
    full = ir.Node("", "ConstantOfShape", [shape.outputs[0]], [ir.AttrTensor("value", ir.tensor(value))])
    for made in (shape, full):
        made.outputs[0].name = rewriter.unique(f"{stem}_{made.op_type.lower()}")
        before.prepend(made)
    return full.outputs[0]


def _widen_scale(node: ir.Node, rewriter: Rewriter) -> None:
    """A constant scale of float8e8m0 becomes float: no custom operator of ONNX Runtime 1.31 takes the former."""
    import numpy as np

    scale = node.inputs[SCALE_INPUT]
    assert scale is not None  # see _complete
    array = rewriter.constants.array(scale)
    if array is not None and str(array.dtype) == "float8_e8m0fnu":
        wide = rewriter.initializer(f"{scale.name}_float", array.astype(np.float32))
        node.replace_input_with(SCALE_INPUT, wide)


def _dtype(node: ir.Node) -> np.dtype:
    import numpy as np

    known = [v.dtype for v in (node.inputs[0], *node.inputs[-2:], node.outputs[0]) if v is not None and v.dtype]
    return known[0].numpy() if known else np.dtype(np.float32)


def zero_bias(weight: ir.Value, dtype: np.dtype, before: ir.Node, rewriter: Rewriter) -> ir.Value:
    """As many zeros as `weight` has rows."""
    if weight.shape is not None and isinstance(weight.shape[0], int):
        return rewriter.zeros(weight.shape[0], dtype)
    return _zero_row_like(weight, dtype, before, rewriter)


def _zero_row_like(weight: ir.Value, dtype: np.dtype, before: ir.Node, rewriter: Rewriter) -> ir.Value:
    """A computed row of as many zeros as `weight` has rows."""
    import numpy as np
    import onnx_ir as ir

    start, end = (rewriter.initializer(f"{weight.name}_{at}", np.array([at], np.int64)) for at in (0, 1))
    shape = ir.Node("", "Shape", [weight])
    rows = ir.Node("", "Slice", [shape.outputs[0], start, end])
    zero = ir.AttrTensor("value", ir.tensor(np.zeros(1, dtype)))
    zeros = ir.Node("", "ConstantOfShape", [rows.outputs[0]], [zero])
    for node in (shape, rows, zeros):
        node.outputs[0].name = rewriter.unique(f"{weight.name}_{node.op_type.lower()}")
        before.prepend(node)
    return zeros.outputs[0]
