"""What the compiled loops of the indexer must be, and the calls whose instructions are counted.

A tile of fused_matmul's, whose rows are heads and whose columns are tokens. The selection looks at 64 vectors of scores
at once where it has VPCOMPRESSD: a vector is read, compared, and its mask stored.
"""

import math
from dataclasses import dataclass
from typing import Any

from bench.hot_loops import HotLoop, register_tile
from bench.instructions import values

BF16 = register_tile("TileBf16")
FMA_PAIR, SSE_PAIR, DOT = ((r"vfmadd\d+ps", 2),), (("mulps", 2), ("addps", 2)), (("vdpbf16ps", 1),)
COPIES = "SHUFPS spreads x, and SSE overwrites an operand: copies"
SPLIT = "a shift and a mask split each pair, both read the weight; beside them, copies"

HOT_LOOPS = (
    HotLoop("scalar", "bf16", BF16, 4, "xmm", SSE_PAIR, reads=4, others=30, why=f"2 x 2; pairs split; {COPIES}"),
    HotLoop("avx2", "bf16", BF16, 8, "ymm", FMA_PAIR, reads=8, others=17, why=f"4 x 2; {SPLIT}"),
    HotLoop("avx512", "bf16", BF16, 16, "zmm", FMA_PAIR, reads=12, others=22, why=f"4 x 4; {SPLIT}"),
    HotLoop(
        "avx512bf16", "bf16", BF16, 24, "zmm", DOT, reads=10, others=5, why="6 x 4; one more step in smaller tiles"
    ),
)


@dataclass(frozen=True)
class Counted:
    """A call small enough for valgrind: whole vectors of tokens and what is left of them."""

    s_q: int
    s_kv: int
    H: int
    D: int
    top_k: int

    @property
    def id(self) -> str:
        return f"{self.s_q}x{self.s_kv}x{self.H}x{self.D}-top_{self.top_k}"

    def arrays(self, more_rows: float = 0.0) -> dict[str, Any]:
        """NumPy arguments of the op, with a share of queries on top."""
        s_q = math.ceil(self.s_q * (1 + more_rows))
        codes = "float8_e4m3fn"
        return {
            "q": values(s_q, self.H, self.D, dtype=codes),
            "k": values(self.s_kv, self.D, dtype=codes),
            "k_scale": abs(values(self.s_kv)) + 1,
            "weights": values(s_q, self.H),
            "top_k": self.top_k,
        }


COUNTED = (Counted(4, 350, 7, 66, 20), Counted(9, 2500, 2, 32, 40))
