"""vLLM's attention on CPUs: its own for prompts over a paged cache, and those that came from sglang."""

from typing import Any

import torch
from torch import Tensor

from deepseek_fast.bench.peers import Peer, Unsupported, _attention, _indexer, _sparse_mla
from deepseek_fast.bench.peers._common import FLOAT, float_peer
from deepseek_fast.kernels.lightning_indexer.bench_cases import in_order, true_logits

PAGE = 64  # tokens of a page, for vLLM's own
SPLITS = 8  # of the keys, which decode_attention_cpu merges
TOP = 512  # the only number that topk_transform_512_cpu selects
OWN = "vec"  # the instruction set's name in vLLM, for AVX-512


def attention(ops: Any, inputs: dict[str, Any]) -> dict[str, Peer]:
    _attention.refuse(inputs)
    if _attention.is_token_list(inputs):
        return _decode(ops, inputs)
    if inputs.get("block_mask") is not None or not inputs.get("is_causal"):
        raise Unsupported("cpu_attention_with_kv_cache has causality and windows, no blocks")
    q, k, v = (inputs[name][0].transpose(0, 1).contiguous() for name in ("q", "k", "v"))
    S, H, D = q.shape
    if S % PAGE or k.shape[0] != S:
        raise Unsupported("cpu_attention_with_kv_cache is asked for prompts of whole pages")
    window = inputs.get("window") or -1
    caches = [torch.zeros(S // PAGE, k.shape[1], PAGE, D, dtype=q.dtype) for _ in "kv"]
    ops.cpu_attn_reshape_and_cache(k, v, *caches, torch.arange(S), OWN, 1.0, 1.0, "auto")
    lengths, starts = torch.tensor([S], dtype=torch.int32), torch.tensor([0, S], dtype=torch.int32)
    of_keys = (k.shape[1], D, lengths, q.dtype, starts, True, window, OWN)
    plan = ops.get_scheduler_metadata(1, H, *of_keys, True, None, "auto")
    table = torch.arange(S // PAGE, dtype=torch.int32)[None]

    rest = (starts, lengths, D**-0.5, True, None, window, table, 0.0, plan, None, None, 1.0, 1.0, "auto")

    def call() -> Tensor:
        out = torch.empty_like(q)
        ops.cpu_attention_with_kv_cache(q, *caches, out, *rest)
        return out

    return {"vLLM cpu_attention": float_peer(call, q, lambda out: out.transpose(0, 1)[None])}


def _decode(ops: Any, inputs: dict[str, Any]) -> dict[str, Peer]:
    """A list for all heads: every head reads the tokens of the first head's list, from a pool of tokens of its own."""
    q, k, v = (inputs[name] for name in ("q", "k", "v"))
    columns = inputs["block_mask"][1]
    H_kv, count = k.shape[1], len(columns) // k.shape[1]
    # It takes one list of slots for all heads: the pool has each head's i-th token in the same slot, scattered alike.
    slots = columns.reshape(H_kv, count)
    pools = []
    for x in (k, v):
        pool = x[0].transpose(0, 1).contiguous()
        for head in range(1, H_kv):
            pool[slots[0].long(), head] = x[0, head, slots[head].long()]
        pools.append(pool)
    query = q[0].transpose(0, 1).contiguous()
    partial = torch.empty(1, q.shape[1], SPLITS, v.shape[-1] + 1)
    request, length = torch.zeros(1, dtype=torch.int64), torch.tensor([count])
    table, scale = slots[:1].contiguous(), q.shape[-1] ** -0.5

    def call() -> Tensor:
        out = torch.empty_like(query)
        ops.decode_attention_cpu(
            query, *pools, out, None, None, None, partial, table, request, length, scale, 0.0, False, -1, None, None
        )
        return out

    return {"vLLM decode_attention_cpu": float_peer(call, q, lambda out: out.transpose(0, 1)[None])}


def mla_decode(ops: Any, inputs: dict[str, Any]) -> dict[str, Peer]:
    _sparse_mla.refuse(inputs)
    q, page, sink = inputs["q"].flatten(0, 1), inputs["k_cache"].shape[1], inputs.get("attn_sink")
    if inputs["layout"] != "v4" or "extra_k_cache" not in inputs or sink is None:
        raise Unsupported("flash_mla_with_kvcache_cpu takes V4's caches, two of them, and a sink")
    caches = [_whole_pages(inputs[name]) for name in ("k_cache", "extra_k_cache")]
    slots = [inputs[name].flatten(0, 1).long() for name in ("indices", "extra_indices")]
    lists = (caches[0], slots[0], page, caches[1], slots[1], page)

    def call() -> Tensor:
        out = q.new_empty(*q.shape[:2], inputs["d_v"])
        ops.flash_mla_with_kvcache_cpu(out, q, *lists, sink, inputs["scale"])
        return out

    return {"vLLM flash_mla_with_kvcache_cpu": float_peer(call, q, lambda out: out.reshape(*inputs["q"].shape[:3], -1))}


def _whole_pages(cache: Tensor) -> Tensor:
    """Rows of all bytes from page to page."""
    return cache.as_strided((len(cache), cache.stride(0)), (cache.stride(0), 1))


def paged_logits(ops: Any, inputs: dict[str, Any]) -> dict[str, Peer]:
    q, cache, longest = inputs["q"], inputs["cache"], inputs["max_context_len"]
    if q.shape[1] != 1 or q.shape[-1] != 128 or inputs["context_lens"].dim() != 1:
        raise Unsupported("fp8_paged_mqa_logits_cpu takes one query of 128 numbers a request")
    of_cache = (inputs["weights"], inputs["context_lens"], inputs["block_table"], cache.shape[1], longest)
    query, pages = q[:, 0].contiguous(), cache.reshape(len(cache), -1)
    label = "vLLM fp8_paged_mqa_logits_cpu"
    return {label: Peer(lambda: ops.fp8_paged_mqa_logits_cpu(query, pages, *of_cache), *FLOAT["float32"])}


def selection(ops: Any, inputs: dict[str, Any]) -> dict[str, Peer]:
    scores = inputs["scores"]
    return {"vLLM topk_transform_512_cpu": Peer(_select(ops, scores, inputs["k"]), *_indexer.SELECTION, in_order)}


def fused(ops: Any, inputs: dict[str, Any]) -> dict[str, Peer]:
    """Logits of a paged cache, then the selection."""
    from deepseek_fast.kernels.lightning_indexer import ref

    q, k, top_k = inputs["q"], inputs["k"], inputs["top_k"]
    cache = torch.from_numpy(ref.write_cache(k, inputs["k_scale"], PAGE)).reshape(-1, PAGE, 1, k.shape[-1] + 4)
    table = torch.arange(len(cache), dtype=torch.int32).expand(len(q), -1).contiguous()
    lengths = torch.full((len(q),), len(k), dtype=torch.int32)
    paged = {"q": q[:, None], "cache": cache, "weights": inputs["weights"], "max_context_len": len(k)}
    (logits,) = paged_logits(ops, paged | {"context_lens": lengths, "block_table": table}).values()
    select = _select(ops, logits.call(), top_k)

    def call() -> Tensor:
        return select(logits.call())

    return {"vLLM logits, and topk": Peer(call, *FLOAT["float32"], lambda found: true_logits(found, inputs))}


def _select(ops: Any, scores: Tensor, k: int) -> Any:
    """A call (scores) -> indices (rows, k); as positions, which it writes beside slots."""
    if k != TOP:
        raise Unsupported("topk_transform_512_cpu selects 512")
    rows, n = scores.shape
    lengths = torch.full((rows,), n, dtype=torch.int32)
    table = torch.arange(-(-n // PAGE), dtype=torch.int32).expand(rows, -1).contiguous()
    default = scores

    def call(scores: Tensor = default) -> Tensor:
        slots, indices = torch.empty(2, rows, k, dtype=torch.int32)
        ops.topk_transform_512_cpu(scores, lengths, table, slots, PAGE, indices)
        return indices

    return call
