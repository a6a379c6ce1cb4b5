"""int8_matmul on GPUs: what is compiled ahead of time, what its code must have, and what is measured."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from deepseek_fast.gpu.cases import Bench, Call, Expect, Goal, Peer

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


def _of_whole_warpgroups(constants: dict[str, Any]) -> bool:
    """wgmma takes 64 rows of the left factor."""
    return bool((constants["BLOCK_N"] if constants["SWAPPED"] else constants["BLOCK_M"]) >= 64)


def _floating(constants: dict[str, Any]) -> bool:
    """Compute capability 10.0 has no tcgen05 product of int8 that Triton uses: its integers take mma.sync."""
    return not constants["INT8"] and _of_whole_warpgroups(constants)


EXPECTS = {
    # 64 and 128 ends of tiles a thread, in the code and once more in the compiler's notes about it
    "_tile": Expect(tensor_cores=True, async_copies=True, warpgroups=_floating, max_bytes=224 * 1024),
    "_tile_tma": Expect(tensor_cores=True, async_copies=True, max_bytes=320 * 1024),
    "_end_parts": Expect(),
    "_int8_cast": Expect(),
}


def _call(
    name: str, M: int, N: int, K: int, dtype: torch.dtype, activation: str = "none", *, activations: str = "int8",
    gated: bool = False, residual: bool = False,
) -> Call:  # fmt: skip
    rows = N * (1 + gated)
    return Call(
        name,
        "int8_matmul",
        lambda: (
            torch.empty(M, K, dtype=dtype),
            torch.empty(rows, K, dtype=torch.int8),
            torch.empty(rows),
            torch.empty(rows, dtype=dtype),
        ),
        lambda: {
            "activation": activation,
            "activations": activations,
            "gated": gated,
            "residual": torch.empty(M, N, dtype=dtype) if residual else None,
        },
    )


COMPILED = (
    Call("weight", "int8_quantize_weight", lambda: (torch.empty(4096, 768, dtype=F32),)),
    _call("few-parts", 16, 2048, 8192, BF16),
    _call("few", 16, 8192, 8192, BF16, "gelu"),
    _call("few-gated", 16, 14336, 4096, BF16, "silu", gated=True),
    _call("64-rows-gated", 64, 14336, 4096, F16, "silu", gated=True),
    _call("128-rows", 128, 8192, 8192, BF16, residual=True),
    _call("many-rows", 4096, 8192, 8192, BF16, "gelu"),
    _call("many-rows-short", 8192, 4096, 4096, F32, "relu"),
    _call("many-rows-gated", 4096, 14336, 4096, BF16, "silu", gated=True),
    _call("float-few", 16, 2048, 4096, BF16, activations="float"),
    _call("float-few-wide", 16, 14336, 4096, F16, "gelu", activations="float"),
    _call("float-few-gated", 16, 14336, 4096, BF16, "silu", activations="float", gated=True),
    _call("float-few-float32", 16, 4096, 4096, F32, activations="float"),
    _call("float-64-rows-gated", 64, 4096, 4096, BF16, "silu", activations="float", gated=True),
    _call("float-64-rows-float32", 64, 4096, 4096, F32, activations="float"),
    _call("float-many-rows", 4096, 4096, 4096, F16, "gelu", activations="float"),
    _call("float-many-rows-gated", 4096, 4096, 4096, BF16, "silu", activations="float", gated=True),
    _call("float-many-rows-float32", 4096, 4096, 4096, F32, "silu", activations="float", gated=True),
)


def _bench(M: int, N: int, K: int, activation: str = "none", activations: str = "int8") -> Bench:
    def inputs() -> dict[str, Any]:
        return {
            "x": torch.randn(M, K, device="cuda", dtype=BF16),
            "q": torch.randint(-127, 128, (N, K), device="cuda", dtype=torch.int8),
            "scale": (0.5 + torch.rand(N, device="cuda")) * (2 / K**0.5 / 73),  # 73: deviation of the codes
            "bias": torch.randn(N, device="cuda", dtype=BF16),
            "activation": activation,
            "activations": activations,
        }

    def ours(**named: Any) -> Any:
        return torch.ops.deepseek_fast.int8_matmul(**named)

    name = f"{M}x{N}x{K}-bfloat16-w8_{activations}-{activation}"
    moved = N * (K + 4 + 2) + 2 * M * (K + N)
    if activations == "float":
        return Bench(name, inputs, ours, error, moved, 2 * M * N * K, (Peer("torch linear, bfloat16", _linear),))
    peers = (Peer(WHOLE, _compiled), Peer(WITHOUT_CAST, _compiled_without_cast))
    return Bench(name, inputs, ours, error, moved, 2 * M * N * K, peers, Goal(1.25, WHOLE))


def error(inputs: dict[str, Any], result: torch.Tensor) -> float:
    """Of rows spread over all: 0 for the reference's bits where it has some, else the largest error over the bound."""
    from deepseek_fast.kernels.int8_matmul.ref import bound, int8_matmul_ref

    some = torch.linspace(0, result.shape[0] - 1, min(32, result.shape[0])).long().to(result.device)
    inputs = {**inputs, "x": inputs["x"][some]}
    want, got = int8_matmul_ref(**inputs), result[some]
    if want.dtype == got.dtype:
        return 0.0 if torch.equal(want, got) else torch.inf
    off = (got.double() - want).abs() / bound(**inputs, tensor_cores=True)
    return float(off.nan_to_num(torch.inf).max())


WHOLE = "torch._int_mm with its cast and end, compiled"
WITHOUT_CAST = "torch._int_mm with its end, compiled, x quantized before"
INT_MM_ROWS = 32  # torch._int_mm refuses 16 and fewer


def _quantize(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    amax = x.float().abs().amax(-1, keepdim=True)
    x_q = (x.float() * (127 / amax)).round().to(torch.int8)
    return F.pad(x_q, (0, 0, 0, max(0, INT_MM_ROWS - x.shape[0]))), amax / 127


def _end(inputs: dict[str, Any]) -> Callable[..., torch.Tensor]:
    scale, bias, M = inputs["scale"], inputs["bias"], inputs["x"].shape[0]
    act = {"none": lambda z: z, "gelu": F.gelu}[inputs["activation"]]
    return lambda acc, x_scale: act(acc[:M].float() * x_scale * scale + bias.float()).to(bias.dtype)


def _compiled(inputs: dict[str, Any]) -> Callable[[], Any]:
    x, weight, end = inputs["x"], inputs["q"].t(), _end(inputs)

    def layer(x: torch.Tensor) -> torch.Tensor:
        x_q, x_scale = _quantize(x)
        return end(torch._int_mm(x_q, weight), x_scale)

    compiled = torch.compile(layer, dynamic=False)
    return lambda: compiled(x)


def _compiled_without_cast(inputs: dict[str, Any]) -> Callable[[], Any]:
    (x_q, x_scale), weight, end = _quantize(inputs["x"]), inputs["q"].t(), _end(inputs)
    compiled = torch.compile(lambda x_q, x_scale: end(torch._int_mm(x_q, weight), x_scale), dynamic=False)
    return lambda: compiled(x_q, x_scale)


def _linear(inputs: dict[str, Any]) -> Callable[[], Any]:
    x, bias = inputs["x"], inputs["bias"]
    weight = (inputs["q"].float() * inputs["scale"][:, None]).to(x.dtype)
    return lambda: F.linear(x, weight, bias)


BENCH = (
    _bench(16, 8192, 8192),
    _bench(128, 8192, 8192),
    _bench(4096, 8192, 8192),
    _bench(4096, 8192, 8192, "gelu"),
    _bench(8192, 4096, 4096),
    _bench(16, 8192, 8192, activations="float"),
)
