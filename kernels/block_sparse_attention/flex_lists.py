"""A FlexAttention BlockMask as lists of blocks; of its partial blocks, which tokens count, as tables of bits."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

_NAME = "block_sparse_attention"
_BITS_PER_WORD = 64
_MOST_ELEMENTS = 1 << 24  # of the boolean tables that are made at a time


def is_flex(block_mask: Any) -> bool:
    """Whether it is a BlockMask, whose module takes long to import."""
    return hasattr(block_mask, "kv_num_blocks") and hasattr(block_mask, "mask_mod")


def flex_block_lists(block_mask: Any, lengths: Any = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A FlexAttention BlockMask as block_sparse_attention's lists, made once for many calls.

    block_mask: torch.nn.attention.flex_attention.BlockMask. mask_mod is asked for the tokens of the partial blocks
    alone, by torch.vmap, without a compile step. lengths: (S_q, S_k), the mask's own if left out; mask_mod is asked for
    no position beyond.
    Returns (row_offsets (B, H, rows + 1), columns (entries,), tables (entries,), bits (blocks, queries, words)), int32
    but for the bits' int64: what block_sparse_attention takes as block_mask, with the mask's BLOCK_SIZE as
    block_size. Raises ValueError for indices outside the mask.

    >>> mask = create_block_mask(lambda b, h, i, j: j <= i, 1, 1, 512, 512, device="cpu")
    >>> lists = deepseek_fast.flex_block_lists(mask)
    >>> deepseek_fast.block_sparse_attention(q, k, v, lists, block_size=mask.BLOCK_SIZE)
    """
    if not is_flex(block_mask):
        raise TypeError(f"flex_block_lists: block_mask must be a BlockMask; got {type(block_mask).__name__}")
    lengths = tuple(block_mask.seq_lengths) if lengths is None else lengths
    size_q, size_k = block_mask.BLOCK_SIZE
    counts = block_mask.kv_num_blocks
    shape = (*counts.shape, -(-lengths[1] // size_k))
    partial = _blocks(counts, block_mask.kv_indices, shape)
    full = torch.zeros_like(partial)
    if block_mask.full_kv_num_blocks is not None:
        full = _blocks(block_mask.full_kv_num_blocks, block_mask.full_kv_indices, shape)
    partial &= ~full
    kept = partial | full
    places = kept.nonzero()
    is_partial = partial[kept]
    tables = torch.where(is_partial, is_partial.cumsum(0) - 1, -1).int()
    ends = kept.sum(-1).flatten().cumsum(0).reshape(shape[:3])
    starts = ends[..., :1] - kept[..., :1, :].sum(-1) if shape[2] else ends.new_zeros(*shape[:2], 1)
    bits = _bits(block_mask.mask_mod, places[is_partial], (size_q, size_k), lengths)
    return torch.cat([starts, ends], -1).int(), places[:, 3].int(), tables, bits


def _blocks(counts: Tensor, indices: Tensor, shape: tuple[int, ...]) -> Tensor:
    """bool of shape: of each row the first counts of its indices."""
    columns = shape[-1]
    listed = torch.arange(indices.shape[-1], device=indices.device) < counts[..., None]
    places = torch.where(listed, indices.long(), columns)
    outside = listed & ((places < 0) | (places >= columns))
    if outside.any():
        rule = f"have columns from 0 to {columns - 1}"
        raise ValueError(f"{_NAME}: block_mask must {rule}; got {int(places[outside][0])}")
    none = torch.zeros(*shape[:-1], columns + 1, dtype=torch.bool, device=indices.device)
    return none.scatter_(-1, places, True)[..., :-1].contiguous()


def _bits(mask_mod: Any, places: Tensor, sizes: tuple[int, int], lengths: Any) -> Tensor:
    """(partial blocks, queries, words) int64, 64 keys a word, the first in its lowest bit."""
    words, device = -(-sizes[1] // _BITS_PER_WORD), places.device
    result = torch.zeros(len(places), sizes[0], words, dtype=torch.int64, device=device)
    of_keys = torch.vmap(mask_mod, (None, None, None, 0))
    of_blocks = torch.vmap(torch.vmap(of_keys, (None, None, 0, None)), (0, 0, 0, 0))
    step = max(1, _MOST_ELEMENTS // (sizes[0] * sizes[1]))
    for begin in range(0, len(places), step):
        b, h, row, column = places[begin : begin + step].unbind(-1)
        i = row[:, None] * sizes[0] + torch.arange(sizes[0], device=device)
        j = column[:, None] * sizes[1] + torch.arange(sizes[1], device=device)
        allowed = of_blocks(b, h, i.clamp_max(lengths[0] - 1), j.clamp_max(lengths[1] - 1))
        allowed = allowed.expand(len(b), *sizes) & (i < lengths[0])[:, :, None] & (j < lengths[1])[:, None]
        result[begin : begin + step] = _packed(allowed, words)
    return result


def _packed(allowed: Tensor, words: int) -> Tensor:
    """int64 (..., words) of booleans, the first in the lowest bit."""
    if allowed.device.type == "cpu":
        packed = np.zeros((*allowed.shape[:-1], words * 8), np.uint8)
        of_bytes = np.packbits(allowed.numpy(), axis=-1, bitorder="little")
        packed[..., : of_bytes.shape[-1]] = of_bytes
        return torch.from_numpy(packed.view("<i8"))
    padded = torch.nn.functional.pad(allowed, (0, words * _BITS_PER_WORD - allowed.shape[-1]))
    places = torch.arange(_BITS_PER_WORD, device=allowed.device)
    return (padded.unflatten(-1, (words, _BITS_PER_WORD)).long() << places).sum(-1)
