"""Tiles of the casts: tables of sizes, and what of a call's shape a tile takes."""

import math

from deepseek_fast.gpu.tiles import Row, Table

MOST = 16384  # values of a block that is cast in one pass: 128 x 128, and 64 values a thread at most
WIDTH = 1024  # columns of a tile: 2 KiB of bfloat16 side by side, more rows beside them
NARROWEST = 32  # columns of a tile that reads memory well: two sectors of bfloat16
MANY = 1 << 40  # values, as of a large call
WIDE = 1 << 30  # rows or columns from which they are counted in int64, a tile's beyond the last included

# Bytes in flight decide: 3.35 TB/s times 0.7 us of latency are 2.3 MB, 18 KiB of loads on each of 132 SMs at every
# moment, so about twice as many bytes in resident programs. 32 values a thread are 64 bytes of bfloat16 in four loads.
BLOCKS = Table(
    "fp8_cast_blocks",
    "BLOCK TOTAL",
    (
        Row(
            {"VALUES": 1024, "num_warps": 2},
            BLOCK=1024,
            TOTAL=1 << 19,
            why="derived: below 128 programs of 4,096 values not every SM has one; 16 values a thread",
        ),
        Row(
            {"VALUES": 4096, "num_warps": 4},
            BLOCK=4096,
            why="derived: 8 KiB of bfloat16 a program, 7 programs or more on an SM: above 40 KiB",
        ),
        Row({"VALUES": 8192, "num_warps": 8}, BLOCK=8192, why="derived: rows of 7,168 whole; 32 values a thread"),
        Row({"VALUES": 16384, "num_warps": 16}, why="derived: 128 x 128, 32 KiB of bfloat16, 2 programs on an SM"),
    ),
)
ENCODE = Table(
    "fp8_cast_encode",
    "TOTAL",
    (
        Row({"VALUES": 1024, "num_warps": 2}, TOTAL=1 << 19, why="derived: as for fp8_cast_blocks"),
        Row({"VALUES": 4096, "num_warps": 4}, why="derived: as for fp8_cast_blocks"),
    ),
)
AMAX = Table(
    "fp8_cast_amax",
    "TOTAL",
    (
        Row({"VALUES": 2048, "num_warps": 4}, TOTAL=1 << 20, why="derived: 512 programs at most"),
        Row({"VALUES": 8192, "num_warps": 8}, why="derived: an atomic for 16 KiB of bfloat16; 32 values a thread"),
    ),
)
DEQUANTIZE = Table(
    "fp8_dequantize",
    "TOTAL",
    (
        Row({"VALUES": 1024, "num_warps": 2}, TOTAL=1 << 19, why="derived: as for fp8_cast_blocks"),
        Row({"VALUES": 4096, "num_warps": 4}, why="derived: 32 values a thread, two loads of 16 bytes, four stores"),
    ),
)
PAIR = Table(
    "fp8_cast_transposed",
    "PART",
    (
        Row({"TILE": 64, "num_warps": 8}, PART=64, why="derived: 16 values a thread; 64-byte rows of both results"),
        Row({"TILE": 128, "num_warps": 16}, why="derived: squares of 128; 32 values a thread"),
    ),
)
INT8 = Table(
    "int8_cast",
    "K",
    (
        Row({"BLOCK_K": 1024, "num_warps": 2}, K=1024, why="derived: one pass, 16 values a thread"),
        Row({"BLOCK_K": 4096, "num_warps": 4}, K=4096, why="derived: one pass, 32 values a thread"),
        Row({"BLOCK_K": 8192, "num_warps": 8}, why="derived: 32 values a thread; longer rows are read again, from L2"),
    ),
)


def fits(rows: int, columns: int, K: int) -> bool:
    """Whether blocks of so many places, powers of two, are cast in one pass."""
    return rows * max(columns, min(NARROWEST, power(K))) <= MOST


def is_wide(M: int, K: int) -> bool:
    """Whether rows and columns are counted in int64."""
    return max(M, K) > WIDE


def grid(down: int, across: int) -> tuple[int, int, int]:
    """Programs of down x across tiles, columns first; those beyond the last row have nothing inside."""
    most = 32768  # a grid's second and third number end at 65,535
    return across, min(down, most), -(-down // most)


def length(block: int, size: int) -> int:
    return max(1, size) if block < 0 or block > size else block


def is_exact(block: int, size: int) -> bool:
    """Whether a tile of blocks has no gaps."""
    return block == power(block) or block >= size


def power(size: int) -> int:
    """The power of two at or above size, at least 1."""
    return 1 << (size - 1).bit_length() if size > 1 else 1


def parts(count: int, most: int) -> int:
    """How many of `count` a tile takes, a power of two up to `most`: as few places as can be stay empty."""
    sizes = [1 << i for i in range(min(most, power(count)).bit_length())]
    return min(reversed(sizes), key=lambda size: -(-count // size) * size)


def tile(M: int, K: int, values: int) -> tuple[int, int]:
    """Rows and columns of a tile: whole sectors of memory, few places beyond the last column."""
    sectors = parts(-(-K // NARROWEST), WIDTH // NARROWEST) if M > 1 else values // NARROWEST
    tile_k = min(NARROWEST * sectors, values)
    return min(max(1, values // tile_k), power(M)), tile_k


def group(block: int, size: int, tile: int) -> int:
    """Values in a row of a tile that lie in one block together, wherever the tile begins."""
    return tile if block >= size else math.gcd(block, tile)
