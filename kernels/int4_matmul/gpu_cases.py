"""int4_matmul on GPUs: what is compiled ahead of time, what its code must have, and what is measured."""

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from deepseek_fast.gpu.cases import Bench, Call, Expect, Goal, Peer

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
# Some 64 outputs a thread, each with its activation, and the compiler's notes about each line of them.
TILE_BYTES = 288 * 1024

EXPECTS = {
    "_int4_few": Expect(tensor_cores=True, async_copies=True),
    "_int4_tile": Expect(tensor_cores=True, async_copies=True, warpgroups=lambda _: True, max_bytes=TILE_BYTES),
    "_int4_sum": Expect(),
    "_int4_quantize_x": Expect(),
    "_int4_int8_few": Expect(tensor_cores=True, async_copies=True),
    # wgmma on 9.0; Triton has no tcgen05 product of int8, so 10.0 takes mma.sync
    "_int4_int8_tile": Expect(tensor_cores=True, async_copies=True, max_bytes=TILE_BYTES),
}


def _call(
    name: str, M: int, compute: str = "float", group_size: int = 128, *, N: int = 8192, K: int = 8192,
    dtype: torch.dtype = BF16, zeros: bool = False, bias: bool = False, residual: bool = False, gated: bool = False,
    activation: str = "none", archs: tuple[int, ...] | None = None,
) -> Call:  # fmt: skip
    rows, groups = N * (1 + gated), 1 if group_size < 0 else -(-K // group_size)

    def arguments() -> tuple[Any, ...]:
        zero_points = torch.empty(rows, groups, dtype=torch.uint8) if zeros else None
        offset = torch.empty(rows, dtype=dtype) if bias else None
        q = torch.empty(rows, (K + 1) // 2, dtype=torch.uint8)
        return torch.empty(M, K, dtype=dtype), q, torch.empty(rows, groups), zero_points, offset

    def named() -> dict[str, Any]:
        added = torch.empty(M, N, dtype=dtype) if residual else None
        options = {"group_size": group_size, "in_features": K, "compute": compute}
        return options | {"activation": activation, "residual": added, "gated": gated}

    return Call(name, "int4_matmul", arguments, named, archs)


COMPILED = (
    _call("few-1", 1),
    _call("few-8-narrow", 8, N=4096, K=4096),
    _call("few-16", 16),
    _call("few-16-wide", 16, N=128256),
    _call("few-zeros-gated", 4, zeros=True, gated=True, activation="silu", bias=True),
    _call("few-32", 16, group_size=32, dtype=F16, residual=True),
    _call("few-float32", 4, dtype=F32),
    _call("few-ragged", 3, group_size=64, N=130, K=4099),
    _call("tile-64", 64),
    _call("tile-256-zeros", 256, group_size=-1, zeros=True, bias=True, activation="gelu"),
    _call("tile-1024", 1024, archs=(90,)),
    _call("tile", 8192),
    _call("tile-32-zeros-gated", 8192, group_size=32, zeros=True, gated=True, dtype=F16, activation="silu"),
    _call("tile-float32", 512, dtype=F32),
    _call("tile-ragged", 515, N=130, K=4099),
    _call("int8-1", 1, "int8"),
    _call("int8-16-zeros", 16, "int8", zeros=True, gated=True, activation="silu"),
    _call("int8-16-32", 16, "int8", group_size=32),
    _call("int8-64-zeros", 64, "int8", group_size=64, zeros=True),
    _call("int8", 8192, "int8"),
    _call("int8-32-zeros", 8192, "int8", group_size=32, zeros=True, bias=True, activation="gelu"),
)

COPIES = 4  # of the weight, taken in turn: 142 MB at 8192 x 8192, more than any L2 cache
GROUP = 128
DENSE, TINYGEMM, HUMMING = "torch linear, bfloat16", "torch._weight_int4pack_mm", "humming"


def _bench(M: int, compute: str = "float", N: int = 8192, K: int = 8192) -> Bench:
    def inputs() -> dict[str, Any]:
        device = "cuda" if torch.cuda.is_available() else "cpu"  # interpreted
        weights = deque(
            (
                torch.randint(0, 256, (N, K // 2), dtype=torch.uint8, device=device),
                (0.5 + torch.rand(N, K // GROUP, device=device)) / (4.6 * K**0.5),  # 4.6: deviation of the codes
            )
            for _ in range(COPIES)
        )
        return {"x": torch.randn(M, K, dtype=BF16, device=device), "weights": weights, "compute": compute}

    moved = N * K // 2 + N * (K // GROUP) * 4 + 2 * M * (K + N)
    peers = [Peer(DENSE, _dense)]
    if compute == "float":
        peers += [Peer(TINYGEMM, _tinygemm), Peer(HUMMING, _humming)]
    goal = Goal(2.5, DENSE) if compute == "float" and M <= 16 else None
    name = f"{M}x{N}x{K}-bfloat16-w4_{compute}-g{GROUP}"
    return Bench(name, inputs, ours, error, moved, 2 * M * N * K, tuple(peers), goal)


def ours(x: torch.Tensor, weights: "deque[Any]", compute: str) -> torch.Tensor:
    """With the next of the weights, which becomes the first."""
    weights.rotate(-1)
    q, scale = weights[0]
    result: torch.Tensor = torch.ops.deepseek_fast.int4_matmul(x, q, scale, group_size=GROUP, compute=compute)
    return result


def error(inputs: dict[str, Any], result: torch.Tensor) -> float:
    """Of some rows and columns: 0 for the reference's bits ("int8"), else the largest error over the bound."""
    from deepseek_fast.kernels.int4_matmul.ref import bound, int4_matmul_ref

    (M, N), (q, scale) = result.shape, inputs["weights"][0]
    with torch.device("cpu"):
        m, n = (torch.linspace(0, size - 1, min(most, size)).long() for size, most in ((M, 16), (N, 256)))
        few = {"x": inputs["x"].cpu()[m], "q": q.cpu()[n], "scale": scale.cpu()[n]}
        named = {"group_size": GROUP, "compute": inputs["compute"]}
        want, got = int4_matmul_ref(**few, **named), result.cpu()[m][:, n]
        if want.dtype == got.dtype:
            return 0.0 if torch.equal(want, got) else torch.inf
        off = (got.double() - want).abs() / bound(**few, **named, tensor_cores=True)
        return float(off.nan_to_num(torch.inf).max())


def _in_turn(calls: Sequence[Callable[[], Any]]) -> Callable[[], Any]:
    turn = deque(calls)

    def call() -> Any:
        turn.rotate(-1)
        return turn[0]()

    return call


def _dense_weights(inputs: dict[str, Any]) -> list[torch.Tensor]:
    from deepseek_fast.kernels.int4_matmul.ref import unpack

    def dense(q: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return ((unpack(q).float() - 8) * scale.repeat_interleave(GROUP, 1)).to(BF16)

    return [dense(q, scale) for q, scale in inputs["weights"]]


def _dense(inputs: dict[str, Any]) -> Callable[[], Any]:
    x = inputs["x"]
    return _in_turn([partial(torch.nn.functional.linear, x, weight) for weight in _dense_weights(inputs)])


def _tinygemm(inputs: dict[str, Any]) -> Callable[[], Any]:
    """Its weight is (code - 8) * scale + zero, scale and zero in bfloat16; the code of even k in the high nibble."""
    calls = []
    for q, scale in inputs["weights"]:
        packed = torch._convert_weight_to_int4pack((q << 4) | (q >> 4), 8)
        scale_and_zero = torch.stack([scale.t(), torch.zeros_like(scale.t())], -1).to(BF16).contiguous()
        calls.append(partial(torch._weight_int4pack_mm, inputs["x"], packed, GROUP, scale_and_zero))
    return _in_turn(calls)


def _humming(inputs: dict[str, Any]) -> Callable[[], Any]:
    from humming.layer import HummingLayer  # type: ignore[import-not-found]

    x, calls = inputs["x"], []
    config = {"dtype": "uint4", "group_size": GROUP}
    for weight in _dense_weights(inputs):
        N, K = weight.shape
        try:
            layer = HummingLayer(shape_n=N, shape_k=K, weight_config=config, torch_dtype=BF16).to(x.device)
            layer.load_from_unquantized(weight)
            layer.transform()
            layer(x)
        except Exception as error:  # of any type, where its compiler or the chip is not what it wants
            raise RuntimeError(f"{type(error).__name__}: {error}") from error
        calls.append(partial(layer, x))
    return _in_turn(calls)


BENCH = (
    *(_bench(M) for M in (1, 2, 4, 8, 16, 64, 1024, 8192)),
    *(_bench(M, "int8") for M in (1, 16, 8192)),
)
