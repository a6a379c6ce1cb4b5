"""mla_cache_write and mla_cache_read on CUDA tensors: caches.py's bytes and numbers."""

import triton
import triton.language as tl

from deepseek_fast.gpu.codes import encode_fp8
from deepseek_fast.kernels.sparse_mla.triton_tokens import V4, V32, load_part


@triton.jit(do_not_specialize=["room", "page", "scales_at"])
def _cache_write(
    cache, kv, slots, kv_stride, slots_stride, room, page, page_stride, token_stride, scales_at, LAYOUT: tl.constexpr
):
    """A token a program. A slot outside [0, room) leaves its token out."""
    CODED: tl.constexpr = 512 if LAYOUT == V32 else 448
    TILE: tl.constexpr = 128 if LAYOUT == V32 else 64
    TILES: tl.constexpr = CODED // TILE
    ROWS: tl.constexpr = 4 if LAYOUT == V32 else 8  # tiles, a power of two
    KEPT: tl.constexpr = 528 if LAYOUT == V32 else 448  # bytes of a token before its bf16
    i = tl.program_id(0).to(tl.int64)
    slot = i
    if slots is not None:
        slot = tl.load(slots + i * slots_stride).to(tl.int64)
    written = (slot >= 0) & (slot < room)
    slot = tl.where(written, slot, 0)
    start = cache + slot // page * page_stride
    offset = slot % page
    token = start + offset * token_stride

    tile = tl.arange(0, ROWS)
    place = tile[:, None] * TILE + tl.arange(0, TILE)[None, :]
    inside = (tile < TILES) & written
    x = tl.load(kv + i * kv_stride + place, inside[:, None], 0.0).to(tl.float32)
    # scale = 2^ceil(log2(max(amax / 448, 1e-4))) of the bits; NaN where amax is not finite
    amax_bits = tl.max(tl.abs(x).to(tl.uint32, bitcast=True), 1)
    finite = amax_bits < 0x7F800000
    least = tl.div_rn(tl.where(finite, amax_bits, 0).to(tl.float32, bitcast=True), 448.0)
    least = tl.maximum(least, 1e-4)
    scale_bits = (least.to(tl.uint32, bitcast=True) + 0x7FFFFF) & 0xFF800000
    # 1 / 2^e by the exponent; scales are at least 2^-13
    inverse = (0x7F000000 - scale_bits).to(tl.float32, bitcast=True)
    code = encode_fp8(x * tl.where(finite, inverse, 0.0)[:, None])
    sign = ((x.to(tl.uint32, bitcast=True) >> 24) & 0x80).to(tl.uint8)
    code = tl.where(finite[:, None], code, sign | 0x7F)
    tl.store(token + place, code, inside[:, None])
    if LAYOUT == V32:
        scale = tl.where(finite, scale_bits, 0x7FC00000).to(tl.float32, bitcast=True)
        tl.store((token + CODED).to(tl.pointer_type(tl.float32)) + tile, scale, inside)
    else:
        byte = tl.where(finite, scale_bits >> 23, 255)
        byte = tl.where(tile < TILES, byte, 0)  # and one that is not looked at
        tl.store(start + scales_at + offset * 8 + tile, byte.to(tl.uint8), written)
    c = tl.arange(0, 64)
    kept = tl.load(kv + i * kv_stride + CODED + c)
    if kv.dtype.element_ty == tl.float32:
        # Of NaN the CPU's bits too, which a conversion would not give.
        bits = kept.to(tl.uint32, bitcast=True)
        is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
        bits = tl.where(is_nan, (bits >> 16) | 0x40, (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)
        kept = bits.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    tl.store((token + KEPT).to(tl.pointer_type(tl.bfloat16)) + c, kept, written)


@triton.jit(do_not_specialize=["tokens", "page", "scales_at"])
def _cache_read(
    cache, numbers, tokens, page, page_stride, token_stride, scales_at, D: tl.constexpr, LAYOUT: tl.constexpr,
    NATIVE: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    counts = t < tokens
    t = tl.where(counts, t, 0)
    start = t // page * page_stride
    offset = t % page
    place = start + offset * token_stride
    scales = place + 512
    if LAYOUT == V4:
        scales = start + scales_at + offset * 8
    to = numbers + t * D
    if LAYOUT == V32:
        _read_part(cache, to, place, scales, counts, 0, 512, D, LAYOUT, NATIVE)
        _read_part(cache, to, place, scales, counts, 512, 64, D, LAYOUT, NATIVE)
    else:
        _read_part(cache, to, place, scales, counts, 0, 256, D, LAYOUT, NATIVE)
        _read_part(cache, to, place, scales, counts, 256, 128, D, LAYOUT, NATIVE)
        _read_part(cache, to, place, scales, counts, 384, 64, D, LAYOUT, NATIVE)
        _read_part(cache, to, place, scales, counts, 448, 64, D, LAYOUT, NATIVE)


@triton.jit
def _read_part(
    cache, to, place, scales, counts, FIRST: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr, LAYOUT: tl.constexpr,
    NATIVE: tl.constexpr,
):  # fmt: skip
    part = load_part(cache, place, scales, counts, FIRST, WIDTH, D, LAYOUT, tl.bfloat16, NATIVE)
    tl.store((to + FIRST)[:, None] + tl.arange(0, WIDTH)[None, :], part, counts[:, None])
