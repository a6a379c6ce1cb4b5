"""Casts whose blocks lie within a tile: x is read once, amax, scales and codes follow in registers."""

import triton
import triton.language as tl

from deepseek_fast.gpu.numbers import widen
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

SIZES = ["M", "row_blocks", "col_blocks", "key0", "key1"]  # not worth a variant each


@triton.jit(do_not_specialize=SIZES)
def _cast_blocks(
    x, weight, inverses, tensor_scale, codes, scale,
    M, K, x_stride, block_rows, block_cols, row_blocks, col_blocks, scale_row, scale_col, eps, key0, key1,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, ROW_PARTS: tl.constexpr, COL_PARTS: tl.constexpr,
    EXACT_ROWS: tl.constexpr, EXACT_COLUMNS: tl.constexpr, WIDE: tl.constexpr,
    SOURCE: tl.constexpr, MODE: tl.constexpr, KIND: tl.constexpr, FORMAT: tl.constexpr, MX: tl.constexpr,
    BF16: tl.constexpr, IGNORE_NAN: tl.constexpr, DIVIDE: tl.constexpr, SATURATE: tl.constexpr, DOWN: tl.constexpr,
    HARDWARE: tl.constexpr, STOCHASTIC: tl.constexpr, IN_FOURS: tl.constexpr, PACKED: tl.constexpr,
    AMAX_ONLY: tl.constexpr,
):  # fmt: skip
    """A tile of ROW_PARTS x COL_PARTS blocks, each in ROWS x COLUMNS places, of block_rows x block_cols values.

    inverses: 1 / rms of each row, or None where a tile has whole rows. PACKED: scale has bytes, at byte strides.
    AMAX_ONLY: scale becomes amax, no codes.
    """
    TILE_M: tl.constexpr = ROWS * ROW_PARTS
    TILE_K: tl.constexpr = COLUMNS * COL_PARTS
    row_tile, col_tile = tile_of()
    m, in_m = places(row_tile, M, block_rows, ROWS, ROW_PARTS, EXACT_ROWS, 1, True)
    k, in_k = places(col_tile, K, block_cols, COLUMNS, COL_PARTS, EXACT_COLUMNS, 1, WIDE)
    inside = in_m[:, None] & in_k[None, :]
    if SOURCE == "rms_norm" and inverses is None:
        v = values_of(x, x_stride, None, None, m, k, inside, K, "x")
        inverse = inverse_rms(tl.sum(v * v, 1), K, eps)
        v = v * inverse[:, None] * widen(tl.load(weight + k, in_k, 0.0))[None, :]
    elif SOURCE == "rms_norm":
        v = values_of(x, x_stride, weight, tl.load(inverses + m, in_m, 0.0), m, k, inside, K, SOURCE)
    else:
        v = values_of(x, x_stride, None, None, m, k, inside, K, SOURCE)

    # amax = the largest |v| of each block
    bits = tl.max(tl.reshape(size_bits(v, IGNORE_NAN), (TILE_M, COL_PARTS, COLUMNS)), 2)
    if ROWS > 1:
        bits = tl.max(tl.reshape(bits, (ROW_PARTS, ROWS, COL_PARTS)), 1)
    r, c = row_tile * ROW_PARTS + tl.arange(0, ROW_PARTS), col_tile * COL_PARTS + tl.arange(0, COL_PARTS)
    if AMAX_ONLY:
        stored = bits.to(tl.float32, bitcast=True)
    else:
        one = tensor_scale if tensor_scale is None else tl.load(tensor_scale)
        stored, factor = scale_of(bits, one, MODE, KIND, FORMAT, MX, BF16)
    column = (c // 4) * scale_col + c % 4 if PACKED else c * scale_col
    at = scale + r.to(tl.int64)[:, None] * scale_row + column.to(tl.int64)[None, :]
    tl.store(at, stored, (r < row_blocks)[:, None] & (c < col_blocks)[None, :])

    if not AMAX_ONLY:
        # code = encode(v * factor), or of v / factor
        blocks = tl.reshape(v, (ROW_PARTS, ROWS, COL_PARTS, COLUMNS))
        factors = factor[:, None, :, None]
        if DIVIDE:
            scaled = tl.div_rn(blocks, tl.broadcast_to(factors, (ROW_PARTS, ROWS, COL_PARTS, COLUMNS)))
        else:
            scaled = blocks * factors
        random = None
        if STOCHASTIC:
            fours = None
            if IN_FOURS:
                fours, _ = places(col_tile, K, block_cols, COLUMNS, COL_PARTS, True, 4, WIDE)
            random = random_bits(m, k, fours, K, key0, key1, TILE_M, TILE_K)
        PER: tl.constexpr = 2 if FORMAT == "e2m1" else 1
        unit, in_unit = places(col_tile, K, block_cols, COLUMNS, COL_PARTS, EXACT_COLUMNS, PER, WIDE)
        store_codes(
            codes, tl.reshape(scaled, (TILE_M, TILE_K)), v, random, m, in_m, unit, in_unit, K,
            FORMAT, SATURATE, DOWN, HARDWARE, TILE_M, TILE_K,
        )  # fmt: skip
