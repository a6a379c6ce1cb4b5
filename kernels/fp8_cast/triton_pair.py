"""The transposed pair: a square of x is read once, cast along its rows and along its columns."""

import triton
import triton.language as tl

from deepseek_fast.gpu.codes import encode
from deepseek_fast.gpu.numbers import widen
from deepseek_fast.kernels.fp8_cast.triton_scales import scale_of
from deepseek_fast.kernels.fp8_cast.triton_values import places, size_bits, tile_of


@triton.jit(do_not_specialize=["down", "across"])
def _cast_pair(
    x, codes, scale, codes_t, scale_t, M, K, x_stride, block, down, across,
    PART: tl.constexpr, PARTS: tl.constexpr, EXACT: tl.constexpr, MODE: tl.constexpr, KIND: tl.constexpr,
    FORMAT: tl.constexpr, MX: tl.constexpr, BF16: tl.constexpr, IGNORE_NAN: tl.constexpr, DIVIDE: tl.constexpr,
    SATURATE: tl.constexpr, HARDWARE: tl.constexpr,
):  # fmt: skip
    """PARTS x PARTS squares of block x block values, each in PART x PART places. codes (M, K), codes_t (K, M)."""
    TILE: tl.constexpr = PART * PARTS
    row_tile, col_tile = tile_of()
    m, in_m = places(row_tile, M, block, PART, PARTS, EXACT, 1, True)
    k, in_k = places(col_tile, K, block, PART, PARTS, EXACT, 1, True)
    inside = in_m[:, None] & in_k[None, :]
    v = widen(tl.load(x + m[:, None] * x_stride + k[None, :], inside, 0.0))
    bits = size_bits(v, IGNORE_NAN)

    # along rows: blocks of (1, block)
    amax = tl.max(tl.reshape(bits, (TILE, PARTS, PART)), 2)
    stored, factor = scale_of(amax, None, MODE, KIND, FORMAT, MX, BF16)
    c = col_tile * PARTS + tl.arange(0, PARTS)
    tl.store(scale + m[:, None] * across + c[None, :], stored, in_m[:, None] & (c < across)[None, :])
    blocks = tl.reshape(v, (TILE, PARTS, PART))
    if DIVIDE:
        scaled = tl.div_rn(blocks, tl.broadcast_to(factor[:, :, None], (TILE, PARTS, PART)))
    else:
        scaled = blocks * factor[:, :, None]
    code = encode(tl.reshape(scaled, (TILE, TILE)), v, None, FORMAT, SATURATE, False, HARDWARE)
    tl.store(codes + m[:, None] * K + k[None, :], code, inside)

    # along columns: blocks of (block, 1)
    amax_t = tl.max(tl.reshape(bits, (PARTS, PART, TILE)), 1)
    stored_t, factor_t = scale_of(amax_t, None, MODE, KIND, FORMAT, MX, BF16)
    r = row_tile * PARTS + tl.arange(0, PARTS)
    tl.store(scale_t + k[None, :] * down + r[:, None], stored_t, in_k[None, :] & (r < down)[:, None])
    blocks_t = tl.reshape(v, (PARTS, PART, TILE))
    if DIVIDE:
        scaled_t = tl.div_rn(blocks_t, tl.broadcast_to(factor_t[:, None, :], (PARTS, PART, TILE)))
    else:
        scaled_t = blocks_t * factor_t[:, None, :]
    code_t = encode(tl.reshape(scaled_t, (TILE, TILE)), v, None, FORMAT, SATURATE, False, HARDWARE)
    tl.store(codes_t + k[None, :] * M + m[:, None], code_t, inside)
