"""What sparse_mla and sparse_mla_decode give, without computing it: the Meta kernels, with the compiled checks'
sentences as far as a tensor without memory can break their rules."""

from typing import Any

import torch
from torch import Tensor

from deepseek_fast import _linear, _load

_load.load_torch()
LAYOUTS = ("plain", "v32", "v4")
NUMBERS = {"v32": 576, "v4": 512}  # of a token
MAX_ROW_NUMBERS = 1024
TOKEN_BYTES = {"v32": 656, "v4": 584}


def check_prefill(
    op: str,
    q: Tensor,
    kv: Tensor,
    indices: Tensor,
    d_v: Any = 512,
    attn_sink: Tensor | None = None,
    topk_length: Tensor | None = None,
) -> None:
    """As dsf_sparse_mla_check."""
    _needed(op, q=q, kv=kv, indices=indices)
    _linear.check_tensors(op, attn_sink=attn_sink, topk_length=topk_length)
    _linear.check_float(op, "q", q)
    _dims(op, "q", q, 3)
    _same_dtype(op, "kv", kv, q)
    _dims(op, "kv", kv, 3)
    s_q, h_q, d_qk = q.shape
    if d_qk < 1 or d_qk > MAX_ROW_NUMBERS:
        _linear.shape_error(op, "q", f"have a last dimension from 1 to {MAX_ROW_NUMBERS}", q)
    if kv.shape[2] != d_qk:
        _linear.shape_error(op, "kv", f"have q's last dimension of {d_qk}", kv)
    if kv.shape[1] < 1 or h_q % kv.shape[1]:
        _linear.shape_error(op, "kv", f"have heads that divide q's {h_q}", kv)
    _int32(op, "indices", indices)
    _dims(op, "indices", indices, 3)
    if indices.shape[0] != s_q or indices.shape[1] != kv.shape[1]:
        _linear.shape_error(op, "indices", f"have shape ({s_q}, {kv.shape[1]}, topk)", indices)
    _options(op, "kv", d_qk, d_v, h_q, attn_sink)
    _vector(op, "topk_length", topk_length, torch.int32, s_q)


def check_decode(
    op: str,
    q: Tensor,
    k_cache: Tensor,
    indices: Tensor | None,
    d_v: Any,
    layout: str,
    block_table: Tensor | None,
    cache_seqlens: Tensor | None,
    is_causal: bool,
    attn_sink: Tensor | None,
    topk_length: Tensor | None,
    extra_k_cache: Tensor | None,
    extra_indices: Tensor | None,
    extra_topk_length: Tensor | None,
) -> None:
    """As dsf_sparse_mla_decode_check, but for the values of block_table and cache_seqlens."""
    _needed(op, q=q, k_cache=k_cache)
    given = {
        "indices": indices,
        "block_table": block_table,
        "cache_seqlens": cache_seqlens,
        "topk_length": topk_length,
        "extra_k_cache": extra_k_cache,
        "extra_indices": extra_indices,
        "extra_topk_length": extra_topk_length,
    }
    _linear.check_tensors(op, attn_sink=attn_sink, **given)
    if not isinstance(layout, str):
        raise TypeError(f"{op}: layout must be a name; got {layout!r}")
    _linear.check_choice(op, "layout", layout, LAYOUTS)
    _linear.check_float(op, "q", q)
    _dims(op, "q", q, 4)
    b, s_q, h_q, d_qk = q.shape
    if layout != "plain" and d_qk != NUMBERS[layout]:
        _linear.shape_error(op, "q", f"have a last dimension of {NUMBERS[layout]} for this layout", q)
    if d_qk < 1 or d_qk > MAX_ROW_NUMBERS:
        _linear.shape_error(op, "q", f"have a last dimension from 1 to {MAX_ROW_NUMBERS}", q)
    check_cache(op, "k_cache", k_cache, layout, q)
    _options(op, "q", d_qk, d_v, h_q, attn_sink)

    def refuse(names: tuple[str, ...], rule: str) -> None:
        for name in names:
            if given[name] is not None:
                raise ValueError(f"{op}: {name} must {rule}; got one")

    if indices is None:
        if block_table is None:
            raise ValueError(f"{op}: indices must be given where there is no block_table; got None")
        if cache_seqlens is None:
            raise ValueError(f"{op}: cache_seqlens must be given where there is a block_table; got None")
        sparse = ("topk_length", "extra_k_cache", "extra_indices", "extra_topk_length")
        refuse(sparse, "be left out where there are no indices")
        _int32(op, "block_table", block_table)
        if block_table.dim() != 2 or block_table.shape[0] != b:
            _linear.shape_error(op, "block_table", f"have shape ({b}, pages of a request)", block_table)
        _vector(op, "cache_seqlens", cache_seqlens, torch.int32, b)
        return
    refuse(("block_table", "cache_seqlens"), "be left out where indices are given")
    if is_causal:
        raise ValueError(f"{op}: is_causal must be False where indices are given; got True")
    _lists(op, "indices", indices, "topk_length", topk_length, b, s_q)
    if extra_k_cache is None:
        refuse(("extra_indices", "extra_topk_length"), "be left out where there is no extra_k_cache")
        return
    if extra_indices is None:
        raise ValueError(f"{op}: extra_indices must be given where there is an extra_k_cache; got None")
    check_cache(op, "extra_k_cache", extra_k_cache, layout, q)
    _lists(op, "extra_indices", extra_indices, "extra_topk_length", extra_topk_length, b, s_q)


def check_cache(op: str, arg: str, cache: Tensor, layout: str, q: Tensor | None = None) -> None:
    if layout == "plain" and q is not None:
        _same_dtype(op, arg, cache, q)
    elif cache.dtype not in (torch.uint8, torch.float8_e4m3fn):
        _linear.dtype_error(op, arg, "be uint8 or float8_e4m3fn for an FP8 layout", cache)
    _dims(op, arg, cache, 4)
    if cache.shape[2] != 1:
        _linear.shape_error(op, arg, "have one head in its third dimension", cache)
    if layout == "plain" and q is not None:
        if cache.shape[3] != q.shape[-1]:
            _linear.shape_error(op, arg, f"have q's last dimension of {q.shape[-1]}", cache)
    elif cache.shape[3] != TOKEN_BYTES[layout]:
        _linear.shape_error(op, arg, f"have {TOKEN_BYTES[layout]} bytes a token for layout {layout}", cache)


def check_cache_call(op: str, cache: Tensor, layout: str, kv: Any = None, slots: Any = None) -> None:
    """The types of mla_cache_write's and mla_cache_read's arguments."""
    _needed(op, cache=cache)
    _linear.check_tensors(op, kv=kv, slots=slots)
    if not isinstance(layout, str):
        raise TypeError(f"{op}: layout must be a name; got {layout!r}")
    _linear.check_choice(op, "layout", layout, LAYOUTS[1:])
    check_cache(op, "cache", cache, layout)
    if kv is not None and kv.dtype not in (torch.float32, torch.bfloat16):
        _linear.dtype_error(op, "kv", "be float32 or bfloat16", kv)
    if slots is not None and slots.dtype not in (torch.int32, torch.int64):
        _linear.dtype_error(op, "slots", "be int32 or int64", slots)


def _needed(op: str, **tensors: Any) -> None:
    for arg, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: {arg} must be a tensor; got {type(tensor).__name__}")


def _dims(op: str, arg: str, tensor: Tensor, count: int) -> None:
    if tensor.dim() != count:
        _linear.shape_error(op, arg, f"have {count} dimensions", tensor)


def _same_dtype(op: str, arg: str, tensor: Tensor, q: Tensor) -> None:
    if tensor.dtype != q.dtype:
        _linear.dtype_error(op, arg, f"have q's dtype {_linear.dtype_name(q.dtype)}", tensor)


def _int32(op: str, arg: str, tensor: Tensor) -> None:
    if tensor.dtype != torch.int32:
        _linear.dtype_error(op, arg, "be int32", tensor)


def _vector(op: str, arg: str, tensor: Tensor | None, dtype: torch.dtype, length: Any) -> None:
    if tensor is None:
        return
    if tensor.dtype != dtype:
        _linear.dtype_error(op, arg, f"be {_linear.dtype_name(dtype)}", tensor)
    if tensor.dim() != 1 or tensor.shape[0] != length:
        _linear.shape_error(op, arg, f"have shape ({length},)", tensor)


def _options(op: str, row: str, d_qk: Any, d_v: Any, h_q: Any, attn_sink: Tensor | None) -> None:
    if d_v < 1 or d_v > d_qk:
        raise ValueError(f"{op}: d_v must be from 1 to {d_qk}, {row}'s last dimension; got {d_v}")
    _vector(op, "attn_sink", attn_sink, torch.float32, h_q)


def _lists(op: str, arg: str, indices: Tensor, length_arg: str, length: Tensor | None, b: Any, s_q: Any) -> None:
    _int32(op, arg, indices)
    _dims(op, arg, indices, 3)
    if indices.shape[0] != b or indices.shape[1] != s_q:
        _linear.shape_error(op, arg, f"have shape ({b}, {s_q}, topk)", indices)
    _vector(op, length_arg, length, torch.int32, b)


@torch.library.register_fake("deepseek_fast::sparse_mla")
def _(
    q: Tensor,
    kv: Tensor,
    indices: Tensor,
    scale: float | None = None,
    d_v: Any = 512,
    attn_sink: Tensor | None = None,
    topk_length: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    check_prefill("sparse_mla", q, kv, indices, d_v, attn_sink, topk_length)
    rows = q.shape[:2]
    lse = q.new_empty(rows, dtype=torch.float32)
    return q.new_empty((*rows, d_v)), torch.empty_like(lse), lse


@torch.library.register_fake("deepseek_fast::sparse_mla_backward")
def _(
    dout: Tensor,
    q: Tensor,
    kv: Tensor,
    indices: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float | None,
    d_v: Any,
    attn_sink: Tensor | None,
    topk_length: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    check_prefill("sparse_mla_backward", q, kv, indices, d_v, attn_sink, topk_length)
    heads = q.shape[1] if attn_sink is not None else 0
    return q.new_empty(q.shape), kv.new_empty(kv.shape), q.new_empty((heads,), dtype=torch.float32)


@torch.library.register_fake("deepseek_fast::sparse_mla_decode")
def _(
    q: Tensor,
    k_cache: Tensor,
    indices: Tensor | None = None,
    scale: float | None = None,
    d_v: Any = 512,
    layout: str = "plain",
    block_table: Tensor | None = None,
    cache_seqlens: Tensor | None = None,
    is_causal: bool = False,
    attn_sink: Tensor | None = None,
    topk_length: Tensor | None = None,
    extra_k_cache: Tensor | None = None,
    extra_indices: Tensor | None = None,
    extra_topk_length: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    op = "sparse_mla_decode"
    table = (block_table, cache_seqlens, is_causal)
    lists = (topk_length, extra_k_cache, extra_indices, extra_topk_length)
    check_decode(op, q, k_cache, indices, d_v, layout, *table, attn_sink, *lists)
    b, s_q, h_q, _ = q.shape
    return q.new_empty((b, s_q, h_q, d_v)), q.new_empty((b, h_q, s_q), dtype=torch.float32)


@torch.library.register_fake("deepseek_fast::mla_cache_write")
def _(cache: Tensor, kv: Tensor, slots: Tensor | None, layout: str) -> None:
    check_cache_call("mla_cache_write", cache, layout, kv, slots)


@torch.library.register_fake("deepseek_fast::mla_cache_read")
def _(cache: Tensor, layout: str) -> Tensor:
    check_cache_call("mla_cache_read", cache, layout)
    return cache.new_empty((*cache.shape[:2], NUMBERS[layout]), dtype=torch.bfloat16)
