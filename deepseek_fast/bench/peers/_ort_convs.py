"""Convolutions in ONNX Runtime: a graph of NCHW as a model has it, and its kernels alone in the layouts they like."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepseek_fast._load import supported_isas
from deepseek_fast.bench.peers import Peer, Unsupported, _ort
from deepseek_fast.bench.peers._common import FLOAT
from deepseek_fast.bench.peers._convs import INT8_STEP, Window

NCHWC = "com.microsoft.nchwc"  # the domain of its blocked kernels
TYPES = {torch.float32: "FLOAT", torch.uint8: "UINT8", torch.int8: "INT8"}


def fused_conv(inputs: dict[str, Any]) -> dict[str, Peer]:
    """NCHW in and out, with reorders at both ends; and the blocked kernels alone, as inside a model."""
    if inputs["x"].dtype != torch.float32:
        raise Unsupported("ONNX Runtime has no convolution of 16 bits on CPUs")
    found = {"ORT Conv": Peer(_call(_graph(inputs), _planes(inputs)), *FLOAT["float32"])}
    blocked = _blocked(inputs)
    return found | ({"ORT Conv, blocked": blocked} if blocked else {})


def fused_conv_int8(inputs: dict[str, Any]) -> dict[str, Peer]:
    """QLinearConv, NCHW and channels_last; ReLU is what saturation at a zero point of 0 does."""
    if inputs["activation"] == "relu" and (inputs["x"].dtype != torch.uint8 or inputs["y_zero_point"] != 0):
        raise Unsupported("QLinearConv is called here with ReLU as the end of its range")
    if inputs["activation"] not in ("none", "relu"):
        raise Unsupported("QLinearConv has no activations but the end of its range")
    found = {"ORT QLinearConv": Peer(_call(_integer_graph(inputs, False), _planes(inputs)), *INT8_STEP)}
    if inputs.get("max_pool"):
        return found  # MaxPool has no layout but NCHW
    last = {name: value.permute(0, 2, 3, 1).contiguous() for name, value in _planes(inputs).items()}
    call = _call(_integer_graph(inputs, True), last)
    return found | {"ORT QLinearConv, channels_last": Peer(call, *INT8_STEP, lambda y: y.permute(0, 3, 1, 2))}


def _planes(inputs: dict[str, Any]) -> dict[str, Tensor]:
    """x and residual as a graph's inputs."""
    found = {"x": inputs["x"], "r": inputs.get("residual")}
    return {name: value.contiguous() for name, value in found.items() if value is not None}


def _graph(inputs: dict[str, Any], *, residual: bool = True) -> Any:
    """Conv, Add, activation and MaxPool of ai.onnx."""
    from onnx import helper

    window, weight = Window.of(inputs), inputs["weight"]
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["z"], **_attributes(window))]
    feeds = _planes(inputs)
    if not residual:
        feeds.pop("r", None)
    if "r" in feeds:
        nodes[-1].output[0] = "c"
        nodes.append(helper.make_node("Add", ["c", "r"], ["z"]))
    nodes += _ort.activation_nodes(inputs["activation"])
    nodes += _pool(nodes, window)
    constants = {"w": weight.contiguous().numpy(), "b": inputs["bias"].numpy()}
    return _ort.model(nodes, _values(feeds), {"y": (_type(inputs["x"]), None)}, constants, opset=20)


def _integer_graph(inputs: dict[str, Any], channels_last: bool) -> Any:
    """QLinearConv, QLinearAdd, MaxPool."""
    import numpy as np
    from onnx import helper

    window, weight, x = Window.of(inputs), inputs["weight"], inputs["x"]
    code = x.numpy().dtype
    constants = {"w": weight.contiguous().numpy(), "b": inputs["bias"].numpy(), "ws": inputs["weight_scale"].numpy()}
    constants["wz"] = np.zeros(constants["ws"].shape, np.int8)
    for name, key in (("x", "x"), ("y", "y"), ("r", "residual")):
        if f"{key}_scale" in inputs:
            constants[f"{name}s"] = np.float32(inputs[f"{key}_scale"])
            constants[f"{name}z"] = np.array(inputs[f"{key}_zero_point"], code)
    constants = {name: np.asarray(value) for name, value in constants.items()}
    if not channels_last:
        last: dict[str, Any] = {}
    else:
        last = {"domain": "com.microsoft", "channels_last": 1}
    names = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"]
    feeds = _planes(inputs)
    if "r" not in feeds:
        nodes = [helper.make_node("QLinearConv", names, ["y"], **last, **_attributes(window))]
    else:  # the sum before the residual is negative, too: its codes are those of y, shifted to the middle
        constants |= {"cs": np.asarray(2 * constants["ys"]), "cz": np.asarray(np.array(128, code))}
        names[6:8] = ["cs", "cz"]
        nodes = [helper.make_node("QLinearConv", names, ["c"], **last, **_attributes(window))]
        add = ["c", "cs", "cz", "r", "rs", "rz", "ys", "yz"]
        nodes.append(helper.make_node("QLinearAdd", add, ["y"], domain="com.microsoft"))
    nodes += _pool(nodes, window)
    shapes = {name: value.permute(0, 2, 3, 1) if channels_last else value for name, value in feeds.items()}
    return _ort.model(nodes, _values(shapes), {"y": (_type(x), None)}, constants, opset=20)


def _pool(nodes: list[Any], window: Window) -> list[Any]:
    """A MaxPool behind the last node, if there is one."""
    from onnx import helper

    if window.pool is None:
        return []
    kernel, stride, padding = window.pool
    nodes[-1].output[0] = "a"
    attributes: dict[str, Any] = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [padding] * 4}
    return [helper.make_node("MaxPool", ["a"], ["y"], **attributes)]


def _attributes(window: Window) -> dict[str, Any]:
    pads = [*window.padding, *window.padding]
    return {"strides": window.stride, "pads": pads, "dilations": window.dilation, "group": window.groups}


def _values(feeds: dict[str, Tensor]) -> _ort.Values:
    return {name: (_type(value), tuple(value.shape)) for name, value in feeds.items()}


def _type(x: Tensor) -> int:
    from onnx import TensorProto

    return int(getattr(TensorProto, TYPES[x.dtype]))


def _call(model: Any, feeds: dict[str, Tensor], **settings: Any) -> Callable[[], Tensor]:
    """A call on torch's memory, its output in memory of its own."""
    session = _ort.session(model, **settings)
    (y,) = session.run(None, {name: value.numpy() for name, value in feeds.items()})
    y = torch.from_numpy(y)
    binding = session.io_binding()
    for name, value in feeds.items():
        binding.bind_input(name, "cpu", 0, _type(value), tuple(value.shape), value.data_ptr())
    binding.bind_output("y", "cpu", 0, _type(y), tuple(y.shape), y.data_ptr())

    def call() -> Tensor:
        session.run_with_iobinding(binding)
        return y

    call.feeds = feeds  # type: ignore[attr-defined]  # keeps their memory
    return call


def _blocked(inputs: dict[str, Any]) -> Peer | None:
    """Its kernels between blocked tensors, without the reorders that it puts at a graph's ends; None: it has none."""
    from onnx import helper
    from onnxruntime import GraphOptimizationLevel

    x, residual, F = inputs["x"], inputs.get("residual"), inputs["weight"].shape[0]
    optimized = _optimized(_graph(inputs, residual=False))
    nodes = [node for node in optimized.graph.node if not node.op_type.startswith("Reorder")]
    if any(node.domain != NCHWC for node in nodes):
        return None
    froms = {node.output[0]: node.input[0] for node in optimized.graph.node if node.op_type == "ReorderInput"}
    tos = {node.input[0]: node.output[0] for node in optimized.graph.node if node.op_type == "ReorderOutput"}
    block = 16 if "avx512" in supported_isas() else 8  # channels side by side
    feeds = {"x": _into_blocks(x, block) if froms else x.contiguous()}
    for node in nodes:
        node.input[:] = [froms.get(name, name) for name in node.input]
        node.output[:] = [tos.get(name, name) for name in node.output]
    if residual is not None:
        nodes[0].input.append("r")  # its fourth: what it adds before the activation
        feeds["r"] = _into_blocks(residual, block)
    del optimized.graph.node[:], optimized.graph.input[:], optimized.graph.value_info[:]
    optimized.graph.node.extend(nodes)
    ends = _values(feeds).items()
    optimized.graph.input.extend(helper.make_tensor_value_info(name, *value) for name, value in ends)
    call = _call(optimized, feeds, graph_optimization_level=GraphOptimizationLevel.ORT_DISABLE_ALL)
    return Peer(call, *FLOAT["float32"], lambda y: _from_blocks(y, block)[:, :F])


def _optimized(model: Any) -> Any:
    """What its graph optimizer makes of a model for this machine."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "optimized.onnx")
        _ort.session(model, optimized_model_filepath=str(path))
        return onnx.load(path)


def _into_blocks(x: Tensor, block: int) -> Tensor:
    """(N, C, H, W) as (N, C / block, H, W, block) in memory, in the same shape but for zeros up to whole blocks."""
    x = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, -x.shape[1] % block))
    N, C, H, W = x.shape
    return x.reshape(N, C // block, block, H, W).permute(0, 1, 3, 4, 2).contiguous().reshape(N, C, H, W)


def _from_blocks(y: Tensor, block: int) -> Tensor:
    N, C, H, W = y.shape
    return y.reshape(N, C // block, H, W, block).permute(0, 1, 4, 2, 3).reshape(N, C, H, W)
