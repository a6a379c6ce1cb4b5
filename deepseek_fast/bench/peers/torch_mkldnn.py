"""oneDNN inside torch, its weight reordered beforehand and the activation fused: torch's fastest linear and conv."""

from typing import Any

import torch
from torch import Tensor

from deepseek_fast.bench.peers import Peer, Unsupported, _convs
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
ANSWERS = 2  # calls that a benchmark looks at: whether there is an answer, and which; those that follow are timed
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


def fused_conv(inputs: dict[str, Any]) -> dict[str, Peer]:
    if not torch.backends.mkldnn.is_available():
        raise Unsupported("this torch has no oneDNN")
    window, weight, bias, residual = _convs.Window.of(inputs), inputs["weight"], inputs["bias"], inputs.get("residual")
    numbers = (window.padding, window.stride, window.dilation, window.groups)
    post = POST[inputs["activation"]]
    found = {}
    for suffix, layout in _convs.layouts(inputs["x"]).items():
        x = inputs["x"].to(memory_format=layout)
        packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *numbers, x.shape)
        r = None if residual is None else residual.to(memory_format=layout)

        def call(x: Tensor = x, packed: Tensor = packed, r: Tensor | None = r) -> Tensor:
            convolution = torch.ops.mkldnn._convolution_pointwise
            if r is None:
                return window.pooled(convolution(x, packed, bias, *numbers, *post))
            return window.pooled(convolution.binary(x, r, packed, bias, *numbers, "add", 1.0, *post))

        found[f"mkldnn prepacked conv{suffix}"] = float_peer(call, x)
    return found


def fused_conv_int8(inputs: dict[str, Any]) -> dict[str, Peer]:
    """qconv takes ReLU alone."""
    window, weight = _convs.Window.of(inputs), inputs["weight"]
    numbers = (window.stride, window.padding, window.dilation, window.groups)
    if inputs["activation"] not in ("none", "relu"):
        raise Unsupported("qconv_pointwise is called here with ReLU, or nothing")
    scale = inputs["weight_scale"].expand(weight.shape[0]).contiguous()
    of_x = inputs["x_scale"], inputs["x_zero_point"]
    of_weight = scale, torch.zeros(weight.shape[0], dtype=torch.int32)
    bias = inputs["bias"].float() * (scale * inputs["x_scale"])
    end = (*numbers, inputs["y_scale"], inputs["y_zero_point"], inputs["x"].dtype)
    post = POST[inputs["activation"]]
    found = {}
    for suffix, layout in _convs.layouts(inputs["x"]).items():
        x = inputs["x"].to(memory_format=layout)
        packed = torch.ops.onednn.qconv_prepack(weight, scale, *of_x, *numbers, x.shape)
        start = (x, *of_x, packed, *of_weight)

        def call(start: tuple[Any, ...] = start) -> Tensor:
            return window.pooled(torch.ops.onednn.qconv_pointwise(*start, bias, *end, *post))

        summed = _SummedConv(inputs, layout, start, (bias, *end), post, window)
        found[f"onednn qconv{suffix}"] = _convs.integer_peer(call if inputs.get("residual") is None else summed)
    return found


class _SummedConv:
    """qconv with a residual, over which it writes: filled anew for the answers that a benchmark looks at alone."""

    def __init__(self, inputs: dict[str, Any], layout: torch.memory_format, *parts: Any) -> None:
        self.residual = inputs.get("residual")
        if self.residual is not None:
            self.sum = self.residual.clone(memory_format=layout)
            self.scale = inputs["residual_scale"], inputs["residual_zero_point"]
        self.parts, self.left = parts, ANSWERS

    def __call__(self) -> Tensor:
        if self.left:
            self.left -= 1
            self.sum.copy_(self.residual)
        start, end, post, window = self.parts
        convolution = torch.ops.onednn.qconv2d_pointwise.binary
        y: Tensor = window.pooled(convolution(*start, self.sum, *end, *self.scale, "sum", 1.0, *post))
        return y
