"""What the builders of block masks give, without computing it: their Meta kernels."""

from typing import Any

import torch
from torch import Tensor

from deepseek_fast import _load
from deepseek_fast.kernels.block_sparse_attention import meta

_load.load_torch()


def _lists(op: str, is_log: bool, numbers: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    """Their sizes are counted where the numbers are known; else they are symbols of their own."""
    if all(isinstance(number, int) for number in numbers):
        rows, entries = _load.native().block_pattern_sizes(op, is_log, [int(number) for number in numbers])
    else:
        (S_q, _, block_q), entries = numbers[:3], torch.library.get_ctx().new_dynamic_size()
        rows = -(-S_q // block_q)
    return torch.empty((1, 1, rows + 1), dtype=torch.int32), torch.empty(entries, dtype=torch.int32)


@torch.library.register_fake("deepseek_fast::sliding_window_blocks")
def _(
    S_q: Any,
    S_k: Any,
    left: Any,
    right: Any,
    sinks: Any = 0,
    is_causal: bool = False,
    q_offset: Any = 0,
    q_at_end: bool = False,
    block_q: Any = 128,
    block_k: Any = 128,
) -> tuple[Tensor, Tensor]:
    numbers = (S_q, S_k, block_q, block_k, is_causal, q_offset, q_at_end, left, right, sinks)
    return _lists("sliding_window_blocks", False, numbers)


@torch.library.register_fake("deepseek_fast::local_log_blocks")
def _(
    S_q: Any,
    S_k: Any,
    local: Any = 2,
    first: Any = 1,
    is_causal: bool = True,
    q_offset: Any = 0,
    q_at_end: bool = False,
    block_q: Any = 128,
    block_k: Any = 128,
) -> tuple[Tensor, Tensor]:
    numbers = (S_q, S_k, block_q, block_k, is_causal, q_offset, q_at_end, local, first)
    return _lists("local_log_blocks", True, numbers)


@torch.library.register_fake("deepseek_fast::block_lists")
def _(block_mask: Tensor) -> tuple[Tensor, Tensor]:
    meta.check_bool_mask("block_lists", block_mask)
    leading = block_mask.shape[:2] if block_mask.dim() == 4 else (1, 1)
    entries = torch.library.get_ctx().new_dynamic_size()
    offsets = block_mask.new_empty((*leading, block_mask.shape[-2] + 1), dtype=torch.int32)
    return offsets, block_mask.new_empty(entries, dtype=torch.int32)


@torch.library.register_fake("deepseek_fast::top_k_blocks")
def _(
    q: Tensor,
    k: Tensor,
    num_blocks: Any,
    scale: float | None = None,
    first: Any = 1,
    local: Any = 1,
    is_causal: bool = False,
    q_offset: Any = 0,
    q_at_end: bool = False,
    block_q: Any = 128,
    block_k: Any = 128,
) -> Tensor:
    op = "top_k_blocks"
    meta.check_qkv(op, q, k, k, enable_gqa=True)
    if not all(1 <= size <= 2**30 for size in (block_q, block_k)):
        raise ValueError(f"{op}: block_size must be two numbers from 1 to 2^30; got {(block_q, block_k)}")
    for arg, value, lowest in (("num_blocks", num_blocks, 1), ("first", first, 0), ("local", local, 0)):
        if value < lowest:
            raise ValueError(f"{op}: {arg} must be at least {lowest}; got {value}")
    rows, columns = -(-q.shape[2] // block_q), -(-k.shape[2] // block_k)
    return q.new_empty((*q.shape[:2], rows, columns), dtype=torch.bool)
