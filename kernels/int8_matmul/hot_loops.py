"""What the compiled loops over K of int8_matmul must be, and the calls whose instructions are counted.

In an iteration a tile of M x V vectors of sums reads M values of x and V vectors of the weight once; four other
instructions step two pointers, compare and jump. Where a row has more, it says why. "f32" and "bf16" are the tiles of
activations="float".
"""

import math
from dataclasses import dataclass
from typing import Any

from bench.hot_loops import HotLoop, amx_tile, register_tile
from bench.instructions import values

F32, BF16 = register_tile("TileF32"), register_tile("TileBf16")
INT8_DOT, INT8_WIDEN = register_tile("TileInt8Dot"), register_tile("TileInt8Widen")
FMA, FMA_PAIR = ((r"vfmadd\d+ps", 1),), ((r"vfmadd\d+ps", 2),)
SSE, SSE_PAIR = (("mulps", 1), ("addps", 1)), (("mulps", 2), ("addps", 2))
BF16_DOT, AMX_DOT = (("vdpbf16ps", 1),), (("tdpbf16ps", 1),)
MADD = (("vpmaddwd", 1), ("vpaddd", 1))
VEX_DOT, EVEX_DOT = ((r"\{vex\} vpdpbusd", 1),), (("vpdpbusd", 1),)  # CPUs with AVX-VNNI alone lack the EVEX form
SSE_MADD = (("pmaddwd", 1), ("paddd", 1))
SSE_COPIES = "SSE overwrites an operand: copies"
COPIES = f"SHUFPS spreads x, and {SSE_COPIES}"
SPLIT = "a shift and a mask split each pair, both read the weight; beside them, copies"

HOT_LOOPS = (
    HotLoop("scalar", "int8", INT8_WIDEN, 8, "xmm", SSE_MADD, reads=6, others=8, why=f"4 x 2; {SSE_COPIES}"),
    HotLoop("scalar", "f32", F32, 8, "xmm", SSE, reads=6, others=12, why=f"4 x 2; {COPIES}"),
    HotLoop("scalar", "bf16", BF16, 4, "xmm", SSE_PAIR, reads=4, others=30, why=f"2 x 2; pairs split; {COPIES}"),
    HotLoop("avx2", "int8", INT8_WIDEN, 12, "ymm", MADD, reads=8, others=4, why="6 x 2"),
    HotLoop("avx2", "f32", F32, 12, "ymm", FMA, reads=8, others=4, why="6 x 2"),
    HotLoop("avx2", "bf16", BF16, 8, "ymm", FMA_PAIR, reads=8, others=17, why=f"4 x 2; {SPLIT}"),
    HotLoop("avxvnni", "int8", INT8_DOT, 12, "ymm", VEX_DOT, reads=8, others=4, why="6 x 2"),
    HotLoop("avxvnni", "f32", F32, 12, "ymm", FMA, reads=8, others=4, why="6 x 2"),
    HotLoop("avxvnni", "bf16", BF16, 8, "ymm", FMA_PAIR, reads=8, others=17, why=f"4 x 2; {SPLIT}"),
    HotLoop("avx512", "int8", INT8_WIDEN, 24, "zmm", MADD, reads=10, others=4, why="6 x 4"),
    HotLoop("avx512", "f32", F32, 24, "zmm", FMA, reads=10, others=4, why="6 x 4"),
    HotLoop("avx512", "bf16", BF16, 16, "zmm", FMA_PAIR, reads=12, others=19, why=f"4 x 4; {SPLIT}"),
    HotLoop("avx512vnni", "int8", INT8_DOT, 24, "zmm", EVEX_DOT, reads=10, others=4, why="6 x 4"),
    HotLoop("avx512vnni", "f32", F32, 24, "zmm", FMA, reads=10, others=4, why="6 x 4"),
    HotLoop("avx512vnni", "bf16", BF16, 16, "zmm", FMA_PAIR, reads=12, others=19, why=f"4 x 4; {SPLIT}"),
    HotLoop("avx512bf16", "int8", INT8_DOT, 24, "zmm", EVEX_DOT, reads=10, others=4, why="6 x 4"),
    HotLoop("avx512bf16", "f32", F32, 24, "zmm", FMA, reads=10, others=4, why="6 x 4"),
    HotLoop("avx512bf16", "bf16", BF16, 24, "zmm", BF16_DOT, reads=10, others=4, why="6 x 4"),
    HotLoop("amx", "int8", amx_tile("AmxTileInt8"), 4, "tmm", (("tdpbssd", 1),), reads=4, others=6, why="2 x 2 tiles"),
    HotLoop("amx", "f32", F32, 24, "zmm", FMA, reads=10, others=4, why="6 x 4"),
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
    activations: str = "int8"

    @property
    def id(self) -> str:
        return f"{self.M}x{self.N}x{self.K}-{self.dtype}-w8_{self.activations}-{self.activation}"

    def arrays(self, more_rows: float = 0.0) -> dict[str, Any]:
        """NumPy arguments of the op, with a share of rows on top."""
        M = math.ceil(self.M * (1 + more_rows))
        return {
            "x": values(M, self.K, dtype=self.dtype),
            "q": values(self.N, self.K, dtype="int8"),
            "scale": values(self.N),
            "bias": values(self.N, dtype=self.dtype),
            "activation": self.activation,
            "activations": self.activations,
        }


COUNTED = (
    Counted(29, 136, 257),
    Counted(29, 136, 65, "bfloat16", "gelu"),  # quantization and epilogue weigh most
    Counted(29, 136, 257, activations="float"),
    Counted(29, 136, 257, "bfloat16", activations="float"),
    Counted(1, 136, 257),
)
