"""The one table of fused_matmul: what is tested and what is benchmarked.

Tolerance, every float case: ref.bound, |err| <= gamma(K + 2) sum|x||w| + the epilogue's roundings + half an ULP of a
bf16 or f16 output (derived there). It holds for every input, so one failing output in one run is a bug.
Sizes: 0, 1, and one either side of the register tiles (6 rows on avx2; 16 and 64 columns), of the 4 values of k that
an int8 dot takes, the 2 of a bf16 dot and the 16 lanes of a vector.
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
CROSSED = ("none", "relu", "gelu")  # activations that meet every bias and residual; the others each dtype
REST = tuple(name for name in ACTIVATIONS if name not in CROSSED)

# Every (M, N) of these is a corner of one larger product, see tests/test_sizes.py.
SWEEP_M = (0, 1, 2, 5, 6, 7, 8, 11, 12, 13, 15, 16, 17, 31, 33, 65)
SWEEP_N = (0, 1, 2, 3, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 127, 129)
SWEEP_K = (0, 1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 63, 65, 130)

# (M, N, K) that every ISA level runs against the reference.
SHAPES = (
    (1, 1, 1),
    (1, 65, 17),
    (2, 3, 4),
    (5, 16, 3),
    (6, 15, 16),
    (7, 17, 15),
    (13, 63, 64),
    (16, 64, 128),
    (17, 130, 33),
    (65, 33, 131),
    (3, 48, 4099),
)
EPILOGUE_SHAPE = (7, 35, 19)  # tails in M, N and K
# (M, N, K, activation): one column, whole and partial panels, more rows than the two halves take in turn; SHAPES[-3]
# so that the tests of one size meet it, too.
GATED = ((1, 1, 1, "relu"), (1, 65, 17, "silu"), (17, 130, 33, "hardswish"), (389, 70, 33, "tanh"), (3, 64, 4, "none"))
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
    gated: bool = False  # the weight has 2 N rows

    @property
    def id(self) -> str:
        words = [f"{self.M}x{self.N}x{self.K}", self.dtype, self.activation]
        return "-".join(
            words
            + ["bias"] * self.bias
            + ([] if self.residual == "none" else [f"residual_{self.residual}"])
            + ["gated"] * self.gated
        )

    def inputs(self, generator: torch.Generator) -> dict[str, Any]:
        """Keyword arguments of the op. Outputs are of size 1, so that an activation meets its whole curve."""
        dtype = getattr(torch, self.dtype)

        def normal(*shape: int, deviation: float = 1.0) -> torch.Tensor:
            return (torch.randn(shape, generator=generator) * deviation).to(dtype)

        rows = self.N * (1 + self.gated)
        residual_shape = {"none": None, "full": (self.M, self.N), "one": (1,)}[self.residual]
        return {
            "x": normal(self.M, self.K),
            "weight": normal(rows, self.K, deviation=2 / max(self.K, 1) ** 0.5),
            "bias": normal(rows) if self.bias else None,
            "activation": self.activation,
            "residual": None if residual_shape is None else normal(*residual_shape),
        } | ({"gated": True} if self.gated else {})


def _cases() -> Iterator[Case]:
    for i, (shape, dtype) in enumerate(product(SHAPES, DTYPES)):
        yield Case(*shape, dtype, ACTIVATIONS[i % len(ACTIVATIONS)], i // 3 % 2 == 0, RESIDUALS[i % 3])
    for dtype, activation, bias, residual in product(DTYPES, CROSSED, (False, True), RESIDUALS):
        yield Case(*EPILOGUE_SHAPE, dtype, activation, bias, residual)
    for i, (dtype, activation) in enumerate(product(DTYPES, REST)):
        yield Case(*EPILOGUE_SHAPE, dtype, activation, i % 2 == 0, RESIDUALS[i % 3])
    for i, ((M, N, K, activation), dtype) in enumerate(product(GATED, DTYPES)):
        yield Case(M, N, K, dtype, activation, i % 4 < 3, RESIDUALS[i % 3], True)
    for shape in EMPTY_SHAPES:
        yield Case(*shape, "float32", "silu", gated=True)
    for shape, dtype in product(EMPTY_SHAPES, DTYPES):
        yield Case(*shape, dtype, "silu", True, "full")
    for i, shape in enumerate((*SHAPES, EPILOGUE_SHAPE, EMPTY_SHAPES[2])):
        yield Case(*shape, HALF, ACTIVATIONS[i % 5], i // 3 % 2 == 0, RESIDUALS[i % 3])


CASES = tuple(_cases())


@dataclass(frozen=True)
class Bench:
    """One measured size."""

    M: int
    N: int
    K: int
    dtype: str
    activation: str = "none"
    why: str = ""
    quick: bool = False  # in the small set that CI gates on
    gated: bool = False  # the weight has 2 N rows

    @property
    def id(self) -> str:
        return f"{self.M}x{self.N}x{self.K}-{self.dtype}-{self.activation}" + "-gated" * self.gated

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
        """x, weight and bias read once, y written once."""
        item_bytes = getattr(torch, self.dtype).itemsize
        return item_bytes * (self.M * self.K + self.rows * (self.K + 1) + self.M * self.N)

    @property
    def rate(self) -> str:
        """The ceiling of its arithmetic."""
        return "bf16_dot" if self.dtype == "bfloat16" else "fma_f32"

    def inputs(self, generator: torch.Generator) -> dict[str, Any]:
        """Keyword arguments of the op: with a bias, without a residual."""
        return Case(self.M, self.N, self.K, self.dtype, self.activation, gated=self.gated).inputs(generator)

    def call(self, inputs: dict[str, Any]) -> Callable[[], torch.Tensor]:
        """The op as a model runs it, its weight packed: nothing but the call is left."""
        from deepseek_fast.kernels.fused_matmul import op

        packed = op.PACK_OP(inputs["weight"], gated=self.gated)
        rest = {name: value for name, value in inputs.items() if name != "weight"}
        return partial(op.fused_matmul_packed, packed=packed, out_features=self.N, **rest)


# (M, N, K, activation, why, quick)
BENCH_SHAPES = (
    (512, 384, 384, "none", "all-MiniLM-L6-v2 attention projections, 8 x 64 tokens", True),
    (512, 1536, 384, "gelu", "all-MiniLM-L6-v2 feed-forward, up", True),
    (512, 384, 1536, "none", "all-MiniLM-L6-v2 feed-forward, down", True),
    (1, 4096, 4096, "none", "decoding one token: bound by the weight's bytes", False),
    (16, 4096, 4096, "none", "a small batch", False),
    (256, 4096, 4096, "none", "prefill: bound by arithmetic", False),
)
BENCH = tuple(
    Bench(M, N, K, dtype, activation, why, quick)
    for M, N, K, activation, why, quick in BENCH_SHAPES
    for dtype in (*DTYPES, HALF)
    if dtype != HALF or not quick
)
BENCH += (Bench(256, 1376, 4096, "bfloat16", "silu", "Llama-7B feed-forward, an eighth of gate and up", gated=True),)
