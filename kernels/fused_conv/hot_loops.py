"""What the compiled loops of fused_conv must be, and the calls whose instructions are counted.

In an iteration a tile of M x V vectors of sums reads M values of x and V vectors of the panel once; other instructions
step the panel and the weights that are asked for ahead, compare and jump.
"""

import math
from dataclasses import dataclass
from typing import Any

from bench.hot_loops import HotLoop, register_tile
from bench.instructions import values

F32, BF16, INT8 = (register_tile(name) for name in ("ConvTileF32", "ConvTileBf16", "ConvTileInt8"))
FMA, FMA_PAIR = ((r"vfmadd\d+ps", 1),), ((r"vfmadd\d+ps", 2),)
SSE, SSE_PAIR = (("mulps", 1), ("addps", 1)), (("mulps", 2), ("addps", 2))
DOT = (("vdpbf16ps", 1),)
VEX_DOT, EVEX_DOT = ((r"\{vex\} vpdpbusd", 1),), (("vpdpbusd", 1),)  # CPUs with AVX-VNNI alone lack the EVEX form
PAIRS = (("vpmaddwd", 2), ("vpaddd", 2))
SSE_PAIRS = (("pmaddwd", 2), ("paddd", 2))

# 14 pixels have a pointer each, which with the five others are more than there are registers: some wait in the stack,
# and L1 has the loads to spare. Smaller tiles move pointers about.
POINTERS = "pointers wait in the stack, or are moved about in smaller tiles; the next weights are asked for"
QUADS = "shifts and a mask make two pairs of s16 of each quad"
FLIPPED = "s8 has its sign bit turned"
AHEAD = "the next weights are asked for, by an address and a step"
SPLIT = "a shift and a mask split each pair, both read the weight; beside them, copies"
SPREAD = "SHUFPS spreads x, and SSE overwrites an operand: copies"

HOT_LOOPS = (
    HotLoop("scalar", "f32", F32, 8, "xmm", SSE, reads=6, others=13, why=f"4 x 2; {SPREAD}; {AHEAD}"),
    HotLoop("scalar", "bf16", BF16, 4, "xmm", SSE_PAIR, reads=4, others=33, why=f"2 x 2; pairs split; {SPREAD}"),
    HotLoop("avx2", "f32", F32, 12, "ymm", FMA, reads=8, others=6, why=f"6 x 2; {AHEAD}", aligned=False),
    HotLoop("avx2", "bf16", BF16, 8, "ymm", FMA_PAIR, reads=8, others=18, why=f"4 x 2; {SPLIT}; {AHEAD}"),
    HotLoop("avx512", "f32", F32, 28, "zmm", FMA, 22, 12, f"14 x 2; {POINTERS}", aligned=False, stack=6),
    HotLoop(
        "avx512", "bf16", BF16, 24, "zmm", FMA_PAIR, 20, 35, f"12 x 2; {SPLIT}; {POINTERS}", aligned=False, stack=4
    ),
    HotLoop("scalar", "u8, s8", INT8, 4, "xmm", SSE_PAIRS, 4, 40, why=f"2 x 2; {QUADS}; copies"),
    HotLoop("avx2", "u8, s8", INT8, 6, "ymm", PAIRS, 8, 30, why=f"3 x 2; {QUADS}"),
    HotLoop("avxvnni", "u8, s8", INT8, 12, "ymm", VEX_DOT, 8, 14, why=f"6 x 2; {FLIPPED}; {AHEAD}", aligned=False),
    HotLoop("avx512", "u8, s8", INT8, 20, "zmm", PAIRS, 23, 60, f"10 x 2; {QUADS}; {POINTERS}", aligned=False, stack=6),
    HotLoop(
        "avx512vnni",
        "u8, s8",
        INT8,
        28,
        "zmm",
        EVEX_DOT,
        23,
        27,
        f"14 x 2; {FLIPPED}; {POINTERS}",
        aligned=False,
        stack=7,
    ),
    HotLoop("avx512bf16", "bf16", BF16, 28, "zmm", DOT, 22, 13, f"14 x 2; {POINTERS}", aligned=False, stack=6),
)


@dataclass(frozen=True)
class Counted:
    """A call small enough for valgrind; pixels and channels take whole tiles and partial ones on every level."""

    C: int
    F: int
    kernel: int
    dtype: str = "float32"
    size: tuple[int, int] = (9, 13)
    stride: int = 1
    groups: int = 1
    options: tuple[tuple[str, Any], ...] = (("activation", "relu"),)

    @property
    def id(self) -> str:
        size = f"{self.size[0]}x{self.size[1]}"
        words = "-".join(f"{value}" for _, value in self.options)
        return f"{self.C}x{size}-{self.F}-{self.kernel}x{self.kernel}s{self.stride}g{self.groups}-{self.dtype}-{words}"

    def arrays(self, more_rows: float = 0.0) -> dict[str, Any]:
        """NumPy arguments of the op, NHWC in memory, with a share of images on top of four."""
        images = math.ceil(4 * (1 + more_rows))
        H, W = self.size
        x = values(images, H * W * self.C, dtype=self.dtype).reshape(images, H, W, self.C).transpose(0, 3, 1, 2)
        weight = values(self.F, self.C // self.groups * self.kernel**2, dtype=self.dtype)
        weight = weight.reshape(self.F, self.C // self.groups, self.kernel, self.kernel)
        arguments = {"x": x, "weight": weight, "bias": values(self.F, dtype=self.dtype).reshape(-1)}
        window = {"stride": self.stride, "padding": self.kernel // 2, "groups": self.groups}
        return arguments | window | dict(self.options)


COUNTED = (
    Counted(40, 48, 3),
    Counted(40, 48, 1, "bfloat16"),
    Counted(3, 40, 7, size=(21, 33), stride=2, options=(("activation", "relu"), ("max_pool", (3, 2, 1)))),
    Counted(48, 48, 3, groups=48),
    Counted(32, 32, 3, groups=8),
    Counted(24, 40, 3, options=(("algorithm", "winograd"),)),
)
