"""What is measured of block_sparse_attention on a GPU, beside cuDNN's dense attention, FlexAttention and fla's NSA."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from deepseek_fast.gpu.cases import Bench, Goal, Peer

CUDNN, FLEX, FLA = "cuDNN SDPA, dense", "flex_attention, compiled", "fla parallel_nsa"
BLOCK, D = 128, 128
B, H, S = 2, 16, 8192  # of the block masks
WINDOW, LONG = 1024, 32768
HQ, HKV, NSA_BLOCK, NSA_COUNT = 64, 4, 64, 16
BF16_STEP = 2.0**-8  # a weight rounded to bfloat16, with as much again for the sums


def _normal(*shape: int) -> Tensor:
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16)


def _kept(density: float) -> Tensor:
    """bool (B, H, rows, columns): the same number in each row, at random."""
    n = S // BLOCK
    return torch.rand(B, H, n, n, device="cuda").argsort(-1).argsort(-1) < round(density * n)


def _mask_inputs(density: float) -> dict[str, Any]:
    return {**{name: _normal(B, H, S, D) for name in "qkv"}, "block_mask": _kept(density)}


def _window_inputs() -> dict[str, Any]:
    return {**{name: _normal(1, H, LONG, D) for name in "qkv"}, "is_causal": True, "window": WINDOW}


def _ours(**inputs: Any) -> Tensor:
    import deepseek_fast

    result: Tensor = deepseek_fast.block_sparse_attention(**inputs)
    return result


def _rows_error(inputs: dict[str, Any], result: Any) -> float:
    """Of the last block of queries of one head, over ref_bounds.py's bound: float64 of 128 x S scores."""
    from deepseek_fast.kernels.block_sparse_attention import ref, ref_bounds

    given = {name: inputs[name][:1, 3:4].cpu() for name in "qkv"}
    tokens = given["q"].shape[2]
    given["q"] = given["q"][:, :, -BLOCK:]
    rest = {name: value for name, value in inputs.items() if name in ("is_causal", "window")}
    rest |= {"q_offset": tokens - BLOCK}
    if "block_mask" in inputs:
        rest = {"block_mask": inputs["block_mask"][:1, 3:4, -1:].cpu(), "block_size": BLOCK}
    error = (result[:1, 3:4, -BLOCK:].detach().cpu().double() - ref.block_sparse_attention_ref(**given, **rest)).abs()
    with ref_bounds.of_tensor_cores():
        return float((error / ref_bounds.bound(**given, **rest)).max())


def _with_graph(make: Callable[[], dict[str, Any]], call: Callable[..., Tensor]) -> dict[str, Any]:
    """Inputs of a backward: leaves, the forward's result with its graph, and dout."""
    inputs = make()
    leaves = {name: inputs[name].requires_grad_() for name in "qkv"}
    out = call(**inputs | leaves)
    return {"given": inputs | leaves, "out": out, "dout": torch.randn_like(out)}


def _gradients(given: dict[str, Any], out: Tensor, dout: Tensor) -> Any:
    return torch.autograd.grad(out, [given[name] for name in "qkv"], dout, retain_graph=True)


def _gradients_error(inputs: dict[str, Any], result: Any) -> float:
    """dq, dk and dv of one block of one head, over a weight's rounding and the store's: weights from float64 scores."""
    q, k, v = (inputs["given"][name][0, 3].detach().double() for name in "qkv")
    out, dout = inputs["out"][0, 3].detach().double(), inputs["dout"][0, 3].double()
    kept = inputs["given"]["block_mask"][0, 3].repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    scale = D**-0.5
    z = (scale * q @ k.T).masked_fill(~kept, -torch.inf)
    p = z.softmax(-1)
    dz = p * (dout @ v.T - (dout * out).sum(-1, keepdim=True))
    worst = 0.0
    for got, left, right, factor in zip(result, (dz, dz.T, p.T), (k, q, dout), (scale, scale, 1.0), strict=True):
        want, size = factor * left @ right, factor * left.abs() @ right.abs()
        worst = max(worst, float(((got[0, 3].double() - want).abs() / (BF16_STEP * (size + want.abs()))).max()))
    return worst


def _cudnn(inputs: dict[str, Any]) -> Callable[[], Any]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    q, k, v = (inputs[name].detach() for name in "qkv")

    def call() -> Tensor:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    return call


def _cudnn_backward(inputs: dict[str, Any]) -> Callable[[], Any]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    leaves = [inputs["given"][name].detach().requires_grad_() for name in "qkv"]
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        out = torch.nn.functional.scaled_dot_product_attention(*leaves)
    return lambda: torch.autograd.grad(out, leaves, inputs["dout"], retain_graph=True)


def _flex_mask(inputs: dict[str, Any]) -> Any:
    from torch.nn.attention.flex_attention import BlockMask, create_block_mask

    if "block_mask" not in inputs:
        tokens = inputs["q"].shape[2]
        return create_block_mask(
            lambda b, h, i, j: (j <= i) & (i - j < WINDOW), None, None, tokens, tokens, device="cuda"
        )
    kept = inputs["block_mask"]
    indices = kept.int().argsort(-1, descending=True, stable=True).int()
    counts = kept.sum(-1).int()
    return BlockMask.from_kv_blocks(torch.zeros_like(counts), indices, counts, indices, BLOCK_SIZE=BLOCK)


def _flex(inputs: dict[str, Any]) -> Callable[[], Any]:
    from torch.nn.attention.flex_attention import flex_attention

    compiled, mask = torch.compile(flex_attention), _flex_mask(inputs)
    q, k, v = (inputs[name].detach() for name in "qkv")
    return lambda: compiled(q, k, v, block_mask=mask)


def _flex_backward(inputs: dict[str, Any]) -> Callable[[], Any]:
    from torch.nn.attention.flex_attention import flex_attention

    q, k, v = (inputs["given"][name].detach().requires_grad_() for name in "qkv")
    out: Any = torch.compile(flex_attention)(q, k, v, block_mask=_flex_mask(inputs["given"]))
    return lambda: torch.autograd.grad(out, (q, k, v), inputs["dout"], retain_graph=True)


def _nsa_inputs() -> dict[str, Any]:
    """Blocks at random among those at or before the query's own, which is one of them."""
    blocks = LONG // NSA_BLOCK
    own = torch.arange(LONG, device="cuda")[:, None] // NSA_BLOCK
    column = torch.arange(blocks, device="cuda")
    scores = torch.rand(1, LONG, HKV, blocks, device="cuda")
    scores = torch.where((column == own)[:, None], 2.0, scores.masked_fill((column > own)[:, None], -1.0))
    largest, chosen = scores.topk(NSA_COUNT, -1)
    return {
        "q": _normal(1, LONG, HQ, D), "k": _normal(1, LONG, HKV, D), "v": _normal(1, LONG, HKV, D),
        "g_slc": torch.rand(1, LONG, HQ, device="cuda", dtype=torch.bfloat16),
        "block_indices": torch.where(largest >= 0, chosen, LONG), "block_counts": NSA_COUNT, "block_size": NSA_BLOCK,
    }  # fmt: skip


def _nsa(**inputs: Any) -> Tensor:
    import deepseek_fast

    result: Tensor = deepseek_fast.native_sparse_attention(**inputs)
    return result


def _nsa_rows(inputs: dict[str, Any], t: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of query t, group 1: q (16, D), listed keys and values, which of them it sees; float64."""
    group = HQ // HKV
    q = inputs["q"][0, t, group : 2 * group].detach().double()
    tokens = (inputs["block_indices"][0, t, 1][:, None] * NSA_BLOCK + torch.arange(NSA_BLOCK, device="cuda")).flatten()
    at = tokens.clamp_max(LONG - 1)
    return q, inputs["k"][0, at, 1].detach().double(), inputs["v"][0, at, 1].detach().double(), tokens <= t


def _nsa_error(inputs: dict[str, Any], result: Any) -> float:
    """Of some queries, over the rounding of weights and of what is stored."""
    group, worst = HQ // HKV, 0.0
    for t in (0, 100, LONG // 2, LONG - 1):
        q, k, v, seen = _nsa_rows(inputs, t)
        p = (D**-0.5 * q @ k.T).masked_fill(~seen, -torch.inf).softmax(-1)
        gate = inputs["g_slc"][0, t, group : 2 * group].double()[:, None]
        want, size = gate * (p @ v), gate * (p @ v.abs())
        got = result[0, t, group : 2 * group].detach().double()
        worst = max(worst, float(((got - want).abs() / (BF16_STEP * (size + want.abs()))).max()))
    return worst


def _nsa_gradients_error(inputs: dict[str, Any], result: Any) -> float:
    """dq of some queries alone: dk and dv are sums over all of them, which the tests compare at other sizes."""
    given, group, worst = inputs["given"], HQ // HKV, 0.0
    for t in (100, LONG // 2, LONG - 1):
        q, k, v, seen = _nsa_rows(given, t)
        p = (D**-0.5 * q @ k.T).masked_fill(~seen, -torch.inf).softmax(-1)
        gate = given["g_slc"][0, t, group : 2 * group].detach().double()[:, None]
        dout = (gate * inputs["dout"][0, t, group : 2 * group].double()).bfloat16().double()
        dz = D**-0.5 * p * (dout @ v.T - (dout * (p @ v)).sum(-1, keepdim=True))
        want, size = dz @ k, dz.abs() @ k.abs()
        # out, of which delta is made, is stored in bfloat16
        delta = D**-0.5 * BF16_STEP * (dout.abs() * (p @ v).abs()).sum(-1, keepdim=True) * (p @ k.abs())
        got = result[0][0, t, group : 2 * group].double()
        worst = max(worst, float(((got - want).abs() / (BF16_STEP * (size + want.abs()) + delta)).max()))
    return worst


def _fla(inputs: dict[str, Any]) -> Callable[[], Any]:
    from fla.ops.nsa import parallel_nsa

    given = {name: value.detach() if isinstance(value, Tensor) else value for name, value in inputs.items()}
    return lambda: parallel_nsa(**given)


def _fla_backward(inputs: dict[str, Any]) -> Callable[[], Any]:
    from fla.ops.nsa import parallel_nsa

    given = inputs["given"] | {name: inputs["given"][name].detach().requires_grad_() for name in "qkv"}
    out = parallel_nsa(**given)
    return lambda: torch.autograd.grad(out, [given[name] for name in "qkv"], inputs["dout"], retain_graph=True)


def _mask_row(density: float, backward: bool) -> Bench:
    pairs = density * B * H * S * S
    tensors = 2 * B * H * S * D  # bytes of one
    if backward:
        return Bench(
            f"mask-{density:g}-backward", partial(_with_graph, partial(_mask_inputs, density), _ours), _gradients,
            _gradients_error, bytes=8 * tensors, flops=int(10 * D * pairs),
            peers=(Peer(CUDNN, _cudnn_backward), Peer(FLEX, _flex_backward)), goal=Goal(1 / (1.5 * density), CUDNN),
        )  # fmt: skip
    return Bench(
        f"mask-{density:g}", partial(_mask_inputs, density), _ours, _rows_error, bytes=4 * tensors,
        flops=int(4 * D * pairs), peers=(Peer(CUDNN, _cudnn), Peer(FLEX, _flex)),
        goal=Goal(1 / (1.3 * density), CUDNN),
    )  # fmt: skip


_NSA_BYTES = 2 * LONG * D * (2 * HQ + 2 * HKV)
_NSA_FLOPS = 4 * D * HQ * LONG * NSA_COUNT * NSA_BLOCK
BENCH = (
    *(_mask_row(density, backward) for backward in (False, True) for density in (0.1, 0.25, 0.5)),
    Bench(
        "window-1024-of-32768", _window_inputs, _ours, _rows_error, bytes=8 * H * LONG * D,
        flops=4 * D * H * LONG * WINDOW, peers=(Peer(FLEX, _flex),), goal=Goal(1.0, FLEX),
    ),
    Bench(
        "nsa-32768", _nsa_inputs, _nsa, _nsa_error, bytes=_NSA_BYTES, flops=_NSA_FLOPS, peers=(Peer(FLA, _fla),),
        goal=Goal(2.0, FLA),
    ),
    Bench(
        "nsa-32768-backward", partial(_with_graph, _nsa_inputs, _nsa), _gradients, _nsa_gradients_error,
        bytes=2 * _NSA_BYTES, flops=_NSA_FLOPS * 5 // 2, peers=(Peer(FLA, _fla_backward),), goal=Goal(3.0, FLA),
    ),
)  # fmt: skip
