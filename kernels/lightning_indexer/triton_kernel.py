"""fp8_mqa_logits, its paged form, topk_indices and lightning_indexer on CUDA tensors.

Tables and launches: triton_launch.py; kernels: triton_logits.py, triton_select.py. The fused forms take some queries at
a time: their logits go to a scratch that stays in the L2 cache, the selection reads them there, and the next queries'
logits overwrite them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deepseek_fast.kernels.lightning_indexer import triton_launch as launches
from deepseek_fast.kernels.lightning_indexer.triton_launch import DENSE, PAGED, ROWS_ALIGNED, Windows

# --- logits ----------------------------------------------------------------------------------------------------------


def fp8_mqa_logits(
    q: Tensor,
    k: Tensor,
    k_scale: Tensor,
    weights: Tensor,
    ks: Tensor | None,
    ke: Tensor | None,
    max_seqlen_k: int,
    dtype: torch.dtype,
) -> Tensor:
    s_q, s_kv = q.shape[0], k.shape[0]
    windows = launches.dense_windows(ks, ke)
    if max_seqlen_k > 0:  # the kernel writes what is seen
        out = q.new_full((s_q, max_seqlen_k), -torch.inf, dtype=dtype)
    else:
        out = q.new_empty((s_q, s_kv), dtype=dtype)
    if out.numel() and s_kv:
        operands = launches.dense_operands(q, k, k_scale, weights)
        config = DENSE.choose(s_q=s_q, tokens=s_kv, H=q.shape[1], D=q.shape[2])
        launches.dense(operands, windows, 0, s_q, out, config, cut=True, compressed=max_seqlen_k > 0)
    return out


def fp8_paged_mqa_logits(
    q: Tensor,
    cache: Tensor,
    weights: Tensor,
    context_lens: Tensor,
    block_table: Tensor,
    max_context_len: int,
    dtype: torch.dtype,
) -> Tensor:
    b, next_n, H, D = q.shape
    out = q.new_empty((b * next_n, max_context_len), dtype=dtype)
    if out.numel():
        tokens = min(block_table.shape[1] * cache.shape[1], max_context_len)
        config = PAGED.choose(next_n=next_n, tokens=max_context_len, H=H, D=D)
        windows = launches.paged_windows(context_lens, next_n)
        launches.paged(
            launches.paged_operands(q, cache, weights, block_table),
            windows,
            0,
            b * next_n,
            tokens,
            out,
            config,
            cut=True,
        )
    return out


# --- selections ------------------------------------------------------------------------------------------------------


def topk_indices(scores: Tensor, k: int, sorted_by: str, lengths: Tensor | None) -> Tensor:
    n = scores.shape[-1]
    out = scores.new_empty((*scores.shape[:-1], k), dtype=torch.int32)
    if out.numel():
        rows = scores.reshape(-1, n) if n else scores.new_empty(out.numel() // k, 0)
        rows = rows if n <= 1 or rows.stride(-1) == 1 else rows.contiguous()
        ends = None if lengths is None else lengths.reshape(-1).contiguous()
        windows = Windows(None, ends)
        launches.choose(rows, windows, n, k, sorted_by, out.view(-1, k))
    return out


def lightning_indexer(
    q: Tensor,
    k: Tensor,
    k_scale: Tensor,
    weights: Tensor,
    top_k: int,
    ks: Tensor | None,
    ke: Tensor | None,
    sorted_by: str,
) -> Tensor:
    s_q, s_kv = q.shape[0], k.shape[0]
    out = q.new_empty((s_q, top_k), dtype=torch.int32)
    if not out.numel():
        return out
    windows = launches.dense_windows(ks, ke)
    if not s_kv:
        return out.fill_(-1)
    operands = launches.dense_operands(q, k, k_scale, weights)
    config = DENSE.choose(s_q=s_q, tokens=s_kv, H=q.shape[1], D=q.shape[2])
    scratch = launches.scratch_for(q, s_q, s_kv, ROWS_ALIGNED, 1)
    for first in range(0, s_q, scratch.shape[0]):
        rows = min(scratch.shape[0], s_q - first)
        launches.dense(operands, windows, first, rows, scratch, config, cut=False)
        launches.choose(scratch[:rows], windows, s_kv, top_k, sorted_by, out[first : first + rows], first=first)
    return out


def lightning_indexer_paged(
    q: Tensor,
    cache: Tensor,
    weights: Tensor,
    context_lens: Tensor,
    block_table: Tensor,
    top_k: int,
    sorted_by: str,
    as_slots: bool,
) -> Tensor:
    b, next_n, H, D = q.shape
    out = q.new_empty((b, next_n, top_k), dtype=torch.int32)
    tokens = block_table.shape[1] * cache.shape[1]
    if not out.numel():
        return out
    if not tokens:
        return out.fill_(-1)
    operands = launches.paged_operands(q, cache, weights, block_table)
    windows = launches.paged_windows(context_lens, next_n)
    config = PAGED.choose(next_n=next_n, tokens=tokens, H=H, D=D)
    flat = out.view(b * next_n, top_k)
    scratch = launches.scratch_for(q, b * next_n, tokens, next_n, next_n)
    for first in range(0, b * next_n, scratch.shape[0]):
        rows = min(scratch.shape[0], b * next_n - first)
        launches.paged(operands, windows, first, rows, tokens, scratch, config, cut=False)
        launches.choose(scratch[:rows], windows, tokens, top_k, sorted_by, flat[first : first + rows], first=first)
    if as_slots:
        launches.to_slots(out, operands.table, cache.shape[1])
    return out


OPS: dict[str, Callable[..., Any]] = {
    "fp8_mqa_logits": fp8_mqa_logits,
    "fp8_paged_mqa_logits": fp8_paged_mqa_logits,
    "topk_indices": topk_indices,
    "lightning_indexer": lightning_indexer,
    "lightning_indexer_paged": lightning_indexer_paged,
}
