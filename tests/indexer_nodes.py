"""Models of one node of the indexer, built from a call's arguments."""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from deepseek_fast.kernels.lightning_indexer import body
from tests.doors import to_numpy

OP_TYPES = {
    "fp8_mqa_logits": body.LOGITS,
    "fp8_paged_mqa_logits": body.PAGED_LOGITS,
    "lightning_indexer": body.OP_TYPE,
    "lightning_indexer_paged": body.PAGED,
    "topk_indices": body.TOPK,
}
TYPES = {
    "float32": TensorProto.FLOAT,
    "bfloat16": TensorProto.BFLOAT16,
    "float16": TensorProto.FLOAT16,
    "float8_e4m3fn": TensorProto.FLOAT8E4M3FN,
    "float8_e5m2": TensorProto.FLOAT8E5M2,
    "uint8": TensorProto.UINT8,
    "int8": TensorProto.INT8,
    "bool": TensorProto.BOOL,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "float64": TensorProto.DOUBLE,
}


def node_model(
    op: str, inputs: dict[str, Any], *, opset: int = 23, with_body: bool = True, bare: bool = False
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """The call as a model and what to feed it. bare: what is left out stays so, inputs and attributes."""
    op_type = OP_TYPES[op]
    output = body.OUTPUTS[op_type]
    feeds = {name: to_numpy(inputs[name]) for name in body.INPUTS[op_type] if inputs.get(name) is not None}
    attributes = {name: inputs[name] for name in body.DEFAULTS[op_type] if inputs.get(name) is not None}
    if "dtype" in attributes:
        attributes["dtype"] = TYPES[str(attributes["dtype"]).removeprefix("torch.")]
    if "as_slots" in attributes:
        attributes["as_slots"] = int(attributes["as_slots"])
    if not bare:
        feeds |= {name: np.zeros(0, np.int32) for name in body.INPUTS[op_type] if name not in feeds}
        attributes = body.DEFAULTS[op_type] | attributes
    names = [name if name in feeds else "" for name in body.INPUTS[op_type]]
    kind = attributes.get("dtype", TensorProto.FLOAT) if output == "logits" else TensorProto.INT32
    rank = feeds["scores"].ndim if "scores" in feeds else 3 if op == "lightning_indexer_paged" else 2
    graph = helper.make_graph(
        [helper.make_node(op_type, names, [output], domain=body.DOMAIN, **attributes)],
        op,
        [
            helper.make_tensor_value_info(name, TYPES[array.dtype.name], [None] * array.ndim)
            for name, array in feeds.items()
        ],
        [helper.make_tensor_value_info(output, kind, [None] * rank)],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(body.DOMAIN, 1)]
    functions = [body.function_proto(opset, op_type)] if with_body else []
    ir_version = helper.find_min_ir_version_for(imports[:1])
    model = helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=ir_version)
    return model, feeds
