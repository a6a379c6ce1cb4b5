"""sparse_mla's family on CUDA tensors: the launchers. Kernels: triton_attend.py, triton_backward.py, triton_cache.py;
where tokens lie: triton_tokens.py; tile tables: triton_tiles.py."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from deepseek_fast.gpu.launch import has_fp8, launch, multiprocessors
from deepseek_fast.gpu.linear import DTYPES
from deepseek_fast.kernels.sparse_mla.meta import NUMBERS
from deepseek_fast.kernels.sparse_mla.triton_attend import _attend, _combine
from deepseek_fast.kernels.sparse_mla.triton_backward import _entry_gradient, _query_gradient, _row_gradient, _shares
from deepseek_fast.kernels.sparse_mla.triton_cache import _cache_read, _cache_write
from deepseek_fast.kernels.sparse_mla.triton_tiles import ENTRY_GRADIENT, FP8_TILES, PLAIN_TILES, QUERY_GRADIENT
from deepseek_fast.kernels.sparse_mla.triton_tokens import PLAIN, V4, V32

LAYOUTS = {"plain": PLAIN.value, "v32": V32.value, "v4": V4.value}
MOST_ENTRIES = 2**31 - 1024  # of a list, so that a place in its last block is an int32
COMBINED = 8  # splits at a time
CHUNK_BYTES = 1 << 30  # of what backward keeps of a chunk of queries: 186 of 2,048 entries and 128 heads
SHARE_LINES = 8  # of a program: 16 bytes of dout and out a thread, four times
READERS = 4  # entries of a row of kv at a time
READ_TOKENS = 8  # of a program: 16 bytes of codes a thread, twice


class Store(NamedTuple):
    """Where tokens lie: offsets in numbers, of FP8 layouts in bytes."""

    data: Tensor
    tokens: int
    pages: int
    page: int  # tokens
    page_stride: int
    token_stride: int
    scales_at: int  # of v4, in a page
    paged: bool  # whether a token's place is not its index times token_stride

    @property
    def places(self) -> tuple[int, ...]:
        return self.tokens, self.pages, self.page, self.page_stride, self.token_stride, self.scales_at


class Lists(NamedTuple):
    """Which tokens each query reads; None in indices: there is no such list."""

    indices: Tensor | None
    lengths: Tensor | None
    strides: tuple[int, ...]  # of a request, a query, a head
    topk: int


NO_STORE = Store(torch.empty(0, device="meta"), 0, 0, 1, 0, 0, 0, False)
NO_LISTS = Lists(None, None, (0, 0, 0), 0)


def sparse_mla(
    q: Tensor,
    kv: Tensor,
    indices: Tensor,
    scale: float | None = None,
    d_v: int = 512,
    attn_sink: Tensor | None = None,
    topk_length: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    s_q, h_q, _ = q.shape
    kv, indices = last_contiguous(kv), last_contiguous(indices)
    out = q.new_empty((s_q, h_q, d_v))
    max_logits, lse = (q.new_empty((s_q, h_q), dtype=torch.float32) for _ in range(2))
    store = Store(kv, kv.shape[0], 1, 1, 0, kv.stride(0), 0, False)
    lists = Lists(indices, _vector(topk_length), (0, *indices.stride()[:2]), indices.shape[2])
    _launch(
        q[None], kv.shape[1], kv.stride(1), store, lists, NO_STORE, NO_LISTS, out, max_logits, lse, (0, h_q, 1),
        scale, attn_sink, "plain", a_query=True,
    )  # fmt: skip
    return out, max_logits, lse


def sparse_mla_decode(
    q: Tensor,
    k_cache: Tensor,
    indices: Tensor | None = None,
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
    b, s_q, h_q, _ = q.shape
    if layout != "plain" and q.dtype != torch.bfloat16:
        # Products of float32: numbers of the whole cache first, which is slow; models of such caches have bf16 queries.
        k_cache = mla_cache_read(k_cache, layout)[:, :, None]
        extra_k_cache = None if extra_k_cache is None else mla_cache_read(extra_k_cache, layout)[:, :, None]
        layout = "plain"
    store, extra = store_of(k_cache, layout), NO_STORE
    lists, extra_lists = _lists(indices, topk_length), NO_LISTS
    if indices is None:
        assert block_table is not None and cache_seqlens is not None  # checked
        table = last_contiguous(block_table)
        most = min(table.shape[1] * store.page, MOST_ENTRIES)
        lists = Lists(table, _vector(cache_seqlens), (table.stride(0), 0, 0), most)
    if extra_k_cache is not None:
        extra, extra_lists = store_of(extra_k_cache, layout), _lists(extra_indices, extra_topk_length)
    out = q.new_empty((b, s_q, h_q, d_v))
    lse = q.new_empty((b, h_q, s_q), dtype=torch.float32)
    _launch(
        q, 1, 0, store, lists, extra, extra_lists, out, None, lse, (h_q * s_q, 1, s_q), scale, attn_sink, layout,
        dense=indices is None, causal=is_causal,
    )  # fmt: skip
    return out, lse


def _launch(
    q: Tensor,
    h_kv: int,
    head_stride: int,
    store: Store,
    lists: Lists,
    extra: Store,
    extra_lists: Lists,
    out: Tensor,
    max_logits: Tensor | None,
    lse: Tensor,
    lse_strides: tuple[int, int, int],
    scale: float | None,
    sinks: Tensor | None,
    layout: str,
    *,
    dense: bool = False,
    causal: bool = False,
    a_query: bool = False,
) -> None:
    """q: (b, s_q, h_q, d_qk); a_query: a length is of a query, not of a request."""
    q, sinks = last_contiguous(q), _vector(sinks)
    b, s_q, h_q, D = q.shape
    d_v, lines = out.shape[-1], b * s_q * h_q
    if lines == 0:
        return
    group = h_q // h_kv
    widths = parts(D, d_v, layout)
    dtype = q.dtype if q.dtype == torch.bfloat16 or store.data.dtype == q.dtype else torch.float32
    table = PLAIN_TILES if layout == "plain" else FP8_TILES
    config = table.choose(heads=group, queries=b * s_q * h_kv, width=sum(widths), bytes=dtype.itemsize)
    programs = b * s_q * h_kv * triton.cdiv(group, config["BLOCK_H"])
    steps = triton.cdiv(lists.topk, config["BLOCK_T"]) + triton.cdiv(extra_lists.topk, config["BLOCK_T"])
    splits = splits_of(programs, steps, multiprocessors())
    sums = tops = totals = None
    if splits > 1:
        sums = q.new_empty((splits, lines, d_v), dtype=torch.float32)
        tops, totals = (q.new_empty((splits, lines), dtype=torch.float32) for _ in range(2))
    has_extra = extra_lists.indices is not None
    launch(
        _attend, (programs, splits),
        q, store.data, extra.data if has_extra else None, lists.indices, extra_lists.indices,
        lists.lengths, extra_lists.lengths, sinks, out, max_logits, lse, sums, tops, totals,
        scale_of(scale, D), s_q, h_q, h_kv, lines, splits,
        *q.stride()[:3], *lists.strides, *extra_lists.strides[:2], lists.topk, extra_lists.topk,
        *lse_strides, *store.places, head_stride, *extra.places,
        D=D, D_V=d_v, W0=widths[0], W1=widths[1], W2=widths[2], W3=widths[3], LAYOUT=LAYOUTS[layout], DENSE=dense,
        CAUSAL=causal, PAGED=store.paged, EXTRA_PAGED=extra.paged, EXTRA=has_extra,
        LENGTHS=lists.lengths is not None, EXTRA_LENGTHS=extra_lists.lengths is not None, LENGTH_A_QUERY=a_query,
        SPLIT=splits > 1, DTYPE=DTYPES[dtype], NATIVE=has_fp8(), **config,
    )  # fmt: skip
    if splits > 1:
        launch(
            _combine, (lines,), sums, tops, totals, sinks, out, max_logits, lse, s_q, h_q, lines, splits, *lse_strides,
            D_V=d_v, WIDTH=triton.next_power_of_2(d_v), BLOCK_S=COMBINED, num_warps=4,
        )  # fmt: skip


def sparse_mla_backward(
    dout: Tensor,
    q: Tensor,
    kv: Tensor,
    indices: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float | None,
    d_v: int,
    attn_sink: Tensor | None,
    topk_length: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    dout, q, kv, indices = (last_contiguous(x) for x in (dout, q, kv, indices))
    sinks = _vector(attn_sink)
    (s_q, h_q, D), s_kv, topk = q.shape, kv.shape[0], indices.shape[2]
    dsink = q.new_zeros((h_q if sinks is not None else 0,), dtype=torch.float32)
    if s_q * h_q * topk * s_kv == 0:
        return q.new_zeros(q.shape), kv.new_zeros(kv.shape), dsink
    given = Backward(dout, q, kv, indices, _vector(topk_length), lse.contiguous(), scale_of(scale, D))
    shares, deltas = (q.new_empty((s_q, h_q), dtype=torch.float32) for _ in range(2))
    sink_terms = None if sinks is None else torch.empty_like(shares)
    launch(
        _shares, (triton.cdiv(s_q * h_q, SHARE_LINES),), dout, out.contiguous(), given.lse, sinks, shares, deltas,
        sink_terms, s_q * h_q, h_q, *dout.stride()[:2], D_V=d_v, WIDTH=triton.next_power_of_2(d_v), BLOCK=SHARE_LINES,
        num_warps=4,
    )  # fmt: skip
    if sink_terms is not None:
        dsink = sink_terms.sum(0)
    return *given.gradients(d_v, shares, deltas), dsink


class Backward(NamedTuple):
    """Queries in chunks, whose entries' sums take a part of memory; what an entry adds to a row of kv is summed in the
    order of entries, chunk after chunk."""

    dout: Tensor
    q: Tensor
    kv: Tensor
    indices: Tensor
    lengths: Tensor | None
    lse: Tensor
    scale: float

    def gradients(self, d_v: int, shares: Tensor, deltas: Tensor) -> tuple[Tensor, Tensor]:
        (s_q, h_q, D), (s_kv, h_kv), topk = self.q.shape, self.kv.shape[:2], self.indices.shape[2]
        group, rows = h_q // h_kv, s_kv * h_kv
        # The products' type: bf16 as it is, else float32, in which the CPU has weights of float16 too.
        dtype = torch.bfloat16 if self.q.dtype == torch.bfloat16 else torch.float32
        chunk = max(1, min(s_q, CHUNK_BYTES // (h_kv * topk * (4 * D + 2 * group * dtype.itemsize))))
        chunks = -(-s_q // chunk)
        order, bounds = self.readers(chunk, chunks)
        dq, dkv = torch.empty_like(self.q, memory_format=torch.contiguous_format), self.kv.new_empty(self.kv.shape)
        of_scores, of_values = (self.q.new_empty((chunk * h_kv, topk, group), dtype=dtype) for _ in range(2))
        entry_sums = self.q.new_empty((chunk * h_kv, topk, D), dtype=torch.float32)
        sums = self.q.new_empty((rows, D), dtype=torch.float32) if chunks > 1 else None
        widths = parts(D, d_v, "plain")
        sizes = {"heads": group, "width": sum(widths), "bytes": dtype.itemsize}
        of_query, of_entry = QUERY_GRADIENT.choose(**sizes), ENTRY_GRADIENT.choose(**sizes)
        strides = (*self.q.stride()[:2], *self.dout.stride()[:2])
        for number in range(chunks):
            first = number * chunk
            groups = min(chunk, s_q - first) * h_kv
            launch(
                _query_gradient, (groups * triton.cdiv(group, of_query["BLOCK_H"]),),
                self.q, self.kv, self.indices, self.lengths, self.dout, self.lse, shares, deltas, dq, of_scores,
                of_values, self.scale, first, h_q, h_kv, *strides, *self.indices.stride()[:2], topk, s_kv,
                *self.kv.stride()[:2], D=D, D_V=d_v, W0=widths[0], W1=widths[1], DTYPE=DTYPES[dtype], **of_query,
            )  # fmt: skip
            blocks = triton.cdiv(D, of_entry["BLOCK_C"]) * triton.cdiv(topk, of_entry["BLOCK_E"]) * groups
            launch(
                _entry_gradient, (blocks,), of_scores, of_values, self.q, self.dout, self.lengths, entry_sums, first,
                h_q, h_kv, *strides, topk, D=D, D_V=d_v, DTYPE=DTYPES[dtype], **of_entry,
            )  # fmt: skip
            launch(
                _row_gradient, (rows,), entry_sums, order, bounds, sums, dkv, number * (rows + 1), first * h_kv * topk,
                D=D, WIDTH=triton.next_power_of_2(D), BEGINS=number == 0, ENDS=number == chunks - 1, BLOCK_E=READERS,
                num_warps=4,
            )  # fmt: skip
        return dq, dkv

    def readers(self, chunk: int, chunks: int) -> tuple[Tensor, Tensor]:
        """(entries of all lists by chunk, then row of kv, then as they are; where each row of each chunk begins)."""
        (s_q, h_kv, topk), s_kv = self.indices.shape, self.kv.shape[0]
        device, rows = self.indices.device, s_kv * h_kv
        dtype = torch.int32 if chunks * (rows + 1) < 2**31 else torch.int64
        counts = (self.indices >= 0) & (self.indices < s_kv)
        if self.lengths is not None:
            counts &= torch.arange(topk, device=device) < self.lengths[:, None, None]
        heads = torch.arange(h_kv, device=device, dtype=dtype)[:, None]
        row = torch.where(counts, self.indices.to(dtype) * h_kv + heads, rows)
        number = torch.arange(s_q, device=device, dtype=dtype) // chunk
        keys, order = torch.sort((row + (number * (rows + 1))[:, None, None]).flatten(), stable=True)
        return order, torch.searchsorted(keys, torch.arange(chunks * (rows + 1) + 1, device=device, dtype=dtype))


def mla_cache_write(cache: Tensor, kv: Tensor, slots: Tensor | None, layout: str) -> None:
    if kv.shape[0] == 0:
        return
    whole = cache.view(torch.uint8)
    if not is_aligned(whole):
        whole = whole.clone(memory_format=torch.contiguous_format)
    kv = last_contiguous(kv)
    store = store_of(whole, layout)
    launch(
        _cache_write, (kv.shape[0],), whole, kv, slots, kv.stride(0), 0 if slots is None else slots.stride(0),
        store.tokens, store.page, store.page_stride, store.token_stride, store.scales_at, LAYOUT=LAYOUTS[layout],
        num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    if whole.data_ptr() != cache.data_ptr():
        cache.view(torch.uint8).copy_(whole)


def mla_cache_read(cache: Tensor, layout: str) -> Tensor:
    D = NUMBERS[layout]
    numbers = cache.new_empty((*cache.shape[:2], D), dtype=torch.bfloat16)
    store = store_of(cache, layout)
    launch(
        _cache_read, (triton.cdiv(store.tokens, READ_TOKENS),), store.data, numbers, store.tokens, store.page,
        store.page_stride, store.token_stride, store.scales_at, D=D, LAYOUT=LAYOUTS[layout], NATIVE=has_fp8(),
        BLOCK_T=READ_TOKENS, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    return numbers


@functools.lru_cache(4096)
def splits_of(programs: int, steps: int, multiprocessors: int) -> int:
    """How many programs share a list: what should end first, a program a multiprocessor. Of sizes and the chip alone.

    In steps: a program costs START more, a merge MERGE and again a part of each of its sums.
    """
    START, MERGE, MOST = 4, 4, 64
    best, fewest = 1, None
    for splits in range(1, max(1, min(steps // 2, MOST)) + 1):
        waves = -(-programs * splits // multiprocessors)
        cost = waves * (-(-steps // splits) + START) + (MERGE + splits // 4 if splits > 1 else 0)
        if fewest is None or cost < fewest:
            best, fewest = splits, cost
    return best


def parts(D: int, d_v: int, layout: str) -> tuple[int, int, int, int]:
    """Widths, powers of two, that a row is taken in; the first of a plain row is what values are."""
    if layout == "v32":
        return 256, 256, 64, 0
    if layout == "v4":
        return 256, 128, 64, 64
    first = max(triton.next_power_of_2(d_v), 16)
    return first, max(triton.next_power_of_2(D - first), 16) if first < D else 0, 0, 0


def store_of(cache: Tensor, layout: str) -> Store:
    """A cache's memory; a copy where its bytes are not aligned as its numbers are loaded."""
    fp8 = layout != "plain"
    cache = cache.view(torch.uint8) if fp8 else last_contiguous(cache)
    pages, page = cache.shape[:2]
    if fp8 and not is_aligned(cache):
        cache = cache.clone(memory_format=torch.contiguous_format)
    page_stride, token_stride = cache.stride()[:2]
    if layout == "v4":
        return Store(cache, pages * page, pages, page, page_stride, 576, page * 576, True)
    if page == 1:
        token_stride = page_stride
    paged = pages > 1 and page_stride != page * token_stride
    return Store(cache, pages * page, pages, page, page_stride, token_stride, 0, paged)


def is_aligned(cache: Tensor) -> bool:
    """Whether float32 scales and bfloat16 numbers of an FP8 cache lie where a chip can load them."""
    return all(place % 4 == 0 for place in (cache.data_ptr(), *cache.stride()[:2]))


def last_contiguous(x: Tensor) -> Tensor:
    return x if x.shape[-1] <= 1 or x.stride(-1) == 1 else x.contiguous()


def _vector(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _lists(indices: Tensor | None, length: Tensor | None) -> Lists:
    if indices is None:
        return NO_LISTS
    indices = last_contiguous(indices)
    return Lists(indices, _vector(length), (*indices.stride()[:2], 0), indices.shape[2])


def scale_of(scale: float | None, D: int) -> float:
    return float(D**-0.5 if scale is None else scale)


OPS: dict[str, Callable[..., Any]] = {
    "sparse_mla": sparse_mla,
    "sparse_mla_decode": sparse_mla_decode,
    "sparse_mla_backward": sparse_mla_backward,
    "mla_cache_write": mla_cache_write,
    "mla_cache_read": mla_cache_read,
}
