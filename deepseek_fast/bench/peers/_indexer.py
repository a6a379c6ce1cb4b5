"""lightning_indexer's peers in torch: codes expanded in each call, one product, relu, weights, scale; torch.topk."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from deepseek_fast.bench.peers import Peer, Unsupported
from deepseek_fast.bench.peers._common import FLOAT
from deepseek_fast.kernels.lightning_indexer.bench_cases import in_order, true_logits

SELECTION = (0.0, "the same indices, in any order")
# The dot products are rounded to their dtype: in bf16 a token of nearly the threshold's logit may take another's place.
DTYPES = {torch.float32: "torch, f32", torch.bfloat16: "torch, bf16"}


def logits(inputs: dict[str, Any]) -> dict[str, Peer]:
    return {label: Peer(call, *_tolerance(dtype)) for dtype, label, call in _formulas(inputs)}


def paged_logits(inputs: dict[str, Any]) -> dict[str, Peer]:
    """One request, all of whose tokens count: its pages are gathered in each call."""
    cache, table, D = inputs["cache"], inputs["block_table"], inputs["q"].shape[-1]
    pages, page = cache.shape[:2]
    count = inputs["max_context_len"]
    if inputs["q"].shape[:2] != (1, 1) or inputs["context_lens"].tolist() != [count] or count % page:
        raise Unsupported("torch is asked for one request whose tokens fill its pages")

    def keys() -> tuple[Tensor, Tensor]:
        mine = cache.reshape(pages, -1)[table[0].long()]
        codes, scales = mine.split((page * D, page * 4), -1)
        return codes.reshape(-1, D).view(torch.float8_e4m3fn), scales.contiguous().view(torch.float32).flatten()

    q, weights = inputs["q"][0], inputs["weights"]

    def call(dtype: torch.dtype) -> Tensor:
        return formula(q, *keys(), weights, dtype)

    return {label: Peer(partial(call, dtype), *_tolerance(dtype)) for dtype, label in DTYPES.items()}


def selection(inputs: dict[str, Any]) -> dict[str, Peer]:
    scores, k = inputs["scores"], inputs["k"]
    return {"torch topk": Peer(lambda: scores.topk(k, sorted=False).indices, *SELECTION, in_order)}


def fused(inputs: dict[str, Any]) -> dict[str, Peer]:
    """Logits, then torch.topk; also of our own logits."""
    import deepseek_fast

    top_k = inputs["top_k"]
    arguments = [inputs[name] for name in ("q", "k", "k_scale", "weights")]

    def peer(call: Callable[[], Tensor], dtype: torch.dtype) -> Peer:
        def select() -> Tensor:
            return call().topk(top_k, sorted=False).indices

        return Peer(select, *_tolerance(dtype), lambda found: true_logits(found, inputs))

    found = {f"{label}, and topk": peer(call, dtype) for dtype, label, call in _formulas(inputs)}
    if hasattr(deepseek_fast, "fp8_mqa_logits"):
        found["ours, logits and torch.topk"] = peer(partial(deepseek_fast.fp8_mqa_logits, *arguments), torch.float32)
    return found


def formula(q: Tensor, k: Tensor, k_scale: Tensor, weights: Tensor, dtype: torch.dtype) -> Tensor:
    """(s_q, s_kv) f32."""
    s_q, H, D = q.shape
    dots = q.to(dtype).reshape(-1, D) @ k.to(dtype).T
    relu = dots.relu_().reshape(s_q, H, -1)
    return (weights.to(dtype)[:, None] @ relu)[:, 0].float() * k_scale


def _formulas(inputs: dict[str, Any]) -> list[tuple[torch.dtype, str, Callable[[], Tensor]]]:
    if inputs.get("ks") is not None or inputs.get("ke") is not None:
        raise Unsupported("torch is asked for logits of all tokens")
    q, k, k_scale, weights = (inputs[name] for name in ("q", "k", "k_scale", "weights"))
    return [(dtype, label, partial(formula, q, k, k_scale, weights, dtype)) for dtype, label in DTYPES.items()]


def _tolerance(dtype: torch.dtype) -> tuple[float, str]:
    return FLOAT[str(dtype).removeprefix("torch.")]
