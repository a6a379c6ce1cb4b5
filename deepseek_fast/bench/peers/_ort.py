"""Sessions of ONNX Runtime for its plug-in."""

from typing import Any

import torch

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
Values = dict[str, tuple[int, Any]]  # (type, shape) by name


def model(nodes: list[Any], inputs: Values, outputs: Values, constants: dict[str, Any], *, opset: int) -> Any:
    """An onnx.ModelProto of some nodes."""
    from onnx import helper, numpy_helper

    graph = helper.make_graph(
        nodes,
        "peer",
        [helper.make_tensor_value_info(name, *value) for name, value in inputs.items()],
        [helper.make_tensor_value_info(name, *value) for name, value in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    domains = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=domains, ir_version=9 if opset < 21 else 10)


def session(model: Any, **settings: Any) -> Any:
    """Of an onnx.ModelProto, on as many threads as torch has; settings: of onnxruntime.SessionOptions."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    # Its threads spin while it runs, and stop then: else they take half of the other contestants' second core.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    for name, value in settings.items():
        setattr(options, name, value)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def activation_nodes(name: str) -> list[Any]:
    """From z to y, one or several."""
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
