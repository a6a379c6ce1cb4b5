"""What several plug-ins need: activations in torch, and tolerances with their reasons."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek_fast.bench.peers import Peer

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda z: z,
    "relu": F.relu,
    "relu6": F.relu6,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": F.silu,
    "hardswish": F.hardswish,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}
# Largest |y - ref| / |ref| of a right answer: a float sum in any order, and one rounding of the output.
FLOAT = {
    "float32": (1e-5, "f32 sums of any order"),
    "bfloat16": (1e-2, "bf16 output, perhaps a bf16 activation step"),
    "float16": (1.5e-3, "f16 output, perhaps an f16 activation step"),
}
INT8_TENSOR = (5e-2, "int8 with one scale for the whole of x")
# Rounding to 1/127 of a row's largest value, about 4 deviations of normal values: 4 / 127 / sqrt(12) = 0.9 % of |x| and
# of |y|; the reference rounds too, to other codes: 1.3 %; the slope of an activation and a bf16 output may add half.
INT8_ROW = (2.5e-2, "int8 with a scale per row of x, or for less")
# e4m3fn keeps 4 significant bits: 2^-4 / sqrt(12) = 1.8 % of each value of x where the reference rounds and a peer does
# not, or the other way round.
FP8_CAST = (3e-2, "x is not cast to FP8")


def float_peer(call: Callable[[], Tensor], x: Tensor, answer: Callable[[Any], Any] | None = None) -> Peer:
    """A peer that computes in x's dtype."""
    peer = Peer(call, *FLOAT[str(x.dtype).removeprefix("torch.")])
    return peer if answer is None else dataclasses.replace(peer, answer=answer)


def dequantized(q: Tensor, scale: Tensor, x: Tensor) -> Tensor:
    """An int8 weight as x's dtype."""
    return (q.float() * scale[:, None]).to(x.dtype)


def quantized_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (M, K) as (int8, scales (M, 1) f32), as one writes it in torch."""
    x = x.float()
    scale = x.abs().amax(-1, keepdim=True) / 127
    return (x / scale).round().to(torch.int8), scale


def expanded_fp8(inputs: dict[str, Any]) -> Tensor:
    """The weight of fp8_matmul as x's dtype."""
    weight, scale = inputs["weight"], inputs["scale"].float()
    for dim, block in enumerate(inputs["block"]):
        size = weight.shape[dim]
        scale = scale.repeat_interleave(block if block > 0 else max(size, 1), dim).narrow(dim, 0, size)
    return (weight.float() * scale).to(inputs["x"].dtype)


def fp8_peer(call: Callable[[], Tensor], inputs: dict[str, Any]) -> Peer:
    """A peer that computes with x as it is."""
    return float_peer(call, inputs["x"]) if inputs["activations"] == "float" else Peer(call, *FP8_CAST)


def int4_codes(inputs: dict[str, Any]) -> Tensor:
    """q of int4_matmul, a code 0..15 a byte: (N, K)."""
    q = inputs["q"]
    return torch.stack((q & 15, q >> 4), -1).reshape(q.shape[0], -1)[:, : inputs["x"].shape[-1]]


def expanded_int4(inputs: dict[str, Any]) -> Tensor:
    """The weight of int4_matmul as x's dtype."""
    codes, scale, zeros = int4_codes(inputs).float(), inputs["scale"], inputs["zeros"]
    K = codes.shape[1]
    group = inputs["group_size"] if inputs["group_size"] > 0 else max(K, 1)
    zeros = torch.full_like(scale, 8) if zeros is None else zeros.float()
    zeros, scale = (value.repeat_interleave(group, 1)[:, :K] for value in (zeros, scale))
    return ((codes - zeros) * scale).to(inputs["x"].dtype)


def int4_peer(call: Callable[[], Tensor], inputs: dict[str, Any]) -> Peer:
    """A peer that computes with x as it is."""
    return float_peer(call, inputs["x"]) if inputs["compute"] == "float" else Peer(call, *INT8_ROW)
