"""fused_matmul on GPUs: what is compiled ahead of time, what its code must have, and what is measured."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from deepseek_fast.gpu.cases import Bench, Call, Expect, Peer

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


def _of_whole_warpgroups(constants: dict[str, Any]) -> bool:
    """wgmma takes 64 rows of the left factor."""
    return bool((constants["BLOCK_N"] if constants["SWAPPED"] else constants["BLOCK_M"]) >= 64)


EXPECTS = {
    # 64 and 128 ends of tiles a thread, in the code and once more in the compiler's notes about it
    "_tile": Expect(tensor_cores=True, async_copies=True, warpgroups=_of_whole_warpgroups, max_bytes=224 * 1024),
    "_tile_tma": Expect(tensor_cores=True, async_copies=True, warpgroups=lambda _: True, max_bytes=480 * 1024),
    "_end_parts": Expect(),
}


def _call(
    name: str, M: int, N: int, K: int, dtype: torch.dtype, activation: str = "none", *, gated: bool = False,
    residual: bool = False,
) -> Call:  # fmt: skip
    rows = N * (1 + gated)
    return Call(
        name,
        "fused_matmul",
        lambda: (torch.empty(M, K, dtype=dtype), torch.empty(rows, K, dtype=dtype), torch.empty(rows, dtype=dtype)),
        lambda: {
            "activation": activation,
            "gated": gated,
            "residual": torch.empty(M, N, dtype=dtype) if residual else None,
        },
    )


COMPILED = (
    _call("few-parts", 16, 2048, 8192, BF16, "gelu"),
    _call("few-wide", 16, 14336, 4096, F16, "relu"),
    _call("few-gated", 16, 14336, 4096, BF16, "silu", gated=True),
    _call("few-float32", 16, 2048, 4096, F32, "sigmoid"),
    _call("64-rows", 64, 4096, 4096, F16, residual=True),
    _call("64-rows-gated", 64, 14336, 4096, BF16, "silu", gated=True),
    _call("64-rows-float32", 64, 4096, 4096, F32, "tanh"),
    _call("256-rows", 256, 4096, 4096, BF16, "gelu_tanh"),
    _call("256-rows-ragged", 250, 4001, 4096, F16, "hardswish", residual=True),
    _call("many-rows", 4096, 14336, 4096, BF16, "gelu"),
    _call("many-rows-gated", 4096, 14336, 4096, BF16, "silu", gated=True),
    _call("many-rows-float32", 4096, 4096, 4096, F32, "relu6"),
    _call("many-rows-float32-gated", 4096, 4096, 4096, F32, "silu", gated=True),
)


def _bench(M: int, N: int, K: int, activation: str, gated: bool = False) -> Bench:
    rows = N * (1 + gated)

    def inputs() -> dict[str, Any]:
        return {
            "x": torch.randn(M, K, device="cuda", dtype=BF16),
            "weight": torch.randn(rows, K, device="cuda", dtype=BF16) * (2 / K**0.5),
            "bias": torch.randn(rows, device="cuda", dtype=BF16),
            "activation": activation,
            "gated": gated,
        }

    def ours(**named: Any) -> Any:
        return torch.ops.deepseek_fast.fused_matmul(**named)

    words = f"{M}x{N}x{K}-bfloat16-{activation}" + "-gated" * gated
    moved = 2 * (M * K + rows * (K + 1) + M * N)
    peers = (Peer("torch linear and activation, compiled", _compiled), Peer("torch linear, eager, alone", _linear))
    return Bench(words, inputs, ours, error, moved, 2 * M * rows * K, peers)


def error(inputs: dict[str, Any], result: torch.Tensor) -> float:
    """Of rows spread over all: the largest error over the bound."""
    from deepseek_fast.kernels.fused_matmul.ref import bound, fused_matmul_ref

    some = torch.linspace(0, result.shape[0] - 1, min(32, result.shape[0])).long().to(result.device)
    inputs = {**inputs, "x": inputs["x"][some]}
    off = (result[some].double() - fused_matmul_ref(**inputs)).abs() / bound(**inputs, tensor_cores=True)
    return float(off.nan_to_num(torch.inf).max())


def _compiled(inputs: dict[str, Any]) -> Callable[[], Any]:
    x, weight, bias, gated = inputs["x"], inputs["weight"], inputs["bias"], inputs["gated"]
    functions: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"gelu": F.gelu, "silu": F.silu}
    act = functions[inputs["activation"]]

    def layer(x: torch.Tensor) -> torch.Tensor:
        z = F.linear(x, weight, bias)
        if not gated:
            return act(z)
        gate, up = z.chunk(2, -1)
        return act(gate) * up

    compiled = torch.compile(layer, dynamic=False)
    return lambda: compiled(x)


def _linear(inputs: dict[str, Any]) -> Callable[[], Any]:
    x, weight, bias = inputs["x"], inputs["weight"], inputs["bias"]
    return lambda: F.linear(x, weight, bias)


BENCH = (
    _bench(16, 4096, 4096, "gelu"),
    _bench(16, 14336, 4096, "silu", gated=True),
    _bench(256, 4096, 4096, "gelu"),
    _bench(4096, 4096, 4096, "gelu"),
    _bench(4096, 14336, 4096, "gelu"),
    _bench(4096, 14336, 4096, "silu", gated=True),
)
