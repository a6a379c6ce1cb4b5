"""The compiled loops of csrc/attention, which several rooms instantiate; a room's hot_loops.py asks for them.

Scores run in the tiles of csrc/gemm/tile.h, sums of values in those of csrc/attention/value_tile.h: the same loops over
another dimension. What a row has beside them is said in fused_matmul's hot_loops.py.
"""

from bench.hot_loops import HotLoop

SCORES = r"\bTile{0}<.*?>::run<(\d+), (\d+), "
VALUES = r"\bValueTile<.*?{1}>::run<(\d+), (\d+), [^<]*%s<"  # of panels, or of rows as they are
F32, BF16 = ("F32", r"\(dsf::Dtype\)0"), ("Bf16", r"\(dsf::Dtype\)1")
FMA, FMA_PAIR = ((r"vfmadd\d+ps", 1),), ((r"vfmadd\d+ps", 2),)
SSE, SSE_PAIR = (("mulps", 1), ("addps", 1)), (("mulps", 2), ("addps", 2))
DOT = (("vdpbf16ps", 1),)
COPIES = "SHUFPS spreads a number, and SSE overwrites an operand: copies"
SPLIT = "a shift and a mask split each pair, both read the panel; beside them, copies"
Row = tuple[str, str, tuple[str, str], int, str, tuple[tuple[str, int], ...], int, int, str]
LOOPS: tuple[Row, ...] = (  # (level, name, dtype, sums, registers, steps, reads, others, why)
    ("scalar", "f32", F32, 8, "xmm", SSE, 6, 12, f"4 x 2; {COPIES}"),
    ("scalar", "bf16", BF16, 4, "xmm", SSE_PAIR, 4, 30, f"2 x 2; pairs split; {COPIES}"),
    ("avx2", "f32", F32, 12, "ymm", FMA, 8, 5, "6 x 2"),
    ("avx2", "bf16", BF16, 8, "ymm", FMA_PAIR, 8, 17, f"4 x 2; {SPLIT}"),
    ("avx512", "f32", F32, 24, "zmm", FMA, 10, 5, "6 x 4"),
    ("avx512", "bf16", BF16, 16, "zmm", FMA_PAIR, 12, 20, f"4 x 4; {SPLIT}"),
    ("avx512bf16", "f32", F32, 24, "zmm", FMA, 10, 5, "6 x 4"),
    ("avx512bf16", "bf16", BF16, 24, "zmm", DOT, 10, 5, "6 x 4"),
)
ROW_LOOPS: tuple[
    Row, ...
] = (  # the rows' addresses are read, too, and bf16 is put side by side by unpacking or permuting
    ("scalar", "f32", F32, 8, "xmm", SSE, 7, 12, f"4 x 2; {COPIES}"),
    ("scalar", "bf16", BF16, 4, "xmm", SSE_PAIR, 6, 32, f"2 x 2; pairs made and split; {COPIES}"),
    ("avx2", "f32", F32, 12, "ymm", FMA, 9, 5, "6 x 2"),
    ("avx2", "bf16", BF16, 8, "ymm", FMA_PAIR, 8, 21, f"4 x 2; pairs made; {SPLIT}"),
    ("avx512", "f32", F32, 24, "zmm", FMA, 11, 5, "6 x 4"),
    ("avx512", "bf16", BF16, 16, "zmm", FMA_PAIR, 12, 29, f"4 x 4; pairs made; {SPLIT}"),
    ("avx512bf16", "bf16", BF16, 24, "zmm", DOT, 14, 7, "6 x 4; four shuffles make the pairs"),
)


def loops(*, f32_at_bf16_level: bool = False, of_rows: bool = False) -> tuple[HotLoop, ...]:
    """Those of a room. f32_at_bf16_level: its avx512bf16 has tiles of f32; of_rows: some read no panels."""
    kinds = [("scores", SCORES, LOOPS), ("values", VALUES % "PanelColumns", LOOPS)]
    kinds += [("rows of values", VALUES % "RowColumns", ROW_LOOPS)] * of_rows
    return tuple(
        HotLoop(level, f"{kind} of {name}", function.format(*dtype), sums, registers, steps, reads, others, why=why)
        for kind, function, table in kinds
        for level, name, dtype, sums, registers, steps, reads, others, why in table
        if f32_at_bf16_level or (level, name) != ("avx512bf16", "f32")
    )
