"""oneDNN inside torch, its weight reordered beforehand and the activation fused: torch's fastest float linear."""

from typing import Any

import torch
from torch import Tensor

from deepseek_fast.bench.peers import Peer, Unsupported
from deepseek_fast.bench.peers._common import (
    dequantized,
    expanded_fp8,
    expanded_int4,
    float_peer,
    fp8_peer,
    int4_peer,
)

PACKAGES = ()
HOW_TO_INSTALL = "it is part of torch"
# (post operation, its numbers, its algorithm) of mkldnn::_linear_pointwise
POST: dict[str, tuple[str, list[float], str]] = {
    "none": ("none", [], ""),
    "relu": ("relu", [], ""),
    "relu6": ("hardtanh", [0.0, 6.0], ""),
    "gelu": ("gelu", [], "none"),
    "gelu_tanh": ("gelu", [], "tanh"),
    "silu": ("swish", [], ""),
    "hardswish": ("hardswish", [], ""),
    "sigmoid": ("sigmoid", [], ""),
    "tanh": ("tanh", [], ""),
}


def fused_matmul(inputs: dict[str, Any]) -> dict[str, Peer]:
    x, weight = inputs["x"], inputs["weight"]
    if x.dtype == torch.float16 and not torch.ops.mkldnn._is_mkldnn_fp16_supported():
        wide = inputs | {"x": x.float(), "bias": inputs["bias"].float()}
        (peer,) = _linear(wide, weight.float()).values()
        return {"mkldnn, all in float32": float_peer(peer.call, x)}
    return _linear(inputs, weight)


def int8_matmul(inputs: dict[str, Any]) -> dict[str, Peer]:
    if inputs["activations"] == "int8":
        return {}
    return _linear(inputs, dequantized(inputs["q"], inputs["scale"], inputs["x"]))


def fp8_matmul(inputs: dict[str, Any]) -> dict[str, Peer]:
    (peer,) = _linear(inputs, expanded_fp8(inputs)).values()
    return {"mkldnn, weight expanded": fp8_peer(peer.call, inputs)}


def int4_matmul(inputs: dict[str, Any]) -> dict[str, Peer]:
    (peer,) = _linear(inputs, expanded_int4(inputs)).values()
    return {"mkldnn, weight expanded": int4_peer(peer.call, inputs)}


def _linear(inputs: dict[str, Any], weight: Tensor) -> dict[str, Peer]:
    if not torch.backends.mkldnn.is_available():
        raise Unsupported("this torch has no oneDNN")
    x, bias = inputs["x"], inputs["bias"]
    post, numbers, algorithm = POST[inputs["activation"]]
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, x.shape[0])
    call = torch.ops.mkldnn._linear_pointwise
    return {"mkldnn prepacked linear": float_peer(lambda: call(x, packed, bias, post, numbers, algorithm), x)}
