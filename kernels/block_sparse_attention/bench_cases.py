"""What is measured of block_sparse_attention. Bytes: q, k, v, out and lse once; flops: those of kept elements."""

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Bench:
    """One measured size."""

    S_q: int
    S_k: int
    H: int
    H_kv: int
    D: int
    dtype: str
    why: str
    window: Any = None
    density: float | None = None  # of kept blocks of 64 x 64
    is_causal: bool = False
    backward: bool = False
    top_tokens: int = 0  # lists of single keys, as a token-sparse decoder has them
    quick: bool = False

    @property
    def id(self) -> str:
        words = [f"{self.H}x{self.H_kv}x{self.S_q}x{self.S_k}x{self.D}", self.dtype]
        words += [f"window_{self.window}"] * bool(self.window) + ["causal"] * self.is_causal
        words += [f"density_{self.density:g}"] if self.density else []
        return "-".join(words + [f"top_{self.top_tokens}"] * bool(self.top_tokens) + ["backward"] * self.backward)

    def inputs(self, generator: torch.Generator) -> dict[str, Any]:
        """Keyword arguments of the op."""
        dtype = getattr(torch, self.dtype)
        q, k, v = (
            torch.randn(1, H, S, self.D, generator=generator).to(dtype)
            for H, S in ((self.H, self.S_q), (self.H_kv, self.S_k), (self.H_kv, self.S_k))
        )
        options: dict[str, Any] = {"is_causal": self.is_causal} | ({"window": self.window} if self.window else {})
        if self.density:
            shape = (1, self.H, -(-self.S_q // 64), -(-self.S_k // 64))
            options |= {"block_mask": torch.rand(shape, generator=generator) < self.density, "block_size": (64, 64)}
        if self.top_tokens:
            order = torch.rand(self.H_kv, self.S_k, generator=generator).argsort(-1)[:, : self.top_tokens]
            columns = order.sort(-1).values.flatten().int()
            offsets = torch.arange(self.H_kv)[:, None] * self.top_tokens + torch.tensor([0, self.top_tokens])
            options |= {"block_mask": (offsets.int()[None], columns), "block_size": (1, 1)}
        return {"q": q, "k": k, "v": v} | options

    def elements(self, inputs: dict[str, Any]) -> int:
        """Scores that count, over all heads."""
        from deepseek_fast.kernels.block_sparse_attention.ref import seen_of

        return int(seen_of(inputs).sum())

    def flops(self, inputs: dict[str, Any]) -> int:
        """Two products forward, five backward, a multiplication and an addition each."""
        return 2 * self.D * (5 if self.backward else 2) * self.elements(inputs)

    @property
    def bytes(self) -> int:
        """Of a call; a decoder's touch the listed keys alone."""
        keys = self.top_tokens or self.S_k
        item_bytes = getattr(torch, self.dtype).itemsize
        return item_bytes * self.D * (2 * self.H * self.S_q + 2 * self.H_kv * keys) + 4 * self.H * self.S_q

    @property
    def rate(self) -> str:
        """The ceiling of its arithmetic."""
        return "bf16_dot" if self.dtype == "bfloat16" else "fma_f32"


WINDOW = "sliding window"
MASK = "block mask"
BENCH = (
    Bench(2048, 2048, 4, 4, 128, "float32", WINDOW, window=256, is_causal=True, quick=True),
    Bench(2048, 2048, 4, 4, 128, "bfloat16", WINDOW, window=256, is_causal=True, quick=True),
    *(
        Bench(2048, 2048, 4, 4, 128, dtype, MASK, density=d)
        for dtype in ("float32", "bfloat16")
        for d in (0.1, 0.25, 0.5)
    ),
    *(Bench(2048, 2048, 4, 4, 128, dtype, "the density's own dense time") for dtype in ("float32", "bfloat16")),
    Bench(1024, 1024, 8, 8, 128, "bfloat16", "causal prefill", is_causal=True),
    *(Bench(2048, 2048, 4, 4, 128, dtype, MASK, density=0.25, backward=True) for dtype in ("float32", "bfloat16")),
    Bench(1, 8192, 32, 8, 128, "bfloat16", "token-sparse decode", top_tokens=512, quick=True),
)
LOG_SIZES = tuple(1024 * 2**i for i in range(7))  # S of the local + log-strided pattern: the exponent of time over n
