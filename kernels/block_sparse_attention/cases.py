"""The one table of block_sparse_attention: what is tested, forward and backward; bench_cases.py has what is measured.

Tolerance: ref_bounds.bound and backward_bound, derived there from the order of arithmetic in cpu.h. They hold for every
input, so one value outside in one run is a bug. Every case lies within FlashMLA's criterion for out, too (test_ref.py).
Sizes: one either side of a vector, of a step of 64 keys and of a block; one query, one key, none.
What no query sees, and whatever lies between rows that are apart, is NaN.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch.nn.attention.flex_attention import create_block_mask

from deepseek_fast.kernels.block_sparse_attention import ref_masks
from deepseek_fast.kernels.block_sparse_attention.bench_cases import BENCH as BENCH

DTYPES = ("float32", "bfloat16", "float16")
MASKS = ("none", "random", "diagonal", "empty_rows", "full", "first_column")
FORMS = ("bool", "lists", "lists_int64", "flex")


@dataclass(frozen=True)
class Case:
    """One call."""

    S_q: int
    S_k: int
    D: int = 64
    D_v: int | None = None
    B: int = 1
    H: int = 2
    H_kv: int = 2
    dtype: str = "float32"
    mask: str = "none"
    form: str = "bool"
    mask_shape: tuple[str, str] = ("B", "H")  # "1": one for all; "H_kv": one a group
    block_size: tuple[int, int] = (64, 64)
    density: float = 0.4
    is_causal: bool = False
    window: Any = None
    sinks: int | None = None
    q_offset: int | str = 0
    lengths_q: tuple[int, ...] = ()  # cu_seqlens of these
    lengths_k: tuple[int, ...] = ()
    token_bias: str = "none"  # "key": (B, 1, 1, S_k), "all": (B, H, S_q, S_k), "padding": zeros and -inf
    sink_logits: str = "none"  # "finite", "infinite": also -inf and inf
    scale: float | None = None
    size: float = 1.0  # of q: scores grow with it
    rows: str = "dense"  # "BSHD": heads of a token side by side; "apart": NaN between rows
    dlse: bool = False

    @property
    def id(self) -> str:
        words = [f"{self.B}x{self.H}x{self.H_kv}x{self.S_q}x{self.S_k}x{self.D}x{self.D_v or self.D}", self.dtype]
        if self.mask != "none":
            words += [self.mask, self.form, "x".join(self.mask_shape), "x".join(map(str, self.block_size))]
        words += ["causal"] * self.is_causal + ([f"window_{self.window}"] if self.window is not None else [])
        words += [f"sinks_{self.sinks}"] * bool(self.sinks) + [f"offset_{self.q_offset}"] * (self.q_offset != 0)
        words += ["lengths_" + "_".join(map(str, self.lengths_q))] * bool(self.lengths_q)
        words += [f"bias_{self.token_bias}"] * (self.token_bias != "none")
        words += [f"sink_{self.sink_logits}"] * (self.sink_logits != "none")
        words += [f"size_{self.size:g}"] * (self.size != 1) + [self.rows] * (self.rows != "dense")
        return "-".join(words).replace(" ", "") + "-dlse" * self.dlse

    def inputs(self, generator: torch.Generator) -> dict[str, Any]:
        """Keyword arguments of the op."""
        sizes = ref_masks.Sizes(self.B, self.H, self.H_kv, self.S_q, self.S_k)
        result: dict[str, Any] = {
            "q": self._rows(self.H, self.S_q, self.D, generator, self.size),
            "k": self._rows(self.H_kv, self.S_k, self.D, generator),
            "v": self._rows(self.H_kv, self.S_k, self.D_v or self.D, generator),
        }
        options: dict[str, Any] = {"is_causal": self.is_causal, "window": self.window, "sinks": self.sinks}
        options |= {"q_offset": self.q_offset, "block_size": self.block_size}
        for name, lengths in (("cu_seqlens_q", self.lengths_q), ("cu_seqlens_k", self.lengths_k)):
            if lengths:
                options[name] = torch.tensor([0, *lengths]).cumsum(0).int()
        result |= {
            name: value
            for name, value in options.items()
            if isinstance(value, torch.Tensor) or value not in (None, False, 0)
        }
        if self.mask != "none":
            result["block_mask"] = self._mask(sizes, options, generator)
        if self.token_bias != "none":
            result["token_bias"] = self._bias(generator)
        if self.sink_logits != "none":
            sink = torch.randn(self.H, generator=generator)
            if self.sink_logits == "infinite":
                sink[0], sink[-1] = torch.inf, -torch.inf
            result["sink_logits"] = sink
        result |= {} if self.scale is None else {"scale": self.scale}
        seen = ref_masks.visible(sizes, result.get("block_mask"), **options)
        groups = seen.any(-2).reshape(self.B, self.H_kv, self.H // self.H_kv, self.S_k).any(2)
        for name in ("k", "v"):
            result[name][~groups] = torch.nan
        return result

    def gradients(self, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """dout, and dlse where the case has it."""
        dout = self._rows(self.H, self.S_q, self.D_v or self.D, generator)
        dlse = torch.randn(self.B, self.H, self.S_q, generator=generator)
        return {"dout": dout} | ({"dlse": dlse} if self.dlse else {})

    def _rows(self, H: int, S: int, D: int, generator: torch.Generator, size: float = 1.0) -> torch.Tensor:
        values = (size * torch.randn(self.B, H, S, D, generator=generator)).to(getattr(torch, self.dtype))
        if self.rows == "BSHD":
            return values.transpose(1, 2).contiguous().transpose(1, 2)
        if self.rows == "apart":
            apart = torch.full((self.B, H, S, D + 5), torch.nan, dtype=values.dtype)
            apart[..., 3:-2] = values
            return apart[..., 3:-2]
        return values

    def _mask(self, sizes: ref_masks.Sizes, options: dict[str, Any], generator: torch.Generator) -> Any:
        size_q, size_k = self.block_size
        lengths_q = self.lengths_q or (self.S_q,)
        rows = sum(-(-length // size_q) for length in lengths_q)
        columns = max(-(-length // size_k) for length in self.lengths_k or lengths_q or (self.S_k,))
        if not self.lengths_q:
            columns = -(-self.S_k // size_k)
        shape = {"B": self.B, "H": self.H, "H_kv": self.H_kv, "1": 1}
        leading = [shape[word] for word in self.mask_shape]
        kept = torch.rand(*leading, rows, columns, generator=generator) < self.density
        if self.mask == "diagonal":
            kept = (torch.arange(rows)[:, None] == torch.arange(columns)).expand(*leading, -1, -1).clone()
        elif self.mask == "empty_rows":
            kept[..., ::2, :] = False
        elif self.mask in ("full", "first_column"):
            kept = torch.zeros_like(kept)
            kept[..., : 1 if self.mask == "first_column" else columns] = True
        if self.form == "bool":
            return kept
        if self.form.startswith("lists"):
            offsets, listed = ref_masks.lists_of(kept)
            return (offsets.long(), listed.long()) if self.form == "lists_int64" else (offsets, listed)
        table = kept

        def mask_mod(b: Any, h: Any, i: Any, j: Any) -> Any:  # of kept blocks all but every third key of odd queries
            kept_block = table[b % leading[0], h % leading[1], i // size_q, j // size_k]
            return kept_block & ~((j % 3 == 0) & (i % 2 == 1) & (j // size_k % 2 == 0))

        return create_block_mask(
            mask_mod, leading[0], leading[1], self.S_q, self.S_k, device="cpu", BLOCK_SIZE=self.block_size
        )

    def _bias(self, generator: torch.Generator) -> torch.Tensor:
        if self.token_bias == "padding":
            bias = torch.zeros(self.B, 1, 1, self.S_k)
            bias[..., self.S_k - self.S_k // 3 :] = -torch.inf
            return bias
        shape = (self.B, 1, 1, self.S_k) if self.token_bias == "key" else (self.B, self.H, self.S_q, self.S_k)
        return torch.randn(shape, generator=generator).to(getattr(torch, self.dtype))


def _cases() -> Iterator[Case]:
    for (S_q, S_k), dtype in product(((1, 1), (1, 65), (63, 64), (65, 129), (130, 100), (200, 300)), DTYPES):
        yield Case(S_q, S_k, dtype=dtype)  # dense
    for i, (D, D_v) in enumerate(((1, 1), (15, 17), (33, 8), (80, 96), (128, 128), (192, 128), (256, 64), (100, 100))):
        yield Case(70, 90, D, D_v, dtype=DTYPES[i % 2], mask="random", block_size=(32, 32))
    blocks = ((64, 64), (128, 128), (16, 16), (1, 64), (64, 128), (128, 64), (3, 7), (1, 1), (32, 200))
    for i, (block, dtype, mask) in enumerate(product(blocks, DTYPES[:2], MASKS[1:])):
        form = FORMS[i % 3]
        yield Case(150, 210, 32, B=2, dtype=dtype, mask=mask, form=form, block_size=block, is_causal=i % 4 == 3)
    for i, (shape, form) in enumerate(product(product(("B", "1"), ("H", "H_kv", "1")), FORMS)):
        if form == "flex" and shape[1] == "H_kv":
            continue
        yield Case(100, 140, 24, B=2, H=4, H_kv=2, dtype=DTYPES[i % 3], mask="random", form=form, mask_shape=shape)
    for i, (H, H_kv) in enumerate(((1, 1), (4, 1), (8, 2), (6, 3), (16, 1), (71, 1))):
        yield Case(20, 77, 16, H=H, H_kv=H_kv, dtype=DTYPES[i % 2], mask="random", is_causal=i % 2 == 0, q_offset=57)
    a_group: dict[str, Any] = {"H": 8, "H_kv": 2, "mask": "random", "mask_shape": ("B", "H_kv"), "form": "lists"}
    for dtype in DTYPES:
        yield Case(1, 300, 128, dtype=dtype, block_size=(1, 1), **a_group)  # a token-sparse decoder's
        yield Case(40, 200, 32, dtype=dtype, block_size=(1, 64), is_causal=True, q_offset="end", **a_group)  # NSA's
    windows = (1, 2, 64, 65, 1000, (0, 0), (10, None), (None, 10), (-1, 0), (5, 70), (200, 200))
    for i, (window, (S_q, S_k)) in enumerate(product(windows, ((190, 190), (40, 170)))):
        offset: int | str = "end" if i % 2 else 0
        sinks = (None, 1, 4, 70)[i % 4]
        yield Case(S_q, S_k, 32, dtype=DTYPES[i % 3], window=window, sinks=sinks, q_offset=offset, is_causal=i % 3 == 0)
    offsets: tuple[int | str, ...] = (-30, 7, 500, "end")
    for i, (place, S_q) in enumerate(product(offsets, (1, 60))):
        yield Case(S_q, 150, 32, dtype=DTYPES[i % 2], is_causal=True, q_offset=place)
    lengths = ((5, 0, 64, 65, 1), (100,), (0,), (63, 66, 2, 69))
    for i, (each, mask) in enumerate(product(lengths, ("none", "random", "empty_rows"))):
        keys = tuple(reversed(each)) if i % 2 else each
        options: dict[str, Any] = {"q_offset": "end" if i % 2 else 0, "is_causal": i % 3 != 2, "mask": mask}
        form = FORMS[i % 2]
        yield Case(sum(each), sum(keys), 24, lengths_q=each, lengths_k=keys, form=form, dtype=DTYPES[i % 2], **options)
    for i, (bias, dtype) in enumerate(product(("key", "all", "padding"), DTYPES)):
        yield Case(66, 130, 32, B=2, dtype=dtype, token_bias=bias, mask=("none", "random")[i % 2], is_causal=i % 3 == 0)
    for dtype, sink, mask in product(DTYPES, ("finite", "infinite"), ("none", "empty_rows")):
        yield Case(66, 130, 32, H=4, dtype=dtype, sink_logits=sink, mask=mask, dlse=dtype == "float32")
    for dtype, size in product(DTYPES, (0.0, 30.0, 1000.0)):  # flat, peaked, one-hot
        yield Case(40, 200, 64, dtype=dtype, size=size, dlse=size == 30)
    yield Case(40, 50, 32, scale=-0.3, dlse=True)
    yield Case(40, 50, 32, scale=0.0)
    for rows, dtype in product(("BSHD", "apart"), DTYPES):
        yield Case(70, 130, 40, B=2, H=4, dtype=dtype, mask="random", rows=rows, is_causal=True, q_offset="end")
    for S_q, S_k, B, mask in (
        (0, 5, 1, "none"),
        (5, 0, 1, "none"),
        (0, 0, 1, "full"),
        (3, 4, 0, "none"),
        (5, 0, 2, "full"),
    ):
        yield Case(S_q, S_k, 8, B=B, mask=mask)
    yield replace(Case(257, 1030, 128, dtype="bfloat16", mask="random", H=2, H_kv=1), density=0.1)


CASES = tuple(dict.fromkeys(_cases()))
