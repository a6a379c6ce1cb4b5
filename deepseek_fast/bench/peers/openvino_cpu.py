"""OpenVINO's CPU plug-in: a model of one linear layer, compiled for the row's threads.

Its threads (TBB) sleep between two calls, and may run on any core: pinned ones would meet ours on the first. 200 such
models in one process, one after another or 12 at a time, did no harm, as models with int4 weights do.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepseek_fast.bench.peers import Peer, Unsupported
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
    x: Tensor
    y: Tensor

    def __call__(self) -> Tensor:
        self.request.infer(share_inputs=True, share_outputs=True, decode_strings=False)
        return self.y


def fused_matmul(inputs: dict[str, Any]) -> dict[str, Peer]:
    from openvino import opset13 as op

    return {"OpenVINO": float_peer(_call(inputs, op.constant(inputs["weight"].float().numpy())), inputs["x"])}


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
    element = {torch.bfloat16: Type.bf16, torch.float16: Type.f16}.get(x.dtype, Type.f32)
    parameter = op.parameter(list(x.shape), element)
    z = op.matmul(op.convert(parameter, Type.f32), weight, False, True)
    z = op.add(z, op.constant(inputs["bias"].float().numpy()[None]))
    if activation != "none":
        name, arguments = ACTIVATION_NODES[activation]
        z = getattr(op, name)(z, *arguments)
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": Type.bf16 if element == Type.bf16 else Type.f32,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
    }
    if group is not None:
        settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = str(group)
    request = _core().compile_model(Model([op.convert(z, element)], [parameter], "peer"), "CPU", settings)
    request = request.create_infer_request()
    y = x.new_empty(x.shape[0], inputs["bias"].shape[0])
    request.set_input_tensor(_shared(x, element))
    request.set_output_tensor(_shared(y, element))
    return Call(request, x, y)


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
