"""The one table of int8_matmul: what is tested and what is benchmarked.

Tolerance: none for activations="int8" with none, relu, relu6 or hardswish: every step is an exactly rounded operation
in a fixed order, so the reference replays it bit for bit. Else ref.bound: with "int8" only the smooth activations err
(4 u |z| or 4 u |act|), with "float" the sum errs as in fused_matmul.
Sizes as in fused_matmul, plus one either side of the 4 values of k that an int8 dot takes, and of 64 such values.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch

from deepseek_fast._activations import ACTIVATIONS

DTYPES = ("float32", "bfloat16")
HALF = "float16"  # has the bits of float32, rounded once (tests/test_float16.py): it needs few cases of its own
RESIDUALS = ("none", "full", "one")
MODES = ("int8", "float")  # the argument `activations`
CROSSED = ("none", "relu", "gelu")  # activations that meet every bias and residual; the others each dtype and mode
REST = tuple(name for name in ACTIVATIONS if name not in CROSSED)

# Every (M, N) of these is a corner of one larger product, see tests/test_sizes.py.
SWEEP_M = (0, 1, 2, 5, 6, 7, 8, 11, 12, 13, 15, 16, 17, 31, 33, 65)
SWEEP_N = (0, 1, 2, 3, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 127, 129)
SWEEP_K = (0, 1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 63, 64, 65, 127, 129, 259)

# (M, N, K) that every ISA level runs against the reference.
SHAPES = (
    (1, 1, 1),
    (1, 65, 17),
    (2, 3, 4),
    (5, 16, 3),
    (6, 15, 16),
    (7, 17, 63),
    (13, 63, 64),
    (16, 64, 128),
    (17, 130, 65),
    (65, 33, 131),
    (3, 48, 4099),
)
EPILOGUE_SHAPE = (7, 35, 19)  # tails in M, N and K
# (M, N, K, activation): one column, whole and partial panels, more rows than the two halves take in turn; SHAPES[-3]
# so that the tests of one size meet it, too.
GATED = ((1, 1, 1, "relu"), (1, 65, 17, "silu"), (17, 130, 65, "hardswish"), (389, 70, 33, "tanh"), (3, 64, 4, "none"))
EMPTY_SHAPES = ((0, 3, 4), (3, 0, 4), (3, 4, 0), (0, 0, 0))


@dataclass(frozen=True)
class Case:
    """One call: sizes, dtype and which optional arguments are there."""

    M: int
    N: int
    K: int
    dtype: str = "float32"
    activation: str = "none"
    bias: bool = True
    residual: str = "none"  # "none", "full": the output's shape, "one": one element
    activations: str = "int8"
    gated: bool = False  # the weight has 2 N rows

    @property
    def id(self) -> str:
        words = [f"{self.M}x{self.N}x{self.K}", self.dtype, f"w8_{self.activations}", self.activation]
        return "-".join(
            words
            + ["bias"] * self.bias
            + ([] if self.residual == "none" else [f"residual_{self.residual}"])
            + ["gated"] * self.gated
        )

    def inputs(self, generator: torch.Generator) -> dict[str, Any]:
        """Keyword arguments of the op. q takes all 256 codes; outputs are of size 1."""
        dtype = getattr(torch, self.dtype)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator).to(dtype)

        rows = self.N * (1 + self.gated)
        residual_shape = {"none": None, "full": (self.M, self.N), "one": (1,)}[self.residual]
        deviation = 2 / max(self.K, 1) ** 0.5 / 74  # 74: deviation of the 256 codes
        return {
            "x": normal(self.M, self.K),
            "q": torch.randint(-128, 128, (rows, self.K), generator=generator, dtype=torch.int8),
            "scale": (0.5 + torch.rand(rows, generator=generator)) * deviation,
            "bias": normal(rows) if self.bias else None,
            "activation": self.activation,
            "residual": None if residual_shape is None else normal(*residual_shape),
            "activations": self.activations,
        } | ({"gated": True} if self.gated else {})


def _cases() -> Iterator[Case]:
    for i, (shape, dtype, mode) in enumerate(product(SHAPES, DTYPES, MODES)):
        yield Case(*shape, dtype, ACTIVATIONS[i % len(ACTIVATIONS)], i // 3 % 2 == 0, RESIDUALS[i % 3], mode)
    for dtype, activation, bias, residual, mode in product(DTYPES, CROSSED, (False, True), RESIDUALS, MODES):
        yield Case(*EPILOGUE_SHAPE, dtype, activation, bias, residual, mode)
    for i, (dtype, activation, mode) in enumerate(product(DTYPES, REST, MODES)):
        yield Case(*EPILOGUE_SHAPE, dtype, activation, i // 2 % 2 == 0, RESIDUALS[i % 3], mode)
    for i, ((M, N, K, activation), dtype, mode) in enumerate(product(GATED, DTYPES, MODES)):
        yield Case(M, N, K, dtype, activation, i % 4 < 3, RESIDUALS[i % 3], mode, True)
    for shape, mode in product(EMPTY_SHAPES, MODES):
        yield Case(*shape, "float32", "silu", activations=mode, gated=True)
    for shape, dtype, mode in product(EMPTY_SHAPES, DTYPES, MODES):
        yield Case(*shape, dtype, "silu", True, "full", mode)
    for i, (shape, mode) in enumerate(product((*SHAPES[::4], EPILOGUE_SHAPE, EMPTY_SHAPES[2]), MODES)):
        yield Case(*shape, HALF, ACTIVATIONS[i % 5], i % 3 == 0, RESIDUALS[i % 3], mode)


CASES = tuple(_cases())


@dataclass(frozen=True)
class Bench:
    """One measured size."""

    M: int
    N: int
    K: int
    dtype: str
    activation: str = "none"
    activations: str = "int8"
    why: str = ""
    quick: bool = False  # in the small set that CI gates on
    gated: bool = False  # the weight has 2 N rows
    cold: bool = False  # its weights come from memory, not from a cache

    @property
    def id(self) -> str:
        words = f"{self.M}x{self.N}x{self.K}-{self.dtype}-w8_{self.activations}-{self.activation}"
        return words + "-gated" * self.gated + "-cold" * self.cold

    @property
    def rows(self) -> int:
        """Of the weight."""
        return self.N * (1 + self.gated)

    @property
    def flops(self) -> int:
        """A multiplication and an addition per product."""
        return 2 * self.M * self.rows * self.K

    @property
    def bytes(self) -> int:
        """x, q, scale and bias read once, y written once."""
        item_bytes = getattr(torch, self.dtype).itemsize
        scale_bytes = torch.float32.itemsize
        return self.rows * (self.K + scale_bytes + item_bytes) + item_bytes * self.M * (self.K + self.N)

    @property
    def rate(self) -> str:
        """The ceiling of its arithmetic."""
        if self.activations == "int8":
            return "int8_dot"
        return "bf16_dot" if self.dtype == "bfloat16" else "fma_f32"

    def inputs(self, generator: torch.Generator) -> dict[str, Any]:
        """Keyword arguments of the op: with a bias, without a residual."""
        options = {"activations": self.activations, "gated": self.gated}
        return Case(self.M, self.N, self.K, self.dtype, self.activation, **options).inputs(generator)  # type: ignore[arg-type]

    def call(self, inputs: dict[str, Any]) -> Callable[[], torch.Tensor]:
        """The op as a model runs it, its weight packed: nothing but the call is left."""
        from deepseek_fast.bench.cold import in_turn
        from deepseek_fast.kernels.int8_matmul import op

        packed = op.PACK_OP(inputs["q"], gated=self.gated)
        rest = {name: value for name, value in inputs.items() if name != "q"}
        return in_turn(partial(op.int8_matmul_packed, out_features=self.N, **rest), packed, cold=self.cold)


# (M, N, K, activation, why, quick)
BENCH_SHAPES = (
    (512, 384, 384, "none", "all-MiniLM-L6-v2 attention projections, 8 x 64 tokens", True),
    (512, 1536, 384, "gelu", "all-MiniLM-L6-v2 feed-forward, up", True),
    (512, 384, 1536, "none", "all-MiniLM-L6-v2 feed-forward, down", True),
    (1, 4096, 4096, "none", "decoding one token: bound by the weight's bytes", False),
    (16, 4096, 4096, "none", "a small batch", False),
    (256, 4096, 4096, "none", "prefill: bound by arithmetic", False),
)
BENCH = (
    *(
        Bench(M, N, K, dtype, activation, mode, why, quick)
        for M, N, K, activation, why, quick in BENCH_SHAPES
        for dtype, mode in (("float32", "int8"), ("bfloat16", "int8"), ("float32", "float"))
    ),
    Bench(1, 4096, 4096, "bfloat16", why="decoding one token of a model that no cache holds", cold=True),
)
BENCH += (Bench(256, 1376, 4096, "float32", "silu", why="Llama-7B feed-forward, an eighth of gate and up", gated=True),)
