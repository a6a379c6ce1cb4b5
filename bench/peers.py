"""The competitors of each room: the fastest calls that torch and ONNX Runtime always have, weights prepared outside.

A peer is a call without arguments that gives the output as a torch tensor. The first one listed is the reference of
the CI gate. Inputs are the keyword arguments of the op itself.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek_fast._load import native

Call = Callable[[], Tensor]
TORCH_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda z: z,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": F.silu,
}
# (post operation, its algorithm) of mkldnn::_linear_pointwise
MKLDNN_ACTIVATIONS = {
    "none": ("none", ""),
    "relu": ("relu", ""),
    "gelu": ("gelu", "none"),
    "gelu_tanh": ("gelu", "tanh"),
    "silu": ("swish", ""),
}


def of(op: str, inputs: dict[str, Any]) -> dict[str, Call]:
    """Peers of one op for one set of inputs, by name."""
    return PEERS[op](inputs)


def _float_linear(inputs: dict[str, Any], weight: Tensor) -> dict[str, Call]:
    x, bias, activation = inputs["x"], inputs["bias"], inputs["activation"]
    post, algorithm = MKLDNN_ACTIVATIONS[activation]
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, x.shape[0])
    activate = TORCH_ACTIVATIONS[activation]
    return {
        "mkldnn prepacked linear": lambda: torch.ops.mkldnn._linear_pointwise(x, packed, bias, post, [], algorithm),
        "torch F.linear": lambda: activate(F.linear(x, weight, bias)),
    }


def _fused_matmul(inputs: dict[str, Any]) -> dict[str, Call]:
    return _float_linear(inputs, inputs["weight"])


def _int8_matmul(inputs: dict[str, Any]) -> dict[str, Call]:
    if inputs["activations"] == "float":  # int8 weights, float arithmetic
        x, q, bias = inputs["x"], inputs["q"], inputs["bias"]
        scale, activate = inputs["scale"].to(x.dtype), TORCH_ACTIVATIONS[inputs["activation"]]
        peers = _float_linear(inputs, (q.float() * inputs["scale"][:, None]).to(x.dtype))
        return {
            "mkldnn prepacked linear": peers["mkldnn prepacked linear"],
            "torch _weight_int8pack_mm": lambda: activate(torch.ops.aten._weight_int8pack_mm(x, q, scale) + bias),
        }
    return {"torch linear_dynamic": _linear_dynamic(inputs), "ORT DynamicQuantizeMatMul": _ort_dynamic(inputs)}


def _linear_dynamic(inputs: dict[str, Any]) -> Call:
    x, activate = inputs["x"].float(), TORCH_ACTIVATIONS[inputs["activation"]]  # it takes no bf16
    zero_points = torch.zeros(inputs["q"].shape[0], dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # quantized tensors are deprecated; nothing else feeds this op
        weight = torch._make_per_channel_quantized_tensor(inputs["q"], inputs["scale"].double(), zero_points, 0)
    packed = torch.ops.quantized.linear_prepack(weight, inputs["bias"].float())
    reduce_range = "avx512vnni" not in native().supported_isas()  # seven bits of x where VPMADDUBSW would saturate
    return lambda: activate(torch.ops.quantized.linear_dynamic(x, packed, reduce_range))


def _ort_dynamic(inputs: dict[str, Any]) -> Call:
    import numpy as np
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    q, scale, bias = inputs["q"], inputs["scale"], inputs["bias"].float()
    values = {"B": q.T.contiguous().numpy(), "S": scale.numpy(), "bias": bias.numpy()}
    values["Z"] = np.zeros(q.shape[0], np.int8)
    nodes = [helper.make_node("DynamicQuantizeMatMul", ["A", "B", "S", "Z", "bias"], ["z"], domain="com.microsoft")]
    nodes += ORT_ACTIVATIONS[inputs["activation"]]()
    graph = helper.make_graph(
        nodes,
        "peer",
        [helper.make_tensor_value_info("A", TensorProto.FLOAT, ("M", q.shape[1]))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("M", q.shape[0]))],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    domains = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    model = helper.make_model(graph, opset_imports=domains, ir_version=9).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {"A": inputs["x"].float().numpy()}
    return lambda: torch.from_numpy(session.run(None, feed)[0])


def _ort_node(op_type: str, **attributes: Any) -> Callable[[], list[Any]]:
    from onnx import helper

    return lambda: [helper.make_node(op_type, ["z"], ["y"], **attributes)]


def _ort_silu() -> list[Any]:
    from onnx import helper

    return [helper.make_node("Sigmoid", ["z"], ["s"]), helper.make_node("Mul", ["z", "s"], ["y"])]


ORT_ACTIVATIONS: dict[str, Callable[[], list[Any]]] = {
    "none": _ort_node("Identity"),
    "relu": _ort_node("Relu"),
    "gelu": _ort_node("Gelu"),
    "gelu_tanh": _ort_node("Gelu", approximate="tanh"),
    "silu": _ort_silu,
}
PEERS: dict[str, Callable[[dict[str, Any]], dict[str, Call]]] = {
    "fused_matmul": _fused_matmul,
    "int8_matmul": _int8_matmul,
}
