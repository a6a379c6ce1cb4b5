"""Tiles of fp8_matmul's kernels, by sizes and chip.

A row's bits may not depend on the batch it comes in, nor then on its tile: on one chip all rows of a table have one
BLOCK_K and one kind of instruction (wgmma and tcgen05 from 64 rows of the first operand on, mma.sync elsewhere).
A step's sums are added in the order of k by one program: nothing is split over K.
"""

from typing import Any

from deepseek_fast.gpu.tiles import Row, Table

# Chips by their tensor-core instruction: of warpgroups; of a warp, with FP8 or without.
WARPGROUP, FP8_WARP, DECODED = (90, 100), (89, 120), (80, 86)
WARP = FP8_WARP + DECODED


def _tile(
    block_m: int, block_n: int, num_warps: int, num_stages: int, *, block_k: int = 128, tma: bool = False,
    swap: bool = False, wide: bool = False, persistent: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """wide: a tile of block_n and one of half of it beside each other, which share the tile of x."""
    return {
        "BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k, "GROUP_M": 8,
        "TMA": tma, "SWAP": swap, "WIDE": wide, "PERSISTENT": persistent,
        "num_warps": num_warps, "num_stages": num_stages,
    }  # fmt: skip


# x as codes. TILES: tiles of 64 x 16 in the output; RAGGED: 1 where TMA cannot read a matrix; VECTOR: 1 where every row
# of the weight has its own scales.
CODES = Table(
    "fp8_matmul_codes",
    "M TILES RAGGED VECTOR",
    (
        Row(_tile(64, 16, 4, 8), TILES=192, archs=WARPGROUP, why="derived: bound by latency, most programs"),
        Row(_tile(64, 32, 4, 8), TILES=480, archs=WARPGROUP, why="derived: still 128 programs; x read half as often"),
        Row(_tile(64, 64, 4, 6), M=64, TILES=2048, archs=WARPGROUP, why="derived: two programs a multiprocessor"),
        Row(_tile(64, 64, 4, 6), TILES=768, archs=WARPGROUP, why="derived: 128 programs or more"),
        Row(
            _tile(128, 64, 8, 4, tma=True), TILES=2048, RAGGED=0, archs=WARPGROUP,
            why="derived: a quarter fewer bytes from L2, which is what 128 rows wait for",
        ),
        Row(
            _tile(64, 128, 4, 3, tma=True), TILES=4224, RAGGED=0, VECTOR=0, archs=WARPGROUP,
            why="derived: three programs a multiprocessor, one scales its sums while the others multiply",
        ),
        Row(
            _tile(128, 128, 8, 4, tma=True, persistent=True), TILES=49152, RAGGED=0, VECTOR=0, archs=(90,),
            why="derived: 128 products a byte; a tile's end overlaps the next one's loads",
        ),
        Row(
            _tile(128, 128, 8, 4, tma=True, wide=True, persistent=True), RAGGED=0, VECTOR=0, archs=(90,),
            why="derived: 128 x 192, a fifth fewer bytes; one tile's sums are scaled while the other's run",
        ),
        Row(
            _tile(128, 128, 8, 4, tma=True, persistent=True), RAGGED=0, VECTOR=0, archs=(100,),
            why="derived: as for 9.0",
        ),
        Row(
            _tile(128, 64, 8, 4, tma=True), RAGGED=0, archs=WARPGROUP,
            why="derived: a thread holds 16 scales of the weight and the next step's; larger tiles spill",
        ),
        Row(_tile(64, 64, 4, 4), archs=WARPGROUP, why="derived: what TMA cannot read, with masks"),
        Row(_tile(16, 64, 4, 5), M=16, archs=FP8_WARP, why="derived: 50 KiB, two programs a multiprocessor of 12.0"),
        Row(_tile(64, 64, 8, 3), M=256, archs=FP8_WARP, why="derived: 48 KiB, two programs; four warps spill on 12.0"),
        Row(_tile(128, 128, 8, 3), archs=FP8_WARP, why="derived: 96 KiB, what a block of 8.9 and 12.0 may have"),
        Row(_tile(16, 64, 4, 6, block_k=64), M=16, archs=DECODED, why="derived: 30 KiB, three programs on 8.6"),
        Row(_tile(64, 64, 4, 4, block_k=64), M=256, archs=DECODED, why="derived: 32 KiB, three programs on 8.6"),
        Row(
            _tile(128, 128, 8, 4, block_k=64), archs=DECODED,
            why="derived: 64 KiB; both sides are decoded in registers, where 128 of k spill",
        ),
    ),
)  # fmt: skip

# x as numbers, of ITEM bytes. From 9.0 on the decoded weight is the first operand, which may lie in registers.
NUMBERS = Table(
    "fp8_matmul_numbers",
    "M ITEM RAGGED",
    (
        Row(
            _tile(16, 64, 4, 8, tma=True, swap=True), M=16, ITEM=2, RAGGED=0, archs=WARPGROUP,
            why="derived: 12 KiB a stage, 64 KiB of the weight on their way to a program",
        ),
        Row(
            _tile(64, 64, 4, 4, tma=True, swap=True), M=64, ITEM=2, RAGGED=0, archs=WARPGROUP,
            why="derived: 24 KiB a stage, two programs a multiprocessor",
        ),
        Row(
            _tile(128, 128, 8, 3, tma=True, swap=True), ITEM=2, RAGGED=0, archs=WARPGROUP,
            why="derived: a weight is decoded once for 128 rows",
        ),
        Row(
            _tile(16, 64, 4, 4, tma=True, swap=True), M=16, RAGGED=0, archs=WARPGROUP,
            why="derived: float32, 16 KiB a stage",
        ),
        Row(
            _tile(64, 128, 8, 3, tma=True, swap=True), RAGGED=0, archs=WARPGROUP,
            why="derived: float32, 48 KiB a stage; three products for each, bound by arithmetic",
        ),
        Row(_tile(32, 64, 4, 3, swap=True), archs=WARPGROUP, why="derived: what TMA cannot read; fits with masks"),
        Row(
            _tile(16, 64, 4, 5, block_k=64), M=16, ITEM=2, archs=WARP,
            why="derived: the weight's 4 KiB a stage in four warps, a column of 16 each",
        ),
        Row(
            _tile(64, 64, 4, 4, block_k=64), M=256, ITEM=2, archs=WARP,
            why="derived: 12 KiB a stage, two programs a multiprocessor",
        ),
        Row(
            _tile(128, 128, 8, 3, block_k=64), ITEM=2, archs=WARP,
            why="derived: 24 KiB a stage; a weight is decoded once for 128 rows",
        ),
        Row(
            _tile(32, 64, 4, 3, block_k=64), archs=WARP,
            why="derived: float32, 12 KiB a stage; 64 rows spill",
        ),
    ),
)  # fmt: skip
