"""sparse_mla and sparse_mla_decode in torch: the public functions; meta.py has their Meta kernels, grad.py the
gradient."""

from typing import Any

import torch
from torch import Tensor

from deepseek_fast import _linear
from deepseek_fast.gpu.register import register
from deepseek_fast.kernels.sparse_mla import grad, meta

register("sparse_mla", "sparse_mla", "sparse_mla_backward", "sparse_mla_decode", "mla_cache_write", "mla_cache_read")

_OP = torch.ops.deepseek_fast.sparse_mla.default
_DECODE_OP = torch.ops.deepseek_fast.sparse_mla_decode.default
_WRITE_OP = torch.ops.deepseek_fast.mla_cache_write.default
_READ_OP = torch.ops.deepseek_fast.mla_cache_read.default
PAGE_ALIGNMENT = 576  # bytes, of layout v4's pages


def sparse_mla(
    q: Tensor,
    kv: Tensor,
    indices: Tensor,
    *,
    scale: float | None = None,
    d_v: int = 512,
    attn_sink: Tensor | None = None,
    topk_length: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of every query to the rows of kv that its list names; V is the first d_v numbers of a row.

    q: (s_q, h_q, d_qk) float32, bfloat16 or float16. kv: (s_kv, h_kv, d_qk) of q's dtype, h_kv divides h_q.
    indices: (s_q, h_kv, topk) int32; one below 0 or from s_kv on does not count, one that is there twice counts twice.
    scale: of the scores; None: d_qk ** -0.5. attn_sink: (h_q,) float32, a logit that has no value. topk_length: (s_q,)
    int32, entries of each list that are looked at.
    Returns out: (s_q, h_q, d_v) of q's dtype, max_logits and lse: (s_q, h_q) float32. A query without an entry that
    counts has out 0, max_logits -inf and lse +inf; a sink changes out alone.
    Raises ValueError for shapes and numbers, TypeError for dtypes. out is differentiable in q, kv and attn_sink, once.
    Numerics: sums and softmax in float32, of bfloat16 the weights are rounded to it; a query's result depends neither
    on other queries nor on the number of threads. Rows that no list names may be NaN.

    >>> q, kv = torch.randn(4, 64, 576), torch.randn(1000, 1, 576)
    >>> out, max_logits, lse = deepseek_fast.sparse_mla(q, kv, torch.randint(1000, (4, 1, 128), dtype=torch.int32))
    >>> out.shape, lse.shape
    (torch.Size([4, 64, 512]), torch.Size([4, 64]))

    Source: kernels/sparse_mla/README.md; FlashMLA, flash_mla_sparse_fwd.
    """
    args = (q, kv, indices, scale, d_v, attn_sink, topk_length)
    call = _with_gradient if _linear.needs_grad(q, kv, attn_sink) else _OP
    return _called("sparse_mla", call, args)  # type: ignore[no-any-return]


def sparse_mla_decode(
    q: Tensor,
    k_cache: Tensor,
    indices: Tensor | None = None,
    *,
    scale: float | None = None,
    d_v: int = 512,
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
    """sparse_mla of a paged cache, bf16 or FP8; without indices, of all tokens of each request.

    q: (b, s_q, h_q, d_qk) float32, bfloat16 or float16. k_cache: (pages, page, 1, d_qk) of q's dtype; of layout "v32"
    (pages, page, 1, 656) and "v4" (pages, page, 1, 584) bytes, uint8 or float8_e4m3fn, pages at any stride.
    indices: (b, s_q, topk) int32, page * page size + offset; what lies outside the cache does not count. topk_length:
    (b,) int32. Or block_table: (b, pages of a request) and cache_seqlens: (b,), int32: query i sees the first
    cache_seqlens[b] tokens, with is_causal those up to cache_seqlens[b] - s_q + i.
    extra_k_cache, extra_indices, extra_topk_length: a second cache of the layout, whose entries follow the first's.
    scale, d_v, attn_sink: as in sparse_mla.
    Returns out: (b, s_q, h_q, d_v) of q's dtype and lse: (b, h_q, s_q) float32, +inf where nothing counts.
    Raises ValueError for shapes, numbers and pages out of range, TypeError for dtypes. No gradient.
    Numerics: numbers of FP8 caches are code * scale rounded to bfloat16; every 512 entries are summed by themselves and
    merged in their order, so that bits depend neither on threads nor, on a CPU, on how requests are batched.

    >>> q, cache = torch.randn(1, 1, 64, 576).bfloat16(), deepseek_fast.mla_cache_empty(16, 64, layout="v32")
    >>> deepseek_fast.mla_cache_write(cache, torch.randn(1024, 576), layout="v32")
    >>> indices = torch.randint(1024, (1, 1, 128), dtype=torch.int32)
    >>> deepseek_fast.sparse_mla_decode(q, cache, indices, layout="v32")[0].shape
    torch.Size([1, 1, 64, 512])

    Source: kernels/sparse_mla/README.md; FlashMLA, flash_mla_with_kvcache.
    """
    table = (block_table, cache_seqlens, is_causal)
    lists = (topk_length, extra_k_cache, extra_indices, extra_topk_length)
    args = (q, k_cache, indices, scale, d_v, layout, *table, attn_sink, *lists)
    if not _linear.needs_grad(q, k_cache, attn_sink, extra_k_cache):
        return _called("sparse_mla_decode", _DECODE_OP, args)  # type: ignore[no-any-return]

    def without_gradient(*tensors: Any) -> Any:
        return _linear.without_gradient(_DECODE_OP, {}, *tensors, name="sparse_mla_decode", arg="q")

    return _called("sparse_mla_decode", without_gradient, args)  # type: ignore[no-any-return]


def mla_cache_empty(num_pages: int, page_size: int, *, layout: str, device: torch.device | str | None = None) -> Tensor:
    """An FP8 cache of zeros: (num_pages, page_size, 1, 656 or 584) uint8, of "v4" pages at multiples of 576 bytes.

    layout: "v32" or "v4". device: torch's default if None. Raises ValueError for another name or a size below 0.

    >>> deepseek_fast.mla_cache_empty(16, 64, layout="v4").stride(0) % 576
    0
    """
    op = "mla_cache_empty"
    _linear.check_choice(op, "layout", layout, meta.LAYOUTS[1:])
    for arg, size in (("num_pages", num_pages), ("page_size", page_size)):
        if size < 0:
            raise ValueError(f"{op}: {arg} must not be negative; got {size}")
    token = meta.TOKEN_BYTES[layout]
    used = page_size * token
    stride = -(-used // PAGE_ALIGNMENT) * PAGE_ALIGNMENT if layout == "v4" else used
    pages = torch.zeros(num_pages, stride, dtype=torch.uint8, device=device)
    return pages.as_strided((num_pages, page_size, 1, token), (stride, token, token, 1))


def mla_cache_write(cache: Tensor, kv: Tensor, slots: Tensor | None = None, *, layout: str) -> None:
    """Writes tokens into an FP8 cache, in place.

    cache: (pages, page, 1, 656) for layout "v32", (pages, page, 1, 584) for "v4", uint8 or float8_e4m3fn, contiguous in
    each page. kv: (tokens, 576) or (tokens, 512), float32 or bfloat16. slots: (tokens,) int32 or int64, page * page
    size + offset of each, one below 0 leaves its token out; None: 0, 1, 2 ...
    Raises ValueError for shapes and slots beyond the cache, TypeError for dtypes.
    Numerics: a tile's scale is 2 ** ceil(log2(max(amax / 448, 1e-4))), quotients are exact and rounded to e4m3 once; a
    tile with NaN or inf reads as NaN.

    >>> cache = deepseek_fast.mla_cache_empty(2, 64, layout="v4")
    >>> deepseek_fast.mla_cache_write(cache, torch.randn(100, 512), layout="v4")

    Source: kernels/sparse_mla/README.md.
    """
    args = (cache, kv.detach() if isinstance(kv, Tensor) else kv, slots, layout)
    _called("mla_cache_write", _WRITE_OP, args)


def mla_cache_read(cache: Tensor, *, layout: str) -> Tensor:
    """All tokens of an FP8 cache as bfloat16: (pages, page, 576) for layout "v32", (pages, page, 512) for "v4".

    Raises ValueError for shapes, TypeError for dtypes. Numerics: code * scale in float32, rounded once.

    >>> deepseek_fast.mla_cache_read(deepseek_fast.mla_cache_empty(2, 64, layout="v4"), layout="v4").shape
    torch.Size([2, 64, 512])
    """
    return _called("mla_cache_read", _READ_OP, (cache, layout))  # type: ignore[no-any-return]


def _with_gradient(*args: Any) -> Any:
    return grad.SparseMla.apply(*args)  # type: ignore[no-untyped-call]


def _called(op: str, call: Any, args: tuple[Any, ...]) -> Any:
    """call(*args), with a failed check as ValueError or TypeError."""
    if torch.compiler.is_compiling():
        return call(*args)
    try:
        return call(*args)
    except (RuntimeError, AttributeError, TypeError) as error:
        _check(op, args)
        if " must " in str(error) and "; got " in str(error):  # a rule that only the compiled check knows
            raise ValueError(str(error)) from None
        raise


def _check(op: str, args: tuple[Any, ...]) -> None:
    """The rules that Meta kernels know too, as ValueError or TypeError."""
    if op == "sparse_mla":
        q, kv, indices, scale, d_v, attn_sink, topk_length = args
        _numbers(op, scale, d_v)
        meta.check_prefill(op, q, kv, indices, d_v, attn_sink, topk_length)
    elif op == "sparse_mla_decode":
        q, k_cache, indices, scale, d_v, *rest = args
        _numbers(op, scale, d_v)
        meta.check_decode(op, q, k_cache, indices, d_v, *rest)
    elif op == "mla_cache_write":
        cache, kv, slots, layout = args
        if not isinstance(kv, Tensor):
            raise TypeError(f"{op}: kv must be a tensor; got {type(kv).__name__}")
        meta.check_cache_call(op, cache, layout, kv, slots)
    else:
        meta.check_cache_call(op, *args)


def _numbers(op: str, scale: Any, d_v: Any) -> None:
    if scale is not None and not isinstance(scale, (int, float)):
        raise TypeError(f"{op}: scale must be a number; got {scale!r}")
    if isinstance(d_v, bool) or not isinstance(d_v, int):
        raise TypeError(f"{op}: d_v must be an integer; got {d_v!r}")


_linear.register_autocast("sparse_mla", keep=("attn_sink",))
