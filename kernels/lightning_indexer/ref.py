"""The meaning of fp8_mqa_logits, fp8_paged_mqa_logits, topk_indices and lightning_indexer in float64, and the errors
allowed of logits.

logits[i, j] = k_scale[j] * sum over h of weights[i, h] * relu(q[i, h] . k[j])   for ks[i] <= j < ke[i], else -inf
lightning_indexer = topk_indices(logits), the logits never stored

Codes are exact numbers and so are their products; sums are compared within `bound`. A selection from given scores is
exact: the k largest, of equal ones the lower index, NaN above all, -inf never. One from logits that are themselves
computed is right if no token left out is certainly, by the bound, above one that was taken (`is_top_k`).
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepseek_fast.kernels.block_sparse_attention.ref_bounds import U, gamma
from deepseek_fast.kernels.fused_matmul.ref import half_ulp

SCALE_BYTES = 4  # of a token in the paged cache: an f32
SORTED_BY = (None, "index", "value")


def fp8_mqa_logits_ref(
    q: Tensor,
    k: Tensor,
    k_scale: Tensor,
    weights: Tensor,
    ks: Tensor | None = None,
    ke: Tensor | None = None,
    *,
    max_seqlen_k: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """float64 (s_q, s_kv) of q (s_q, H, D) and k (s_kv, D) e4m3, k_scale (s_kv) and weights (s_q, H) f32, ks and ke
    (s_q) int32; with max_seqlen_k (s_q, max_seqlen_k), column j - ks[i]. Outside -inf. dtype: of a kernel's result."""
    return _windowed(_logits(q, k, k_scale, weights), ks, ke, max_seqlen_k)


def bound(
    q: Tensor,
    k: Tensor,
    k_scale: Tensor,
    weights: Tensor,
    ks: Tensor | None = None,
    ke: Tensor | None = None,
    *,
    max_seqlen_k: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Largest |kernel - fp8_mqa_logits_ref|; 0 outside.

    dot    gamma(D + 2) sum|q||k|: one chain over d. No product or sum is subnormal: all are multiples of 2^-18
    logit  relu carries an error as it is; a chain of H fused multiply-adds from 0: gamma(H + 2) sum|w| relu; one
           rounding of * k_scale, and of the store as bf16 half an ULP
    """
    q_abs, k_abs, w = _numbers(q).abs(), _numbers(k).abs(), weights.double().abs()
    e_dot = gamma(q.shape[-1] + 2) * (q_abs @ k_abs.T)  # (s_q, H, s_kv)
    positive = (_numbers(q) @ _numbers(k).T).clamp_min(0) + e_dot
    size = (w[..., None] * positive).sum(1)
    error = ((w[..., None] * e_dot).sum(1) + gamma(q.shape[1] + 2) * size + 2.0**-149) * k_scale.double().abs()
    logits = _logits(q, k, k_scale, weights)
    error = error + U * (logits.abs() + error) + 2.0**-149
    if dtype != torch.float32:
        error = error + half_ulp(logits.abs() + error, dtype)
    return _windowed(error, ks, ke, max_seqlen_k, outside=0.0)


def fp8_paged_mqa_logits_ref(
    q: Tensor,
    cache: NDArray[np.uint8],
    weights: Tensor,
    context_lens: Tensor,
    block_table: Tensor,
    max_context_len: int,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """float64 (b * next_n, max_context_len) of q (b, next_n, H, D), cache (pages, page * (D + 4)) bytes, weights
    (b * next_n, H), block_table (b, pages a request), context_lens (b): query n sees the tokens up to
    context_lens[b] - next_n + n; or (b, next_n): each its own first so many. The table's rest is not looked at."""
    return torch.cat([part[0] for part in _paged(q, cache, weights, context_lens, block_table, max_context_len, dtype)])


def paged_bound(
    q: Tensor,
    cache: NDArray[np.uint8],
    weights: Tensor,
    context_lens: Tensor,
    block_table: Tensor,
    max_context_len: int,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    return torch.cat([part[1] for part in _paged(q, cache, weights, context_lens, block_table, max_context_len, dtype)])


def _paged(
    q: Tensor,
    cache: NDArray[np.uint8],
    weights: Tensor,
    context_lens: Tensor,
    block_table: Tensor,
    max_context_len: int,
    dtype: torch.dtype,
) -> list[tuple[Tensor, Tensor]]:
    b, next_n, H, D = q.shape
    page = cache.shape[1] // (D + SCALE_BYTES)
    codes, scales = read_cache(cache, D)
    ends = context_lens
    if ends.dim() == 1:
        ends = context_lens[:, None] - next_n + 1 + torch.arange(next_n)
    w = weights.reshape(b, next_n, H)
    result = [(torch.zeros(0, max_context_len, dtype=torch.float64),) * 2]
    for request in range(b):
        t = torch.arange(min(max(int(ends[request].max()) if next_n else 0, 0), max_context_len))
        slots = block_table[request].long()[t // page] * page + t % page
        call: dict[str, Any] = {"q": q[request], "k": codes[slots], "k_scale": scales[slots], "weights": w[request]}
        call |= {"ke": ends[request], "dtype": dtype}
        more = max_context_len - len(t)
        parts = (fp8_mqa_logits_ref(**call), -torch.inf), (bound(**call), 0.0)
        logits, error = (torch.nn.functional.pad(x, (0, more), value=outside) for x, outside in parts)
        result.append((logits, error))
    return result


def topk_indices_ref(scores: Tensor, k: int, *, sorted_by: str | None = None, lengths: Tensor | None = None) -> Tensor:
    """int32 (..., k) of the k largest of the last dimension, -1 where there are fewer than k above -inf.

    lengths (...): only the first so many of a row are looked at. sorted_by "value": descending, equal ones by index;
    "index" ascending; None: a kernel's own order, always the same, here by index. -1 comes last.
    """
    n = scores.shape[-1]
    values = scores.double()
    if lengths is not None:
        values = values.masked_fill(torch.arange(n) >= lengths[..., None], -torch.inf)
    ranked = torch.where(values.isnan(), torch.inf, values)
    order = ranked.argsort(dim=-1, descending=True, stable=True)  # NaN among inf, by index: split them below
    is_nan = values.isnan().gather(-1, order)
    order = order.gather(-1, (~is_nan).byte().argsort(dim=-1, stable=True))
    kept = order[..., :k]
    kept = torch.where(values.gather(-1, kept).isneginf(), n, kept)
    if sorted_by != "value":
        kept = kept.sort(-1).values
    kept = torch.where(kept == n, -1, kept)
    return torch.nn.functional.pad(kept, (0, k - kept.shape[-1]), value=-1).int()


def lightning_indexer_ref(
    q: Tensor,
    k: Tensor,
    k_scale: Tensor,
    weights: Tensor,
    top_k: int,
    ks: Tensor | None = None,
    ke: Tensor | None = None,
    *,
    sorted_by: str | None = None,
) -> Tensor:
    """int32 (s_q, top_k) rows of k. A kernel's may differ where logits are equal to within their bounds: is_top_k."""
    return topk_indices_ref(fp8_mqa_logits_ref(q, k, k_scale, weights, ks, ke), top_k, sorted_by=sorted_by)


def is_top_k(indices: Tensor, logits: Tensor, error: Tensor, k: int) -> bool:
    """Whether indices (s_q, k) are a right selection of logits known to within error: as many as there are, none twice,
    none of -inf, and none left out that is certainly above one of them."""
    n = logits.shape[-1]
    counted = indices >= 0
    if (indices >= n).any() or not torch.equal(counted.sum(-1), (~logits.isneginf()).sum(-1).clamp_max(k)):
        return False
    places = torch.where(counted, indices.long(), n)
    chosen = torch.zeros(*logits.shape[:-1], n + 1).scatter_add(-1, places, torch.ones_like(places).float())[..., :-1]
    if (chosen > 1).any() or (chosen.bool() & logits.isneginf()).any():
        return False
    if n == 0:
        return True
    least = torch.where(chosen.bool(), logits + error, torch.inf).amin(-1)
    best_left = torch.where(chosen.bool() | logits.isneginf(), -torch.inf, logits - error).amax(-1)
    return bool((least >= best_left).all())


def slots_of(indices: Tensor, block_table: Tensor, page: int) -> Tensor:
    """Places in a paged cache, page * page size + offset, of a request's tokens (b, ..., k); -1 stays."""
    t = indices.clamp_min(0).long()
    pages = block_table.long().reshape(block_table.shape[0], *[1] * (indices.dim() - 2), block_table.shape[1])
    pages = pages.expand(*indices.shape[:-1], -1).gather(-1, t // page)
    return torch.where(indices < 0, -1, pages * page + t % page).int()


def write_cache(codes: Tensor, scales: Tensor, page: int, fill: int = 0) -> NDArray[np.uint8]:
    """(pages, page * (D + 4)) bytes: of each page first all codes, then all scales as f32."""
    tokens, D = codes.shape
    cache = np.full((-(-tokens // page), page * (D + SCALE_BYTES)), fill, np.uint8)
    for token in range(tokens):
        row, t = cache[token // page], token % page
        row[t * D : (t + 1) * D] = codes[token].view(torch.uint8).numpy()
        row[page * D + t * SCALE_BYTES :][:SCALE_BYTES] = scales[token : token + 1].numpy().view(np.uint8)
    return cache


def read_cache(cache: NDArray[np.uint8], D: int) -> tuple[Tensor, Tensor]:
    """(codes (tokens, D) e4m3, scales (tokens) f32)."""
    page = cache.shape[1] // (D + SCALE_BYTES)
    codes = np.ascontiguousarray(cache[:, : page * D]).reshape(-1, D)
    scales = np.ascontiguousarray(cache[:, page * D :]).view(np.float32).reshape(-1)
    return torch.from_numpy(codes).view(torch.float8_e4m3fn), torch.from_numpy(scales)


def _numbers(codes: Tensor) -> Tensor:
    return codes.float().double()


def _logits(q: Tensor, k: Tensor, k_scale: Tensor, weights: Tensor) -> Tensor:
    dots = _numbers(q) @ _numbers(k).T  # (s_q, H, s_kv); relu keeps NaN
    return (weights.double()[..., None] * torch.where(dots < 0, 0.0, dots)).sum(1) * k_scale.double()


def _windowed(
    full: Tensor, ks: Tensor | None, ke: Tensor | None, max_seqlen_k: int, outside: float = -torch.inf
) -> Tensor:
    """Outside of [ks, ke) `outside`; then, where max_seqlen_k is given, each row from its ks on."""
    s_q, s_kv = full.shape
    begin = torch.zeros(s_q, dtype=torch.int64) if ks is None else ks.long().clamp_min(0)
    end = torch.full((s_q,), s_kv) if ke is None else ke.long().clamp_max(s_kv)
    j = torch.arange(s_kv)
    full = torch.where((j >= begin[:, None]) & (j < end[:, None]), full, outside)
    if not max_seqlen_k:
        return full
    places = begin[:, None] + torch.arange(max_seqlen_k)
    return torch.cat([full, full.new_full((s_q, 1), outside)], -1).gather(-1, places.clamp_max(s_kv))
