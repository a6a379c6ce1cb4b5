"""What the compiled loops of sparse_mla must be, and the calls whose instructions are counted.

Scores run in the tiles of csrc/gemm/tile.h, sums of values in those of csrc/attention/tiles.h: the same loops over
another dimension. What a row has beside them is said in fused_matmul's hot_loops.py.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.hot_loops import HotLoop
from bench.instructions import values

KINDS = {"scores": r"\bTile{0}<.*?>::run<(\d+), (\d+), ", "values": r"\bValueTile<.*?{1}>::run<(\d+), (\d+), "}
F32, BF16 = ("F32", r"\(dsf::Dtype\)0"), ("Bf16", r"\(dsf::Dtype\)1")
FMA, FMA_PAIR = ((r"vfmadd\d+ps", 1),), ((r"vfmadd\d+ps", 2),)
SSE, SSE_PAIR = (("mulps", 1), ("addps", 1)), (("mulps", 2), ("addps", 2))
DOT = (("vdpbf16ps", 1),)
COPIES = "SHUFPS spreads a number, and SSE overwrites an operand: copies"
SPLIT = "a shift and a mask split each pair, both read the panel; beside them, copies"
LOOPS = (  # (level, name, dtype, sums, registers, steps, reads, others, why)
    ("scalar", "f32", F32, 8, "xmm", SSE, 6, 12, f"4 x 2; {COPIES}"),
    ("scalar", "bf16", BF16, 4, "xmm", SSE_PAIR, 4, 30, f"2 x 2; pairs split; {COPIES}"),
    ("avx2", "f32", F32, 12, "ymm", FMA, 8, 5, "6 x 2"),
    ("avx2", "bf16", BF16, 8, "ymm", FMA_PAIR, 8, 17, f"4 x 2; {SPLIT}"),
    ("avx512", "f32", F32, 24, "zmm", FMA, 10, 5, "6 x 4"),
    ("avx512", "bf16", BF16, 16, "zmm", FMA_PAIR, 12, 20, f"4 x 4; {SPLIT}"),
    ("avx512bf16", "f32", F32, 24, "zmm", FMA, 10, 5, "6 x 4"),
    ("avx512bf16", "bf16", BF16, 24, "zmm", DOT, 10, 5, "6 x 4"),
)
HOT_LOOPS = tuple(
    HotLoop(level, f"{kind} of {name}", function.format(*dtype), sums, registers, steps, reads, others, why=why)
    for level, name, dtype, sums, registers, steps, reads, others, why in LOOPS
    for kind, function in KINDS.items()
)


@dataclass(frozen=True)
class Counted:
    """A prefill small enough for valgrind: whole tiles and steps, and what is left of them."""

    s_q: int
    h_q: int
    topk: int
    dtype: str
    d_qk: int = 72
    d_v: int = 64

    @property
    def id(self) -> str:
        return f"{self.s_q}x{self.h_q}x{self.topk}-{self.dtype}"

    def arrays(self, more_rows: float = 0.0) -> dict[str, Any]:
        """NumPy arguments of the op, with a share of queries on top."""
        s_q = math.ceil(self.s_q * (1 + more_rows))
        q = values(s_q * self.h_q, self.d_qk, dtype=self.dtype).reshape(s_q, self.h_q, self.d_qk)
        kv = values(200, self.d_qk, dtype=self.dtype).reshape(200, 1, self.d_qk)
        indices = (np.arange(s_q * self.topk, dtype=np.int32) * 7 % 200).reshape(s_q, 1, self.topk)
        return {"q": q, "kv": kv, "indices": indices, "d_v": self.d_v}


COUNTED = (Counted(4, 17, 150, "bfloat16"), Counted(4, 17, 150, "float32"), Counted(4, 17, 150, "float16"))
