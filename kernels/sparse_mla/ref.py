"""The meaning of sparse_mla and sparse_mla_decode in float64, forward and backward, and the errors allowed.

z[i, h, t] = scale * q[i, h] . kv[indices[i, t]];  out[i, h] = sum over t of softmax(z) kv[indices[i, t]][:d_v]

FlashMLA's meaning (flash_mla_interface.py, tests/ref.py of deepseek-ai/FlashMLA): an index below 0 or from s_kv on does
not count, one that is there twice counts twice, entries from topk_length on are not looked at; causality is the
indices' affair. A query without a valid index has out 0, lse +inf, max_logits -inf. A sink changes out alone.
Softmax, its gradients and their bounds are block_sparse_attention's, of keys that were gathered.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from deepseek_fast.kernels.block_sparse_attention import ref as attention
from deepseek_fast.kernels.block_sparse_attention import ref_bounds
from deepseek_fast.kernels.block_sparse_attention.ref_bounds import KEY_STEP, Forward, stored
from deepseek_fast.kernels.sparse_mla import caches

SPLIT = 512  # entries of a list that a decoder sums apart; fixed, so that the merge does not depend on the threads


class Gathered(NamedTuple):
    """A query's tokens as keys: all (s_q, h_kv, ...), h the heads of q that share one of kv's."""

    q: Tensor  # (.., h, d_qk)
    k: Tensor  # (.., topk, d_qk)
    v: Tensor  # (.., topk, d_v)
    seen: Tensor  # (.., h, topk)
    rows: Tensor  # (.., topk) of kv, s_kv where an index does not count
    sink: Tensor | None  # (h_kv, h)


class Gradients(NamedTuple):
    dq: Tensor
    dkv: Tensor
    dattn_sink: Tensor | None


def sparse_mla_ref(
    q: Tensor,
    kv: Tensor,
    indices: Tensor,
    *,
    scale: float | None = None,
    d_v: int = 512,
    attn_sink: Tensor | None = None,
    topk_length: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(out (s_q, h_q, d_v), max_logits (s_q, h_q), lse (s_q, h_q)) in float64 of q (s_q, h_q, d_qk), kv (s_kv, h_kv,
    d_qk), indices (s_q, h_kv, topk), attn_sink (h_q), topk_length (s_q)."""
    g = gather(q, kv, indices, d_v, attn_sink, topk_length)
    out, lse = attention.attention(g.q, g.k, g.v, g.seen, scale, None, g.sink)
    z = attention.scores(g.q, g.k, g.seen, scale)
    top = z.amax(-1) if z.shape[-1] else torch.full_like(lse, -torch.inf)
    out, top, lse = (x.reshape(*q.shape[:2], *x.shape[3:]) for x in (out, top, lse))
    return out, top, torch.where(lse.isneginf(), torch.inf, lse)


def bound(q: Tensor, kv: Tensor, indices: Tensor, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Largest |kernel - sparse_mla_ref| of each result."""
    _, state = error_state(q, kv, indices, **options)
    e_out, e_lse = stored(state.out, state.e_out, q.dtype), state.e_lse
    e_top = (
        state.e_z.amax(-1) if state.e_z.shape[-1] else torch.zeros_like(e_lse)
    )  # the largest of values each so close
    return tuple(x.reshape(*q.shape[:2], *x.shape[3:]) for x in (e_out, e_top, e_lse))  # type: ignore[return-value]


def error_state(
    q: Tensor,
    kv: Tensor,
    indices: Tensor,
    *,
    scale: float | None = None,
    d_v: int = 512,
    attn_sink: Tensor | None = None,
    topk_length: Tensor | None = None,
) -> tuple[Gathered, Forward]:
    g = gather(q, kv, indices, d_v, attn_sink, topk_length)
    topk = indices.shape[-1]
    steps = topk // KEY_STEP + topk // SPLIT + 3  # a merge rescales as a step does
    return g, ref_bounds.attention_error(g.q, g.k, g.v, g.seen, scale, None, g.sink, steps)


def sparse_mla_backward_ref(
    dout: Tensor,
    q: Tensor,
    kv: Tensor,
    indices: Tensor,
    *,
    scale: float | None = None,
    d_v: int = 512,
    attn_sink: Tensor | None = None,
    topk_length: Tensor | None = None,
) -> Gradients:
    """Gradients in float64 of sum(out * dout); max_logits and lse have none."""
    g = gather(q, kv, indices, d_v, attn_sink, topk_length)
    dq, dk, dv, dsink = attention.gradients(_grouped(dout, kv), *g[:4], None, scale, None, g.sink)
    dsink = None if dsink is None else dsink.sum(0).flatten()
    return Gradients(dq.reshape(q.shape), scattered(dk, dv, g.rows, kv.shape[0]), dsink)


def backward_bound(dout: Tensor, q: Tensor, kv: Tensor, indices: Tensor, **options: Any) -> Gradients:
    """Largest |kernel - sparse_mla_backward_ref|. A row of dkv is one chain: queries ascending, in each its entries
    ascending, in each its heads, dk's product before dv's."""
    g, state = error_state(q, kv, indices, **options)
    count = torch.bincount(g.rows.flatten(), minlength=kv.shape[0] + 1)[:-1]
    group = 2 * int(count.max()) if count.numel() else 1
    scale, do = options.get("scale"), _grouped(dout, kv)
    e = ref_bounds.gradient_error(do, *g[:3], state, None, scale, g.sink, group)
    got = sparse_mla_backward_ref(dout, q, kv, indices, **options)
    e_dsink = None
    if e.dsink_logits is not None and got.dattn_sink is not None:
        f, delta = attention.share_of_keys(state.lse, g.sink), (do.double() * state.out).sum(-1)
        size = (1 - f) * delta.abs() + e.dsink_logits
        e_dsink = (e.dsink_logits + ref_bounds.gamma(q.shape[0] + 4) * size).sum(0).flatten()
    e_dkv = scattered(e.dk, e.dv, g.rows, kv.shape[0])
    return Gradients(stored(got.dq, e.dq.reshape(q.shape), q.dtype), stored(got.dkv, e_dkv, q.dtype), e_dsink)


def scattered(dk: Tensor, dv: Tensor, rows: Tensor, s_kv: int) -> Tensor:
    """dkv (s_kv, h_kv, d_qk): what each gathered row gets, added where it came from."""
    both = dk.clone()
    both[..., : dv.shape[-1]] += dv
    result = torch.zeros(s_kv + 1, dk.shape[1], dk.shape[-1], dtype=torch.float64)
    for head in range(dk.shape[1]):
        result[:, head].index_add_(0, rows[:, head].flatten(), both[:, head].flatten(0, 1))
    return result[:-1]


def gather(
    q: Tensor, kv: Tensor, indices: Tensor, d_v: int, attn_sink: Tensor | None, topk_length: Tensor | None
) -> Gathered:
    s_kv, h_kv, d_qk = kv.shape
    index = indices.long()
    valid = (index >= 0) & (index < s_kv)
    if topk_length is not None:
        valid &= torch.arange(index.shape[-1]) < topk_length[:, None, None]
    rows = torch.where(valid, index, s_kv)
    padded = torch.cat([kv, kv.new_zeros(1, h_kv, d_qk)])
    k = padded[rows, torch.arange(h_kv)[:, None]]
    q = _grouped(q, kv)
    sink = None if attn_sink is None else attn_sink.unflatten(0, (h_kv, -1))
    return Gathered(q, k, k[..., :d_v], valid[:, :, None].expand(*q.shape[:3], -1), rows, sink)


def _grouped(x: Tensor, kv: Tensor) -> Tensor:
    """(s_q, h_kv, h, d) of (s_q, h_q, d)."""
    return x.unflatten(1, (kv.shape[1], x.shape[1] // kv.shape[1]))


def sparse_mla_decode_ref(
    q: Tensor, k_cache: Any, indices: Tensor | None = None, **options: Any
) -> tuple[Tensor, Tensor]:
    """(out (b, s_q, h_q, d_v), lse (b, h_q, s_q)) in float64, as flash_mla_with_kvcache; options: decode_arguments."""
    arguments, shape = decode_arguments(q, k_cache, indices, **options)
    out, _, lse = sparse_mla_ref(**arguments)
    return out.reshape(*shape, out.shape[-1]), lse.reshape(shape).transpose(1, 2)


def decode_bound(q: Tensor, k_cache: Any, indices: Tensor | None = None, **options: Any) -> tuple[Tensor, Tensor]:
    """Largest |kernel - sparse_mla_decode_ref|: sparse_mla's, since numbers of a cache are exact once they are bf16."""
    arguments, shape = decode_arguments(q, k_cache, indices, **options)
    e_out, _, e_lse = bound(**arguments)
    return e_out.reshape(*shape, e_out.shape[-1]), e_lse.reshape(shape).transpose(1, 2)


def decode_arguments(
    q: Tensor,
    k_cache: Any,
    indices: Tensor | None = None,
    *,
    scale: float | None = None,
    d_v: int = 512,
    layout: str = "plain",
    block_table: Tensor | None = None,
    cache_seqlens: Tensor | None = None,
    is_causal: bool = False,
    attn_sink: Tensor | None = None,
    topk_length: Tensor | None = None,
    extra_k_cache: Any = None,
    extra_indices: Tensor | None = None,
    extra_topk_length: Tensor | None = None,
) -> tuple[dict[str, Any], tuple[int, int, int]]:
    """sparse_mla's arguments, each query of each request one of its own, and (b, s_q, h_q).

    k_cache: "plain" (pages, page, 1, d_qk) of q's dtype; "v32", "v4": bytes, see caches.py. indices (b, s_q, topk):
    page * page size + offset. Without them block_table (b, pages a request) and cache_seqlens (b) say the tokens: the
    first cache_seqlens[b], with is_causal of query i those up to cache_seqlens[b] - s_q + i; what the table has beyond
    is not looked at. extra_*: a second cache of the layout, whose entries follow. topk_length (b) counts of its list.
    """
    b, s_q, h_q, _ = q.shape
    kv, first_count = read_cache(k_cache, layout, q.dtype), 0
    if indices is None:
        assert block_table is not None and cache_seqlens is not None
        page = k_cache.shape[1] if layout == "plain" else k_cache.page_size
        indices = dense_indices(block_table, cache_seqlens, s_q, page, is_causal)
    listed = masked(indices, topk_length, kv.shape[0])
    if extra_k_cache is not None:
        assert extra_indices is not None
        extra = read_cache(extra_k_cache, layout, q.dtype)
        more, first_count = masked(extra_indices, extra_topk_length, extra.shape[0]), kv.shape[0]
        listed = torch.cat([listed, torch.where(more < 0, -1, more + first_count)], -1)
        kv = torch.cat([kv, extra])
    arguments = {"q": q.flatten(0, 1), "kv": kv[:, None], "indices": listed.reshape(b * s_q, 1, listed.shape[-1])}
    return arguments | {"scale": scale, "d_v": d_v, "attn_sink": attn_sink}, (b, s_q, h_q)


def masked(indices: Tensor, topk_length: Tensor | None, count: int) -> Tensor:
    """int64, -1 for every entry that does not count: outside the cache, or beyond its list's length."""
    index = indices.long()
    valid = (index >= 0) & (index < count)
    if topk_length is not None:
        valid &= torch.arange(index.shape[-1]) < topk_length[:, None, None]
    return torch.where(valid, index, -1)


def dense_indices(block_table: Tensor, cache_seqlens: Tensor, s_q: int, page: int, is_causal: bool) -> Tensor:
    """(b, s_q, the longest request) places of tokens in the cache, -1 where a query sees none."""
    longest = int(cache_seqlens.max()) if cache_seqlens.numel() else 0
    t, query = torch.arange(longest), torch.arange(s_q)[:, None]
    result = torch.full((block_table.shape[0], s_q, longest), -1)
    for b, length in enumerate(cache_seqlens.tolist()):
        own = t[:length]
        place = block_table[b].long()[own // page] * page + own % page
        seen = own <= length - s_q + query if is_causal else torch.ones(s_q, length, dtype=torch.bool)
        result[b, :, :length] = torch.where(seen, place, -1)
    return result


def read_cache(k_cache: Any, layout: str, dtype: torch.dtype) -> Tensor:
    """(tokens, d_qk) of q's dtype, float32 where that is float16: FP8 numbers are rounded to bf16 once, which powers of
    two as scales never need."""
    if layout == "plain":
        return k_cache.reshape(-1, k_cache.shape[-1])  # type: ignore[no-any-return]
    numbers = caches.read_cache(k_cache, layout).reshape(-1, caches.LAYOUTS[layout].d_qk)
    return torch.from_numpy(numbers.astype(np.float32)).to(torch.float32 if dtype == torch.float16 else dtype)
