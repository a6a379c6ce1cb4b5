"""The one table of fp8_cast and its relatives: what is tested.

Nothing is tolerated: a code and a scale have the bits of ref.py. Only the casts of an activation compare within the
bound that ref_fused.py derives.
Sizes: one either side of a vector and of a block, DeepSeek's 576 columns, nothing at all.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch

from deepseek_fast.kernels.fp8_cast.bench_cases import BENCH as BENCH

Block = tuple[int, int]
DTYPES = ("float32", "bfloat16", "float16")
FP8 = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
E2M1 = "float4_e2m1fn_x2"
FORMATS = (*FP8, E2M1)
F32_MODES = ("deepgemm", "v3", "v32", "tilekernels", "vllm", "te", "torchao")  # with float32 scales
UE8M0_MODES = (*F32_MODES, "torchao_ceil", "torchao_even", "torchao_rceil")
KINDS = (*product(F32_MODES, ("f32",)), *product(UE8M0_MODES, ("ue8m0",)))  # (mode, scale)
# Per tensor, per row, DeepSeek's two, its transpose, MX and its transpose, NVFP4's, some that nothing divides; the last
# is larger than x.
BLOCKS: tuple[Block, ...] = (
    (-1, -1),
    (1, -1),
    (1, 128),
    (128, 128),
    (128, 1),
    (1, 32),
    (32, 1),
    (1, 16),
    (3, 7),
    (-1, 1),
    (2, 100),
    (1, 1),
    (1000, 1000),
)
MIDDLE = (9, 300)  # rows and columns that leave a tail in most blocks
TALL = (131, 130)
TAILS = (1, 15, 16, 17, 31, 33, 63, 65, 127, 128, 129, 576)
EMPTY = ((0, 5), (5, 0), (0, 0))
LAYOUTS = ("row", "column", "tma", "packed")


@dataclass(frozen=True)
class Case:
    """One call: sizes, dtypes and options. M rows, `leading` times."""

    op: str
    M: int
    K: int
    dtype: str = "float32"
    format: str = "float8_e4m3fn"
    block: Block | None = (1, 128)
    scale: str = "f32"  # or "given", "given_ue8m0"
    mode: str = "deepgemm"
    saturate: bool = True
    out_layout: str = "row"
    rounding: str = "nearest"
    tensor_scale: bool = False
    leading: tuple[int, ...] = ()
    rows: str = "dense"  # "strided": rows that lie apart and begin off a vector's alignment
    y_dtype: str = "float32"  # of fp8_dequantize

    @property
    def id(self) -> str:
        size = "x".join(str(n) for n in (*self.leading, self.M, self.K))
        block = "x".join("all" if part < 0 else str(part) for part in self.block) if self.block else "plain"
        words = [self.op, size, self.dtype, self.format.split("_", 1)[1], block, self.scale, self.mode]
        words += [
            word for word in (self.out_layout, self.rounding, self.rows) if word not in ("row", "nearest", "dense")
        ]
        words += ["overflows"] * (not self.saturate) + ["tensor_scale"] * self.tensor_scale
        return "-".join(words + ([] if self.y_dtype == "float32" else [self.y_dtype]))

    def inputs(self, generator: torch.Generator) -> dict[str, Any]:
        """Keyword arguments of the op; x varies by block, with a few zeros, and fits float16."""
        x = self._x(generator)
        if self.op == "int8_cast":
            return {"x": x}
        if self.op == "fp8_amax":
            return {"x": x, "block": self.block}
        if self.op == "fp8_dequantize":
            return self._to_dequantize(generator)
        options: dict[str, Any] = {"block": self.block, "dtype": getattr(torch, self.format), "mode": self.mode}
        options["scale"] = self._given(generator) if self.scale.startswith("given") else self.scale
        options |= {} if self.saturate else {"saturate": False}
        options |= {} if self.out_layout == "row" else {"out_layout": self.out_layout}
        options |= {"tensor_scale": torch.tensor(0.37)} if self.tensor_scale else {}
        options |= {} if self.rounding == "nearest" else {"rounding": self.rounding, "seed": 0x1234_5678_9ABC}
        extra: dict[str, Any] = {}
        if self.op == "rms_norm_cast":
            extra = {"weight": torch.randn(self.K, generator=generator).to(x.dtype), "eps": 1e-6}
        return {"x": x} | extra | options

    @property
    def _columns(self) -> int:
        return self.K * (1 + (self.op == "silu_mul_cast"))

    def _x(self, generator: torch.Generator) -> torch.Tensor:
        shape = (*self.leading, self.M, self._columns)
        values = torch.randn(shape, generator=generator)
        powers = torch.randint(-9, 6, (*shape[:-1], 1), generator=generator)
        values = torch.ldexp(values, powers) * (torch.rand(shape, generator=generator) > 0.05)
        x = values.to(getattr(torch, self.dtype))
        if self.rows == "dense":
            return x
        apart = torch.full((*shape[:-1], self._columns + 5), torch.nan, dtype=x.dtype)
        apart[..., 3:-2] = x
        return apart[..., 3:-2]

    def _parts(self) -> tuple[int, int]:
        rows = torch.Size(self.leading).numel() * self.M
        assert self.block is not None
        down, across = (1 if part < 0 else -(-n // part) for n, part in zip((rows, self.K), self.block, strict=True))
        return down, across

    def _given(self, generator: torch.Generator) -> torch.Tensor:
        if self.scale == "given_ue8m0":
            exponents = torch.randint(120, 134, self._parts(), generator=generator)
            return exponents.to(torch.uint8).view(torch.float8_e8m0fnu)
        return torch.rand(self._parts(), generator=generator) * 0.1 + 1e-3

    def _to_dequantize(self, generator: torch.Generator) -> dict[str, Any]:
        columns = self.K // 2 if self.format == E2M1 else self.K
        codes = torch.randint(0, 256, (*self.leading, self.M, columns), generator=generator, dtype=torch.uint8)
        arguments: dict[str, Any] = {"codes": codes.view(getattr(torch, self.format)), "block": self.block}
        arguments |= {"dtype": getattr(torch, self.y_dtype)}
        if self.block is None:
            return arguments
        scale = self._given(generator)
        if self.scale == "e4m3":
            bytes_ = torch.randint(1, 0x7F, self._parts(), generator=generator)
            scale = bytes_.to(torch.uint8).view(torch.float8_e4m3fn)
        if self.leading and self.block[0] == 1:
            scale = scale.reshape(*self.leading, self.M, -1)
        arguments["scale"] = scale
        return arguments | ({"tensor_scale": torch.tensor(0.37)} if self.tensor_scale else {})


def _casts() -> Iterator[Case]:
    op = "fp8_cast"
    for i, ((mode, scale), format) in enumerate(product(KINDS, FORMATS)):  # every mode, scale and format
        block = BLOCKS[i % len(BLOCKS)]
        yield Case(op, *MIDDLE, DTYPES[i % 3], format, block, scale, mode)
    for i, ((mode, scale), part) in enumerate(product(KINDS, BLOCKS)):  # every block with each mode and scale
        yield Case(op, *(MIDDLE if i % 3 else TALL), DTYPES[i % 3], FORMATS[i % 5], part, scale, mode)
    for i, (K, dtype, block) in enumerate(product(TAILS, DTYPES, ((1, 128), (3, 7)))):
        mode, scale = KINDS[i % len(KINDS)]
        yield Case(op, 1 if i % 5 == 0 else 5, K, dtype, FP8[i % 4], block, scale, mode)
    for i, (format, dtype, saturate) in enumerate(product(FORMATS, DTYPES, (True, False))):  # no scale, given scales
        yield Case(op, *MIDDLE, dtype, format, None, saturate=saturate, rows=("dense", "strided")[i % 2])
        for scale in ("given", "given_ue8m0"):
            yield Case(op, 7, 130, dtype, format, BLOCKS[i % 9], scale, UE8M0_MODES[i % 10], saturate)
    for tensor_scale, dtype, block in product((False, True), DTYPES, ((1, 16), (2, 32), (-1, -1), (3, 7), (1, -1))):
        yield Case(op, 6, 64, dtype, E2M1, block, "e4m3", "torchao", tensor_scale=tensor_scale)
    for (M, K), some, (mode, scale) in product(EMPTY, ((1, 128), (-1, -1), (3, 7), None), KINDS[::4]):
        yield Case(op, M, K, "float32", FP8[0], some, scale, mode)
    for i, (layout, block, M) in enumerate(
        product(LAYOUTS, ((1, 32), (1, 128), (4, 16), (3, 7), (-1, -1)), (1, 4, 21))
    ):
        scale = "ue8m0" if layout == "packed" else ("f32", "ue8m0")[i % 2]
        yield Case(op, M, 136, "bfloat16", FORMATS[i % 5], block, scale, F32_MODES[i % 7], out_layout=layout)
    for i, (dtype, block) in enumerate(product(DTYPES, BLOCKS)):
        mode, scale = KINDS[i % len(KINDS)]
        rows = ("dense", "strided")[i % 2]
        yield Case(op, 5, 130, dtype, FORMATS[i % 5], block, scale, mode, leading=(2, 3), rows=rows)
    for i, (dtype, K) in enumerate(product(DTYPES, (1, 17, 128, 300))):
        yield Case(op, 7, K, dtype, FP8[i % 4], (1, 128), rows="strided")
    for i, (format, dtype, some) in enumerate(product(FORMATS, DTYPES, ((1, 128), None))):
        mode, scale = KINDS[i % len(KINDS)]
        yield Case(op, 7, 130, dtype, format, some, scale, mode, rounding="stochastic")


def _others() -> Iterator[Case]:
    op = "fp8_dequantize"
    for i, (format, y_dtype, some) in enumerate(product(FORMATS, DTYPES, (*BLOCKS[::3], None))):
        scale = ("given", "given_ue8m0", "e4m3")[i % 3]
        options: dict[str, Any] = {"leading": (2,) * (i % 4 == 3), "tensor_scale": i % 5 == 4 and some is not None}
        yield Case(op, 9, 130, "float32", format, some, scale, "-", y_dtype=y_dtype, **options)
    for i, (dtype, block) in enumerate(product(DTYPES, BLOCKS)):
        rows = ("dense", "strided")[i % 2]
        yield Case("fp8_amax", *MIDDLE, dtype, block=block, leading=(2,) * (i % 3 == 1), rows=rows)
    for dtype, K in product(DTYPES, (*TAILS, 0)):
        yield Case("int8_cast", 5, K, dtype, rows=("dense", "strided")[K % 2])
    for i, ((mode, scale), format) in enumerate(product(KINDS, FP8)):
        M, K = ((34, 66), (131, 257), (1, 300), (128, 128))[i % 4]
        yield Case("fp8_cast_transposed", M, K, DTYPES[i % 3], format, ((1, 128), (1, 32))[i % 2], scale, mode)
    for i, ((mode, scale), op) in enumerate(product(KINDS, ("silu_mul_cast", "rms_norm_cast"))):
        K = (128, 300, 576, 18)[i % 4]
        yield Case(op, 5, K, DTYPES[i % 3], FORMATS[i % 5], ((1, 128), (1, -1), (1, 32))[i % 3], scale, mode)
    for op, (M, K) in product(("fp8_amax", "int8_cast", "fp8_cast_transposed"), EMPTY):
        yield Case(op, M, K)


def _fitting(case: Case) -> Case:
    """FP4's two codes a byte lie in one block: an odd number of columns becomes the next."""
    if case.format != E2M1 or case.block is None or case.block[1] < 0 or case.block[1] % 2 == 0:
        return case
    return replace(case, block=(case.block[0], case.block[1] + 1))


CASES = tuple(dict.fromkeys(_fitting(case) for case in (*_casts(), *_others())))
