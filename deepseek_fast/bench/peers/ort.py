"""ONNX Runtime's own operators, each in a session of one node and its activation."""

from collections.abc import Callable
from typing import Any

import torch

from deepseek_fast.bench.peers import Peer, Unsupported
from deepseek_fast.bench.peers._common import FLOAT, INT8_TENSOR, int4_peer

PACKAGES = ("onnx", "onnxruntime")
HOW_TO_INSTALL = "pip install 'deepseek-fast[onnx]'"
# (node type, attributes) from z to y; silu has two nodes, relu6 two constants
ACTIVATION_NODES: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("Identity", {}),
    "relu": ("Relu", {}),
    "gelu": ("Gelu", {}),
    "gelu_tanh": ("Gelu", {"approximate": "tanh"}),
    "hardswish": ("HardSwish", {}),
    "sigmoid": ("Sigmoid", {}),
    "tanh": ("Tanh", {}),
}


def fused_matmul(inputs: dict[str, Any]) -> dict[str, Peer]:
    if inputs["x"].dtype != torch.float32:
        raise Unsupported("ONNX Runtime has no MatMul of 16 bits on CPUs")
    values = {"B": inputs["weight"].T.contiguous().numpy(), "bias": inputs["bias"].numpy()}
    call = _session("Gemm", ["A", "B", "bias"], "", values, inputs)
    return {"ORT Gemm": Peer(call, *FLOAT["float32"])}


def int8_matmul(inputs: dict[str, Any]) -> dict[str, Peer]:
    if inputs["activations"] == "float":
        return {}
    import numpy as np

    q = inputs["q"]
    values = {"B": q.T.contiguous().numpy(), "S": inputs["scale"].numpy(), "bias": inputs["bias"].float().numpy()}
    values["Z"] = np.zeros(q.shape[0], np.int8)
    call = _session("DynamicQuantizeMatMul", ["A", "B", "S", "Z", "bias"], "com.microsoft", values, inputs)
    return {"ORT DynamicQuantizeMatMul": Peer(call, *INT8_TENSOR)}


def int4_matmul(inputs: dict[str, Any]) -> dict[str, Peer]:
    import numpy as np

    q, scale, zeros, group = inputs["q"], inputs["scale"], inputs["zeros"], inputs["group_size"]
    N, K = q.shape[0], inputs["x"].shape[-1]
    if group < 0 or K % group:
        raise Unsupported("MatMulNBits is called here for whole groups")
    values = {"B": q.reshape(N, K // group, group // 2).numpy(), "S": scale.numpy()}
    names = ["A", "B", "S"]
    if zeros is not None:
        even, odd = np.pad(zeros.numpy(), ((0, 0), (0, zeros.shape[1] % 2))).reshape(N, -1, 2).transpose(2, 0, 1)
        values["Z"] = even | odd << 4
        names.append("Z")
    names += [""] * (5 - len(names)) + ["bias"]
    values["bias"] = inputs["bias"].float().numpy()
    level = 4 if inputs["compute"] == "int8" else 1  # 4: x in int8, 1: f32
    attributes = {"K": K, "N": N, "bits": 4, "block_size": group, "accuracy_level": level}
    call = _session("MatMulNBits", names, "com.microsoft", values, inputs, (K, N), **attributes)
    return {f"ORT MatMulNBits, accuracy level {level}": int4_peer(call, inputs)}


def _session(
    op_type: str,
    names: list[str],
    domain: str,
    values: dict[str, Any],
    inputs: dict[str, Any],
    sizes: tuple[int, int] | None = None,
    **attributes: Any,
) -> Callable[[], torch.Tensor]:
    """A call of A (M, K) -> y (M, N) in float32 through `op_type` and the activation; sizes: (K, N), or B's shape."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    nodes = [helper.make_node(op_type, names, ["z"], domain=domain, **attributes), *_activation(inputs["activation"])]
    K, N = sizes or values["B"].shape
    graph = helper.make_graph(
        nodes,
        "peer",
        [helper.make_tensor_value_info("A", TensorProto.FLOAT, ("M", K))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("M", N))],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    domains = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    # Its threads spin while it runs, and stop then: else they take half of the other contestants' second core.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    model = helper.make_model(graph, opset_imports=domains, ir_version=9).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {"A": inputs["x"].float().numpy()}
    return lambda: torch.from_numpy(session.run(None, feed)[0])


def _activation(name: str) -> list[Any]:
    from onnx import helper

    if name == "silu":
        return [helper.make_node("Sigmoid", ["z"], ["s"]), helper.make_node("Mul", ["z", "s"], ["y"])]
    if name == "relu6":
        ends = [
            helper.make_node("Constant", [], [end], value_float=value) for end, value in (("low", 0.0), ("high", 6.0))
        ]
        return [*ends, helper.make_node("Clip", ["z", "low", "high"], ["y"])]
    op_type, attributes = ACTIVATION_NODES[name]
    return [helper.make_node(op_type, ["z"], ["y"], **attributes)]
