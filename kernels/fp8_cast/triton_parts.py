"""Casts in two passes, for blocks of any shape and size: amax of all blocks, then codes; or codes with known scales."""

import triton
import triton.language as tl

from deepseek_fast.gpu.codes import decode_e8m0
from deepseek_fast.gpu.numbers import widen
from deepseek_fast.kernels.fp8_cast.triton_blocks import SIZES
from deepseek_fast.kernels.fp8_cast.triton_scales import scale_of
from deepseek_fast.kernels.fp8_cast.triton_values import (
    inverse_rms,
    places,
    random_bits,
    size_bits,
    store_codes,
    tile_of,
    values_of,
)


@triton.jit
def _inverse_rms(x, x_stride, inverses, K, eps, BLOCK_K: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    squares = tl.zeros([BLOCK_K], tl.float32)
    for first in range(0, K, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        v = widen(tl.load(x + row * x_stride + k, k < K, 0.0))
        squares += v * v
    tl.store(inverses + row, inverse_rms(tl.sum(squares, 0), K, eps))


@triton.jit(do_not_specialize=SIZES)
def _amax(
    x, weight, inverses, amax, M, K, x_stride, block_rows, block_cols, col_blocks, row_parts, col_parts,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, COL_PARTS: tl.constexpr, EXACT: tl.constexpr, WIDE: tl.constexpr,
    SOURCE: tl.constexpr, IGNORE_NAN: tl.constexpr,
):  # fmt: skip
    """amax (int32, of zeros) = the largest |v| of each block, by its bits: the order of arrival does not matter.

    A program has ROWS rows of COL_PARTS blocks in COLUMNS places each (EXACT: all are values), or of a part of one:
    row_parts and col_parts are how many make a block.
    """
    part, group = tile_of()
    if WIDE:
        group = group.to(tl.int64)
    row_block, first = part // row_parts, part % row_parts * ROWS
    within = first + tl.arange(0, ROWS)
    m = tl.cast(row_block, tl.int64) * block_rows + within
    in_m = (within < block_rows) & (m < M)
    c = group // col_parts * COL_PARTS + tl.arange(0, COL_PARTS)
    if COL_PARTS > 1 or EXACT:
        k, in_k = places(group, K, block_cols, COLUMNS, COL_PARTS, EXACT, 1, WIDE)
    else:
        i = group % col_parts * COLUMNS + tl.arange(0, COLUMNS)
        k = group // col_parts * block_cols + i
        in_k = (i < block_cols) & (k < K)
    inside = in_m[:, None] & in_k[None, :]
    inverse = None
    if SOURCE == "rms_norm":
        inverse = tl.load(inverses + m, in_m, 0.0)
    v = values_of(x, x_stride, weight, inverse, m, k, inside, K, SOURCE)
    bits = tl.max(tl.max(tl.reshape(size_bits(v, IGNORE_NAN), (ROWS, COL_PARTS, COLUMNS)), 2), 0)
    at = amax + tl.cast(row_block, tl.int64) * col_blocks + c
    tl.atomic_max(at, bits, c < col_blocks, sem="relaxed")


@triton.jit(do_not_specialize=SIZES)
def _encode(
    x, weight, inverses, known, tensor_scale, codes, scale,
    M, K, x_stride, block_rows, block_cols, known_row, known_col, scale_row, scale_col, key0, key1,
    TILE_M: tl.constexpr, TILE_K: tl.constexpr, ROW_GROUP: tl.constexpr, COL_GROUP: tl.constexpr, WIDE: tl.constexpr,
    KNOWN: tl.constexpr, SOURCE: tl.constexpr, MODE: tl.constexpr, KIND: tl.constexpr, FORMAT: tl.constexpr,
    MX: tl.constexpr, BF16: tl.constexpr, DIVIDE: tl.constexpr, SATURATE: tl.constexpr, DOWN: tl.constexpr,
    HARDWARE: tl.constexpr, STOCHASTIC: tl.constexpr, IN_FOURS: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """Codes of a tile. KNOWN: "nothing": no scales, "amax": of each block, its bits, "f32" or "e8m0": its scale.

    ROW_GROUP x COL_GROUP values of a tile lie in one block together. The first of a block stores its scale.
    """
    row_tile, col_tile = tile_of()
    if KNOWN == "amax":  # backwards: what amax read last is in L2 still
        row_tile = tl.num_programs(1) * tl.num_programs(2) - 1 - row_tile
    m, in_m = places(row_tile, M, 0, TILE_M, 1, True, 1, True)
    k, in_k = places(col_tile, K, 0, TILE_K, 1, True, 1, WIDE)
    inverse = None
    if SOURCE == "rms_norm":
        inverse = tl.load(inverses + m, in_m, 0.0)
    v = values_of(x, x_stride, weight, inverse, m, k, in_m[:, None] & in_k[None, :], K, SOURCE)
    scaled = v
    if KNOWN == "nothing":
        if row_tile + col_tile == 0:
            tl.store(scale, 1.0)
    else:
        DOWN_GROUPS: tl.constexpr = TILE_M // ROW_GROUP
        ACROSS: tl.constexpr = TILE_K // COL_GROUP
        INDEX: tl.constexpr = tl.int64 if WIDE else tl.int32
        first_m = tl.cast(row_tile, INDEX) * TILE_M + tl.arange(0, DOWN_GROUPS) * ROW_GROUP
        first_k = tl.cast(col_tile, INDEX) * TILE_K + tl.arange(0, ACROSS) * COL_GROUP
        r, c = first_m // block_rows, first_k // block_cols
        inside = (first_m < M)[:, None] & (first_k < K)[None, :]
        begins = inside & (first_m == r * block_rows)[:, None] & (first_k == c * block_cols)[None, :]
        at = known + r.to(tl.int64)[:, None] * known_row + c.to(tl.int64)[None, :] * known_col
        found = tl.load(at, inside, 1)
        if KNOWN == "amax":
            one = tensor_scale if tensor_scale is None else tl.load(tensor_scale)
            stored, factor = scale_of(found, one, MODE, KIND, FORMAT, MX, BF16)
        else:
            stored = decode_e8m0(found) if KNOWN == "e8m0" else found
            factor = stored if DIVIDE else tl.div_rn(1.0, stored)
        column = (c // 4) * scale_col + c % 4 if PACKED else c * scale_col
        tl.store(scale + r.to(tl.int64)[:, None] * scale_row + column.to(tl.int64)[None, :], stored, begins)
        blocks = tl.reshape(v, (DOWN_GROUPS, ROW_GROUP, ACROSS, COL_GROUP))
        factors = factor[:, None, :, None]
        if DIVIDE:
            blocks = tl.div_rn(blocks, tl.broadcast_to(factors, (DOWN_GROUPS, ROW_GROUP, ACROSS, COL_GROUP)))
        else:
            blocks = blocks * factors
        scaled = tl.reshape(blocks, (TILE_M, TILE_K))
    random = None
    if STOCHASTIC:
        fours = None
        if IN_FOURS:
            fours, _ = places(col_tile, K, 0, TILE_K, 1, True, 4, WIDE)
        random = random_bits(m, k, fours, K, key0, key1, TILE_M, TILE_K)
    PER: tl.constexpr = 2 if FORMAT == "e2m1" else 1
    unit, in_unit = places(col_tile, K, 0, TILE_K, 1, True, PER, WIDE)
    store_codes(
        codes, scaled, v, random, m, in_m, unit, in_unit, K, FORMAT, SATURATE, DOWN, HARDWARE, TILE_M, TILE_K
    )  # fmt: skip
