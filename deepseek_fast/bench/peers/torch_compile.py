"""torch.compile of the same formula in plain torch: inductor's choice of kernels and fusions, weights frozen."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek_fast.bench.peers import Peer, _casts
from deepseek_fast.bench.peers._common import ACTIVATIONS, INT8_ROW, dequantized, float_peer, quantized_rows
from deepseek_fast.bench.peers._compiled import compiled

PACKAGES = ()
HOW_TO_INSTALL = "it is part of torch"


class Linear(nn.Module):
    """act(F.linear(x, weight, bias))."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, inputs: dict[str, Any]) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", inputs["bias"])
        self.activate = ACTIVATIONS[inputs["activation"]]

    def forward(self, x: Tensor) -> Tensor:
        return self.activate(F.linear(x, self.weight, self.bias))


class Int8Linear(nn.Module):
    """Rows of x to int8, an exact integer product, scales, bias, activation."""

    q_t: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, inputs: dict[str, Any]) -> None:
        super().__init__()
        self.register_buffer("q_t", inputs["q"].T.contiguous())  # (K, N): torch._int_mm is slower on a transposed view
        self.register_buffer("scale", inputs["scale"])
        self.register_buffer("bias", inputs["bias"].float())
        self.activate = ACTIVATIONS[inputs["activation"]]

    def forward(self, x: Tensor) -> Tensor:
        x_q, x_scale = quantized_rows(x)
        # The scales' product first: inductor turns (sum * x_scale) * scale into an oneDNN call on int8 by int8, which
        # without AMX is oneDNN's reference code, 1000 times slower.
        z = torch._int_mm(x_q, self.q_t).float() * (x_scale * self.scale) + self.bias
        return self.activate(z).to(x.dtype)


class Cast(nn.Module):
    """The formula of a cast."""

    def __init__(self, formula: _casts.Formula) -> None:
        super().__init__()
        self.function = formula.function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def fused_matmul(inputs: dict[str, Any]) -> dict[str, Peer]:
    x = inputs["x"]
    return {"torch.compile": float_peer(compiled(Linear(inputs["weight"], inputs), x), x)}


def int8_matmul(inputs: dict[str, Any]) -> dict[str, Peer]:
    x = inputs["x"]
    if inputs["activations"] == "float":
        weight = dequantized(inputs["q"], inputs["scale"], x)
        return {"torch.compile": float_peer(compiled(Linear(weight, inputs), x), x)}
    return {"torch.compile": Peer(compiled(Int8Linear(inputs), x), *INT8_ROW)}


def fp8_cast(inputs: dict[str, Any]) -> dict[str, Peer]:
    return _cast(_casts.fp8_cast(inputs))


def fp8_dequantize(inputs: dict[str, Any]) -> dict[str, Peer]:
    return _cast(_casts.fp8_dequantize(inputs))


def int8_cast(inputs: dict[str, Any]) -> dict[str, Peer]:
    return _cast(_casts.int8_cast(inputs))


def silu_mul_cast(inputs: dict[str, Any]) -> dict[str, Peer]:
    return _cast(_casts.silu_mul_cast(inputs))


def rms_norm_cast(inputs: dict[str, Any]) -> dict[str, Peer]:
    return _cast(_casts.rms_norm_cast(inputs))


def _cast(formula: _casts.Formula) -> dict[str, Peer]:
    return {"torch.compile": formula.peer(compiled(Cast(formula), formula.x))}
