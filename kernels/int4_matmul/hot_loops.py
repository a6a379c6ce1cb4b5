"""What the compiled loops over K of int4_matmul must be, and the calls whose instructions are counted.

compute="int8": a step of 8 k reads V vectors of bytes and makes two operands of each; every sum takes two dots.
compute="float": with AVX-512 a step of 8 k looks the numbers of V vectors of bytes up, a pair of k at a time; else the
tiles of fused_matmul, on weights that a block of k has been decoded to.
"""

import math
from dataclasses import dataclass
from typing import Any

from bench.hot_loops import HotLoop, register_tile
from bench.instructions import values

F32, BF16 = register_tile("TileF32"), register_tile("TileBf16")
U4 = r"\bsum_blocks<.*?, (?:true|false), (\d+), (\d+)>"
FMA, FMA_PAIR = ((r"vfmadd\d+ps", 1),), ((r"vfmadd\d+ps", 2),)
SSE, SSE_PAIR = (("mulps", 1), ("addps", 1)), (("mulps", 2), ("addps", 2))
BF16_DOT = (("vdpbf16ps", 1),)
DOT, VEX_DOT = (("vpdpbusd", 2),), ((r"\{vex\} vpdpbusd", 2),)
FMA_STEP, DOT_STEP = ((r"vfmadd\d+ps", 8),), (("vdpbf16ps", 4),)
OPERANDS = "masks and shifts make two operands of each vector of bytes"
COPIES = "SHUFPS spreads x, and SSE overwrites an operand: copies"
SPLIT = "a shift and a mask split each pair, both read the weight; beside them, copies"
LOOK_UPS = (
    "16 look-ups with their shifts, twice where two blocks are side by side; with zero points a mask and a difference"
)
SPLIT_PAIRS = f"{LOOK_UPS}; each pair is split by a shift and a mask; copies"


def tile(dtype: int, zeros: str) -> str:
    """The float tile of AVX-512: rows * vectors * blocks sums."""
    return rf"\bsum_float_blocks<.*?\(dsf::Dtype\){dtype}, {zeros}, (\d+), (\d+), (\d+)>"


HOT_LOOPS = (
    HotLoop("scalar", "f32", F32, 8, "xmm", SSE, reads=6, others=12, why=f"4 x 2; {COPIES}"),
    HotLoop("scalar", "bf16", BF16, 4, "xmm", SSE_PAIR, reads=4, others=30, why=f"2 x 2; pairs split; {COPIES}"),
    HotLoop("avx2", "f32", F32, 12, "ymm", FMA, reads=8, others=4, why="6 x 2"),
    HotLoop("avx2", "bf16", BF16, 8, "ymm", FMA_PAIR, reads=8, others=17, why=f"4 x 2; {SPLIT}"),
    HotLoop("avxvnni", "f32", F32, 12, "ymm", FMA, reads=8, others=4, why="6 x 2"),
    HotLoop("avxvnni", "bf16", BF16, 8, "ymm", FMA_PAIR, reads=8, others=17, why=f"4 x 2; {SPLIT}"),
    *(
        HotLoop(
            isa,
            dtype + " with zero points" * (zeros == "true"),
            tile(code, zeros),
            16,
            "zmm",
            FMA_STEP,
            reads=64,
            others=150,
            why=f"4 x 4; {SPLIT_PAIRS}",
        )
        for isa in ("avx512", "avx512vnni", "avx512bf16")
        for dtype, code in (("f32", 0), ("bf16", 1))
        for zeros in ("false", "true")
        if (isa, dtype) != ("avx512bf16", "bf16")
    ),
    HotLoop("avx512bf16", "bf16", tile(1, "false"), 24, "zmm", DOT_STEP, reads=40, others=60, why=f"6 x 4; {LOOK_UPS}"),
    HotLoop(
        "avx512bf16",
        "bf16 with zero points",
        tile(1, "true"),
        24,
        "zmm",
        DOT_STEP,
        reads=56,
        others=95,
        why=f"6 x 4; {LOOK_UPS}",
    ),
    HotLoop(
        "avxvnni", "u4", U4, 8, "ymm", VEX_DOT, reads=12, others=12, why="4 x 2; masks and shifts make the operands"
    ),
    HotLoop("avx512vnni", "u4", U4, 24, "zmm", DOT, reads=20, others=19, why=f"6 x 4; {OPERANDS}; few rows look ahead"),
    HotLoop("avx512bf16", "u4", U4, 24, "zmm", DOT, reads=20, others=19, why=f"6 x 4; {OPERANDS}; few rows look ahead"),
)


@dataclass(frozen=True)
class Counted:
    """A call small enough for valgrind; M, N and K take whole tiles and partial ones on every level."""

    M: int
    N: int
    K: int
    dtype: str = "float32"
    compute: str = "int8"
    group_size: int = 32

    @property
    def id(self) -> str:
        return f"{self.M}x{self.N}x{self.K}-{self.dtype}-w4_{self.compute}-g{self.group_size}"

    def arrays(self, more_rows: float = 0.0) -> dict[str, Any]:
        """NumPy arguments of the op, with a share of rows on top."""
        M = math.ceil(self.M * (1 + more_rows))
        return {
            "x": values(M, self.K, dtype=self.dtype),
            "q": values(self.N, (self.K + 1) // 2, dtype="int8").view("uint8"),
            "scale": abs(values(self.N, -(-self.K // self.group_size))) + 1,
            "bias": values(self.N, dtype=self.dtype),
            "group_size": self.group_size,
            "in_features": self.K,
            "compute": self.compute,
        }


COUNTED = (
    Counted(29, 136, 257),
    Counted(29, 136, 257, "bfloat16", "float"),
    Counted(29, 136, 257, group_size=128),
    Counted(1, 136, 257),
)
