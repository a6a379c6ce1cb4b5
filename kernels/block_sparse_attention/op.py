"""block_sparse_attention in torch: the public function; meta.py has its Meta kernels, grad.py its gradients,
flex_lists.py what becomes of a FlexAttention BlockMask."""

from typing import Any

import torch
from torch import Tensor

from deepseek_fast import _attention, _linear
from deepseek_fast.gpu.register import register
from deepseek_fast.kernels.block_sparse_attention import grad
from deepseek_fast.kernels.block_sparse_attention.flex_lists import flex_block_lists, is_flex

__all__ = ["block_sparse_attention", "flex_block_lists"]
_OP = torch.ops.deepseek_fast.block_sparse_attention.default
_NAME = "block_sparse_attention"


def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_mask: Any = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    window: Any = None,
    sinks: int | None = None,
    enable_gqa: bool = True,
    return_lse: bool = False,
    block_size: Any = _attention.BLOCK,
    token_bias: Tensor | None = None,
    sink_logits: Tensor | None = None,
    q_offset: Any = 0,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
) -> Any:
    """softmax(scale q k^T + token_bias over the keys that a query sees) v; what no block keeps costs nothing.

    q: (B, H, S_q, D), k: (B, H_kv, S_k, D), v: (B, H_kv, S_k, D_v), float32, bfloat16 or float16; values of a head
    side by side, other strides any. H_kv divides H; enable_gqa False: H_kv is H.
    block_mask: bool (B or 1, H, H_kv or 1, rows, columns) or (rows, columns) of blocks of block_size (an integer or
    (queries, keys)); or lists (row_offsets (B or 1, H, H_kv or 1, rows + 1), columns (entries,)), int32 or int64,
    ascending in a row; or FlexAttention's BlockMask, whose mask_mod is asked once a call, for its partial blocks alone
    (flex_block_lists asks it once for all calls, and for torch.compile); or None, all blocks.
    is_causal: keys at or before the query's position, i + q_offset, with q_offset "end" i + S_k - S_q.
    window: w, which is (w - 1, w - 1), or (left, right) keys before and after the own, None or -1 without a limit.
    sinks: as many first tokens the window does not hide. sink_logits: (H,) float32, a logit a head in the denominator.
    token_bias: (B or 1, H or 1, S_q or 1, S_k), float32 or q's dtype, added to the scores; -inf hides; no gradient.
    cu_seqlens_q, cu_seqlens_k: (N + 1,) int32 or int64, ends of sequences side by side in B = 1; k's default to q's.
    Returns out (B, H, S_q, D_v) of q's dtype, with return_lse (out, lse (B, H, S_q) float32, without sink_logits).
    A query that sees nothing has out 0 and lse -inf. Differentiable once in q, k, v and sink_logits.
    Raises ValueError for shapes and values, TypeError for dtypes. Numerics: sums, exp and lse in float32, one rounding
    at the end; the bits depend neither on threads nor on other rows.

    >>> q, k = torch.randn(1, 8, 1024, 64), torch.randn(1, 2, 1024, 64)
    >>> deepseek_fast.block_sparse_attention(q, k, k, is_causal=True, window=256, sinks=4).shape
    torch.Size([1, 8, 1024, 64])

    Source: kernels/block_sparse_attention/README.md.
    """
    for arg, tensor in (("q", q), ("k", k), ("v", v)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{_NAME}: {arg} must be a tensor; got {type(tensor).__name__}")
    if is_flex(block_mask):
        if cu_seqlens_q is not None or cu_seqlens_k is not None:
            rule = "be boolean or lists where there are cu_seqlens"
            raise ValueError(f"{_NAME}: block_mask must {rule}; got a BlockMask")
        block_size, block_mask = block_mask.BLOCK_SIZE, flex_block_lists(block_mask, (q.shape[-2], k.shape[-2]))
    options = _attention.options(_NAME, scale, is_causal, window, sinks, enable_gqa, block_size, q_offset)
    kept, row_offsets, columns, tables, bits = _attention.mask_parts(_NAME, block_mask)
    _linear.check_tensors(_NAME, block_mask=kept, token_bias=token_bias, sink_logits=sink_logits)
    if row_offsets is not None or columns is not None:
        for part in (row_offsets, columns):
            if not isinstance(part, Tensor):
                raise TypeError(f"{_NAME}: block_mask must be tensors; got {type(part).__name__}")
    _linear.check_tensors(_NAME, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k, tables=tables, bits=bits)
    masks = (kept, row_offsets, columns, token_bias, sink_logits, cu_seqlens_q, cu_seqlens_k, tables, bits)
    out, lse = attend(q, k, v, *masks, *options)
    return (out, lse) if return_lse else out


def attend(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Any:
    """(out, lse) of the op's own arguments, with a gradient where one is wanted."""
    if _linear.needs_grad(q, k, v, *rest[3:5]):  # token_bias, sink_logits
        return _with_gradient(q, k, v, *rest)
    return call(_OP, q, k, v, *rest)


def _with_gradient(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kept: Tensor | None,
    row_offsets: Tensor | None,
    columns: Tensor | None,
    token_bias: Tensor | None,
    *rest: Any,
) -> Any:
    if token_bias is not None and token_bias.requires_grad:
        raise ValueError(f"{_NAME}: token_bias must need no gradient; got one that does")
    k = k.view(k.shape) if k is q else k  # torch.compile takes no tensor twice (torch 2.13)
    v = v.view(v.shape) if v is q or v is k else v
    device = _linear.autocast_device(q)
    if not torch.is_autocast_enabled(device):  # torch.export would put the op into a graph within
        return call(grad.BlockSparseAttention.apply, q, k, v, kept, row_offsets, columns, token_bias, *rest)
    q, k, v = (_linear.autocast(tensor, device=device) for tensor in (q, k, v))
    with torch.autocast(device, enabled=False):
        return call(grad.BlockSparseAttention.apply, q, k, v, kept, row_offsets, columns, token_bias, *rest)


def call(compiled: Any, *args: Any) -> Any:
    """compiled(...), with a failed check as ValueError or TypeError."""
    try:
        return compiled(*args)
    except RuntimeError as error:
        text = str(error)
        if " must " not in text or "; got " not in text or "this build" in text:
            raise
        is_type = "; got dtype " in text or text.endswith("; got none")
        raise (TypeError if is_type else ValueError)(text) from None


register(_NAME, _NAME, f"{_NAME}_backward")
_linear.register_autocast(_NAME, keep=("token_bias", "sink_logits"))
