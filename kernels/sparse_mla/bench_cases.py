"""What is measured of sparse_mla; cases.py hands it on as BENCH. Bytes: touched tokens, q and out once; flops: two
products of all entries."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TOKEN_BYTES = {"plain": 2 * 576, "v32": 656, "v4": 584}
NUMBERS = {"plain": 576, "v32": 576, "v4": 512}
D_V = 512


@dataclass(frozen=True)
class Bench:
    """One measured size: a decoder's one query, or a prefill of s_q of them."""

    layout: str  # "prefill": rows of bf16
    h_q: int
    tokens: int
    topk: int
    why: str
    s_q: int = 1
    quick: bool = False
    rate: str = "bf16_dot"
    reference: str = "ref_bench"  # a file of the room

    @property
    def op(self) -> str:
        return "sparse_mla" if self.layout == "prefill" else "sparse_mla_decode"

    @property
    def id(self) -> str:
        return f"{self.s_q}x{self.h_q}x{self.tokens}x{self.topk}-{self.layout}"

    @property
    def flops(self) -> int:
        return 2 * self.s_q * self.h_q * self.topk * (NUMBERS.get(self.layout, 576) + D_V)

    @property
    def bytes(self) -> int:
        rows = min(self.s_q * self.topk, self.tokens) * TOKEN_BYTES.get(self.layout, 2 * 576)
        return rows + 2 * self.s_q * self.h_q * (NUMBERS.get(self.layout, 576) + D_V)

    def inputs(self, generator: torch.Generator) -> dict[str, Any]:
        """Keyword arguments of the op; every entry counts, none twice."""
        d_qk = NUMBERS.get(self.layout, 576)
        q = (0.3 * torch.randn(self.s_q, self.h_q, d_qk, generator=generator)).bfloat16()
        kv = torch.randn(self.tokens, d_qk, generator=generator).bfloat16()
        order = torch.rand(self.s_q, self.tokens, generator=generator).argsort(-1)[:, : self.topk].int()
        if self.layout == "prefill":
            return {"q": q, "kv": kv[:, None], "indices": order[:, None], "d_v": D_V}
        result: dict[str, Any] = {"q": q[None], "indices": order[None], "layout": self.layout, "d_v": D_V}
        return result | {"k_cache": self._cache(kv)}

    def _cache(self, kv: Tensor) -> Tensor:
        from deepseek_fast.kernels.sparse_mla.op import mla_cache_empty, mla_cache_write

        if self.layout == "plain":
            return kv.reshape(-1, 64, 1, kv.shape[1])
        cache = mla_cache_empty(self.tokens // 64, 64, layout=self.layout)
        mla_cache_write(cache, kv, layout=self.layout)
        return cache

    def call(self, inputs: dict[str, Any]) -> Callable[[], Tensor]:
        from deepseek_fast.kernels.sparse_mla import op

        function = getattr(op, self.op)
        return lambda: function(**inputs)[0]  # type: ignore[no-any-return]


BENCH = (
    Bench("v32", 64, 8192, 640, "DeepSeek-V3.2 decode", quick=True),
    Bench("v4", 64, 8192, 640, "DeepSeek-V4 decode", quick=True),
    Bench("v32", 128, 8192, 2048, "DeepSeek-V3.2, all of its top-k"),
    Bench("plain", 64, 8192, 640, "a bf16 cache"),
    Bench("v32", 16, 8192, 640, "an eighth of the heads"),
    Bench("v32", 1, 8192, 640, "one head"),
    Bench("prefill", 64, 8192, 512, "prefill", s_q=16),
)
