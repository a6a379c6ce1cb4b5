"""Back to numbers: y = codes * scale."""

import triton
import triton.language as tl

from deepseek_fast.gpu.codes import decode, decode_e8m0
from deepseek_fast.gpu.numbers import round_to
from deepseek_fast.kernels.fp8_cast.triton_values import places, tile_of


@triton.jit(do_not_specialize=["M"])
def _dequantize(
    codes, scale, tensor_scale, y, M, K, codes_stride, block_rows, block_cols, scale_row, scale_col,
    TILE_M: tl.constexpr, TILE_K: tl.constexpr, ROW_GROUP: tl.constexpr, COL_GROUP: tl.constexpr, WIDE: tl.constexpr,
    KIND: tl.constexpr, FORMAT: tl.constexpr, HARDWARE: tl.constexpr,
):  # fmt: skip
    """A tile of y (M, K). KIND of scale: "nothing", "f32", "e8m0", "e4m3", or "packed", four e8m0 to an int32.

    ROW_GROUP x COL_GROUP values of a tile lie in one block together.
    """
    row_tile, col_tile = tile_of()
    m, in_m = places(row_tile, M, 0, TILE_M, 1, True, 1, True)
    k, in_k = places(col_tile, K, 0, TILE_K, 1, True, 1, WIDE)
    PER: tl.constexpr = 2 if FORMAT == "e2m1" else 1
    unit, in_unit = places(col_tile, K, 0, TILE_K, 1, True, PER, WIDE)
    code = tl.load(codes + m[:, None] * codes_stride + unit[None, :], in_m[:, None] & in_unit[None, :], 0)
    if FORMAT == "e2m1":
        code = tl.reshape(tl.join(code & 0xF, code >> 4), (TILE_M, TILE_K))
    if HARDWARE and FORMAT == "e4m3fn":  # noqa: SIM108 - a conditional expression would compile both
        v = code.to(tl.float8e4nv, bitcast=True).to(tl.float32)
    else:
        v = decode(code, FORMAT)
    if KIND != "nothing":
        DOWN_GROUPS: tl.constexpr = TILE_M // ROW_GROUP
        ACROSS: tl.constexpr = TILE_K // COL_GROUP
        INDEX: tl.constexpr = tl.int64 if WIDE else tl.int32
        first_m = tl.cast(row_tile, INDEX) * TILE_M + tl.arange(0, DOWN_GROUPS) * ROW_GROUP
        first_k = tl.cast(col_tile, INDEX) * TILE_K + tl.arange(0, ACROSS) * COL_GROUP
        r, c = (first_m // block_rows).to(tl.int64), (first_k // block_cols).to(tl.int64)
        inside = (first_m < M)[:, None] & (first_k < K)[None, :]
        column = c // 4 if KIND == "packed" else c
        factor = tl.load(scale + r[:, None] * scale_row + column[None, :] * scale_col, inside, 0)
        if KIND == "packed":
            factor = decode_e8m0((factor >> (c % 4 * 8).to(tl.int32)[None, :]) & 0xFF)
        elif KIND == "e8m0":
            factor = decode_e8m0(factor)
        elif KIND == "e4m3":
            factor = decode(factor, "e4m3fn")
        if tensor_scale is not None:
            factor = tl.load(tensor_scale) * factor
        blocks = tl.reshape(v, (DOWN_GROUPS, ROW_GROUP, ACROSS, COL_GROUP)) * factor[:, None, :, None]
        v = tl.reshape(blocks, (TILE_M, TILE_K))
    at = y + m[:, None] * K + k[None, :]
    tl.store(at, round_to(v, y.dtype.element_ty), in_m[:, None] & in_k[None, :])
