"""What block_sparse_attention gives, without computing it: the Meta kernels, with the compiled checks' sentences.

The twins of checks.cc that a tensor without memory can meet: types and shapes. Counts of blocks are compared where they
are numbers, not symbols: a program of any length shall not be held to one.
"""

from typing import Any

import torch
from torch import Tensor

from deepseek_fast import _linear, _load

_load.load_torch()
OP = torch.ops.deepseek_fast.block_sparse_attention.default
BACKWARD_OP = torch.ops.deepseek_fast.block_sparse_attention_backward.default
INTEGERS = (torch.int32, torch.int64)
_MOST_VALUES = 1024  # of a head


def check_qkv(op: str, q: Tensor, k: Tensor, v: Tensor, enable_gqa: bool) -> None:
    _linear.check_float(op, "q", q)
    for arg, tensor in (("k", k), ("v", v)):
        if tensor.dtype != q.dtype:
            _linear.dtype_error(op, arg, f"have q's dtype {_linear.dtype_name(q.dtype)}", tensor)
    for arg, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.dim() != 4:
            _linear.shape_error(op, arg, "have 4 dimensions", tensor)
    (B, H, _, D), H_kv = q.shape, k.shape[1]
    if H < 1:
        _linear.shape_error(op, "q", "have at least 1 head", q)
    if D < 1 or D > _MOST_VALUES:
        _linear.shape_error(op, "q", "have heads of 1 to 1024 values", q)
    if k.shape[0] != B:
        _linear.shape_error(op, "k", f"have q's batch of {B}", k)
    if k.shape[3] != D:
        _linear.shape_error(op, "k", f"have heads of q's {D} values", k)
    if not enable_gqa and H_kv != H:
        _linear.shape_error(op, "k", f"have q's {H} heads where enable_gqa is False", k)
    if H_kv < 1 or H % H_kv != 0:
        _linear.shape_error(op, "k", f"have heads that divide q's {H}", k)
    if v.shape[:3] != k.shape[:3]:
        _linear.shape_error(op, "v", f"have k's batch, heads and tokens {tuple(k.shape[:3])}", v)
    if v.shape[3] < 1 or v.shape[3] > _MOST_VALUES:
        _linear.shape_error(op, "v", "have heads of 1 to 1024 values", v)


def check_bool_mask(op: str, mask: Tensor) -> None:
    if mask.dtype != torch.bool:
        _linear.dtype_error(op, "block_mask", "be bool", mask)
    if mask.dim() not in (2, 4):
        _linear.shape_error(op, "block_mask", "have 2 or 4 dimensions", mask)


def _check_positions(op: str, left: Any, right: Any, sinks: Any) -> None:
    if left < -1 or right < -1:
        rule = "have sides from 0, or -1 where there is no limit"
        raise ValueError(f"{op}: window must {rule}; got ({left}, {right})")
    if sinks < 0:
        raise ValueError(f"{op}: sinks must be at least 0; got {sinks}")
    if sinks > 0 and left == -1 and right == -1:
        raise ValueError(f"{op}: sinks must come with a window; got {sinks}")


def _check_bias_and_sink(op: str, q: Tensor, k: Tensor, bias: Tensor | None, sink: Tensor | None) -> None:
    B, H, S_q, _ = q.shape
    if bias is not None:
        if bias.dtype not in (torch.float32, q.dtype):
            also = "" if q.dtype == torch.float32 else f" or {_linear.dtype_name(q.dtype)}"
            _linear.dtype_error(op, "token_bias", f"be float32{also}", bias)
        wanted = (B, H, S_q)
        fits = bias.dim() == 4 and all(b in (n, 1) for b, n in zip(bias.shape, wanted, strict=False))
        if not fits or bias.shape[3] != k.shape[2]:
            rule = f"have shape ({B} or 1, {H} or 1, {S_q} or 1, {k.shape[2]})"
            _linear.shape_error(op, "token_bias", rule, bias)
    if sink is not None:
        if sink.dtype != torch.float32:
            _linear.dtype_error(op, "sink_logits", "be float32", sink)
        if sink.dim() != 1 or sink.shape[0] != H:
            _linear.shape_error(op, "sink_logits", f"have shape ({H},)", sink)


def _check_sequences(op: str, q: Tensor, k: Tensor, ends_q: Tensor | None, ends_k: Tensor | None) -> None:
    if ends_q is None:
        if ends_k is not None:
            raise TypeError(f"{op}: cu_seqlens_q must come with cu_seqlens_k; got none")
        return
    if q.shape[0] != 1:
        _linear.shape_error(op, "q", "have a batch of 1 where there are cu_seqlens", q)
    for arg, ends in (("cu_seqlens_q", ends_q), ("cu_seqlens_k", ends_k)):
        if ends is None:
            continue
        if ends.dtype not in INTEGERS:
            _linear.dtype_error(op, arg, "be int32 or int64", ends)
        if ends.dim() != 1 or ends.shape[0] < 1:
            _linear.shape_error(op, arg, "have 1 dimension and at least 1 value", ends)
        if ends is ends_k and ends.shape[0] != ends_q.shape[0]:
            _linear.shape_error(op, arg, f"have cu_seqlens_q's {ends_q.shape[0]} values", ends)
    if ends_k is None and k.shape[2] != q.shape[2]:
        _linear.shape_error(op, "k", f"have q's {q.shape[2]} tokens where there is no cu_seqlens_k", k)


def _check_mask(
    op: str,
    q: Tensor,
    k: Tensor,
    kept: Tensor | None,
    offsets: Tensor | None,
    columns: Tensor | None,
    has_sequences: bool,
    block: tuple[Any, Any],
) -> None:
    if kept is None and offsets is None and columns is None:
        return
    if kept is not None and offsets is not None:
        raise ValueError(f"{op}: block_mask must be boolean or lists; got both")
    if kept is None and (offsets is None or columns is None):
        missing, given = ("row_offsets", "columns") if offsets is None else ("columns", "row_offsets")
        raise TypeError(f"{op}: {missing} must come with {given}; got none")
    if kept is not None and kept.dtype != torch.bool:
        _linear.dtype_error(op, "block_mask", "be bool", kept)
    for what, part in (("row offsets", offsets), ("columns", columns)):
        if part is not None and part.dtype not in INTEGERS:
            _linear.dtype_error(op, "block_mask", f"have {what} of int32 or int64", part)
    if kept is not None and kept.dim() not in (2, 4):
        _linear.shape_error(op, "block_mask", "have 2 or 4 dimensions", kept)
    if not all(1 <= size <= 2**30 for size in block):
        raise ValueError(f"{op}: block_size must be from 1 to 2^30; got {tuple(block)}")
    if offsets is not None and offsets.dim() not in (1, 3):
        _linear.shape_error(op, "block_mask", "have row offsets of 1 or 3 dimensions", offsets)
    rows, cols = -(-q.shape[2] // block[0]), -(-k.shape[2] // block[1])
    leads = kept if kept is not None else offsets
    assert leads is not None
    counts = (*leads.shape[-2:], rows, cols) if kept is not None else (leads.shape[-1], rows)
    if not has_sequences and all(isinstance(count, int) for count in counts):
        if kept is not None and tuple(kept.shape[-2:]) != (rows, cols):
            rule = f"have {rows} rows and {cols} columns of blocks of {block[0]} x {block[1]}"
            _linear.shape_error(op, "block_mask", rule, kept)
        if kept is None and leads.shape[-1] != rows + 1:
            rule = f"have {rows + 1} row offsets, one more than rows of blocks of {block[0]}"
            _linear.shape_error(op, "block_mask", rule, leads)
    if leads.dim() > 2 and (leads.shape[0] not in (q.shape[0], 1) or leads.shape[1] not in (*_heads(q, k), 1)):
        H, H_kv = _heads(q, k)
        rule = f"have a batch of {q.shape[0]} or 1 and {H}, {H_kv} or 1 heads"
        _linear.shape_error(op, "block_mask", rule, leads)
    if columns is not None and columns.dim() != 1:
        _linear.shape_error(op, "block_mask", "have columns of 1 dimension", columns)


def _heads(q: Tensor, k: Tensor) -> tuple[Any, Any]:
    return q.shape[1], k.shape[1]


def _check(
    op: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kept: Tensor | None = None,
    row_offsets: Tensor | None = None,
    columns: Tensor | None = None,
    token_bias: Tensor | None = None,
    sink_logits: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    tables: Tensor | None = None,
    bits: Tensor | None = None,
    scale: float | None = None,
    is_causal: bool = False,
    left: Any = -1,
    right: Any = -1,
    sinks: Any = 0,
    q_offset: Any = 0,
    q_at_end: bool = False,
    enable_gqa: bool = True,
    block_q: Any = 128,
    block_k: Any = 128,
    key_stride: Any = 1,
) -> None:
    """In the compiled check's order."""
    check_qkv(op, q, k, v, enable_gqa)
    _check_positions(op, left, right, sinks)
    if not 1 <= key_stride <= 2**30:
        raise ValueError(f"{op}: key_stride must be from 1 to 2^30; got {key_stride}")
    _check_bias_and_sink(op, q, k, token_bias, sink_logits)
    _check_sequences(op, q, k, cu_seqlens_q, cu_seqlens_k)
    _check_mask(op, q, k, kept, row_offsets, columns, cu_seqlens_q is not None, (block_q, block_k))


@torch.library.register_fake("deepseek_fast::block_sparse_attention")
def _(q: Tensor, k: Tensor, v: Tensor, *rest: Any, **named: Any) -> tuple[Tensor, Tensor]:
    named = {"kept" if name == "block_mask" else name: value for name, value in named.items()}
    _check("block_sparse_attention", q, k, v, *rest, **named)
    out = q.new_empty((*q.shape[:3], v.shape[3]))
    return out, q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.register_fake("deepseek_fast::block_sparse_attention_backward")
def _(
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    block_mask: Tensor | None = None,
    row_offsets: Tensor | None = None,
    columns: Tensor | None = None,
    token_bias: Tensor | None = None,
    sink_logits: Tensor | None = None,
    *rest: Any,
    **named: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    op = "block_sparse_attention_backward"
    _check(op, q, k, v, block_mask, row_offsets, columns, token_bias, sink_logits, *rest, **named)
    dsink = q.new_empty(0 if sink_logits is None else q.shape[1], dtype=torch.float32)
    gradients = (x.new_empty(x.shape) for x in (q, k, v))
    return (*gradients, dsink)  # type: ignore[return-value]
