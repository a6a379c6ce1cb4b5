"""native_sparse_attention: three calls of block_sparse_attention, and gates; nsa_blocks.py says what each reads.

ref_nsa.py has the meaning.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from deepseek_fast import _attention, _linear
from deepseek_fast.kernels.block_sparse_attention import nsa_blocks
from deepseek_fast.kernels.block_sparse_attention.op import attend

_NAME = "native_sparse_attention"
_NO_MASKS = (None,) * 5  # block_mask, row_offsets, columns, token_bias, sink_logits
_NO_TABLES = (None,) * 2
_GATES = ("g_cmp", "g_slc", "g_swa")


def native_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g_cmp: Tensor | None = None,
    g_slc: Tensor | None = None,
    g_swa: Tensor | None = None,
    block_indices: Tensor | None = None,
    block_counts: Any = 16,
    block_size: int = 64,
    window_size: int = 0,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """g_cmp * compressed + g_slc * selected + g_swa * sliding: DeepSeek's native sparse attention, causal.

    q: (B, T, HQ, K), k: (B, T, H, K), v: (B, T, H, V), float32, bfloat16 or float16; H divides HQ.
    g_cmp, g_slc, g_swa: (B, T, HQ), what each branch counts; None leaves a branch out. Compressed: attention over the
    means of keys and values of the blocks that lie before the query. Selected: over the tokens of the blocks that it
    chose, the same for the HQ / H heads of a group. Sliding: over the last window_size tokens; none where that is 0.
    block_indices: (B, T, H, S) int32 or int64, blocks of block_size tokens, of which the first block_counts count (an
    integer, or (B, T, H)); what is no block of the sequence counts for nothing. None: the query's own block and those
    of the largest weights in the compressed branch, block_counts in all. cu_seqlens: (N + 1,), ends of sequences side
    by side in B = 1, where blocks begin anew.
    Returns (B, T, HQ, V) of q's dtype. Differentiable in q, k, v and the gates, not in the selection.
    Raises ValueError for shapes and values, TypeError for dtypes. Numerics: each branch as block_sparse_attention has
    it; means in float32, rounded to k's dtype; gates in float32, rounded once.

    >>> q, k, gates = torch.randn(1, 512, 8, 64), torch.randn(1, 512, 2, 64), torch.rand(3, 1, 512, 8)
    >>> deepseek_fast.native_sparse_attention(q, k, k, *gates, block_counts=4, window_size=64).shape
    torch.Size([1, 512, 8, 64])

    Source: Yuan et al. 2025, arXiv 2502.11089; the arguments are those of fla's parallel_nsa.
    """
    gates = dict(zip(_GATES, (g_cmp, g_slc, g_swa), strict=True))
    _check(q, k, v, gates, block_indices, block_counts, block_size, window_size, cu_seqlens)
    options = _attention.options(_NAME, scale, True, None, None, True, (1, block_size), 0)
    queries, keys, values = (x.transpose(1, 2) for x in (q, k, v))
    total: Tensor | None = None

    def add(gate: Tensor, out: Tensor) -> Tensor:
        values = out.transpose(1, 2)
        # Without a copy in float32 where one is not asked for; an exporter wants one dtype.
        term = gate.float()[..., None] * (values if values.is_cuda else values.float())
        return term if total is None else total + term

    if g_cmp is not None:
        (means_k, ends), (means_v, _) = (nsa_blocks.means(x, block_size, cu_seqlens) for x in (keys, values))
        places = (cu_seqlens, ends, *_NO_TABLES)
        total = add(g_cmp, attend(queries, means_k, means_v, *_NO_MASKS, *places, *options, block_size)[0])
    places = (cu_seqlens, None, *_NO_TABLES)
    if g_slc is not None:
        if block_indices is None:
            block_indices = nsa_blocks.select(
                queries.detach(), keys.detach(), block_counts, block_size, scale, cu_seqlens
            )
        mask = nsa_blocks.mask_of(block_indices, block_counts, block_size, cu_seqlens)
        total = add(g_slc, attend(queries, keys, values, *mask, None, None, *places, *options)[0])
    if g_swa is not None and window_size:
        options = _attention.options(_NAME, scale, True, window_size, None, True, _attention.BLOCK, 0)
        total = add(g_swa, attend(queries, keys, values, *_NO_MASKS, *places, *options)[0])
    return q.new_zeros((*q.shape[:3], v.shape[3])) if total is None else total.to(q.dtype)


def _check(
    q: Any,
    k: Any,
    v: Any,
    gates: dict[str, Any],
    block_indices: Any,
    block_counts: Any,
    block_size: Any,
    window_size: Any,
    cu_seqlens: Any,
) -> None:
    for arg, tensor in (("q", q), ("k", k), ("v", v)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{_NAME}: {arg} must be a tensor; got {type(tensor).__name__}")
        if tensor.dim() != 4:
            _linear.shape_error(_NAME, arg, "have 4 dimensions", tensor)
    B, T, HQ, _ = q.shape
    for arg, tensor in (("k", k), ("v", v)):
        if tensor.shape[:2] != (B, T):
            _linear.shape_error(_NAME, arg, f"have q's batch and tokens ({B}, {T})", tensor)
    H = k.shape[2]
    if H < 1 or HQ % H:
        _linear.shape_error(_NAME, "k", f"have heads that divide q's {HQ}", k)
    _linear.check_tensors(_NAME, **gates, block_indices=block_indices, cu_seqlens=cu_seqlens)
    for arg, gate in gates.items():
        if gate is not None and gate.shape != (B, T, HQ):
            _linear.shape_error(_NAME, arg, f"have shape ({B}, {T}, {HQ})", gate)
    for arg, value, lowest in (("block_size", block_size, 1), ("window_size", window_size, 0)):
        _attention.check_integers(_NAME, **{arg: value})
        if value < lowest:
            raise ValueError(f"{_NAME}: {arg} must be at least {lowest}; got {value}")
    if block_indices is not None:
        if block_indices.dtype not in (torch.int32, torch.int64):
            _linear.dtype_error(_NAME, "block_indices", "be int32 or int64", block_indices)
        if block_indices.dim() != 4 or block_indices.shape[:3] != (B, T, H):
            _linear.shape_error(_NAME, "block_indices", f"have shape ({B}, {T}, {H}, S)", block_indices)
    if isinstance(block_counts, Tensor):
        if block_counts.shape != (B, T, H):
            _linear.shape_error(_NAME, "block_counts", f"have shape ({B}, {T}, {H})", block_counts)
    else:
        _attention.check_integers(_NAME, block_counts=block_counts)
        if block_counts < 0:
            raise ValueError(f"{_NAME}: block_counts must be at least 0; got {block_counts}")
    if cu_seqlens is not None:
        _check_sequences(cu_seqlens, B, T)


def _check_sequences(cu_seqlens: Tensor, B: int, T: int) -> None:
    if B != 1:
        raise ValueError(f"{_NAME}: q must have a batch of 1 where there are cu_seqlens; got {B}")
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        _linear.dtype_error(_NAME, "cu_seqlens", "be int32 or int64", cu_seqlens)
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 1:
        _linear.shape_error(_NAME, "cu_seqlens", "have 1 dimension and at least 1 value", cu_seqlens)
    if torch.compiler.is_compiling():
        return
    ends = cu_seqlens.tolist()
    rule = f"{_NAME}: cu_seqlens must ascend from 0 to {T}"
    if ends[0] != 0:
        raise ValueError(f"{rule}; got {ends[0]} at its beginning")
    if ends[-1] != T:
        raise ValueError(f"{rule}; got {ends[-1]} at its end")
    for before, after in pairwise(ends):
        if after < before:
            raise ValueError(f"{rule}; got {after} after {before}")
