"""Models of one SparseMla or SparseMlaDecode node, built from a call's arguments."""

from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from deepseek_fast.kernels.sparse_mla import body
from tests.mla_doors import arguments
from tests.ort_nodes import ONNX_TYPES

OP_TYPES = {"sparse_mla": body.OP_TYPE, "sparse_mla_decode": body.DECODE}
NAMES = {  # of inputs, as the functions call them
    "Q": "q",
    "KV": "kv",
    "K": "k_cache",
    "I": "indices",
    "S": "attn_sink",
    "L": "topk_length",
    "B": "block_table",
    "C": "cache_seqlens",
    "XK": "extra_k_cache",
    "XI": "extra_indices",
    "XL": "extra_topk_length",
}


def array(value: Tensor) -> np.ndarray:
    raw = value.contiguous()
    dtype = helper.tensor_dtype_to_np_dtype(ONNX_TYPES[value.dtype])
    raw = raw.view(torch.uint16) if value.dtype == torch.bfloat16 else raw
    return raw.numpy().view(dtype).reshape(value.shape)


def node_model(
    op: str, inputs: dict[str, Any], *, opset: int = 23, with_body: bool = True, bare: bool = False
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """The call as a model and what to feed it. bare: what is left out stays so, inputs and attributes."""
    op_type, given = OP_TYPES[op], arguments(inputs)
    cache = given.get("k_cache")
    nothing = {"S": torch.empty(0), "XK": torch.empty(0, dtype=cache.dtype if cache is not None else torch.float32)}
    tensors: dict[str, Tensor] = {}
    for name in body.INPUTS[op_type]:
        value = given.get(NAMES[name])
        if value is None and not bare:
            value = nothing.get(name, torch.empty(0, dtype=torch.int32))
        if value is not None:
            tensors[name] = value
    attributes = {name: given[name] for name in ("scale", "d_v", "layout") if name in given}
    if "is_causal" in given:
        attributes["is_causal"] = int(given["is_causal"])
    values = attributes if bare else body.DEFAULTS[op_type] | attributes
    names = [name if name in tensors else "" for name in body.INPUTS[op_type]]
    while not names[-1]:
        names.pop()
    outputs = body.OUTPUTS[op_type]
    node = helper.make_node(op_type, names, outputs, domain="ai.deepseek_fast", **values)
    fed = [name for name in tensors if tensors[name].dim() > 1]
    y_type = ONNX_TYPES[given["q"].dtype]
    graph = helper.make_graph(
        [node],
        op,
        [helper.make_tensor_value_info(n, ONNX_TYPES[tensors[n].dtype], [None] * tensors[n].dim()) for n in fed],
        [helper.make_tensor_value_info(n, y_type if n == "Y" else TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(array(tensors[name]), name) for name in tensors if name not in fed],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("ai.deepseek_fast", 1)]
    functions = [body.function_proto(opset, op_type=op_type)] if with_body else []
    ir_version = helper.find_min_ir_version_for(imports[:1])
    model = helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=ir_version)
    return model, {name: array(tensors[name]) for name in fed}
