"""Builders of block masks, by their plain definition: each gives a boolean (rows, columns) or (B, H, rows, columns).

A row's own blocks are the key blocks that hold the positions of its queries; distance counts key blocks from those.
"""

from typing import Any

import torch
from torch import Tensor

from deepseek_fast.kernels.block_sparse_attention.ref import per_head, scale_of
from deepseek_fast.kernels.block_sparse_attention.ref_bounds import F32_MIN_SUBNORMAL, gamma
from deepseek_fast.kernels.block_sparse_attention.ref_masks import pair, position_mask


def sliding_window_blocks_ref(
    S_q: int,
    S_k: int,
    window: Any,
    *,
    block_size: int | tuple[int, int] = 128,
    is_causal: bool = False,
    sinks: int | None = None,
    q_offset: int | str = 0,
) -> Tensor:
    """The blocks with a key that some query sees; the call needs the same window, for the blocks at its edges."""
    size_q, size_k = pair(block_size)
    seen = position_mask(S_q, S_k, is_causal, window, sinks, q_offset)
    padded = torch.nn.functional.pad(seen, (0, -S_k % size_k, 0, -S_q % size_q))
    return padded.reshape(-(-S_q // size_q), size_q, -(-S_k // size_k), size_k).any(3).any(1)


def local_log_blocks_ref(
    S_q: int,
    S_k: int,
    *,
    block_size: int | tuple[int, int] = 128,
    local: int = 2,
    first: int = 1,
    is_causal: bool = True,
    q_offset: int | str = 0,
) -> Tensor:
    """Distances below `local`, then local - 1 + 1, 2, 4, 8 ...; the first blocks: at most local + first + log2 n a row.

    Each position is log2 n blocks from every other by way of rows between them. LogSparse, Li et al. 2019.
    """
    own, distance, columns = _distances(S_q, S_k, block_size, q_offset)
    beyond = distance.abs() - local + 1
    kept = (beyond <= 0) | (beyond & (beyond - 1) == 0) | (columns < first)
    return kept & _reachable(own, columns, is_causal)


def pooled_scores_ref(
    q: Tensor, k: Tensor, *, block_size: int | tuple[int, int] = 128, scale: float | None = None
) -> Tensor:
    """float64 (B, H, rows, columns): scale * mean of a block's queries . mean of a block's keys."""
    size_q, size_k = pair(block_size)
    means_q, means_k = block_means(q.double(), size_q), block_means(k.double(), size_k)
    return scale_of(q, scale) * means_q @ per_head(means_k, q.shape[1]).transpose(-1, -2)


def pooled_scores_bound(
    q: Tensor, k: Tensor, *, block_size: int | tuple[int, int] = 128, scale: float | None = None
) -> Tensor:
    """Means summed in one chain and divided, a dot product of D, the scale: all in f32."""
    size_q, size_k = pair(block_size)
    size = abs(pooled_scores_ref(q.abs(), k.abs(), block_size=block_size, scale=scale))
    return gamma(size_q + size_k + q.shape[-1] + 8) * size + 4 * q.shape[-1] * F32_MIN_SUBNORMAL


def top_k_blocks_ref(
    q: Tensor,
    k: Tensor,
    num_blocks: int,
    *,
    block_size: int | tuple[int, int] = 128,
    scale: float | None = None,
    first: int = 1,
    local: int = 1,
    is_causal: bool = False,
    q_offset: int | str = 0,
) -> Tensor:
    """The num_blocks of each row with the largest pooled scores; of equal ones the lower column.

    The first blocks and those at a distance below `local` are among them whatever they score, more than num_blocks of
    them if need be. Blocks that no query of the row may see are none.
    """
    scores = pooled_scores_ref(q, k, block_size=block_size, scale=scale)
    forced, candidates = forced_and_candidates(q.shape[2], k.shape[2], block_size, first, local, is_causal, q_offset)
    ranked = scores.masked_fill(forced, torch.inf).masked_fill(~candidates, -torch.inf)
    order = ranked.argsort(dim=-1, descending=True, stable=True)
    place = order.argsort(-1)
    return ((place < num_blocks) | forced) & candidates


def is_top_k(kept: Tensor, scores: Tensor, error: Tensor, num_blocks: int, forced: Tensor, candidates: Tensor) -> bool:
    """Whether a selection is right for scores that are known to within `error`: enough blocks, the forced ones, and no
    block left out whose score is certainly above that of a kept one."""
    wanted = torch.maximum(candidates.sum(-1).clamp_max(num_blocks), forced.sum(-1))
    if not ((kept.sum(-1) == wanted).all() and (kept | ~forced).all() and (candidates | ~kept).all()):
        return False
    chosen = kept & ~forced
    least = torch.where(chosen, scores + error, torch.inf)
    best_left = torch.where(candidates & ~kept, scores - error, -torch.inf)
    if kept.shape[-1] == 0:
        return True
    return bool((least.amin(-1) >= best_left.amax(-1)).all())


def forced_and_candidates(
    S_q: int, S_k: int, block_size: Any, first: int, local: int, is_causal: bool, q_offset: int | str
) -> tuple[Tensor, Tensor]:
    own, distance, columns = _distances(S_q, S_k, block_size, q_offset)
    candidates = _reachable(own, columns, is_causal)
    return ((distance.abs() < local) | (columns < first)) & candidates, candidates


def block_means(x: Tensor, size: int) -> Tensor:
    """(..., blocks, D) of (..., S, D): the mean of the tokens that a block has, the last perhaps fewer."""
    S, D = x.shape[-2:]
    count = torch.full((-(-S // size), 1), float(size), dtype=x.dtype)
    if S % size:
        count[-1] = S % size
    padded = torch.nn.functional.pad(x, (0, 0, 0, -S % size))
    return padded.reshape(*x.shape[:-2], len(count), size, D).sum(-2) / count


def _distances(S_q: int, S_k: int, block_size: Any, q_offset: int | str) -> tuple[Tensor, Tensor, Tensor]:
    """Last of the own blocks of each row (rows, 1), distance (rows, columns), above zero to the left, and columns."""
    size_q, size_k = pair(block_size)
    offset = S_k - S_q if q_offset == "end" else int(q_offset)
    rows = torch.arange(-(-S_q // size_q))[:, None]
    begin = (rows * size_q + offset).div(size_k, rounding_mode="floor")
    end = ((rows * size_q + size_q).clamp_max(S_q) - 1 + offset).div(size_k, rounding_mode="floor")
    columns = torch.arange(-(-S_k // size_k))[None]
    distance = torch.where(columns < begin, begin - columns, torch.where(columns > end, end - columns, 0))
    return end, distance, columns


def _reachable(own: Tensor, columns: Tensor, is_causal: bool) -> Tensor:
    return (columns <= own) if is_causal else torch.ones_like(columns <= own)
