"""OpenVINO's CPU plug-in: a model of one layer, compiled for the row's threads.

Its threads (TBB) sleep between two calls, and may run on any core: pinned ones would meet ours on the first. 200 such
models in one process, one after another or 12 at a time, did no harm, as models with int4 weights do.
"""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepseek_fast.bench.peers import Peer, Unsupported, _convs
from deepseek_fast.bench.peers._common import INT8_ROW, float_peer, int4_peer

PACKAGES = ("openvino",)
HOW_TO_INSTALL = "pip install openvino, or run `make bench-peers`"
# (operator of opset 13, its arguments)
ACTIVATION_NODES: dict[str, tuple[str, tuple[str | float, ...]]] = {
    "relu": ("relu", ()),
    "relu6": ("clamp", (0.0, 6.0)),
    "gelu": ("gelu", ("erf",)),
    "gelu_tanh": ("gelu", ("tanh",)),
    "silu": ("swish", ()),
    "hardswish": ("hswish", ()),
    "sigmoid": ("sigmoid", ()),
    "tanh": ("tanh", ()),
}
# Values of a row of x that share a scale in dynamic quantization: fewer are faster in large products here, and the
# whole row is what the other libraries have.
GROUP = 128


@dataclass(frozen=True)
class Call:
    """An inference request with the memory that it reads and writes."""

    request: Any
    inputs: list[Tensor]
    y: Tensor

    def __call__(self) -> Tensor:
        self.request.infer(share_inputs=True, share_outputs=True, decode_strings=False)
        return self.y


def fused_matmul(inputs: dict[str, Any]) -> dict[str, Peer]:
    from openvino import opset13 as op

    return {"OpenVINO": float_peer(_call(inputs, op.constant(inputs["weight"].float().numpy())), inputs["x"])}


def fused_conv(inputs: dict[str, Any]) -> dict[str, Peer]:
    """Channels last, through a Transpose at either end, which it takes for a layout; and NCHW.

    The former is its faster one, but for a residual behind a 1x1 in f32: 13 ms where NCHW takes 0.6 (2026.4.1, Zen 5).
    """
    return {"OpenVINO": _conv(inputs, True), "OpenVINO, NCHW": _conv(inputs, False)}


def _conv(inputs: dict[str, Any], last: bool) -> Peer:
    """max_pool(act(conv(x) + bias + residual)); last: with the channels last."""
    from openvino import Model, Type
    from openvino import opset13 as op

    window, weight = _convs.Window.of(inputs), inputs["weight"].float()
    F, C, R, S = weight.shape
    x, element = inputs["x"], _element(inputs["x"])
    tensors = [x] if inputs.get("residual") is None else [x, inputs["residual"]]
    arrays = [(tensor.permute(0, 2, 3, 1) if last else tensor).contiguous() for tensor in tensors]
    parameters = [op.parameter(list(array.shape), element) for array in arrays]
    nodes = [op.convert(parameter, Type.f32) for parameter in parameters]
    if last:
        nodes = [op.transpose(node, op.constant([0, 3, 1, 2])) for node in nodes]
    numbers = (list(window.stride), list(window.padding), list(window.padding), list(window.dilation))
    if window.groups == 1:
        z = op.convolution(nodes[0], op.constant(weight.numpy()), *numbers)
    else:
        groups = op.constant(weight.reshape(window.groups, F // window.groups, C, R, S).contiguous().numpy())
        z = op.group_convolution(nodes[0], groups, *numbers)
    z = op.add(z, op.constant(inputs["bias"].float().reshape(1, F, 1, 1).numpy()))
    y = _activated(z if len(nodes) == 1 else op.add(z, nodes[1]), inputs["activation"])
    shape: Any = window.out(x, weight)
    if window.pool:
        kernel, stride, padding = ([number] * 2 for number in window.pool)
        y = op.max_pool(y, stride, [1, 1], padding, padding, kernel).output(0)
        shape = window.pooled(torch.empty(shape)).shape
    if last:
        y, shape = op.transpose(y, op.constant([0, 2, 3, 1])), [shape[axis] for axis in (0, 2, 3, 1)]
    call = _request(Model([op.convert(y, element)], parameters, "peer"), arrays, x.new_empty(shape))
    peer = float_peer(call, x)
    return dataclasses.replace(peer, answer=lambda found: found.permute(0, 3, 1, 2)) if last else peer


def int8_matmul(inputs: dict[str, Any]) -> dict[str, Peer]:
    from openvino import Type
    from openvino import opset13 as op

    def weight() -> Any:
        return op.multiply(op.convert(op.constant(q.numpy()), Type.f32), op.constant(scale[:, None].numpy()))

    x, q, scale = inputs["x"], inputs["q"], inputs["scale"]
    if inputs["activations"] == "float":
        return {"OpenVINO int8 weights": float_peer(_call(inputs, weight(), 0), x)}
    K = x.shape[1]
    found = {"OpenVINO int8": Peer(_call(inputs, weight(), K), *INT8_ROW)}
    if K > GROUP and K % GROUP == 0:
        found[f"OpenVINO int8, groups of {GROUP}"] = Peer(_call(inputs, weight(), GROUP), *INT8_ROW)
    return found


def _call(inputs: dict[str, Any], weight: Any, group: int | None = None) -> Call:
    """A request of act(x @ weight^T + bias); group: values of x per scale of dynamic quantization, 0 for none."""
    from openvino import Model, Type
    from openvino import opset13 as op

    x, activation = inputs["x"], inputs["activation"]
    element = _element(x)
    parameter = op.parameter(list(x.shape), element)
    z = op.matmul(op.convert(parameter, Type.f32), weight, False, True)
    z = _activated(op.add(z, op.constant(inputs["bias"].float().numpy()[None])), activation)
    model = Model([op.convert(z, element)], [parameter], "peer")
    return _request(model, [x], x.new_empty(x.shape[0], inputs["bias"].shape[0]), group)


def _activated(z: Any, activation: str) -> Any:
    from openvino import opset13 as op

    if activation == "none":
        return z
    name, arguments = ACTIVATION_NODES[activation]
    return getattr(op, name)(z, *arguments)


def _request(model: Any, inputs: list[Tensor], y: Tensor, group: int | None = None) -> Call:
    """A request of a model that writes y, in the precision of y's dtype."""
    from openvino import Type

    element = _element(y)
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": Type.bf16 if element == Type.bf16 else Type.f32,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
    }
    if group is not None:
        settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = str(group)
    request = _core().compile_model(model, "CPU", settings).create_infer_request()
    for i, x in enumerate(inputs):
        request.set_input_tensor(i, _shared(x, element))
    request.set_output_tensor(_shared(y, element))
    return Call(request, inputs, y)


def _element(x: Tensor) -> Any:
    from openvino import Type

    return {torch.bfloat16: Type.bf16, torch.float16: Type.f16}.get(x.dtype, Type.f32)


@functools.cache
def _core() -> Any:
    from openvino import Core

    return Core()


def _shared(tensor: Tensor, element: Any) -> Any:
    """The same memory as an OpenVINO tensor; NumPy has no bf16."""
    from openvino import Shape
    from openvino import Tensor as Shared

    if tensor.dtype == torch.bfloat16:
        return Shared(tensor.view(torch.int16).numpy(), Shape(list(tensor.shape)), element)
    return Shared(tensor.numpy(), shared_memory=True)


def int4_matmul(inputs: dict[str, Any]) -> dict[str, Peer]:
    from openvino import Tensor as Shared
    from openvino import Type
    from openvino import opset13 as op

    q, scale, group = inputs["q"], inputs["scale"], inputs["group_size"]
    N, K = q.shape[0], inputs["x"].shape[-1]
    if inputs["zeros"] is not None or group < 0 or K % group:
        raise Unsupported("OpenVINO is asked here for whole groups without zero points")
    # i4 holds q - 8 in two's complement: the code with its highest bit turned
    codes = op.constant(Shared((q ^ 0x88).numpy(), [N, K // group, group], Type.i4))
    scaled = op.multiply(op.convert(codes, Type.f32), op.constant(scale[:, :, None].numpy()))
    weight = op.reshape(scaled, op.constant([N, K]), False)
    if inputs["compute"] == "float":
        return {"OpenVINO int4 weights": int4_peer(_call(inputs, weight, 0), inputs)}
    return {"OpenVINO int4, x in int8": int4_peer(_call(inputs, weight, group), inputs)}
