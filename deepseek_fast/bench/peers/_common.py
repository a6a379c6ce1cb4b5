"""What several plug-ins need: activations in torch, and tolerances with their reasons."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek_fast.bench.peers import Peer

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda z: z,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": F.silu,
}
# Largest |y - ref| / |ref| of a right answer: a float sum in any order, and one rounding of the output.
FLOAT = {"float32": (1e-5, "f32 sums of any order"), "bfloat16": (1e-2, "bf16 output, perhaps a bf16 activation step")}
INT8_TENSOR = (5e-2, "int8 with one scale for the whole of x")
# Rounding to 1/127 of a row's largest value, about 4 deviations of normal values: 4 / 127 / sqrt(12) = 0.9 % of |x| and
# of |y|; the reference rounds too, to other codes: 1.3 %; the slope of an activation and a bf16 output may add half.
INT8_ROW = (2.5e-2, "int8 with a scale per row of x, or for less")


def float_peer(call: Callable[[], Tensor], x: Tensor) -> Peer:
    """A peer that computes in x's dtype."""
    return Peer(call, *FLOAT[str(x.dtype).removeprefix("torch.")])


def dequantized(q: Tensor, scale: Tensor, x: Tensor) -> Tensor:
    """An int8 weight as x's dtype."""
    return (q.float() * scale[:, None]).to(x.dtype)


def quantized_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (M, K) as (int8, scales (M, 1) f32), as one writes it in torch."""
    x = x.float()
    scale = x.abs().amax(-1, keepdim=True) / 127
    return (x / scale).round().to(torch.int8), scale
