"""The one table of fp8_matmul: what is tested and what is benchmarked.

Tolerance: ref.bound, derived there; no sum is exempt, every rounding before the sums is replayed bit for bit.
Sizes as in fused_matmul, and one either side of a block of 32 and of 128 values of k and of 128 rows of scales.
"""

import math
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
MODES = ("float", "fp8")  # the argument `activations`
CROSSED = ("none", "relu", "gelu")  # activations that meet every bias and residual; the others each dtype
REST = tuple(name for name in ACTIVATIONS if name not in CROSSED)
WEIGHTS = ("float8_e4m3fn", "float8_e5m2")
SCALES = ("float32", "float8_e8m0fnu")
# DeepSeek's, a row and 128 columns, MX, a row, the whole; two that neither N nor a step of 128 divides.
BLOCKS = ((128, 128), (1, 128), (1, 32), (1, -1), (-1, -1), (64, 160), (3, 96))

# Every (M, N) of these is a corner of one larger product, see tests/test_sizes.py.
SWEEP_M = (0, 1, 2, 3, 4, 5, 6, 7, 12, 13, 17)
SWEEP_N = (0, 1, 2, 15, 16, 17, 33, 63, 64, 65, 127, 129)
SWEEP_K = (0, 1, 2, 3, 4, 5, 31, 33, 127, 128, 129, 259)

# (M, N, K) that every ISA level runs against the reference.
SHAPES = (
    (1, 1, 1),
    (1, 65, 17),
    (2, 3, 4),
    (3, 16, 3),
    (5, 15, 33),
    (7, 17, 127),
    (13, 63, 128),
    (16, 64, 256),
    (17, 130, 299),
    (65, 33, 131),
    (3, 48, 4099),
)
BLOCK_SHAPE = (6, 150, 333)
EPILOGUE_SHAPE = (7, 35, 19)  # tails in M, N and K
# (M, N, K, activation): one column, whole and partial panels, more rows than the two halves take in turn; SHAPES[-3]
# so that the tests of one size meet it, too.
GATED = ((1, 1, 1, "relu"), (1, 65, 17, "silu"), (17, 130, 299, "hardswish"), (388, 70, 33, "tanh"), (3, 64, 4, "none"))
EMPTY_SHAPES = ((0, 3, 4), (3, 0, 4), (3, 4, 0), (0, 0, 0))

# A weight takes every finite code. (first code that is none, root mean square of the numbers below it)
CODES = {"float8_e4m3fn": (0x7F, 100.06), "float8_e5m2": (0x7C, 9535.3)}


@dataclass(frozen=True)
class Case:
    """One call: sizes, dtypes and which optional arguments are there."""

    M: int
    N: int
    K: int
    dtype: str = "float32"
    activation: str = "none"
    bias: bool = True
    residual: str = "none"  # "none", "full": the output's shape, "one": one element
    activations: str = "float"
    weight: str = "float8_e4m3fn"
    block: tuple[int, int] = (128, 128)
    scale: str = "float32"
    gated: bool = False  # the weight has 2 N rows

    @property
    def id(self) -> str:
        block = "x".join("all" if size < 0 else str(size) for size in self.block)
        words = [f"{self.M}x{self.N}x{self.K}", self.dtype, self.weight.removeprefix("float8_"), block]
        words += [self.scale.removeprefix("float8_"), self.activations, self.activation]
        words += ["bias"] * self.bias + ([] if self.residual == "none" else [f"residual_{self.residual}"])
        return "-".join(words + ["gated"] * self.gated)

    def inputs(self, generator: torch.Generator) -> dict[str, Any]:
        """Keyword arguments of the op. Outputs are of size 1."""
        dtype = getattr(torch, self.dtype)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator).to(dtype)

        rows = self.N * (1 + self.gated)
        residual_shape = {"none": None, "full": (self.M, self.N), "one": (1,)}[self.residual]
        first_special, size = CODES[self.weight]
        codes = torch.randint(0, 2 * first_special, (rows, self.K), generator=generator, dtype=torch.int32)
        codes = torch.where(codes < first_special, codes, codes - first_special + 128)  # the second half is negative
        parts = [
            1 if block < 0 else -(-total // block) for total, block in zip((rows, self.K), self.block, strict=True)
        ]
        scale = (0.5 + torch.rand(parts, generator=generator)) / (max(self.K, 1) ** 0.5 * size)
        if self.scale == "float8_e8m0fnu":
            exponent = torch.frexp(scale).exponent
            scale = (exponent + 126).to(torch.uint8).view(torch.float8_e8m0fnu)
        return {
            "x": normal(self.M, self.K),
            "weight": codes.to(torch.uint8).view(getattr(torch, self.weight)),
            "scale": scale,
            "bias": normal(rows) if self.bias else None,
            "block": self.block,
            "activation": self.activation,
            "residual": None if residual_shape is None else normal(*residual_shape),
            "activations": self.activations,
        } | ({"gated": True} if self.gated else {})


def _cases() -> Iterator[Case]:
    for i, (shape, dtype, mode) in enumerate(product(SHAPES, DTYPES, MODES)):
        weight, block, scale = WEIGHTS[(i + i // 4) % 2], BLOCKS[i % len(BLOCKS)], SCALES[i // 7 % 2]
        yield Case(
            *shape,
            dtype,
            ACTIVATIONS[i % len(ACTIVATIONS)],
            i // 3 % 2 == 0,
            RESIDUALS[i % 3],
            mode,
            weight,
            block,
            scale,
        )
    for i, (block, scale, dtype, mode) in enumerate(product(BLOCKS, SCALES, DTYPES, MODES)):
        weight = WEIGHTS[i // 3 % 2]
        yield Case(*BLOCK_SHAPE, dtype, "none", False, "none", mode, weight, block, scale)
    for dtype, activation, bias, residual in product(DTYPES, CROSSED, (False, True), RESIDUALS):
        yield Case(*EPILOGUE_SHAPE, dtype, activation, bias, residual)
    for i, (dtype, activation) in enumerate(product(DTYPES, REST)):
        yield Case(*EPILOGUE_SHAPE, dtype, activation, i % 2 == 0, RESIDUALS[i % 3])
    for i, (dtype, activation) in enumerate(product(DTYPES, ACTIVATIONS)):
        yield Case(*EPILOGUE_SHAPE, dtype, activation, i % 2 == 0, RESIDUALS[i % 3], "fp8")
    for i, ((M, N, K, activation), dtype, mode) in enumerate(product(GATED, DTYPES, MODES)):
        weight, block = WEIGHTS[i // 4 % 2], BLOCKS[i % len(BLOCKS)]
        yield Case(M, N, K, dtype, activation, i % 4 < 3, RESIDUALS[i % 3], mode, weight, block, gated=True)
    for shape, mode in product(EMPTY_SHAPES, MODES):
        yield Case(*shape, "float32", "silu", activations=mode, gated=True)
    for shape, dtype, mode, block in product(EMPTY_SHAPES, DTYPES, MODES, ((128, 128), (-1, -1))):
        yield Case(*shape, dtype, "silu", True, "full", mode, block=block)
    for i, (shape, mode) in enumerate(product((*SHAPES[::4], EPILOGUE_SHAPE, EMPTY_SHAPES[2]), MODES)):
        weight, block, scale = WEIGHTS[i // 2 % 2], BLOCKS[i % len(BLOCKS)], SCALES[i % 2]
        yield Case(*shape, HALF, ACTIVATIONS[i % 5], i % 3 == 0, RESIDUALS[i % 3], mode, weight, block, scale)


CASES = tuple(_cases())


@dataclass(frozen=True)
class Bench:
    """One measured size, with DeepSeek's blocks."""

    M: int
    N: int
    K: int
    dtype: str
    activation: str = "none"
    activations: str = "float"
    why: str = ""
    quick: bool = False  # in the small set that CI gates on
    cold: bool = False  # its weights come from memory, not from a cache
    block: tuple[int, int] = (128, 128)

    @property
    def id(self) -> str:
        return f"{self.M}x{self.N}x{self.K}-{self.dtype}-fp8_{self.activations}-{self.activation}" + "-cold" * self.cold

    @property
    def flops(self) -> int:
        """A multiplication and an addition per product."""
        return 2 * self.M * self.N * self.K

    @property
    def bytes(self) -> int:
        """x, the codes, their scales and bias read once, y written once."""
        item_bytes = getattr(torch, self.dtype).itemsize
        num_scales = math.ceil(self.N / self.block[0]) * math.ceil(self.K / self.block[1])
        values = self.M * self.K + self.N + self.M * self.N
        return self.N * self.K + torch.float32.itemsize * num_scales + item_bytes * values

    @property
    def rate(self) -> str:
        """The ceiling of its arithmetic: numbers of 8 bits are multiplied as bf16."""
        return "fma_f32" if (self.dtype, self.activations) == ("float32", "float") else "bf16_dot"

    def inputs(self, generator: torch.Generator) -> dict[str, Any]:
        """Keyword arguments of the op: with a bias, without a residual."""
        case = Case(self.M, self.N, self.K, self.dtype, self.activation, activations=self.activations, block=self.block)
        return case.inputs(generator)

    def call(self, inputs: dict[str, Any]) -> Callable[[], torch.Tensor]:
        """The op as a model runs it, its weight packed: nothing but the call is left."""
        from deepseek_fast.bench.cold import in_turn
        from deepseek_fast.kernels.fp8_matmul import op

        packed = op.pack(inputs["weight"], inputs["scale"], self.block)
        rest = {name: value for name, value in inputs.items() if name not in ("weight", "scale", "block")}
        return in_turn(partial(op.fp8_matmul_packed, out_features=self.N, **rest), packed, cold=self.cold)


# (M, N, K, dtype, activations, why, quick)
BENCH_SHAPES = (
    (1, 4096, 4096, "bfloat16", "float", "decoding one token: bound by the weight's bytes", True),
    (1, 4096, 4096, "float32", "float", "the same in f32", False),
    (16, 4096, 4096, "bfloat16", "float", "a small batch", True),
    (16, 4096, 4096, "float32", "float", "the same in f32", False),
    (256, 4096, 4096, "bfloat16", "float", "prefill: bound by arithmetic", False),
    (256, 4096, 4096, "float32", "float", "the same in f32", False),
    (256, 4096, 4096, "bfloat16", "fp8", "x cast to FP8 first, as the model was trained", False),
    (128, 2112, 7168, "bfloat16", "float", "DeepSeek-V3 q_a and kv_a projections", True),
    (128, 576, 7168, "bfloat16", "float", "DeepSeek-V3 kv_a projection", False),
    (128, 24576, 1536, "bfloat16", "float", "DeepSeek-V3 q_b projection", False),
    (128, 7168, 2048, "bfloat16", "float", "DeepSeek-V3 expert, down", False),
    (1, 7168, 2048, "bfloat16", "float", "DeepSeek-V3 expert, down, one token", False),
)
BENCH = (
    *(Bench(M, N, K, dtype, "none", mode, why, quick) for M, N, K, dtype, mode, why, quick in BENCH_SHAPES),
    Bench(1, 4096, 4096, "bfloat16", why="decoding one token of a model that no cache holds", cold=True),
)
