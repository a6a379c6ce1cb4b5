"""fp8_mqa_logits, its paged form, topk_indices and lightning_indexer in torch; meta.py has their Meta kernels."""

from typing import Any

import torch
from torch import Tensor

from deepseek_fast import _load
from deepseek_fast.gpu.register import register
from deepseek_fast.kernels.lightning_indexer.meta import ANY_ORDER, check_types

_load.load_torch()
register(
    "lightning_indexer",
    "fp8_mqa_logits",
    "fp8_paged_mqa_logits",
    "topk_indices",
    "lightning_indexer",
    "lightning_indexer_paged",
)
_LOGITS = torch.ops.deepseek_fast.fp8_mqa_logits.default
_PAGED_LOGITS = torch.ops.deepseek_fast.fp8_paged_mqa_logits.default
_INDEXER = torch.ops.deepseek_fast.lightning_indexer.default
_PAGED_INDEXER = torch.ops.deepseek_fast.lightning_indexer_paged.default
_TOPK = torch.ops.deepseek_fast.topk_indices.default


def fp8_mqa_logits(
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
    """How much each query would gain from each token: k_scale[j] * sum_h weights[i, h] * relu(q[i, h] . k[j]).

    q: (s_q, H, D) float8_e4m3fn, H and D up to 1024. k: (s_kv, D) float8_e4m3fn, one head for all. k_scale: (s_kv)
    and weights: (s_q, H) float32; a query's own scale is in its weights. ks, ke: (s_q) int32 of any values, the tokens
    [ks, ke) that a query sees; without them all. dtype: float32 or bfloat16, the result's.
    Returns (s_q, s_kv), -inf outside [ks, ke); with max_seqlen_k above 0 (s_q, max_seqlen_k), column j - ks[i]. No
    gradient. Raises ValueError for shapes, TypeError for dtypes.
    Numerics: products are exact, sums in float32; a NaN code is a NaN logit.

    >>> q, k = torch.randn(4, 64, 128).to(torch.float8_e4m3fn), torch.randn(300, 128).to(torch.float8_e4m3fn)
    >>> deepseek_fast.fp8_mqa_logits(q, k, torch.ones(300), torch.rand(4, 64)).shape
    torch.Size([4, 300])

    Source: DeepGEMM, fp8_mqa_logits (with clean_logits).
    """
    return _call("fp8_mqa_logits", _LOGITS, q, k, k_scale, weights, ks, ke, max_seqlen_k, dtype)


def fp8_paged_mqa_logits(
    q: Tensor,
    cache: Tensor,
    weights: Tensor,
    context_lens: Tensor,
    block_table: Tensor,
    max_context_len: int,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """fp8_mqa_logits of a paged cache: the decoding of several requests, each with a few queries.

    q: (b, next_n, H, D) float8_e4m3fn. cache: (pages, page, 1, D + 4) uint8, of each page the codes of all its tokens,
    then their scales as float32; pages at any distance. weights: (b * next_n, H) float32. context_lens: (b) int32,
    query n sees the tokens up to context_lens[b] - next_n + n; or (b, next_n), each query its own first so many.
    block_table: (b, pages a request) int32; entries that no query needs may be anything.
    Returns (b * next_n, max_context_len) of dtype, -inf past a query's tokens. No gradient.
    Raises ValueError for shapes and pages out of range, TypeError for dtypes.

    >>> q, cache = torch.randn(2, 1, 64, 128).to(torch.float8_e4m3fn), torch.zeros(9, 64, 1, 132, dtype=torch.uint8)
    >>> lens, table = torch.tensor([70, 5], dtype=torch.int32), torch.tensor([[3, 7], [8, -1]], dtype=torch.int32)
    >>> deepseek_fast.fp8_paged_mqa_logits(q, cache, torch.rand(2, 64), lens, table, 128).shape
    torch.Size([2, 128])

    Source: DeepGEMM, fp8_paged_mqa_logits.
    """
    arguments = (q, cache, weights, context_lens, block_table, max_context_len, dtype)
    return _call("fp8_paged_mqa_logits", _PAGED_LOGITS, *arguments)


def topk_indices(scores: Tensor, k: int, *, sorted_by: str | None = None, lengths: Tensor | None = None) -> Tensor:
    """Where the k largest of the last dimension are: one set, of equal scores the lower indices.

    scores: (..., n) float32, bfloat16 or float16; NaN counts as more than infinity, -inf is never chosen.
    lengths: (...) int32, only the first so many of a row are looked at. sorted_by: "value" (descending, equal ones by
    index), "index" (ascending), or None (always the same order).
    Returns (..., k) int32, -1 at the end where fewer than k are above -inf. No gradient.
    Raises ValueError for shapes, k and names, TypeError for dtypes.

    >>> deepseek_fast.topk_indices(torch.tensor([1.0, 3.0, 3.0, 2.0]), 2)
    tensor([1, 2], dtype=torch.int32)

    Source: torch.topk, without its values.
    """
    return _call("topk_indices", _TOPK, scores, k, _order("topk_indices", sorted_by), lengths)


def lightning_indexer(
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
    """The rows of k that each query should read: topk_indices of fp8_mqa_logits, bit for bit, the logits never stored.

    Arguments: those of fp8_mqa_logits and topk_indices. Returns (s_q, top_k) int32 rows of k, -1 at the end where a
    query sees fewer. No gradient. Raises ValueError for shapes and names, TypeError for dtypes.

    >>> q, k = torch.randn(4, 64, 128).to(torch.float8_e4m3fn), torch.randn(300, 128).to(torch.float8_e4m3fn)
    >>> deepseek_fast.lightning_indexer(q, k, torch.ones(300), torch.rand(4, 64), 32).shape
    torch.Size([4, 32])

    Source: DeepSeek-V3.2-Exp, the lightning indexer of DeepSeek Sparse Attention.
    """
    arguments = (q, k, k_scale, weights, top_k, ks, ke, _order("lightning_indexer", sorted_by))
    return _call("lightning_indexer", _INDEXER, *arguments)


def lightning_indexer_paged(
    q: Tensor,
    cache: Tensor,
    weights: Tensor,
    context_lens: Tensor,
    block_table: Tensor,
    top_k: int,
    *,
    sorted_by: str | None = None,
    as_slots: bool = False,
) -> Tensor:
    """lightning_indexer of a paged cache: topk_indices of fp8_paged_mqa_logits, the logits never stored.

    Arguments: those of fp8_paged_mqa_logits and topk_indices. Returns (b, next_n, top_k) int32 positions in the
    request, or with as_slots places in the cache, page * page size + offset, as sparse_mla_decode reads them; -1 at
    the end. No gradient. Raises ValueError for shapes, pages out of range and names, TypeError for dtypes.

    >>> q, cache = torch.randn(2, 1, 64, 128).to(torch.float8_e4m3fn), torch.zeros(9, 64, 1, 132, dtype=torch.uint8)
    >>> lens, table = torch.tensor([70, 5], dtype=torch.int32), torch.tensor([[3, 7], [8, -1]], dtype=torch.int32)
    >>> deepseek_fast.lightning_indexer_paged(q, cache, torch.rand(2, 64), lens, table, 16).shape
    torch.Size([2, 1, 16])

    Source: DeepSeek-V3.2-Exp, the lightning indexer of DeepSeek Sparse Attention.
    """
    arguments = (
        q,
        cache,
        weights,
        context_lens,
        block_table,
        top_k,
        _order("lightning_indexer_paged", sorted_by),
        as_slots,
    )
    return _call("lightning_indexer_paged", _PAGED_INDEXER, *arguments)


def _order(op: str, sorted_by: Any) -> Any:
    """sorted_by as the compiled operators have it."""
    if sorted_by == ANY_ORDER:  # their word for None
        raise ValueError(f"{op}: sorted_by must be one of None, index, value; got {sorted_by!r}")
    return ANY_ORDER if sorted_by is None else sorted_by


def _call(op: str, compiled: Any, *args: Any) -> Tensor:
    """compiled(...), with a failed check as ValueError or TypeError; nothing here has a gradient."""
    args = tuple(arg.detach() if isinstance(arg, Tensor) and arg.requires_grad else arg for arg in args)
    try:
        return compiled(*args)  # type: ignore[no-any-return]
    except (RuntimeError, AttributeError) as error:
        names = [argument.name for argument in compiled._schema.arguments]
        check_types(op, dict(zip(names, args, strict=True)))
        if " must " in str(error) and "; got " in str(error):  # a rule that only the compiled check knows
            raise ValueError(str(error)) from None
        raise
