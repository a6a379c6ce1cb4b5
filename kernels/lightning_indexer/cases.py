"""The one table of fp8_mqa_logits (dense and paged), topk_indices and lightning_indexer.

Tolerance of logits: ref.bound. -inf is where the reference has it, exactly. topk_indices is exact. Bytes of a cache
that no query sees are those of NaN.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from deepseek_fast.kernels.lightning_indexer import ref
from deepseek_fast.kernels.lightning_indexer.bench_cases import BENCH as BENCH

WINDOWS = ("none", "causal", "random", "empty", "outside")


@dataclass(frozen=True)
class LogitsCase:
    """One call of fp8_mqa_logits."""

    s_q: int
    s_kv: int
    H: int = 64
    D: int = 128
    window: str = "random"
    compressed: bool = False
    dtype: str = "float32"

    @property
    def id(self) -> str:
        words = [f"{self.s_q}x{self.s_kv}x{self.H}x{self.D}", self.window]
        return "-".join(words + ["compressed"] * self.compressed + [self.dtype] * (self.dtype != "float32"))

    def inputs(self, generator: torch.Generator) -> dict[str, Any]:
        """Keyword arguments of the op. Weights of both signs, as a model has them."""
        weights = torch.randn(self.s_q, self.H, generator=generator) * (self.H * self.D) ** -0.5
        scales = torch.rand(self.s_kv, generator=generator) * 0.1 + 1e-3
        result: dict[str, Any] = {"q": codes(self.s_q, self.H, self.D, generator=generator)}
        result |= {"k": codes(self.s_kv, self.D, generator=generator), "k_scale": scales, "weights": weights}
        if self.window != "none":
            result |= self._window(generator)
        if self.compressed:
            longest = (result["ke"].clamp_max(self.s_kv) - result["ks"].clamp_min(0)).clamp_min(0)
            result["max_seqlen_k"] = max(int(longest.max()) if self.s_q else 0, 1)
        return result | ({} if self.dtype == "float32" else {"dtype": getattr(torch, self.dtype)})

    def _window(self, generator: torch.Generator) -> dict[str, torch.Tensor]:
        row = torch.arange(self.s_q)
        ends = torch.randint(0, self.s_kv + 1, (2, self.s_q), generator=generator).sort(0).values
        if self.window == "causal":
            ends = torch.stack([torch.zeros_like(row), (row + 1 + self.s_kv - self.s_q).clamp_min(0)])
        elif self.window == "empty":  # ks after ke in every other row
            ends = torch.where(row % 2 == 0, ends.flip(0), ends)
        elif self.window == "outside":
            ends = torch.stack([ends[0] - 10, ends[1] + 2**30])
        return {"ks": ends[0].int(), "ke": ends[1].int()}


@dataclass(frozen=True)
class PagedCase:
    """One call of fp8_paged_mqa_logits."""

    b: int
    next_n: int
    longest: int
    H: int = 64
    D: int = 128
    page: int = 64
    own_lengths: bool = False  # context_lens (b, next_n)

    @property
    def id(self) -> str:
        words = [f"{self.b}x{self.next_n}x{self.longest}x{self.H}x{self.D}", f"page_{self.page}"]
        return "-".join(words + ["own_lengths"] * self.own_lengths)

    def inputs(self, generator: torch.Generator) -> dict[str, Any]:
        """Keyword arguments of the op; the last of several requests has no token."""
        lengths = torch.randint(1, self.longest + 1, (self.b, self.next_n), generator=generator)
        if self.b > 1:
            lengths[-1] = 0
        if not self.own_lengths:
            lengths = lengths.amax(1) if self.next_n else lengths.new_zeros(self.b)
        most = lengths if lengths.dim() == 1 else lengths.amax(1)
        a_request = -(-self.longest // self.page)
        order = torch.randperm(self.b * a_request, generator=generator).reshape(self.b, a_request)
        table = torch.where(torch.arange(a_request) * self.page < most[:, None], order, 2147480000)
        used = torch.zeros(self.b * a_request, self.page, dtype=torch.bool)
        for b, length in enumerate(most.tolist()):
            t = torch.arange(length)
            used[order[b][t // self.page], t % self.page] = True
        k = codes(used.numel(), self.D, generator=generator).view(torch.uint8)
        k[~used.flatten()] = 0x7F
        scales = torch.rand(used.numel(), generator=generator).masked_fill(~used.flatten(), torch.nan)
        rows = self.b * self.next_n
        return {
            "q": codes(self.b, self.next_n, self.H, self.D, generator=generator),
            "cache": ref.write_cache(k.view(torch.float8_e4m3fn), scales, self.page),
            "weights": torch.randn(rows, self.H, generator=generator),
            "context_lens": lengths.int(),
            "block_table": table.int(),
            "max_context_len": self.longest + 3,
        }


@dataclass(frozen=True)
class TopkCase:
    """One call of topk_indices."""

    rows: int
    n: int
    k: int
    values: str = "normal"  # "ties": few values; "equal"; "special": NaN, infinities, zeros of both signs; "masked"
    sorted_by: str | None = None
    lengths: bool = False
    dtype: str = "float32"

    @property
    def id(self) -> str:
        words = [f"{self.rows}x{self.n}x{self.k}", self.values, str(self.sorted_by), self.dtype]
        return "-".join(words + ["lengths"] * self.lengths)

    def inputs(self, generator: torch.Generator) -> dict[str, Any]:
        scores = torch.randn(self.rows, self.n, generator=generator)
        if self.values == "ties":
            scores = scores.round()
        elif self.values == "equal":
            scores = torch.full_like(scores, -3.0)
        elif self.values == "special":
            table = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1e-45, -1e-45, 3e38])
            scores = table[torch.randint(0, len(table), scores.shape, generator=generator)]
        elif self.values == "masked":
            scores = scores.masked_fill(torch.rand(scores.shape, generator=generator) < 0.9, -torch.inf)
        result: dict[str, Any] = {"scores": scores.to(getattr(torch, self.dtype)), "k": self.k}
        result |= {"sorted_by": self.sorted_by} if self.sorted_by else {}
        if self.lengths:
            result["lengths"] = torch.randint(0, self.n + 1, (self.rows,), generator=generator).int()
        return result


def codes(*shape: int, generator: torch.Generator) -> torch.Tensor:
    """Every finite e4m3 code, so that no sum is exact by luck."""
    values = torch.randint(0, 254, shape, generator=generator)
    return torch.where(values < 127, values, values + 1).to(torch.uint8).view(torch.float8_e4m3fn)


def _logits_cases() -> Iterator[LogitsCase]:
    for i, (H, D) in enumerate(product((1, 3, 32, 64), (1, 32, 33, 64, 128))):
        yield LogitsCase(3, (15, 16, 17, 64, 130)[i % 5], H, D, WINDOWS[i % 5])
    for window, compressed, dtype in product(WINDOWS[1:], (False, True), ("float32", "bfloat16")):
        yield LogitsCase(20, 150, 16, 64, window, compressed, dtype)
    for s_q, s_kv in ((0, 5), (5, 0), (1, 1), (1, 700)):
        yield LogitsCase(s_q, s_kv)


def _paged_cases() -> Iterator[PagedCase]:
    for i, (next_n, page) in enumerate(product((1, 2, 3), (1, 16, 64, 100))):
        yield PagedCase(1 + i % 3, next_n, 130, (64, 32, 5)[i % 3], (128, 64, 24)[i % 3], page, i % 2 == 1)
    yield PagedCase(0, 1, 10, 4, 8)


def _topk_cases() -> Iterator[TopkCase]:
    kinds = ("normal", "ties", "equal", "special", "masked")
    for i, (n, k) in enumerate(product((1, 15, 16, 17, 1000, 4097), (1, 16, 512))):
        yield TopkCase(3, n, k, kinds[i % 5], ref.SORTED_BY[i % 3], i % 2 == 0)
    for i, (values, sorted_by, dtype) in enumerate(product(kinds, ref.SORTED_BY, ("float32", "bfloat16", "float16"))):
        yield TopkCase(2, 300, 40, values, sorted_by, i % 2 == 1, dtype)
    for rows, n, k in ((0, 5, 2), (3, 0, 2), (3, 5, 0), (2, 5, 9), (1, 65536, 512), (1, 70000, 2048)):
        yield TopkCase(rows, n, k)


CASES = tuple(_logits_cases())
PAGED_CASES = tuple(_paged_cases())
TOPK_CASES = tuple(_topk_cases())
