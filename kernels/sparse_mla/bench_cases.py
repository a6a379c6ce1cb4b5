"""What is measured of sparse_mla and sparse_mla_decode; cases.py hands it on as BENCH.

Operations are those of two products over the listed tokens. Bytes: the rows that the lists name,
once, q and out. Every index counts and none is there twice.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from deepseek_fast.kernels.sparse_mla import caches

PREFILL, DECODE = "sparse_mla", "sparse_mla_decode"
PAGE = 64  # tokens
PLAIN_D = 576  # numbers of a row in bf16


@dataclass(frozen=True)
class Bench:
    """One measured size; a decoder's is one request with one query."""

    op: str
    h_q: int
    topk: int  # entries of the list
    layout: str = "plain"
    s_q: int = 1
    extra_topk: int = 0  # entries of the second cache's list: V4's window is the first, its compressed tokens are here
    attn_sink: bool = False
    tokens: int = 8192  # of each cache
    d_v: int = 512
    group: str = ""
    why: str = ""
    quick: bool = False  # in the small set that CI gates on
    sweep: bool = False  # also at the lower levels and on all threads

    @property
    def id(self) -> str:
        word = {PREFILL: "prefill", DECODE: self.layout}[self.op]
        listed = f"{self.topk}+{self.extra_topk}" if self.extra_topk else str(self.topk)
        return f"{word}-{self.s_q}x{self.h_q}-{listed}_of_{self.tokens}" + "-sink" * self.attn_sink

    @property
    def id_means(self) -> str:
        return "cache, queries x heads, tokens"

    @property
    def d_qk(self) -> int:
        return PLAIN_D if self.layout == "plain" else caches.LAYOUTS[self.layout].d_qk

    @property
    def token_bytes(self) -> int:
        return 2 * PLAIN_D if self.layout == "plain" else caches.LAYOUTS[self.layout].token_bytes

    @property
    def flops(self) -> int:
        return 2 * self.s_q * self.h_q * (self.topk + self.extra_topk) * (self.d_qk + self.d_v)

    @property
    def bytes(self) -> int:
        rows = self.s_q * (self.topk + self.extra_topk)
        return min(rows, self.tokens) * self.token_bytes + 2 * self.s_q * self.h_q * (self.d_qk + self.d_v)

    @property
    def rate(self) -> str:
        """The ceiling of its arithmetic."""
        return "bf16_dot"

    def inputs(self, generator: torch.Generator) -> dict[str, Any]:
        """Keyword arguments of the op."""
        q = 0.3 * torch.randn(self.s_q, self.h_q, self.d_qk, generator=generator)
        result: dict[str, Any] = {"q": q.bfloat16(), "d_v": self.d_v, "scale": self.d_qk**-0.5}
        if self.attn_sink:
            result["attn_sink"] = torch.randn(self.h_q, generator=generator)
        if self.op == PREFILL:
            kv = torch.randn(self.tokens, 1, self.d_qk, generator=generator).bfloat16()
            return result | {"kv": kv, "indices": self._listed(self.topk, generator)}
        result |= {"q": result["q"][None], "layout": self.layout, "k_cache": self._cache(generator)}
        result["indices"] = self._listed(self.topk, generator).transpose(0, 1).contiguous()
        if self.extra_topk:
            indices = self._listed(self.extra_topk, generator).transpose(0, 1).contiguous()
            result |= {"extra_k_cache": self._cache(generator), "extra_indices": indices}
        return result

    def _listed(self, topk: int, generator: torch.Generator) -> Tensor:
        """int32 (s_q, 1, topk)."""
        order = torch.rand(self.s_q, self.tokens, generator=generator).argsort(-1)
        return order[:, None, :topk].int().contiguous()

    def _cache(self, generator: torch.Generator) -> Tensor:
        kv = torch.randn(self.tokens, self.d_qk, generator=generator)
        if self.layout == "plain":
            return kv.bfloat16().reshape(-1, PAGE, 1, self.d_qk)
        cache = caches.write_cache(kv.numpy().astype(ml_dtypes.bfloat16).astype(np.float32), self.layout, PAGE)
        num_pages, stride = len(cache.pages), cache.pages.strides[0]
        rows = torch.from_numpy(np.lib.stride_tricks.as_strided(cache.pages, (num_pages, stride), (stride, 1)))
        each = self.token_bytes
        return rows.as_strided((num_pages, PAGE, 1, each), (stride, each, each, 1))

    def wanted(self, inputs: dict[str, Any]) -> tuple[Any, Any]:
        """(answer in float64, bounds) of (out, max_logits, lse), or of a decoder's (out, lse)."""
        from deepseek_fast.kernels.sparse_mla import ref

        if self.op == PREFILL:
            return ref.sparse_mla_ref(**inputs), ref.bound(**inputs)
        arguments = dict(inputs)
        for name in ("k_cache", "extra_k_cache"):
            if name in inputs and self.layout != "plain":
                arguments[name] = caches.Cache(inputs[name].flatten(1).numpy(), PAGE)
        return ref.sparse_mla_decode_ref(**arguments), ref.decode_bound(**arguments)

    def call(self, inputs: dict[str, Any]) -> Callable[[], Any]:
        """The public function."""
        import deepseek_fast

        return partial(getattr(deepseek_fast, self.op), **inputs)


V4, V32 = "DeepSeek-V4 decode", "DeepSeek-V3.2 decode"
BENCH = (
    Bench(DECODE, 64, 128, "v4", extra_topk=512, attn_sink=True, group="decode", why=V4, quick=True, sweep=True),
    Bench(DECODE, 64, 640, "v4", group="decode", why="the same, one list"),
    Bench(DECODE, 64, 640, "v32", group="decode", why=V32, sweep=True),
    Bench(DECODE, 128, 2048, "v32", group="decode", why=f"{V32}, all of its top-k"),
    Bench(DECODE, 64, 640, group="decode", why="a bf16 cache"),
    Bench(PREFILL, 64, 512, s_q=64, group="prefill", why="64 queries, a list each"),
    Bench(PREFILL, 16, 512, s_q=4, group="prefill", why="of the gate", quick=True, sweep=True),
)
