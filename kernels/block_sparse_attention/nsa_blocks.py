"""The blocks of native_sparse_attention: their means, which of them a query selects, and the lists of those."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

# Scores that are made at once: 64 MiB in float32. A query has HQ scores a block.
_SCORES_AT_ONCE = 2**24


def blocks_of(tokens: Any, block_size: int) -> Any:
    """Rounded up; not by a negated floor division, which torch's ONNX exporter rounds towards zero."""
    return (tokens + block_size - 1) // block_size


def means(x: Tensor, block_size: int, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """(B, H, blocks, D) of x's dtype: each block's mean in float32; and where each sequence's blocks end."""
    T = x.shape[2]
    if cu_seqlens is None:
        blocks = blocks_of(T, block_size)
        padded = torch.nn.functional.pad(x.float(), (0, 0, 0, blocks * block_size - T))
        counts = (T - torch.arange(blocks, device=x.device) * block_size).clamp_max(block_size)
        sums = padded.unflatten(2, (blocks, block_size)).sum(3)
        return (sums / counts[:, None]).to(x.dtype), None
    ends, block_of = _blocks_of_tokens(block_size, cu_seqlens, T)
    blocks = int(ends[-1])
    if x.device.type != "cpu":  # there index_add adds in any order
        return _means_in_order(x, block_size, cu_seqlens.long(), ends).to(x.dtype), ends.to(cu_seqlens.dtype)
    sums = x.new_zeros((*x.shape[:2], blocks, x.shape[3]), dtype=torch.float32).index_add(2, block_of, x.float())
    counts = torch.bincount(block_of, minlength=blocks)
    return (sums / counts[:, None]).to(x.dtype), ends.to(cu_seqlens.dtype)


def _means_in_order(x: Tensor, block_size: int, cu_seqlens: Tensor, ends: Tensor) -> Tensor:
    """(B, H, blocks, D) float32, each block's tokens side by side: no two add to one sum."""
    block = torch.arange(int(ends[-1]), device=x.device)
    sequence = torch.searchsorted(ends, block, right=True) - 1
    first = cu_seqlens[sequence] + (block - ends[sequence]) * block_size
    counts = (cu_seqlens[sequence + 1] - first).clamp_max(block_size)
    place = torch.arange(block_size, device=x.device)
    tokens = (first[:, None] + place).clamp_max(max(0, x.shape[2] - 1))
    picked = x.index_select(2, tokens.flatten()).float().unflatten(2, tokens.shape)
    return torch.where((place < counts[:, None])[..., None], picked, 0.0).sum(3) / counts[:, None]


def select(
    q: Tensor,
    k: Tensor,
    block_counts: Any,
    block_size: int,
    scale: float | None,
    cu_seqlens: Tensor | None,
) -> Tensor:
    """block_indices (B, T, H, S): the query's own block, then those with the largest sums over the group's heads of the
    compressed branch's weights; T, which is no block, where there are fewer."""
    count = int(block_counts.amax()) if isinstance(block_counts, Tensor) else block_counts
    scale = q.shape[3] ** -0.5 if scale is None else scale
    if cu_seqlens is None:
        return _select(q, k, count, block_size, scale)
    ends = cu_seqlens.tolist()
    parts = [_select(q[:, :, begin:end], k[:, :, begin:end], count, block_size, scale) for begin, end in pairwise(ends)]
    return torch.cat(parts, 1) if parts else _select(q, k, count, block_size, scale)


def _select(q: Tensor, k: Tensor, count: int, block_size: int, scale: float) -> Tensor:
    B, HQ, T, _ = q.shape
    H, blocks = k.shape[1], blocks_of(T, block_size)
    keys = means(k, block_size, None)[0].float().transpose(-1, -2)[:, :, None]  # (B, H, 1, K, blocks)

    def chosen(begin: Any, rows: Tensor) -> Tensor:
        """(B, rows, H, count) of some queries, from `begin` on."""
        scores = scale * (rows.float().unflatten(1, (H, HQ // H)) @ keys)
        at = (begin + torch.arange(rows.shape[2], device=q.device))[:, None]
        column = torch.arange(blocks, device=q.device)
        scores = scores.masked_fill((column + 1) * block_size - 1 > at, -torch.inf)
        weights = torch.nan_to_num(scores.softmax(-1), nan=0.0).sum(2)  # of a query without a whole block: 0
        own = at // block_size
        weights = torch.where(column == own, torch.inf, weights.masked_fill(column > own, -1.0))
        largest, order = torch.nn.functional.pad(weights, (0, count), value=-1.0).topk(count, -1)
        return torch.where(largest >= 0, order, T).transpose(1, 2)

    if torch.compiler.is_compiling():  # any number of queries: no loop over them
        return chosen(0, q)
    at_once = max(1, _SCORES_AT_ONCE // max(1, B * HQ * blocks))
    nothing = torch.empty(B, 0, H, count, dtype=torch.int64, device=q.device)
    return torch.cat([nothing, *(chosen(i, q[:, :, i : i + at_once]) for i in range(0, T, at_once))], 1)


def mask_of(block_indices: Tensor, block_counts: Any, block_size: int, cu_seqlens: Tensor | None) -> tuple[Any, ...]:
    """(block_mask, row_offsets, columns) of blocks of 1 x block_size: lists, or for an exporter, which wants sizes that
    the values do not decide, a boolean mask."""
    B, T, H, S = block_indices.shape
    indices = block_indices.transpose(1, 2).long()
    counts = block_counts.transpose(1, 2)[..., None] if isinstance(block_counts, Tensor) else block_counts
    columns = blocks_of(T, block_size)
    blocks: Any = columns
    if cu_seqlens is not None:
        lengths = cu_seqlens.long().diff()
        columns = blocks_of(int(lengths.amax()), block_size) if len(lengths) else 0
        blocks = blocks_of(lengths, block_size).repeat_interleave(lengths, output_size=T)[:, None]
    real = (torch.arange(S, device=indices.device) < counts) & (indices >= 0) & (indices < blocks)
    indices = torch.where(real, indices, columns)
    if torch.compiler.is_compiling():
        mask = torch.zeros(B, H, T, columns + 1, dtype=torch.bool, device=indices.device)
        return mask.scatter(-1, indices, True)[..., :-1], None, None
    indices = indices.sort(-1).values
    if indices.device.type != "cpu":
        return None, *_padded_lists(indices, columns)
    real = indices < columns
    real[..., 1:] &= indices[..., 1:] != indices[..., :-1]  # each block once
    sizes = real.sum(-1)
    ends = sizes.flatten().cumsum(0).reshape(B, H, T)
    offsets = torch.cat([ends[..., :1] - sizes[..., :1], ends], -1) if T else torch.zeros(B, H, 1, dtype=torch.int64)
    return None, offsets, indices[real]


def _padded_lists(indices: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """Lists with room for all S of a query, sorted, `columns` behind the last: which block that is, the GPU's kernel
    leaves out. So no size waits for values."""
    B, H, T, S = indices.shape
    again = torch.zeros_like(indices, dtype=torch.bool)
    again[..., 1:] = indices[..., 1:] == indices[..., :-1]
    indices = indices.masked_fill(again, columns).sort(-1).values
    places = torch.arange(B * H, device=indices.device)[:, None] * T + torch.arange(T + 1, device=indices.device)
    return (places * S).view(B, H, T + 1), indices.flatten().int()


def _blocks_of_tokens(block_size: int, cu_seqlens: Tensor, T: int) -> tuple[Tensor, Tensor]:
    """Where each sequence's blocks end (N + 1,), and the block of each token (T,)."""
    lengths = cu_seqlens.long().diff()
    blocks = blocks_of(lengths, block_size)
    ends = torch.cat([blocks.new_zeros(1), blocks.cumsum(0)])
    sequence = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths, output_size=T)
    place = torch.arange(T, device=lengths.device) - cu_seqlens.long()[sequence]
    return ends, ends[sequence] + place // block_size
