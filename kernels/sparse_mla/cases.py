"""The one table of sparse_mla and sparse_mla_decode. Tolerance: ref.bound, derived in ref_bounds.py of
block_sparse_attention; FlashMLA's criterion holds for all of its own sizes (test_ref.py).

Rows of kv that no valid index names, and bytes of a cache that no token has, are NaN.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import ml_dtypes
import numpy as np
import torch

from deepseek_fast.kernels.sparse_mla import caches
from deepseek_fast.kernels.sparse_mla.bench_cases import BENCH as BENCH

JUNK = (-(2**31), -123456, -1, 114514, 2**31 - 1)  # indices of nothing, FlashMLA's own; s_kv itself is one more
LAYOUTS = ("plain", "v32", "v4")


@dataclass(frozen=True)
class Case:
    """One prefill."""

    s_q: int
    h_q: int
    s_kv: int
    topk: int
    d_qk: int = 576
    d_v: int = 512
    h_kv: int = 1
    dtype: str = "bfloat16"
    invalid: float = 0.2  # share of entries that count not at all
    lonely: bool = False  # the first query has none that does
    topk_length: bool = False
    attn_sink: str = "none"  # "finite", "infinite"
    duplicates: bool = False
    size: float = 0.3  # of q

    @property
    def id(self) -> str:
        words = [f"{self.s_q}x{self.h_q}x{self.h_kv}x{self.s_kv}x{self.topk}x{self.d_qk}x{self.d_v}", self.dtype]
        words += [f"invalid_{self.invalid:g}"] + ["lonely"] * self.lonely + ["length"] * self.topk_length
        words += [f"sink_{self.attn_sink}"] * (self.attn_sink != "none") + ["duplicates"] * self.duplicates
        return "-".join(words + [f"size_{self.size:g}"] * (self.size != 0.3))

    def inputs(self, generator: torch.Generator) -> dict[str, Any]:
        """Keyword arguments of the op."""
        dtype = getattr(torch, self.dtype)
        q = (self.size * torch.randn(self.s_q, self.h_q, self.d_qk, generator=generator)).to(dtype)
        kv = torch.randn(self.s_kv, self.h_kv, self.d_qk, generator=generator).to(dtype)
        shape = (self.s_q, self.h_kv, self.topk)
        indices = listed(shape, self.s_kv, self.invalid, self.duplicates, generator)
        if self.lonely and self.s_q:
            indices[0] = -1
        result: dict[str, Any] = {"q": q, "kv": kv, "indices": indices, "d_v": self.d_v, "scale": self.d_qk**-0.5}
        counted = indices
        if self.topk_length:
            length = torch.randint(0, self.topk + 1, (self.s_q,), generator=generator)
            result["topk_length"] = length.int()
            counted = torch.where(torch.arange(self.topk) < length[:, None, None], indices, -1)
        for head in range(self.h_kv):
            used = torch.isin(torch.arange(self.s_kv), counted[:, head])
            kv[~used, head] = torch.nan
        return result | sinks(self.attn_sink, self.h_q, generator)

    def dout(self, generator: torch.Generator) -> torch.Tensor:
        return torch.randn(self.s_q, self.h_q, self.d_v, generator=generator).to(getattr(torch, self.dtype))


@dataclass(frozen=True)
class DecodeCase:
    """One call with a cache."""

    b: int
    s_q: int
    h_q: int
    tokens: int
    topk: int  # 0: dense, by block_table and cache_seqlens
    page: int = 64
    layout: str = "v32"
    d_v: int = 512
    dtype: str = "bfloat16"
    is_causal: bool = False
    topk_length: bool = False
    attn_sink: str = "none"
    extra_topk: int = 0
    gap: int = 0  # bytes between pages

    @property
    def id(self) -> str:
        words = [
            f"{self.b}x{self.s_q}x{self.h_q}x{self.tokens}x{self.topk}",
            f"page_{self.page}",
            self.layout,
            self.dtype,
        ]
        words += ["causal"] * self.is_causal + ["length"] * self.topk_length + [f"extra_{self.extra_topk}"]
        return "-".join(words + [f"sink_{self.attn_sink}"] * (self.attn_sink != "none") + ["gap"] * bool(self.gap))

    def inputs(self, generator: torch.Generator) -> dict[str, Any]:
        """Keyword arguments of sparse_mla_decode."""
        d_qk = 576 if self.layout == "plain" else caches.LAYOUTS[self.layout].d_qk
        q = 0.3 * torch.randn(self.b, self.s_q, self.h_q, d_qk, generator=generator)
        result: dict[str, Any] = {"q": q.to(getattr(torch, self.dtype)), "layout": self.layout, "d_v": self.d_v}
        result |= sinks(self.attn_sink, self.h_q, generator)
        if self.topk == 0:
            return result | self._dense(d_qk, generator)
        for name, tokens, topk in (("", self.tokens, self.topk), ("extra_", self.tokens // 2, self.extra_topk)):
            if not topk:
                continue
            places = -(-tokens // self.page) * self.page
            indices = listed((self.b, self.s_q, topk), tokens, 0.2, True, generator, places)
            if self.topk_length:
                length = torch.randint(0, topk + 1, (self.b,), generator=generator)
                result[f"{name}topk_length"] = length.int()
                indices[torch.arange(topk).expand_as(indices) >= length[:, None, None]] = 2**31 - 1
            used = torch.isin(torch.arange(tokens), indices)
            result |= {f"{name}k_cache": self._cache(tokens, used, d_qk, generator), f"{name}indices": indices}
        return result

    def _cache(self, tokens: int, used: torch.Tensor, d_qk: int, generator: torch.Generator) -> Any:
        kv = torch.randn(tokens, d_qk, generator=generator)
        kv[~used] = torch.nan
        if self.layout == "plain":
            pages = torch.full((-(-tokens // self.page) * self.page, d_qk), torch.nan)
            pages[:tokens] = kv
            return pages.reshape(-1, self.page, 1, d_qk).to(getattr(torch, self.dtype))
        numbers = kv.numpy().astype(ml_dtypes.bfloat16).astype(np.float32)
        return caches.write_cache(numbers, self.layout, self.page, gap=self.gap, fill=0xFF)

    def _dense(self, d_qk: int, generator: torch.Generator) -> dict[str, Any]:
        """Requests of many lengths, one of them 0 where there are several; pages in a random order."""
        lengths = torch.randint(1, self.tokens + 1, (self.b,), generator=generator)
        lengths[-1] = 0 if self.b > 1 else self.tokens
        a_request = -(-self.tokens // self.page)
        order = torch.randperm(self.b * a_request, generator=generator).reshape(self.b, a_request)
        used = torch.zeros(self.b * a_request, self.page, dtype=torch.bool)
        for b, length in enumerate(lengths.tolist()):
            t = torch.arange(length)
            used[order[b][t // self.page], t % self.page] = True
        table = torch.where(torch.arange(a_request) * self.page < lengths[:, None], order, 2147480000)
        cache = self._cache(used.numel(), used.flatten(), d_qk, generator)
        rest = {"block_table": table.int(), "cache_seqlens": lengths.int(), "is_causal": self.is_causal}
        return {"k_cache": cache} | rest


def listed(
    shape: Any, count: int, invalid: float, duplicates: bool, generator: torch.Generator, limit: int | None = None
) -> torch.Tensor:
    """int32 indices below count, distinct unless duplicates are wanted or there are too few; some of nothing, which is
    what lies from `limit` on."""
    limit = count if limit is None else limit
    if count == 0:
        return torch.full(shape, -1, dtype=torch.int32)
    flat = torch.randint(0, count, (torch.Size(shape[:-1]).numel(), shape[-1]), generator=generator)
    if not duplicates and shape[-1] <= count:
        flat = torch.rand(len(flat), count, generator=generator).argsort(-1)[:, : shape[-1]]
    junk = torch.tensor([*JUNK, limit])[torch.randint(0, len(JUNK) + 1, flat.shape, generator=generator)]
    junk = torch.where((junk >= 0) & (junk < limit), -1, junk)
    flat = torch.where(torch.rand(flat.shape, generator=generator) < invalid, junk, flat)
    return flat.reshape(shape).int()


def sinks(kind: str, heads: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    if kind == "none":
        return {}
    sink = torch.randn(heads, generator=generator)
    if kind == "infinite":
        sink[0], sink[-1] = torch.inf, -torch.inf
    return {"attn_sink": sink}


def _prefills() -> Iterator[Case]:
    for i, (h_q, (d_qk, d_v)) in enumerate(product((1, 8, 16, 17, 64, 128), ((576, 512), (512, 512)))):
        yield Case(3, h_q, 200, 128, d_qk, d_v, lonely=i % 2 == 0, attn_sink=("none", "finite", "infinite")[i % 3])
    for i, topk in enumerate((1, 15, 63, 64, 65, 129, 640)):
        yield Case(2, 16, 300, topk, 96, 64, dtype=("bfloat16", "float32", "float16")[i % 3], duplicates=True)
    for invalid, length, dtype in product((0.0, 0.5, 1.0), (False, True), ("float32", "bfloat16")):
        yield Case(4, 8, 100, 70, 72, 64, dtype=dtype, invalid=invalid, topk_length=length, attn_sink="finite")
    for h_q, h_kv in ((4, 2), (6, 3)):
        yield Case(5, h_q, 60, 40, 40, 24, h_kv=h_kv, dtype="float32", duplicates=True)
    for size in (0.0, 10.0):
        yield Case(2, 8, 100, 64, 64, 64, size=size)
    for s_q, s_kv, topk in ((0, 10, 4), (3, 0, 4), (3, 10, 0)):
        yield Case(s_q, 8, s_kv, topk, 32, 16)
    for h_q, h_kv, dtype in ((300, 1, "bfloat16"), (130, 2, "float32"), (131, 1, "float16")):
        yield Case(2, h_q, 50, 70, 41, 33, h_kv=h_kv, dtype=dtype, attn_sink="finite", duplicates=True)


def _decodes() -> Iterator[DecodeCase]:
    for i, (layout, page) in enumerate(product(LAYOUTS, (2, 53, 61, 64, 69, 256, 576))):
        yield DecodeCase(2, 1 + i % 2, 8, 300, 128, page, layout, topk_length=i % 3 == 0, gap=32 * (i % 2))
    for i, (layout, h_q) in enumerate(product(LAYOUTS, (1, 17, 64))):
        sink = ("none", "finite", "infinite")[i % 3]
        yield DecodeCase(2, 2, h_q, 700, 640, 64, layout, attn_sink=sink, extra_topk=65 * (i % 2))
    for i, (layout, is_causal, s_q) in enumerate(product(LAYOUTS, (False, True), (1, 3))):
        yield DecodeCase(1 + 2 * (i % 2), s_q, 8, 130, 0, 64, layout, is_causal=is_causal)
    for layout in LAYOUTS:
        yield DecodeCase(1, 1, 8, 100, 64, 64, layout, dtype="float32")
        yield DecodeCase(0, 1, 8, 10, 4, 64, layout)
    for layout in LAYOUTS:
        yield DecodeCase(2, 1, 9, 100, 70, 16, layout, dtype="float16", extra_topk=30)


CASES = tuple(_prefills())
DECODE_CASES = tuple(_decodes())
