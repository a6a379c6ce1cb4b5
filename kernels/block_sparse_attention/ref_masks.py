"""Which key a query of block_sparse_attention sees: every way to say it, as one boolean tensor.

visible = kept block and (causal) and (window or sink token) and the same sequence

A key and a query have positions in their own sequence: key j is at j, query i at i + q_offset, or, with q_offset "end",
at i + len_k - len_q, so that the last query stands on the last key.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_mask

KEY_STEP = 64  # keys that one step of a kernel takes; also the size of a block where there is no mask


class Sizes(NamedTuple):
    """B, H, S, D of q, and how many heads and keys k has."""

    B: int
    H: int
    H_kv: int
    S_q: int
    S_k: int


class Sequence(NamedTuple):
    """Queries and keys of one sequence, and its first row of blocks."""

    queries: slice
    keys: slice
    first_row: int

    @property
    def lengths(self) -> tuple[int, int]:
        return self.queries.stop - self.queries.start, self.keys.stop - self.keys.start


def sizes_of(q: Tensor, k: Tensor) -> Sizes:
    return Sizes(q.shape[0], q.shape[1], k.shape[1], q.shape[2], k.shape[2])


def visible(
    sizes: Sizes,
    block_mask: Any = None,
    *,
    block_size: int | tuple[int, int] = 128,
    is_causal: bool = False,
    window: int | tuple[int | None, int | None] | None = None,
    sinks: int | None = None,
    q_offset: int | str = 0,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
) -> Tensor:
    """bool (B, H, S_q, S_k)."""
    size_q, size_k = pair(block_size)
    cu_seqlens_k = cu_seqlens_q if cu_seqlens_k is None else cu_seqlens_k
    result = torch.zeros(sizes.B, sizes.H, sizes.S_q, sizes.S_k, dtype=torch.bool)
    if isinstance(block_mask, BlockMask):
        result[:] = spread_over_heads(flex_elements(block_mask, sizes), sizes.H)
        kept = None
    else:
        rows = sum(-(-s.lengths[0] // size_q) for s in sequences(sizes, cu_seqlens_q, cu_seqlens_k, size_q))
        kept = None if block_mask is None else block_matrix(block_mask, rows, max_columns(sizes, cu_seqlens_k, size_k))
    for part in sequences(sizes, cu_seqlens_q, cu_seqlens_k, size_q):
        i, j = (torch.arange(length) for length in part.lengths)
        seen = position_mask(*part.lengths, is_causal, window, sinks, q_offset)
        if kept is not None:
            elements = kept[:, :, part.first_row + i // size_q][..., j // size_k]
            seen = seen & spread_over_heads(elements, sizes.H)
        place = result[:, :, part.queries, part.keys]
        place[:] = seen & place if isinstance(block_mask, BlockMask) else seen
    return result


def position_mask(
    len_q: int,
    len_k: int,
    is_causal: bool,
    window: int | tuple[int | None, int | None] | None,
    sinks: int | None,
    q_offset: int | str,
) -> Tensor:
    """bool (len_q, len_k): what positions alone decide."""
    at = torch.arange(len_q)[:, None] + (len_k - len_q if q_offset == "end" else int(q_offset))
    j = torch.arange(len_k)[None]
    left, right = window_sides(window)
    near = torch.ones(len_q, len_k, dtype=torch.bool)
    if left is not None:
        near &= j >= at - left
    if right is not None:
        near &= j <= at + right
    if sinks:
        near |= j < sinks
    return near & (j <= at) if is_causal else near


def window_sides(window: int | tuple[int | None, int | None] | None) -> tuple[int | None, int | None]:
    """Keys before and after a query's own: an integer w is (w - 1, w - 1); None and -1 are no limit."""
    left, right = (window - 1, window - 1) if isinstance(window, int) else window or (None, None)
    return None if left in (None, -1) else left, None if right in (None, -1) else right


def sequences(sizes: Sizes, cu_seqlens_q: Tensor | None, cu_seqlens_k: Tensor | None, size_q: int) -> list[Sequence]:
    """All of the batch as one, or those of cu_seqlens, whose blocks begin anew at each."""
    if cu_seqlens_q is None:
        return [Sequence(slice(0, sizes.S_q), slice(0, sizes.S_k), 0)]
    ends_q = cu_seqlens_q.tolist()
    ends_k = ends_q if cu_seqlens_k is None else cu_seqlens_k.tolist()
    result, row = [], 0
    for n in range(len(ends_q) - 1):
        result.append(Sequence(slice(ends_q[n], ends_q[n + 1]), slice(ends_k[n], ends_k[n + 1]), row))
        row += -(-(ends_q[n + 1] - ends_q[n]) // size_q)
    return result


def max_columns(sizes: Sizes, cu_seqlens_k: Tensor | None, size_k: int) -> int:
    lengths = [sizes.S_k] if cu_seqlens_k is None else cu_seqlens_k.diff().tolist()
    return max((-(-length // size_k) for length in lengths), default=0)


def block_matrix(block_mask: Any, rows: int, columns: int) -> Tensor:
    """bool (B | 1, H | H_kv | 1, rows, columns) of a boolean tensor or of lists (row_offsets, columns)."""
    if isinstance(block_mask, Tensor):
        assert block_mask.shape[-2:] == (rows, columns), (block_mask.shape, rows, columns)
        return block_mask if block_mask.dim() == 4 else block_mask[None, None]
    offsets, listed = block_mask
    offsets = offsets if offsets.dim() == 3 else offsets[None, None]
    assert offsets.shape[-1] == rows + 1
    result = torch.zeros(*offsets.shape[:2], rows, columns, dtype=torch.bool)
    for b in range(offsets.shape[0]):
        for h in range(offsets.shape[1]):
            ends = offsets[b, h].tolist()
            for row in range(rows):
                result[b, h, row, listed[ends[row] : ends[row + 1]].long()] = True
    return result


def lists_of(kept: Tensor) -> tuple[Tensor, Tensor]:
    """The lists of a boolean (B | 1, H | 1, rows, columns): row_offsets (B | 1, H | 1, rows + 1) and columns, int32.

    Offsets count from the beginning of columns, which are ascending in each row.
    """
    counts = kept.sum(-1)
    starts = counts.flatten().cumsum(0) - counts.flatten()
    starts = starts.reshape(counts.shape)
    ends = (starts + counts)[..., -1:] if kept.shape[-2] else torch.zeros(*kept.shape[:2], 1, dtype=torch.int64)
    return torch.cat([starts, ends], -1).int(), kept.nonzero()[:, 3].int()


def flex_elements(mask: BlockMask, sizes: Sizes) -> Tensor:
    """bool (B | 1, H | 1, S_q, S_k): whole blocks, and of the others what mask_mod allows."""
    size_q, size_k = mask.BLOCK_SIZE
    shape = (*mask.kv_num_blocks.shape[:2], -(-sizes.S_q // size_q), -(-sizes.S_k // size_k))
    partial = flex_blocks(mask.kv_num_blocks, mask.kv_indices, shape)
    i, j = torch.arange(sizes.S_q) // size_q, torch.arange(sizes.S_k) // size_k
    allowed = create_mask(mask.mask_mod, shape[0], shape[1], sizes.S_q, sizes.S_k, "cpu")
    seen = partial[:, :, i][..., j] & allowed
    if mask.full_kv_num_blocks is not None:
        seen = seen | flex_blocks(mask.full_kv_num_blocks, mask.full_kv_indices, shape)[:, :, i][..., j]
    return seen


def flex_blocks(counts: Tensor, indices: Any, shape: tuple[int, ...]) -> Tensor:
    """FlexAttention's lists as a boolean tensor: the first counts[b, h, row] of indices[b, h, row] count."""
    result = torch.zeros(shape, dtype=torch.bool)
    listed = torch.arange(indices.shape[-1]) < counts[..., None]
    places = torch.where(listed, indices.long(), shape[-1])  # one column more, for those that do not count
    return torch.cat([result, torch.zeros(*shape[:-1], 1, dtype=torch.bool)], -1).scatter(-1, places, True)[..., :-1]


def spread_over_heads(mask: Tensor, H: int) -> Tensor:
    """(B | 1, H, ...) of one mask for all heads, for each, or for each group that shares a head of k."""
    return mask if mask.shape[1] in (1, H) else mask.repeat_interleave(H // mask.shape[1], 1)


def pair(block_size: int | tuple[int, int]) -> tuple[int, int]:
    return (block_size, block_size) if isinstance(block_size, int) else block_size
