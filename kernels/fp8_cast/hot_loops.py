"""What the compiled loops of fp8_cast must be, and the calls whose instructions are counted.

With AVX-512 VBMI a loop takes 64 values in four vectors: each has its power of two kept above the smallest (VRANGEPS),
one multiply-add that rounds it and one VPMADDWD that makes it a code; one VPERMT2B takes the bytes of two. "cut" loops
also cut each size to the largest and look for NaN, which ends them. A fnuz format takes three more instructions
for its one zero. Below that level an encoder has more constants than there are registers, which the stack then holds:
of those levels amax alone is listed.
"""

import math
from dataclasses import dataclass
from typing import Any

from bench.hot_loops import HotLoop
from bench.instructions import values

DTYPES = {"f32": 0, "bf16": 1, "f16": 8}  # csrc/core/tensor_view.h
FORMATS = {"ocp": ("(?:4|5|11)", 0), "fnuz": ("(?:9|10)", 3)}  # codes of e4m3, e5m2, e2m1; instructions beside OCP's
ROUND, BYTES, CODE = (r"vfmadd\d+ps", 4), ("vpermt2b", 2), ("vpmaddwd", 4)
BOUNDED = (ROUND, ("vrangeps", 4), BYTES, CODE)
CUT = (ROUND, ("vrangeps", 8), BYTES, CODE)
DIVIDED = ((r"vfmadd\d+ps", 12), (r"vfnmadd\d+ps", 8), ("vrangeps", 8), BYTES, CODE)
DECODED = (BYTES, ("vmulps", 4))
LONG, SHORT = "encode_long_blocks<{x}, {code}, .*Factor, ", "encode_short_blocks<{x}, {code}, .*Factor, "
ENCODERS = (  # (scheme, function, steps, (reads, others) of f32, bf16 and f16)
    ("encode", rf"{LONG}true>", BOUNDED, ((4, 17), (4, 19), (4, 19))),
    ("encode, cut", rf"{LONG}false>", CUT, ((4, 24), (4, 26), (4, 26))),
    ("encode, plain", "encode_long_blocks<{x}, {code}, .*Unscaled, false>", CUT, ((8, 22), (4, 22), (4, 22))),
    ("encode, divided", "encode_long_blocks<{x}, {code}, .*Divisor, false>", DIVIDED, ((4, 40), (4, 38), (4, 38))),
    ("encode by 32", rf"{SHORT}true, false>", BOUNDED, ((6, 13), (6, 17), (6, 17))),
    ("encode by 32, cut", rf"{SHORT}false, false>", CUT, ((6, 19), (7, 23), (6, 23))),
    ("encode by 16", rf"{SHORT}true, true>", BOUNDED, ((8, 13), (8, 17), (8, 13))),
    ("encode by 16, cut", rf"{SHORT}false, true>", CUT, ((8, 19), (8, 23), (8, 19))),
    ("encode by 1, cut", "encode_each<{x}, {code}>", CUT, ((8, 18), (8, 22), (8, 18))),
)
WHY = (
    "reads: x, factors, constants where NaN is looked for; others: widening, products, tests, both bytes' order, signs"
)
DECODERS = (  # (y, steps, reads, others); the loop of bf16 is entered in its middle
    ("f32", DECODED, 1, 16),
    ("bf16", (("vcvtne2ps2bf16", 2), *DECODED), 2, 16),
    ("f16", (("vcvtps2ph", 4), *DECODED), 1, 13),
)
AMAX = (  # (level, registers, function, (reads, others) of f32, bf16 and f16)
    ("scalar", "xmm", r"\bamax<{x}>", ((4, 7), (4, 11), (24, 75))),
    ("avx2", "ymm", r"\bamax<{x}>", ((4, 7), (4, 15), (4, 11))),
    ("avx512", "zmm", "amax_of_whole_vectors<.*, {x}>", ((4, 9), (4, 17), (4, 13))),
    ("avx512bf16", "zmm", "amax_of_whole_vectors<.*, {x}>", ((4, 9), (4, 17), (4, 13))),
)


def dtype(number: int | str) -> str:
    return rf"\(dsf::Dtype\){number}"


def encoders() -> tuple[HotLoop, ...]:
    return tuple(
        HotLoop(
            "avx512bf16",
            f"{name} to {kind}, {scheme.removeprefix('encode')}".removesuffix(", "),
            function.format(x=dtype(x), code=dtype(codes)),
            1,
            "zmm",
            steps,
            reads=reads,
            others=others + more,
            why=WHY,
            rare_calls=True,
        )
        for scheme, function, steps, counts in ENCODERS
        for (name, x), (reads, others) in zip(DTYPES.items(), counts, strict=True)
        for kind, (codes, more) in FORMATS.items()
    )


def decoders() -> tuple[HotLoop, ...]:
    return tuple(
        HotLoop(
            "avx512bf16",
            f"{kind} to {name}",
            f"decode_steps<{dtype(DTYPES[name])}, {dtype(codes)}>",
            1,
            "zmm",
            steps,
            reads=reads,
            others=others + more,
            why="reads: codes, and for bf16 a constant; others: two copies of a table, signs, unpacking, stores",
            aligned=name != "bf16",
        )
        for name, steps, reads, others in DECODERS
        for kind, (codes, more) in FORMATS.items()
    )


def amax() -> tuple[HotLoop, ...]:
    return tuple(
        HotLoop(
            level,
            f"amax of {name}",
            function.format(x=dtype(x)),
            4,
            registers,
            (("v?pmaxud", 1),),
            reads=reads,
            others=others,
            why="four vectors; widening, and by hand for f16 in SSE; a mask for the size of each",
        )
        for level, registers, function, counts in AMAX
        for (name, x), (reads, others) in zip(DTYPES.items(), counts, strict=True)
    )


HOT_LOOPS = (*encoders(), *decoders(), *amax())


@dataclass(frozen=True)
class Counted:
    """A call small enough for valgrind: whole vectors and what is left of them."""

    M: int
    K: int
    dtype: str
    format: str = "float8_e4m3fn"
    block: tuple[int, int] | None = (1, 128)
    scale: str = "f32"
    mode: str = "deepgemm"

    @property
    def id(self) -> str:
        block = "x".join(map(str, self.block)) if self.block else "plain"
        return f"{self.M}x{self.K}-{self.dtype}-{self.format}-{block}-{self.scale}-{self.mode}"

    def arrays(self, more_rows: float = 0.0) -> dict[str, Any]:
        """NumPy arguments of the op, with a share of rows on top."""
        x = values(math.ceil(self.M * (1 + more_rows)), self.K, dtype=self.dtype)
        options = {"block": self.block, "dtype": self.format, "scale": self.scale, "mode": self.mode}
        return {"x": x, **options}


COUNTED = (
    Counted(29, 530, "bfloat16"),
    Counted(29, 530, "bfloat16", block=(1, 32), scale="ue8m0", mode="torchao"),
    Counted(29, 530, "float32", block=(8, 128)),
    Counted(29, 530, "float32", mode="v3"),
    Counted(29, 530, "float16", "float8_e5m2", None),
    Counted(29, 530, "bfloat16", "float4_e2m1fn_x2", (1, 16), "ue8m0"),
)
