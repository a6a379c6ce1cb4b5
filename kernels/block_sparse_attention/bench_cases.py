"""What is measured of block_sparse_attention; cases.py hands it on as BENCH.

Operations are those of kept tiles, TILE queries by TILE keys of which some pair counts: what a kernel that works in
tiles cannot leave out; lists of single keys count their keys alone. Bytes: q, the keys and values that count, out, lse.
The sizes of the issue's table take seconds of float64 beside them; the gate has smaller ones of the same kinds.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

TILE = 64  # queries, keys
FORWARD, BACKWARD = "block_sparse_attention", "block_sparse_attention_backward"
SHORT = {"float32": "f32", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Bench:
    """One measured size; a batch of one."""

    S_q: int
    S_k: int
    H: int
    H_kv: int
    D: int
    dtype: str
    group: str  # of which a benchmark gives geometric means
    why: str = ""
    window: int | None = None
    density: float | None = None  # of kept blocks of TILE x TILE
    is_causal: bool = False
    backward: bool = False
    top_tokens: int = 0  # lists of single keys, as a token-sparse decoder has them
    quick: bool = False  # in the small set that CI gates on
    sweep: bool = False  # also at the lower levels and on all threads

    @property
    def id(self) -> str:
        words = [f"{self.H}x{self.H_kv}x{self.S_q}x{self.S_k}x{self.D}", self.dtype]
        words += [f"window_{self.window}"] * bool(self.window) + ["causal"] * (self.is_causal and not self.window)
        words += [f"density_{self.density:g}"] if self.density else []
        return "-".join(words + [f"top_{self.top_tokens}"] * bool(self.top_tokens) + ["backward"] * self.backward)

    @property
    def id_means(self) -> str:
        return "heads x kv heads x queries x keys x D, dtype, mask"

    @property
    def op(self) -> str:
        return BACKWARD if self.backward else FORWARD

    @property
    def blocks(self) -> tuple[int, int]:
        """Rows and columns of tiles."""
        return -(-self.S_q // TILE), -(-self.S_k // TILE)

    @property
    def pairs(self) -> int:
        """Pairs of a query and a key that are computed, over all heads."""
        rows, columns = self.blocks
        if self.top_tokens:
            return self.H * self.S_q * self.top_tokens
        if self.density:
            return self.H * round(self.density * rows * columns) * TILE * TILE
        # Tile (row, column) counts from its first query's first key on to its last query's own.
        last = [min(row, columns - 1) if self.is_causal else columns - 1 for row in range(rows)]
        first = [max(row * TILE - self.window + 1, 0) // TILE if self.window else 0 for row in range(rows)]
        return self.H * sum(b - a + 1 for a, b in zip(first, last, strict=True)) * TILE * TILE

    @property
    def flops(self) -> int:
        """Two products forward, five backward, a multiplication and an addition each."""
        return 2 * self.D * (5 if self.backward else 2) * self.pairs

    @property
    def bytes(self) -> int:
        """Of a call; a decoder's touch the listed keys alone. Backward reads out, dout, lse and writes three more."""
        item_bytes, queries = getattr(torch, self.dtype).itemsize * self.D, self.H * self.S_q
        keys = 2 * self.H_kv * (self.top_tokens or self.S_k)
        return item_bytes * (4 * queries + 2 * keys if self.backward else 2 * queries + keys) + 4 * queries

    @property
    def rate(self) -> str:
        """The ceiling of its arithmetic."""
        return "bf16_dot" if self.dtype == "bfloat16" else "fma_f32"

    def inputs(self, generator: torch.Generator) -> dict[str, Any]:
        """Keyword arguments of the op; backward, dout beside them."""
        dtype = getattr(torch, self.dtype)

        def normal(H: int, S: int) -> Tensor:
            return torch.randn(1, H, S, self.D, generator=generator).to(dtype)

        result: dict[str, Any] = {"q": normal(self.H, self.S_q), "k": normal(self.H_kv, self.S_k)}
        result |= {"v": normal(self.H_kv, self.S_k)} | ({"is_causal": True} if self.is_causal else {})
        result |= {"window": self.window} if self.window else {}
        if self.density:
            result |= {"block_mask": self._kept(generator), "block_size": TILE}
        if self.top_tokens:
            order = torch.rand(self.H_kv, self.S_k, generator=generator).argsort(-1)[:, : self.top_tokens]
            offsets = torch.arange(self.H_kv)[:, None] * self.top_tokens + torch.tensor([0, self.top_tokens])
            result |= {"block_mask": (offsets.int()[None], order.sort(-1).values.flatten().int()), "block_size": 1}
        return result | ({"dout": normal(self.H, self.S_q)} if self.backward else {})

    def _kept(self, generator: torch.Generator) -> Tensor:
        """bool (1, H, rows, columns): exactly the density, and as even over the rows as it can be: none is empty."""
        rows, columns = self.blocks
        total = round((self.density or 0.0) * rows * columns)
        counts = total // rows + (torch.arange(rows) < total % rows).int()
        ranks = torch.rand(1, self.H, rows, columns, generator=generator).argsort(-1).argsort(-1)
        return ranks < counts[torch.randperm(rows, generator=generator)][:, None]

    def wanted(self, inputs: dict[str, Any]) -> tuple[Any, Any]:
        """(answer in float64, bound) of out, or of (dq, dk, dv)."""
        parts = [self._wanted(one) for one in (_by_head(inputs) if self.H_kv == self.H else [gathered(inputs)])]
        if not self.backward:
            return torch.cat([part[0] for part in parts], 1), torch.cat([part[1] for part in parts], 1)
        answers, bounds = zip(*parts, strict=True)
        return tuple(map(_cat, zip(*answers, strict=True))), tuple(map(_cat, zip(*bounds, strict=True)))

    def _wanted(self, inputs: dict[str, Any]) -> tuple[Any, Any]:
        from deepseek_fast.kernels.block_sparse_attention import ref, ref_bounds

        if not self.backward:
            return ref.block_sparse_attention_ref(**inputs), ref_bounds.bound(**inputs)
        return ref.block_sparse_attention_backward_ref(**inputs)[:3], ref_bounds.backward_bound(**inputs)[:3]

    def call(self, inputs: dict[str, Any]) -> Callable[[], Any]:
        """The public function; backward, autograd's of a forward that was run before."""
        import deepseek_fast

        if not self.backward:
            return partial(deepseek_fast.block_sparse_attention, **inputs)
        return backward_call(partial(deepseek_fast.block_sparse_attention), inputs)


def gathered(inputs: dict[str, Any]) -> dict[str, Any]:
    """q, and of k and v the listed keys alone: lists of single keys, one a head, all of one length."""
    offsets, columns = inputs["block_mask"]
    H_kv, D = inputs["k"].shape[1], inputs["k"].shape[-1]
    if inputs["block_size"] != 1 or offsets.shape[1:] != (H_kv, 2) or len(columns) % H_kv:
        raise ValueError(f"gathered: block_mask must be a list a head; got offsets of shape {tuple(offsets.shape)}")
    rows = columns.reshape(1, H_kv, -1, 1).long().expand(-1, -1, -1, D)
    return {"q": inputs["q"], "k": inputs["k"].gather(2, rows), "v": inputs["v"].gather(2, rows)}


def backward_call(attention: Callable[..., Tensor], inputs: dict[str, Any]) -> Callable[[], tuple[Tensor, ...]]:
    """(dq, dk, dv) by autograd, again and again, of attention(q=, k=, v=, rest)."""
    with torch.inference_mode(False), torch.enable_grad():
        leaves = {name: inputs[name].clone().requires_grad_() for name in ("q", "k", "v")}
        rest = {name: value.clone() if isinstance(value, Tensor) else value for name, value in inputs.items()}
        dout = rest.pop("dout")
        out = attention(**rest | leaves)

    def call() -> tuple[Tensor, ...]:
        with torch.inference_mode(False):
            return torch.autograd.grad(out, tuple(leaves.values()), dout, retain_graph=True)

    return call


def _by_head(inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The same call a head at a time: float64 of all heads of a long sequence is gigabytes."""
    sliced = [name for name in ("q", "k", "v", "dout", "block_mask") if isinstance(inputs.get(name), Tensor)]
    for head in range(inputs["q"].shape[1]):
        yield inputs | {name: inputs[name][:, head : head + 1] for name in sliced}


def _cat(parts: tuple[Tensor, ...]) -> Tensor:
    return torch.cat(parts, 1)


def _long(dtype: str, group: str, **options: Any) -> Bench:
    """The issue's size."""
    return Bench(2048, 2048, 4, 4, 128, dtype, f"{group}, {SHORT[dtype]}", **options)


def _all() -> Iterator[Bench]:
    for dtype in SHORT:
        yield _long(dtype, "sliding window", window=256, is_causal=True, why="Mistral's, a quarter of its length")
    for dtype in SHORT:
        for density in (0.1, 0.25, 0.5):
            yield _long(dtype, "block mask", density=density)
        yield _long(dtype, "dense", why="what the densities are a share of")
    yield Bench(1024, 1024, 8, 8, 128, "bfloat16", "causal prefill, bf16", is_causal=True)
    for dtype in SHORT:
        yield _long(dtype, "backward", density=0.25, backward=True)
    name = "token-sparse decode, bf16"
    yield Bench(1, 8192, 32, 8, 128, "bfloat16", name, top_tokens=512, quick=True, sweep=True)
    small: dict[str, Any] = {"group": "small", "why": "of the gate", "quick": True, "sweep": True}
    for dtype in SHORT:
        yield Bench(512, 512, 2, 2, 128, dtype, **small, window=128, is_causal=True)
    yield Bench(512, 512, 2, 2, 128, "bfloat16", **small | {"quick": False}, density=0.25)
    yield Bench(512, 512, 2, 2, 128, "float32", **small, density=0.25, backward=True)


BENCH = tuple(_all())
LOG_SIZES = tuple(1024 * 2**i for i in range(7))  # S of the local + log-strided pattern: the exponent of time over n
