"""What is measured of sparse_mla on a GPU.

Every list names different tokens; of a decoder each request has a cache of its own, which no cache of the chip holds
for all. Bytes: the tokens that a list names, once a query, q and out. Operations: two products; backward five.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deepseek_fast.gpu.cases import Bench, Goal, Peer

SCALE, D_V, PAGE = 576**-0.5, 512, 64
ROWS_CHECKED = 4  # queries that are compared with float64
TOKEN_BYTES = {"v32": 656, "v4": 584, "plain": 1152}


def _distinct(rows: int, topk: int, tokens: int) -> Tensor:
    """(rows, topk) int32, distinct in a row: multiples of a step from a random token on."""
    step = tokens // topk
    start = torch.randint(0, tokens, (rows, 1), device="cuda")
    order = torch.rand(rows, topk, device="cuda").argsort(-1)
    return ((start + order * step) % tokens).int()


def _numbers(*shape: int, size: float = 1.0) -> Tensor:
    return (size * torch.randn(shape, device="cuda")).bfloat16()


def prefill(s_q: int, h_q: int, d: int, topk: int, s_kv: int) -> Callable[[], dict[str, Any]]:
    def inputs() -> dict[str, Any]:
        indices = _distinct(s_q, topk, s_kv)[:, None]
        return {"q": _numbers(s_q, h_q, d, size=0.3), "kv": _numbers(s_kv, 1, d), "indices": indices, "scale": d**-0.5}

    return inputs


def decode(b: int, s_q: int, h_q: int, topk: int, tokens: int, layout: str) -> Callable[[], dict[str, Any]]:
    """tokens: of each request."""

    def inputs() -> dict[str, Any]:
        import deepseek_fast

        d = 512 if layout == "v4" else 576
        k_cache = _numbers(b * tokens // PAGE, PAGE, 1, d)
        if layout != "plain":
            numbers = k_cache.reshape(-1, d)
            token = TOKEN_BYTES[layout]
            k_cache = torch.empty(b * tokens // PAGE, PAGE, 1, token, dtype=torch.uint8, device="cuda")
            deepseek_fast.mla_cache_write(k_cache, numbers, layout=layout)
        first = (torch.arange(b, device="cuda") * tokens)[:, None, None]
        indices = (_distinct(b * s_q, topk, tokens).reshape(b, s_q, topk) + first).int()
        return {"q": _numbers(b, s_q, h_q, d, size=0.3), "k_cache": k_cache, "indices": indices, "layout": layout}

    return inputs


def backward(s_q: int, h_q: int, topk: int, s_kv: int) -> Callable[[], dict[str, Any]]:
    def inputs() -> dict[str, Any]:
        import deepseek_fast

        given = prefill(s_q, h_q, 576, topk, s_kv)()
        out, _, lse = deepseek_fast.sparse_mla(**given)
        return {"given": given, "out": out, "lse": lse, "dout": torch.randn_like(out)}

    return inputs


def run_prefill(**inputs: Any) -> Any:
    import deepseek_fast

    return deepseek_fast.sparse_mla(**inputs)


def run_decode(**inputs: Any) -> Any:
    import deepseek_fast

    return deepseek_fast.sparse_mla_decode(**inputs)


def run_backward(given: dict[str, Any], out: Tensor, lse: Tensor, dout: Tensor) -> Any:
    op = torch.ops.deepseek_fast.sparse_mla_backward
    three = (given["q"], given["kv"], given["indices"])
    return op(dout, *three, out, lse, given["scale"], D_V, None, None)


def _worst(got: Any, want: Any, bound: Any) -> float:
    """Largest error over twice the room's bound; twice as test_sparse_mla_triton.py says."""
    ratios = []
    for g, w, e in zip(got, want, bound, strict=True):
        error = (g.double() - w).abs()
        ratios.append(torch.where(error == 0, 0.0, error / (2 * e)).max().item())
    return max(ratios)


def prefill_error(inputs: dict[str, Any], result: Any) -> float:
    from deepseek_fast.kernels.sparse_mla import ref

    s_q = inputs["q"].shape[0]
    rows = torch.arange(0, s_q, -(-s_q // ROWS_CHECKED))
    some = {name: value[rows.to(value.device)].cpu() for name, value in inputs.items() if name in ("q", "indices")}
    # Of kv what the lists name, which the reference would take twice in float64.
    listed, places = some["indices"].long().unique(return_inverse=True)
    some |= {"kv": inputs["kv"][listed.to(inputs["kv"].device)].cpu(), "indices": places.int()}
    some["scale"] = inputs["scale"]
    got = [value[rows.to(value.device)].cpu() for value in result]
    return _worst(got, ref.sparse_mla_ref(**some), ref.bound(**some))


def decode_error(inputs: dict[str, Any], result: Any) -> float:
    import deepseek_fast
    from deepseek_fast.kernels.sparse_mla import ref

    cache, indices, layout = inputs["k_cache"], inputs["indices"][:1], inputs["layout"]
    first_pages = cache[: int(indices.max()) // PAGE + 1]
    numbers = first_pages if layout == "plain" else deepseek_fast.mla_cache_read(first_pages, layout=layout)
    kv = numbers.reshape(-1, 1, inputs["q"].shape[-1])
    listed, places = indices.long().unique(return_inverse=True)
    some = {"q": inputs["q"][0].cpu(), "kv": kv[listed].cpu(), "indices": places[0, :, None].int().cpu()}
    want, bound = ref.sparse_mla_ref(**some), ref.bound(**some)
    out, lse = result
    return _worst((out[0].cpu(), lse[0].T.cpu()), (want[0], want[2]), (bound[0], bound[2]))


def backward_error(inputs: dict[str, Any], result: Any) -> float:
    """dq of two queries; and all gradients of these two alone, since a row of dkv is a sum over all queries."""
    from deepseek_fast.kernels.sparse_mla import ref

    given = inputs["given"]
    rows = torch.tensor([0, given["q"].shape[0] // 2], device="cuda")
    listed, places = given["indices"][rows].long().unique(return_inverse=True)
    two = {"q": given["q"][rows], "kv": given["kv"][listed], "indices": places.int(), "scale": given["scale"]}
    dout, out, lse = (inputs[name][rows] for name in ("dout", "out", "lse"))
    alone = [x.cpu() for x in run_backward(two, out, lse, dout)[:2]]
    on_cpu = {name: value.cpu() if isinstance(value, Tensor) else value for name, value in two.items()}
    want = ref.sparse_mla_backward_ref(dout.cpu(), **on_cpu)[:2]
    bound = ref.backward_bound(dout.cpu(), **on_cpu)[:2]
    return max(_worst(alone, want, bound), _worst((result[0][rows].cpu(),), want[:1], bound[:1]))


def gathered(inputs: dict[str, Any]) -> Callable[[], Any]:
    """torch: rows gathered by indices, two batched products, a softmax; a few queries at a time, as memory allows."""
    q, kv, indices = inputs["q"], inputs["kv"][:, 0], inputs["indices"][:, 0].long()
    step = 64

    def run() -> list[Tensor]:
        out = []
        for first in range(0, q.shape[0], step):
            k = kv[indices[first : first + step]]
            p = (q[first : first + step] @ k.transpose(1, 2) * inputs["scale"]).float().softmax(-1).bfloat16()
            out.append(p @ k[..., :D_V])
        return out

    return run


def gathered_decode(inputs: dict[str, Any]) -> Callable[[], Any]:
    """The same of a cache in bf16, which torch would keep: twice the bytes, no decoding."""
    import deepseek_fast

    cache, indices, q = inputs["k_cache"], inputs["indices"].long(), inputs["q"]
    numbers = cache if inputs["layout"] == "plain" else deepseek_fast.mla_cache_read(cache, layout=inputs["layout"])
    kv, scale = numbers.reshape(-1, q.shape[-1]), q.shape[-1] ** -0.5

    def run() -> Tensor:
        k = kv[indices]
        return (q @ k.transpose(-1, -2) * scale).float().softmax(-1).bfloat16() @ k[..., :D_V]

    return run


def _prefill_row(name: str, s_q: int, h_q: int, d: int, topk: int, s_kv: int, goal: Goal | None = None) -> Bench:
    moved = 2 * s_q * h_q * (d + D_V) + 2 * min(s_kv, s_q * topk) * d + 4 * s_q * topk
    flops = 2 * s_q * h_q * topk * (d + D_V)
    peers = (Peer("torch, gathered", gathered),)
    return Bench(name, prefill(s_q, h_q, d, topk, s_kv), run_prefill, prefill_error, moved, flops, peers, goal)


def _decode_row(name: str, b: int, s_q: int, h_q: int, layout: str, topk: int = 2048) -> Bench:
    d = 512 if layout == "v4" else 576
    moved = b * s_q * (topk * (TOKEN_BYTES[layout] + 4) + 2 * h_q * (d + D_V))
    flops = 2 * b * s_q * h_q * topk * (d + D_V)
    goal = Goal(0.80, "copy") if b <= 8 and layout != "plain" else None
    peers = (Peer("torch, gathered from bf16", gathered_decode),)
    return Bench(
        name, decode(b, s_q, h_q, topk, 32768, layout), run_decode, decode_error, moved, flops, peers, goal
    )  # fmt: skip


BENCH = (
    _prefill_row("prefill-4096x128x576-top2048", 4096, 128, 576, 2048, 32768, Goal(0.40, "product")),
    _prefill_row("prefill-4096x64x512-top512", 4096, 64, 512, 512, 32768),
    _prefill_row("prefill-4096x8x576-top2048", 4096, 8, 576, 2048, 32768),
    _decode_row("decode-v32-1x1x128", 1, 1, 128, "v32"),
    _decode_row("decode-v32-8x1x128", 8, 1, 128, "v32"),
    _decode_row("decode-v32-8x2x128", 8, 2, 128, "v32"),
    _decode_row("decode-v4-8x1x64", 8, 1, 64, "v4"),
    _decode_row("decode-v32-128x2x128", 128, 2, 128, "v32"),
    _decode_row("decode-plain-8x1x128", 8, 1, 128, "plain"),
    Bench(
        "backward-4096x128x576-top2048", backward(4096, 128, 2048, 32768), run_backward, backward_error,
        4 * 4096 * 128 * (576 + 512), 2 * 4096 * 128 * 2048 * (3 * 576 + 2 * 512),
    ),
)  # fmt: skip
