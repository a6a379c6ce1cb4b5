"""NumKong's packed dot products of all pairs of rows; scales, bias and activation are torch's."""

from typing import Any

import torch
from torch import Tensor

from deepseek_fast.bench.peers import Peer, Unsupported
from deepseek_fast.bench.peers._common import ACTIVATIONS, INT8_ROW, float_peer, quantized_rows

PACKAGES = ("numkong",)
HOW_TO_INSTALL = "pip install numkong, or run `make bench-peers`"
# What it accumulates in and gives: f32 in f64, hence exact and slow.
SUMS = {
    torch.float32: torch.float64,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
    torch.int8: torch.int32,
}


class Dots:
    """a (M, K) -> a @ b^T (M, N) f32, b (N, K) packed; the answer lives until the next call."""

    def __init__(self, b: Tensor, M: int) -> None:
        import numkong

        if torch.get_num_threads() > 1:
            raise Unsupported("NumKong's dots_packed runs on one thread")
        self.sums = torch.empty(M, b.shape[0], dtype=SUMS[b.dtype])
        self._out = numkong.from_dlpack(self.sums)
        self._packed = numkong.dots_pack(numkong.from_dlpack(b))
        self._dots, self._view = numkong.dots_packed, numkong.from_dlpack

    def __call__(self, a: Tensor) -> Tensor:
        self._dots(self._view(a), self._packed, out=self._out)
        return self.sums.float()


def fused_matmul(inputs: dict[str, Any]) -> dict[str, Peer]:
    x, bias, activate = inputs["x"], inputs["bias"].float(), ACTIVATIONS[inputs["activation"]]
    dots = Dots(inputs["weight"], x.shape[0])
    return {"NumKong dots_packed": float_peer(lambda: activate(dots(x).add_(bias)).to(x.dtype), x)}


def int8_matmul(inputs: dict[str, Any]) -> dict[str, Peer]:
    if inputs["activations"] == "float":
        return {}
    x, scale, bias, activate = inputs["x"], inputs["scale"], inputs["bias"].float(), ACTIVATIONS[inputs["activation"]]
    dots = Dots(inputs["q"], x.shape[0])

    def call() -> Tensor:
        x_q, x_scale = quantized_rows(x)
        return activate(dots(x_q).mul_(x_scale).mul_(scale).add_(bias)).to(x.dtype)

    return {"NumKong dots_packed int8": Peer(call, *INT8_ROW)}
