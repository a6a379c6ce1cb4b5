"""The one table of int4_matmul: what is tested and what is benchmarked.

Tolerance: none for compute="int8" with none, relu, relu6 or hardswish: every step is an exactly rounded operation in a
fixed order, so the reference replays it bit for bit. Else ref.bound: with "int8" only the smooth activations err (4 u
|z| or 4 u |act|), with "float" the sums err as in fused_matmul, and each block's scale adds a rounding.
Sizes: one either side of the 8 values of k in a step, of the groups, and of the tiles and panels of fused_matmul.
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
MODES = ("int8", "float")  # the argument `compute`
CROSSED = ("none", "relu", "gelu")  # activations that meet every bias and residual; the others each dtype and mode
REST = tuple(name for name in ACTIVATIONS if name not in CROSSED)
GROUPS = ((32, False), (64, True), (128, False), (-1, True), (32, True), (64, False), (128, True), (-1, False))

# Every (M, N) of these is a corner of one larger product, see tests/test_sizes.py.
SWEEP_M = (0, 1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 31, 33, 65)
SWEEP_N = (0, 1, 2, 3, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 127, 129)
SWEEP_K = (0, 1, 2, 3, 7, 8, 9, 15, 31, 32, 33, 40, 64, 65, 127, 128, 129, 259)

# (M, N, K) that every ISA level runs against the reference.
SHAPES = (
    (1, 1, 1),
    (1, 65, 17),
    (2, 3, 4),
    (5, 16, 31),
    (6, 15, 32),
    (7, 17, 63),
    (13, 63, 64),
    (16, 64, 128),
    (17, 130, 301),
    (65, 33, 131),
    (3, 48, 4099),
)
EPILOGUE_SHAPE = (7, 35, 41)  # tails in M, N and K
# (M, N, K, activation): one column, whole and partial panels, more rows than the two halves take in turn; SHAPES[-3]
# so that the tests of one size meet it, too.
GATED = ((1, 1, 1, "relu"), (1, 65, 17, "silu"), (17, 130, 301, "hardswish"), (389, 70, 33, "tanh"), (3, 64, 4, "none"))
EMPTY_SHAPES = ((0, 3, 4), (3, 0, 4), (3, 4, 0), (0, 0, 0))
CODE_DEVIATION = 4.6  # standard deviation of the 16 codes


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
    compute: str = "int8"
    group_size: int = 32
    zeros: bool = False
    gated: bool = False  # the weight has 2 N rows

    @property
    def id(self) -> str:
        words = [f"{self.M}x{self.N}x{self.K}", self.dtype, f"w4_{self.compute}", _group(self.group_size, self.zeros)]
        words += [self.activation] + ["bias"] * self.bias
        words += [] if self.residual == "none" else [f"residual_{self.residual}"]
        return "-".join(words + ["gated"] * self.gated)

    def inputs(self, generator: torch.Generator) -> dict[str, Any]:
        """Keyword arguments of the op. Codes and zero points take all values; outputs are of size 1.

        A quarter of the scales is negative and one in 16 is zero.
        """
        dtype = getattr(torch, self.dtype)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator).to(dtype)

        rows = self.N * (1 + self.gated)
        residual_shape = {"none": None, "full": (self.M, self.N), "one": (1,)}[self.residual]
        groups = 1 if self.group_size < 0 else -(-self.K // self.group_size)
        deviation = 1 / max(self.K, 1) ** 0.5 / CODE_DEVIATION
        kind = torch.randint(0, 16, (rows, groups), generator=generator)
        sign = torch.where(kind < 4, -1.0, torch.where(kind == 4, 0.0, 1.0))
        x = normal(self.M, self.K)
        q = torch.randint(0, 256, (rows, (self.K + 1) // 2), generator=generator, dtype=torch.uint8)
        scale = (0.5 + torch.rand(rows, groups, generator=generator)) * deviation * sign
        zeros = torch.randint(0, 16, (rows, groups), generator=generator, dtype=torch.uint8)
        return {
            "x": x,
            "q": q,
            "scale": scale,
            "zeros": zeros if self.zeros else None,
            "bias": normal(rows) if self.bias else None,
            "group_size": self.group_size,
            "in_features": self.K,
            "activation": self.activation,
            "residual": None if residual_shape is None else normal(*residual_shape),
            "compute": self.compute,
        } | ({"gated": True} if self.gated else {})


def _group(group_size: int, zeros: bool) -> str:
    return ("row" if group_size < 0 else f"g{group_size}") + "z" * zeros


def _cases() -> Iterator[Case]:
    for i, (shape, dtype, mode) in enumerate(product(SHAPES, DTYPES, MODES)):
        group_size, zeros = GROUPS[(i + i // 4) % 8]
        yield Case(
            *shape, dtype, ACTIVATIONS[i % len(ACTIVATIONS)], i // 3 % 2 == 0, RESIDUALS[i % 3], mode, group_size, zeros
        )
    for i, ((group_size, zeros), mode) in enumerate(product(GROUPS, MODES)):
        activation, residual = ("none" if mode == "int8" else "silu"), RESIDUALS[i % 3]
        for shape, dtype in ((SHAPES[-3], DTYPES[i // 2 % 2]), (SHAPES[-2], DTYPES[0]), (SHAPES[-1], DTYPES[1])):
            yield Case(*shape, dtype, activation, False, residual, mode, group_size, zeros)
    for i, (dtype, activation, bias, residual) in enumerate(product(DTYPES, CROSSED, (False, True), RESIDUALS)):
        group_size, zeros = GROUPS[i % 8]
        yield Case(*EPILOGUE_SHAPE, dtype, activation, bias, residual, MODES[(i // 3 + i // 18) % 2], group_size, zeros)
    for i, (dtype, activation, mode) in enumerate(product(DTYPES, REST, MODES)):
        group_size, zeros = GROUPS[(i + i // 8) % 8]
        yield Case(*EPILOGUE_SHAPE, dtype, activation, i // 2 % 2 == 0, RESIDUALS[i % 3], mode, group_size, zeros)
    for i, ((M, N, K, activation), dtype, mode) in enumerate(product(GATED, DTYPES, MODES)):
        group = GROUPS[(i + i // 8) % 8]
        yield Case(M, N, K, dtype, activation, i % 4 < 3, RESIDUALS[i % 3], mode, *group, True)
    for shape, mode in product(EMPTY_SHAPES, MODES):
        yield Case(*shape, "float32", "silu", compute=mode, gated=True)
    for i, (shape, dtype, mode) in enumerate(product(EMPTY_SHAPES, DTYPES, MODES)):
        group_size, zeros = GROUPS[i % 8]
        yield Case(*shape, dtype, "silu", True, "full", mode, group_size, zeros)
    for i, (shape, mode) in enumerate(product((*SHAPES[::4], EPILOGUE_SHAPE, EMPTY_SHAPES[2]), MODES)):
        group_size, zeros = GROUPS[i % 8]
        yield Case(*shape, HALF, ACTIVATIONS[i % 5], i % 3 == 0, RESIDUALS[i % 3], mode, group_size, zeros)


CASES = tuple(dict.fromkeys(_cases()))


@dataclass(frozen=True)
class Bench:
    """One measured size."""

    M: int
    N: int
    K: int
    dtype: str
    compute: str = "int8"
    group_size: int = 32
    zeros: bool = False
    activation: str = "none"
    why: str = ""
    cold: bool = False  # its weights come from memory, not from a cache
    quick: bool = False  # in the small set that CI gates on

    @property
    def id(self) -> str:
        words = [f"{self.M}x{self.N}x{self.K}", self.dtype, f"w4_{self.compute}", _group(self.group_size, self.zeros)]
        return "-".join([*words, self.activation] + ["cold"] * self.cold)

    @property
    def flops(self) -> int:
        """A multiplication and an addition per product."""
        return 2 * self.M * self.N * self.K

    @property
    def bytes(self) -> int:
        """x, codes, scales, zero points and bias read once, y written once."""
        item_bytes = getattr(torch, self.dtype).itemsize
        groups = 1 if self.group_size < 0 else -(-self.K // self.group_size)
        row_bytes = (self.K + 1) // 2 + groups * (torch.float32.itemsize + self.zeros)
        return self.N * row_bytes + item_bytes * (self.M * self.K + self.N + self.M * self.N)

    @property
    def rate(self) -> str:
        """The ceiling of its arithmetic."""
        if self.compute == "int8":
            return "int8_dot"
        return "bf16_dot" if self.dtype == "bfloat16" else "fma_f32"

    def inputs(self, generator: torch.Generator) -> dict[str, Any]:
        """Keyword arguments of the op: with a bias, without a residual."""
        case = Case(
            self.M,
            self.N,
            self.K,
            self.dtype,
            self.activation,
            compute=self.compute,
            group_size=self.group_size,
            zeros=self.zeros,
        )
        return case.inputs(generator)

    def call(self, inputs: dict[str, Any]) -> Callable[[], torch.Tensor]:
        """The op as a model runs it, its weight packed: nothing but the call is left."""
        from deepseek_fast.bench.cold import in_turn
        from deepseek_fast.kernels.int4_matmul import op

        weight = {name: inputs[name] for name in ("q", "scale", "zeros", "group_size", "in_features")}
        packed = op.int4_matmul_pack(**weight)
        rest = {name: value for name, value in inputs.items() if name not in weight}
        return in_turn(partial(op.int4_matmul_packed, out_features=self.N, **rest), packed, cold=self.cold)


# (M, why, quick)
BENCH_SIZES = (
    (1, "decoding one token: bound by the weight's bytes", False),
    (16, "a small batch", False),
    (256, "prefill: bound by arithmetic", True),
)
# (dtype, compute, group_size, zeros)
BENCH_SCHEMES = (
    ("float32", "int8", 32, False),
    ("float32", "int8", 128, False),
    ("bfloat16", "int8", 32, False),
    ("bfloat16", "int8", 128, False),
    ("float32", "int8", 32, True),
    ("bfloat16", "float", 32, False),
    ("bfloat16", "float", 128, False),
)
BENCH = (
    *(
        Bench(M, 4096, 4096, *scheme, why=why, quick=quick and scheme in BENCH_SCHEMES[:2])
        for M, why, quick in BENCH_SIZES
        for scheme in BENCH_SCHEMES
    ),
    Bench(1, 4096, 4096, *BENCH_SCHEMES[2], why="decoding one token of a model that no cache holds", cold=True),
)
