"""The builders of block masks in torch: what positions, sizes or scores choose; meta_builders.py has Meta kernels."""

from typing import Any

import torch
from torch import Tensor

from deepseek_fast import _attention
from deepseek_fast.gpu.register import register
from deepseek_fast.kernels.block_sparse_attention import meta_builders as meta_builders
from deepseek_fast.kernels.block_sparse_attention.op import call

_OPS = torch.ops.deepseek_fast
register("block_sparse_attention", "top_k_blocks", on_host=("block_lists",))


def sliding_window_blocks(
    S_q: int,
    S_k: int,
    window: Any,
    *,
    block_size: Any = _attention.BLOCK,
    is_causal: bool = False,
    sinks: int | None = None,
    q_offset: Any = 0,
) -> tuple[Tensor, Tensor]:
    """Lists of the blocks with a key that some query of the row sees through a window.

    S_q, S_k: queries and keys; window, is_causal, sinks, q_offset, block_size: as block_sparse_attention takes them,
    which needs the same again, for the blocks at the window's edges.
    Returns row_offsets (1, 1, rows + 1) and columns (entries,), int32: block_mask of block_sparse_attention. Time and
    memory are those of the entries. Raises ValueError.

    >>> offsets, columns = deepseek_fast.sliding_window_blocks(1024, 1024, 256, is_causal=True)
    >>> offsets.shape, columns.shape
    (torch.Size([1, 1, 9]), torch.Size([21]))

    Source: kernels/block_sparse_attention/README.md.
    """
    op = "sliding_window_blocks"
    numbers = _attention.pattern(op, S_q, S_k, block_size, is_causal, q_offset)
    left, right, sinks = _attention.window_and_sinks(op, window, sinks)
    S_q, S_k, block_q, block_k, *place = numbers
    return call(_OPS.sliding_window_blocks.default, S_q, S_k, left, right, sinks, *place, block_q, block_k)  # type: ignore[no-any-return]


def local_log_blocks(
    S_q: int,
    S_k: int,
    *,
    block_size: Any = _attention.BLOCK,
    local: int = 2,
    first: int = 1,
    is_causal: bool = True,
    q_offset: Any = 0,
) -> tuple[Tensor, Tensor]:
    """Lists of near blocks, and of far ones at distances that double: at most local + first + log2 n a row.

    S_q, S_k, block_size, q_offset: as block_sparse_attention has them. A row keeps the blocks at a distance below
    `local` of its own, then those at local - 1 + 1, 2, 4, 8 ..., and the `first` blocks; to the left only where
    is_causal, which the attention needs again. Over log2 n layers each block reaches every other.
    Returns row_offsets (1, 1, rows + 1) and columns (entries,), int32: block_mask of block_sparse_attention. Time and
    memory are O(n log n) in the number n of blocks. Raises ValueError.

    >>> offsets, columns = deepseek_fast.local_log_blocks(65536, 65536)
    >>> offsets.shape, columns.shape
    (torch.Size([1, 1, 513]), torch.Size([5612]))

    Source: Li et al. 2019, LogSparse; kernels/block_sparse_attention/README.md.
    """
    op = "local_log_blocks"
    S_q, S_k, block_q, block_k, *place = _attention.pattern(op, S_q, S_k, block_size, is_causal, q_offset)
    _attention.check_integers(op, local=local, first=first)
    return call(_OPS.local_log_blocks.default, S_q, S_k, local, first, *place, block_q, block_k)  # type: ignore[no-any-return]


def top_k_blocks(
    q: Tensor,
    k: Tensor,
    num_blocks: int,
    *,
    block_size: Any = _attention.BLOCK,
    scale: float | None = None,
    first: int = 1,
    local: int = 1,
    is_causal: bool = False,
    q_offset: Any = 0,
) -> Tensor:
    """The num_blocks blocks of keys whose mean has the largest products with the mean of a block of queries.

    q: (B, H, S_q, D), k: (B, H_kv, S_k, D), float32, bfloat16 or float16, as block_sparse_attention takes them.
    The `first` blocks and those at a distance below `local` of the row's own are among them whatever they score, and
    more than num_blocks if need be; with is_causal no block lies behind the row's own. Of equal scores the lower block.
    Returns bool (B, H, rows, columns): block_mask of block_sparse_attention. It has no gradient.
    Raises ValueError for shapes and values, TypeError for dtypes. Numerics: means and products in float32.

    >>> q, k = torch.randn(1, 8, 1024, 64), torch.randn(1, 2, 1024, 64)
    >>> deepseek_fast.top_k_blocks(q, k, 4, is_causal=True).shape
    torch.Size([1, 8, 8, 8])

    Source: kernels/block_sparse_attention/README.md.
    """
    op = "top_k_blocks"
    for arg, tensor in (("q", q), ("k", k)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: {arg} must be a tensor; got {type(tensor).__name__}")
    _attention.check_integers(op, num_blocks=num_blocks, first=first, local=local)
    scale, is_causal, *_, q_offset, at_end, _, block_q, block_k = _attention.options(
        op, scale, is_causal, None, None, True, block_size, q_offset
    )
    options = (num_blocks, scale, first, local, is_causal, q_offset, at_end, block_q, block_k)
    return call(_OPS.top_k_blocks.default, q.detach(), k.detach(), *options)  # type: ignore[no-any-return]


def block_lists(block_mask: Tensor) -> tuple[Tensor, Tensor]:
    """The lists of a boolean mask: what block_sparse_attention reads fastest where few blocks are kept.

    block_mask: bool (B or 1, heads, rows, columns) or (rows, columns). Returns row_offsets (B or 1, heads, rows + 1)
    and columns (entries,), int32. Raises ValueError for shapes, TypeError for dtypes.

    >>> offsets, columns = deepseek_fast.block_lists(torch.eye(8, dtype=torch.bool))
    >>> offsets.shape, columns.shape
    (torch.Size([1, 1, 9]), torch.Size([8]))
    """
    if not isinstance(block_mask, Tensor):
        raise TypeError(f"block_lists: block_mask must be a tensor; got {type(block_mask).__name__}")
    return call(_OPS.block_lists.default, block_mask)  # type: ignore[no-any-return]
