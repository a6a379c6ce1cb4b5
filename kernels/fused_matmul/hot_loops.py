"""What the compiled loops over K of fused_matmul must be, and the calls whose instructions are counted.

In an iteration a tile of M x V vectors of sums reads M values of x and V vectors of the weight once; four other
instructions step two pointers, compare and jump. Where a row has more, it says why.
"""

import math
from dataclasses import dataclass
from typing import Any

from bench.hot_loops import HotLoop, amx_tile, register_tile
from bench.instructions import values

F32, BF16, F16 = (register_tile(name) for name in ("TileF32", "TileBf16", "TileF16"))
# The tiles of a panel that an earlier one has brought to L2: those without bytes to ask for ahead.
F32_IN_L2, BF16_IN_L2 = (rf"\b{tile}<[^<>]*, 0l>::run<(\d+), (\d+), " for tile in ("TileF32", "TileBf16"))
FMA, FMA_PAIR = ((r"vfmadd\d+ps", 1),), ((r"vfmadd\d+ps", 2),)
SSE, SSE_PAIR = (("mulps", 1), ("addps", 1)), (("mulps", 2), ("addps", 2))
DOT = (("vdpbf16ps", 1),)
AMX_DOT = (("tdpbf16ps", 1),)
COPIES = "SHUFPS spreads x, and SSE overwrites an operand: copies"
AHEAD = "the first tile of a panel asks for 4 lines ahead"
SPLIT = "a shift and a mask split each pair, both read the weight; beside them, copies"

HOT_LOOPS = (
    HotLoop("scalar", "f32", F32, 8, "xmm", SSE, reads=6, others=12, why=f"4 x 2; {COPIES}"),
    HotLoop("scalar", "bf16", BF16, 4, "xmm", SSE_PAIR, reads=4, others=30, why=f"2 x 2; pairs split; {COPIES}"),
    HotLoop("avx2", "f32", F32, 12, "ymm", FMA, reads=8, others=4, why="6 x 2"),
    HotLoop("avx2", "bf16", BF16, 8, "ymm", FMA_PAIR, reads=8, others=17, why=f"4 x 2; {SPLIT}"),
    HotLoop("avx2", "f16", F16, 12, "ymm", FMA, reads=8, others=5, why="6 x 2; VCVTPH2PS reads the weight; a prefetch"),
    HotLoop("avx512", "f32", F32, 24, "zmm", FMA, reads=10, others=8, why=f"6 x 4; {AHEAD}"),
    HotLoop("avx512", "f32 in L2", F32_IN_L2, 24, "zmm", FMA, reads=10, others=4, why="6 x 4"),
    HotLoop("avx512", "bf16", BF16, 16, "zmm", FMA_PAIR, reads=12, others=23, why=f"4 x 4; {SPLIT}; {AHEAD}"),
    HotLoop("avx512", "f16", F16, 24, "zmm", FMA, reads=10, others=6, why="6 x 4; as avx2, two lines ahead"),
    HotLoop("avx512bf16", "bf16", BF16, 24, "zmm", DOT, reads=10, others=8, why=f"6 x 4; {AHEAD}"),
    HotLoop(
        "avx512bf16",
        "bf16 in L2",
        BF16_IN_L2,
        24,
        "zmm",
        DOT,
        reads=10,
        others=5,
        why="6 x 4; one more step in smaller tiles",
    ),
    HotLoop("amx", "bf16", amx_tile("AmxTileBf16"), 4, "tmm", AMX_DOT, reads=4, others=6, why="2 x 2 tiles"),
)


@dataclass(frozen=True)
class Counted:
    """A call small enough for valgrind; M, N and K take whole tiles and partial ones on every level."""

    M: int
    N: int
    K: int
    dtype: str = "float32"
    activation: str = "none"

    @property
    def id(self) -> str:
        return f"{self.M}x{self.N}x{self.K}-{self.dtype}-{self.activation}"

    def arrays(self, more_rows: float = 0.0) -> dict[str, Any]:
        """NumPy arguments of the op, with a share of rows on top."""
        M = math.ceil(self.M * (1 + more_rows))
        x, weight = values(M, self.K, dtype=self.dtype), values(self.N, self.K, dtype=self.dtype)
        bias = values(self.N, dtype=self.dtype)
        return {"x": x, "weight": weight, "bias": bias, "activation": self.activation}


COUNTED = (
    Counted(29, 136, 257),
    Counted(29, 136, 257, "bfloat16"),
    Counted(29, 136, 257, "float16", activation="relu"),
    Counted(29, 136, 65, activation="gelu"),  # the epilogue weighs most
    Counted(1, 136, 257),
)
