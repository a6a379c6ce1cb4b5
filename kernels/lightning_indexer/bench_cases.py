"""What is measured of fp8_mqa_logits, fp8_paged_mqa_logits, topk_indices and lightning_indexer; cases.py hands it on.

Operations are those of the dot products, bytes those of codes, scales and logits; a selection compares and reads each
score PASSES times. The fused selection is compared by what the logits of its tokens are worth in float64.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

LOGITS, PAGED, TOPK, FUSED = "fp8_mqa_logits", "fp8_paged_mqa_logits", "topk_indices", "lightning_indexer"
PAGE = 64  # tokens
SCALE_BYTES = 4  # of a token
PASSES = 3  # over the scores: count their high bits, count below the threshold's, collect
QUERIES = 32  # of which the reference has all heads' dot products at a time


@dataclass(frozen=True)
class Bench:
    """One measured size."""

    op: str
    s_q: int
    s_kv: int
    top_k: int = 0
    H: int = 64
    D: int = 128
    group: str = ""
    why: str = ""
    quick: bool = False  # in the small set that CI gates on
    sweep: bool = False  # also at the lower levels and on all threads

    @property
    def id(self) -> str:
        sizes = f"{self.s_q}x{self.s_kv}" + ("" if self.op == TOPK else f"x{self.H}x{self.D}")
        return f"{self.op.removeprefix('fp8_')}-{sizes}" + (f"-top_{self.top_k}" if self.top_k else "")

    @property
    def id_means(self) -> str:
        return "queries x tokens x heads x D"

    @property
    def flops(self) -> int:
        return self.s_q * self.s_kv * (PASSES if self.op == TOPK else 2 * self.H * self.D)

    @property
    def bytes(self) -> int:
        logits, codes = 4 * self.s_q * self.s_kv, self.s_q * self.H * self.D + self.s_kv * (self.D + SCALE_BYTES)
        return PASSES * logits if self.op == TOPK else codes + (0 if self.op == FUSED else logits)

    @property
    def rate(self) -> str:
        """The ceiling of its arithmetic."""
        return "fma_f32" if self.op == TOPK else "bf16_dot"

    def inputs(self, generator: torch.Generator) -> dict[str, Any]:
        """Keyword arguments of the op. Weights of both signs, as a model has them."""
        from deepseek_fast.kernels.lightning_indexer import ref

        if self.op == TOPK:
            return {"scores": torch.randn(self.s_q, self.s_kv, generator=generator), "k": self.top_k}
        q, k = self._codes(generator, self.s_q, self.H), self._codes(generator, self.s_kv)
        scale = torch.rand(self.s_kv, generator=generator) * 0.1 + 1e-3
        weights = torch.randn(self.s_q, self.H, generator=generator) * (self.H * self.D) ** -0.5
        if self.op == PAGED:
            cache = torch.from_numpy(ref.write_cache(k, scale, PAGE)).reshape(-1, PAGE, 1, self.D + SCALE_BYTES)
            order = torch.randperm(len(cache), generator=generator)
            table = order.argsort().int()[None].expand(self.s_q, -1).contiguous()
            lengths = torch.full((self.s_q,), self.s_kv, dtype=torch.int32)
            paged = {"cache": cache[order].contiguous(), "context_lens": lengths, "block_table": table}
            return {"q": q[:, None], "weights": weights, "max_context_len": self.s_kv} | paged
        result = {"q": q, "k": k, "k_scale": scale, "weights": weights}
        return result | ({"top_k": self.top_k} if self.top_k else {})

    def _codes(self, generator: torch.Generator, *shape: int) -> Tensor:
        return torch.randn(*shape, self.D, generator=generator).to(torch.float8_e4m3fn)

    def wanted(self, inputs: dict[str, Any]) -> tuple[Any, Any]:
        """(answer in float64 or as indices, bound), as `answer` gives it."""
        from deepseek_fast.kernels.lightning_indexer import ref

        if self.op == TOPK:
            return ref.topk_indices_ref(**inputs), None
        if self.op == PAGED:
            arguments = inputs | {"cache": inputs["cache"].flatten(1).numpy()}
            return ref.fp8_paged_mqa_logits_ref(**arguments), ref.paged_bound(**arguments)
        logits, error = _logits(inputs["q"], inputs["k"], inputs["k_scale"], inputs["weights"])
        if self.op == LOGITS:
            return logits, error
        # Of logits that are wrong by e at most, the i-th largest are, in truth, the i-th largest to within 2 e.
        best = logits.topk(self.top_k).values
        return best, 2 * error.amax(-1, keepdim=True).expand_as(best)

    def answer(self, found: Tensor, inputs: dict[str, Any]) -> Tensor:
        """What is compared of what a call gives; outside the time."""
        if self.op == TOPK:
            return in_order(found)
        return true_logits(found, inputs) if self.op == FUSED else found

    def call(self, inputs: dict[str, Any]) -> Callable[[], Any]:
        """The public function."""
        import deepseek_fast

        return partial(getattr(deepseek_fast, self.op), **inputs)


def in_order(indices: Tensor) -> Tensor:
    """A selection has no order of its own."""
    return indices.sort(-1).values.int()


def true_logits(indices: Tensor, inputs: dict[str, Any]) -> Tensor:
    """The float64 logits of the selected tokens, descending; NaN where one is selected twice or is none."""
    logits, _ = _logits(inputs["q"], inputs["k"], inputs["k_scale"], inputs["weights"])
    places = indices.long().sort(-1).values
    wrong = (places < 0) | (places >= logits.shape[-1])
    wrong[..., 1:] |= places.diff(dim=-1) == 0
    values = logits.gather(-1, places.clamp(0, logits.shape[-1] - 1)).masked_fill(wrong, torch.nan)
    return values.sort(-1, descending=True).values


@functools.lru_cache(maxsize=1)
def _logits(q: Tensor, k: Tensor, k_scale: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """(logits, bound), the last ones kept: every answer of a row is compared by them."""
    from deepseek_fast.kernels.lightning_indexer import ref

    parts = zip(q.split(QUERIES), weights.split(QUERIES), strict=True)
    found = [(ref.fp8_mqa_logits_ref(a, k, k_scale, w), ref.bound(a, k, k_scale, w)) for a, w in parts]
    return torch.cat([logits for logits, _ in found]), torch.cat([error for _, error in found])


BENCH = (
    Bench(PAGED, 1, 2048, group="logits", why="a decoder's query", quick=True, sweep=True),
    Bench(LOGITS, 256, 4096, group="logits", why="prefill"),
    Bench(TOPK, 1, 65536, 512, group="selection", why="a long context", sweep=True),
    Bench(TOPK, 64, 4096, 512, group="selection", why="prefill", quick=True, sweep=True),
    Bench(FUSED, 1, 65536, 512, group="fused", why="a long context, its logits never stored"),
    Bench(FUSED, 256, 4096, 2048, group="fused", why="DeepSeek-V3.2's top-k, prefill"),
    Bench(FUSED, 4, 4096, 512, group="fused", why="four queries, a decoder's", sweep=True),
)
