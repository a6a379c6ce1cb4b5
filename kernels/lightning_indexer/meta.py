"""What the indexer's operators give, without computing it: the Meta kernels, and the checks of types.

The compiled operators check every call themselves, but from C++ only RuntimeError is portable: these twins raise the
sentences of those checks whose breach is a TypeError.
"""

from typing import Any

import torch
from torch import Tensor

from deepseek_fast import _linear, _load

_load.load_torch()
ANY_ORDER = "any"  # None, as the schemas have it
_E4M3, _F32, _I32 = torch.float8_e4m3fn, torch.float32, torch.int32
# In the compiled check's order: argument, dtype.
_DTYPES = {
    "q": _E4M3,
    "weights": _F32,
    "k": _E4M3,
    "k_scale": _F32,
    "ks": _I32,
    "ke": _I32,
    "cache": torch.uint8,
    "context_lens": _I32,
    "block_table": _I32,
}
_INTEGERS = ("max_seqlen_k", "max_context_len", "top_k", "k")
_OPTIONAL = ("ks", "ke", "lengths")


def check_types(op: str, arguments: dict[str, Any]) -> None:
    """The rules whose breach is a TypeError, in the compiled check's order."""
    selects = op == "topk_indices"
    tensors = {"scores": _F32, "lengths": _I32} if selects else {n: d for n, d in _DTYPES.items() if n in arguments}
    for arg in tensors:
        if arguments[arg] is None and arg not in _OPTIONAL:
            raise TypeError(f"{op}: {arg} must be a tensor; got NoneType")
    _linear.check_tensors(op, **{arg: arguments[arg] for arg in tensors})
    if not torch.compiler.is_compiling():
        _check_options(op, {name: value for name, value in arguments.items() if name not in tensors})
    for arg, dtype in tensors.items():
        value = arguments[arg]
        if arg == "scores":
            _linear.check_float(op, arg, value)
        elif value is not None and value.dtype != dtype:
            _linear.dtype_error(op, arg, f"be {_linear.dtype_name(dtype)}", value)
    dtype = arguments.get("dtype", _F32)
    if dtype not in (_F32, torch.bfloat16):
        raise TypeError(f"{op}: dtype must be float32 or bfloat16; got {_linear.dtype_name(dtype)}")


def _check_options(op: str, options: dict[str, Any]) -> None:
    """Those that torch's own sentence, of several lines, would refuse."""
    for name, value in options.items():
        if name in _INTEGERS and not _is_int64(value):
            raise TypeError(f"{op}: {name} must be an integer of 64 bits; got {value!r}")
        if name == "sorted_by" and not isinstance(value, str):
            raise TypeError(f"{op}: sorted_by must be a name or None; got {value!r}")
        if name == "as_slots" and not isinstance(value, bool):
            raise TypeError(f"{op}: as_slots must be True or False; got {value!r}")
        if name == "dtype" and not isinstance(value, torch.dtype):
            raise TypeError(f"{op}: dtype must be float32 or bfloat16; got {value!r}")


def _is_int64(value: Any) -> bool:
    return isinstance(value, torch.SymInt) or (type(value) is int and -(2**63) <= value < 2**63)


@torch.library.register_fake("deepseek_fast::fp8_mqa_logits")
def _(
    q: Tensor,
    k: Tensor,
    k_scale: Tensor,
    weights: Tensor,
    ks: Tensor | None,
    ke: Tensor | None,
    max_seqlen_k: int,
    dtype: torch.dtype,
) -> Tensor:
    arguments = {"q": q, "weights": weights, "k": k, "k_scale": k_scale, "ks": ks, "ke": ke, "dtype": dtype}
    check_types("fp8_mqa_logits", arguments)
    return q.new_empty((q.shape[0], max_seqlen_k if max_seqlen_k > 0 else k.shape[0]), dtype=dtype)


@torch.library.register_fake("deepseek_fast::fp8_paged_mqa_logits")
def _(
    q: Tensor,
    cache: Tensor,
    weights: Tensor,
    context_lens: Tensor,
    block_table: Tensor,
    max_context_len: int,
    dtype: torch.dtype,
) -> Tensor:
    arguments = {"q": q, "weights": weights, "cache": cache, "context_lens": context_lens, "block_table": block_table}
    check_types("fp8_paged_mqa_logits", arguments | {"dtype": dtype})
    return q.new_empty((q.shape[0] * q.shape[1], max_context_len), dtype=dtype)


@torch.library.register_fake("deepseek_fast::lightning_indexer")
def _(
    q: Tensor,
    k: Tensor,
    k_scale: Tensor,
    weights: Tensor,
    top_k: int,
    ks: Tensor | None,
    ke: Tensor | None,
    sorted_by: str,
) -> Tensor:
    arguments = {"q": q, "weights": weights, "k": k, "k_scale": k_scale, "ks": ks, "ke": ke, "sorted_by": sorted_by}
    check_types("lightning_indexer", arguments)
    return q.new_empty((q.shape[0], top_k), dtype=_I32)


@torch.library.register_fake("deepseek_fast::lightning_indexer_paged")
def _(
    q: Tensor,
    cache: Tensor,
    weights: Tensor,
    context_lens: Tensor,
    block_table: Tensor,
    top_k: int,
    sorted_by: str,
    as_slots: bool,
) -> Tensor:
    arguments = {"q": q, "weights": weights, "cache": cache, "context_lens": context_lens, "block_table": block_table}
    check_types("lightning_indexer_paged", arguments)
    return q.new_empty((*q.shape[:2], top_k), dtype=_I32)


@torch.library.register_fake("deepseek_fast::topk_indices")
def _(scores: Tensor, k: int, sorted_by: str, lengths: Tensor | None) -> Tensor:
    check_types("topk_indices", {"scores": scores, "lengths": lengths})
    return scores.new_empty((*scores.shape[:-1], k), dtype=_I32)
