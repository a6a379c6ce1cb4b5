"""Models of one BlockSparseAttention node with its body, built from a call's arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

import deepseek_fast
from deepseek_fast import _load
from deepseek_fast.kernels.block_sparse_attention import body, ref_masks
from deepseek_fast.onnx._runtime import LIBRARY, library_problem
from tests.doors import from_numpy, to_numpy
from tests.onnx_models import run, run_reference, run_stock
from tests.ort_nodes import ONNX_TYPES


def tensors_of(call: dict[str, Any]) -> dict[str, Tensor]:
    """The node's inputs that a call of the Python function has."""
    result = {name: call[name] for name in body.INPUTS[body.ATTENTION] if isinstance(call.get(name), Tensor)}
    mask = call.get("block_mask")
    if isinstance(mask, tuple):
        result |= dict(zip(("row_offsets", "columns"), mask, strict=True))
    elif isinstance(mask, BlockMask):
        lists = deepseek_fast.flex_block_lists(mask, (call["q"].shape[2], call["k"].shape[2]))
        result |= dict(zip(("row_offsets", "columns", "tables", "bits"), lists, strict=True))
    return result


def attributes_of(call: dict[str, Any]) -> dict[str, Any]:
    mask = call.get("block_mask")
    size = mask.BLOCK_SIZE if isinstance(mask, BlockMask) else ref_masks.pair(call.get("block_size", 128))
    left, right = ref_masks.window_sides(call.get("window"))
    at_end = call.get("q_offset") == "end"
    result: dict[str, Any] = {
        "block_size": size,
        "is_causal": int(call.get("is_causal", False)),
        "window": (-1 if left is None else left, -1 if right is None else right),
        "sinks": call.get("sinks") or 0,
        "q_offset": 0 if at_end else call.get("q_offset", 0),
        "q_at_end": int(at_end),
    }
    return result | ({"scale": call["scale"]} if call.get("scale") is not None else {})


def node_model(call: dict[str, Any], opset: int = 18, *, static: bool = False) -> tuple[onnx.ModelProto, dict]:  # type: ignore[type-arg]
    """The call as a model whose inputs have symbolic shapes, or static ones, and what to feed it."""
    given = tensors_of(call)
    q_type = ONNX_TYPES[call["q"].dtype]
    absent = body.ABSENT_TYPES | {"token_bias": q_type}
    empty = [
        helper.make_tensor(f"no_{name}", kind, [0], b"", raw=True) for name, kind in absent.items() if name not in given
    ]
    names = {name: name if name in given else f"no_{name}" for name in body.INPUTS[body.ATTENTION]}
    node = body.attention_node(names, "out", "lse", **attributes_of(call))
    inputs = [
        helper.make_tensor_value_info(
            name, ONNX_TYPES[value.dtype], value.shape if static else [f"{name}_{d}" for d in range(value.dim())]
        )
        for name, value in given.items()
    ]
    outputs = [
        helper.make_tensor_value_info(name, kind, [None] * rank)
        for name, kind, rank in (("out", q_type, 4), ("lse", TensorProto.FLOAT, 3))
    ]
    graph = helper.make_graph([node], "attention", inputs, outputs, empty)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("ai.deepseek_fast", 1)]
    ir_version = max(8, helper.find_min_ir_version_for(imports[:1]))
    functions = [body.function_proto(opset)]
    model = helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=ir_version)
    onnx.checker.check_model(model, full_check=True)
    feeds = {name: np.ascontiguousarray(to_numpy(value)).reshape(value.shape) for name, value in given.items()}
    return model, feeds


def run_body(call: dict[str, Any], opset: int = 18, *, static: bool = False) -> dict[str, tuple[Tensor, Tensor]]:
    """(out, lse) by runtime; that of our library too, where it has the node."""
    model, feeds = node_model(call, opset, static=static)
    results = {"stock": run_stock(model, feeds)}
    with np.errstate(all="ignore"):
        results["reference"] = run_reference(model, feeds)
    if library_problem() is None and has_node():
        results["library"] = run(model, feeds, LIBRARY)
    return {
        runtime: (from_numpy(np.ascontiguousarray(got["out"])), from_numpy(np.ascontiguousarray(got["lse"])))
        for runtime, got in results.items()
    }


def has_node(name: str = "block_sparse_attention") -> bool:
    """Whether our library has the operator; without it the body runs there, too."""
    _load.load_torch()
    return hasattr(torch.ops.deepseek_fast, name)


def run_top_k(q: Tensor, k: Tensor, opset: int = 18, **attributes: Any) -> dict[str, Tensor]:
    """block_mask by runtime."""
    node = body.top_k_node("q", "k", "block_mask", **attributes)
    inputs = [
        helper.make_tensor_value_info(name, ONNX_TYPES[q.dtype], [f"{name}_{d}" for d in range(4)]) for name in "qk"
    ]
    output = helper.make_tensor_value_info("block_mask", TensorProto.BOOL, [None] * 4)
    graph = helper.make_graph([node], "top_k", inputs, [output])
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("ai.deepseek_fast", 1)]
    functions = [body.function_proto(opset, body.TOP_K)]
    ir_version = max(8, helper.find_min_ir_version_for(imports[:1]))
    model = helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=ir_version)
    onnx.checker.check_model(model, full_check=True)
    feeds = {"q": to_numpy(q), "k": to_numpy(k)}
    results = {"stock": run_stock(model, feeds), "reference": run_reference(model, feeds)}
    if library_problem() is None and has_node("top_k_blocks"):
        results["library"] = run(model, feeds, LIBRARY)
    return {runtime: from_numpy(got["block_mask"]) for runtime, got in results.items()}
