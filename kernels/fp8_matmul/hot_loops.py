"""What the compiled loops over K of fp8_matmul must be, and the calls whose instructions are counted.

The tiles are those of fused_matmul, on weights that a step of 128 k has been decoded to. "decoding" does so in
registers: 16 columns and 4 k take one read of the weight, two lookups with their copies of a table, a sign, two
unpackings and a line asked for ahead; f32 a shift and a mask for each half beside those. Its tiles of most rows, 4 to
6 (f32: 2 to 5), are not listed: beside the decoder's tables some of their pointers and sums are on the stack, where
they cost less than another tile does.
"""

import math
from dataclasses import dataclass
from typing import Any

from bench.hot_loops import HotLoop, amx_tile, register_tile
from bench.instructions import values

F32, BF16 = register_tile("TileF32"), register_tile("TileBf16")
FMA, FMA_PAIR = ((r"vfmadd\d+ps", 1),), ((r"vfmadd\d+ps", 2),)
SSE, SSE_PAIR = (("mulps", 1), ("addps", 1)), (("mulps", 2), ("addps", 2))
DOT, AMX_DOT = (("vdpbf16ps", 1),), (("tdpbf16ps", 1),)
DOT_QUAD, FMA_QUAD = (("vdpbf16ps", 2),), ((r"vfmadd\d+ps", 4),)
DECODING_BF16, DECODING_F32 = (
    rf"\bdecode_and_add<.*?, {x}, \(dsf::Dtype\)\d, false, {rows}, (\d), (\d)>\("
    for x, rows in (("unsigned short", "([1-3])"), ("float", "(1)"))
)
COPIES = "SHUFPS spreads x, and SSE overwrites an operand: copies"
SPLIT = "a shift and a mask split each pair, both read the weight; beside them, copies"

HOT_LOOPS = (
    HotLoop("scalar", "f32", F32, 8, "xmm", SSE, reads=6, others=12, why=f"4 x 2; {COPIES}"),
    HotLoop("scalar", "bf16", BF16, 4, "xmm", SSE_PAIR, reads=4, others=30, why=f"2 x 2; pairs split; {COPIES}"),
    HotLoop("avx2", "f32", F32, 12, "ymm", FMA, reads=8, others=4, why="6 x 2"),
    HotLoop("avx2", "bf16", BF16, 8, "ymm", FMA_PAIR, reads=8, others=17, why=f"4 x 2; {SPLIT}"),
    HotLoop("avx512", "f32", F32, 24, "zmm", FMA, reads=10, others=4, why="6 x 4"),
    HotLoop("avx512", "bf16", BF16, 16, "zmm", FMA_PAIR, reads=12, others=19, why=f"4 x 4; {SPLIT}"),
    HotLoop("avx512bf16", "f32", F32, 24, "zmm", FMA, reads=10, others=4, why="6 x 4"),
    HotLoop(
        "avx512bf16", "bf16", BF16, 24, "zmm", DOT, reads=10, others=5, why="6 x 4; one more step in smaller tiles"
    ),
    HotLoop(
        "avx512bf16",
        "bf16 decoding",
        DECODING_BF16,
        16,
        "zmm",
        DOT_QUAD,
        reads=16,
        others=77,
        why="2 x 4, of two steps",
    ),
    HotLoop(
        "avx512bf16", "f32 decoding", DECODING_F32, 8, "zmm", FMA_QUAD, reads=16, others=113, why="1 x 4, of two steps"
    ),
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
    activations: str = "float"

    @property
    def id(self) -> str:
        return f"{self.M}x{self.N}x{self.K}-{self.dtype}-fp8_{self.activations}"

    def arrays(self, more_rows: float = 0.0) -> dict[str, Any]:
        """NumPy arguments of the op, with a share of rows on top."""
        import ml_dtypes

        M = math.ceil(self.M * (1 + more_rows))
        weight = values(self.N, self.K).astype(ml_dtypes.float8_e4m3fn)
        scale = abs(values(-(-self.N // 128), -(-self.K // 128))) + 1
        x, bias = values(M, self.K, dtype=self.dtype), values(self.N, dtype=self.dtype)
        return {"x": x, "weight": weight, "scale": scale, "bias": bias, "activations": self.activations}


COUNTED = (
    Counted(29, 136, 257),
    Counted(29, 136, 257, "bfloat16"),
    Counted(29, 136, 257, "bfloat16", "fp8"),
    Counted(1, 136, 257),
)
