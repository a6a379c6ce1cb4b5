"""sparse_mla's family on CUDA tensors: launchers and tile tables. Kernels: triton_attend.py, triton_backward.py,
triton_cache.py; where tokens lie: triton_tokens.py."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepseek_fast.gpu.launch import arch, launch, multiprocessors
from deepseek_fast.gpu.register import interpreted
from deepseek_fast.gpu.tiles import Config, Row, Table
from deepseek_fast.kernels.sparse_mla.meta import NUMBERS
from deepseek_fast.kernels.sparse_mla.triton_attend import _attend, _combine
from deepseek_fast.kernels.sparse_mla.triton_cache import _cache_read, _cache_write
from deepseek_fast.kernels.sparse_mla.triton_tokens import PLAIN, V4, V32

FP8_ARCH = 89  # from here on the chip converts e4m3
LAYOUTS = {"plain": PLAIN.value, "v32": V32.value, "v4": V4.value}
DTYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}
MOST_ENTRIES = 2**31 - 1024  # of a list, so that a place in its last block is an int32
COMBINED = 8  # splits at a time
READ_TOKENS = 8  # of a program: 16 bytes of codes a thread, twice


def _block(H: int, T: int, stages: int, apart: bool, warps: int = 8) -> Config:
    return {"BLOCK_H": H, "BLOCK_T": T, "STAGES": stages, "APART": apart, "num_warps": warps}


# heads: that share one of kv's; queries: times heads of kv; width: numbers of a row, in powers of two; bytes: of one.
# All: registers and shared memory as compiled, no spills; nothing was measured.
PLAIN_TILES = Table(
    "sparse_mla",
    "heads queries width",
    (
        Row(
            _block(16, 64, 2, True), heads=32, width=576, bytes=2, archs=(90, 100),
            why="derived: the mma's own 16 heads, 95 KB; 8 warps part 64 tokens",
        ),
        Row(
            _block(16, 64, 2, True), queries=8, width=576, bytes=2, archs=(90, 100),
            why="derived: few queries: more programs, each less to leave for the merge",
        ),
        Row(
            _block(64, 64, 2, True), width=576, bytes=2, archs=(90,),
            why="derived: wgmma's 64 rows; q, two blocks of 64 tokens and the weights take 225 of 227 KB",
        ),
        Row(_block(16, 32, 2, True), heads=32, width=576, bytes=2, why="derived: as on 9.0, 57 KB"),
        Row(_block(16, 32, 2, True), queries=8, width=576, bytes=2, why="derived: few queries"),
        Row(
            _block(64, 32, 2, False), width=576, bytes=2, archs=(80,),
            why="derived: 112 KB; half the reads of L2 of 32 heads",
        ),
        Row(_block(16, 32, 2, True), width=576, bytes=2, why="derived: 99 KB hold no more heads beside two blocks"),
        Row(_block(16, 16, 2, True), why="derived: float32 or wide rows; four times the registers a token"),
    ),
)  # fmt: skip
FP8_TILES = Table(
    "sparse_mla_fp8",
    "heads queries width",
    (
        Row(_block(16, 32, 2, True), heads=32, bytes=2, why="derived: codes become bf16 in registers; 56 KB"),
        Row(_block(16, 32, 2, True), queries=8, bytes=2, why="derived: few queries: more programs"),
        Row(
            _block(64, 32, 2, True), bytes=2, archs=(90,),
            why="derived: wgmma's 64 rows share what decodes a token; 64 tokens would spill",
        ),
        Row(_block(16, 32, 2, True), bytes=2, why="derived: as with few heads"),
        Row(_block(16, 16, 2, True), why="derived: products of float32"),
    ),
)  # fmt: skip


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
    dtype = q.dtype if layout == "plain" or q.dtype == torch.bfloat16 else torch.float32
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
        SPLIT=splits > 1, DTYPE=DTYPES[dtype], NATIVE=native(), **config,
    )  # fmt: skip
    if splits > 1:
        launch(
            _combine, (lines,), sums, tops, totals, sinks, out, max_logits, lse, s_q, h_q, lines, splits, *lse_strides,
            D_V=d_v, WIDTH=triton.next_power_of_2(d_v), BLOCK_S=COMBINED, num_warps=4,
        )  # fmt: skip


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
        store.page_stride, store.token_stride, store.scales_at, D=D, LAYOUT=LAYOUTS[layout], NATIVE=native(),
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
        return 512, 64, 0, 0
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


def native() -> bool:
    return arch() >= FP8_ARCH and not interpreted()


OPS: dict[str, Callable[..., Any]] = {
    "sparse_mla": sparse_mla,
    "sparse_mla_decode": sparse_mla_decode,
    "mla_cache_write": mla_cache_write,
    "mla_cache_read": mla_cache_read,
}
