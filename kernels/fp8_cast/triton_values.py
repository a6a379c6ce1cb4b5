"""What the casts' kernels share: the values that are cast, random bits, and codes to memory."""

import triton
import triton.language as tl

from deepseek_fast.gpu.activation import activate
from deepseek_fast.gpu.codes import encode
from deepseek_fast.gpu.numbers import widen


@triton.jit
def tile_of():
    """(row, column) of this program's tile: columns side by side run together; triton_tiles.py's grid."""
    return tl.program_id(1) + tl.program_id(2) * tl.num_programs(1), tl.program_id(0)


@triton.jit
def values_of(x, x_stride, weight, inverse, m, k, inside, K, SOURCE: tl.constexpr):
    """Rows m, columns k of what is cast, float32: x, silu(x[:, :K]) * x[:, K:], or x * inverse * weight."""
    at = x + m[:, None] * x_stride + k[None, :]
    v = widen(tl.load(at, inside, 0.0))
    if SOURCE == "silu_mul":
        v = activate(v, "silu") * widen(tl.load(at + K, inside, 0.0))
    elif SOURCE == "rms_norm":
        v = v * inverse[:, None] * widen(tl.load(weight + k, k < K, 0.0))[None, :]
    return v


@triton.jit
def inverse_rms(squares, K, eps):
    """1 / sqrt(mean(x^2) + eps) of rows, from the sums of their squares."""
    return tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(squares, tl.cast(K, tl.float32)) + eps))


@triton.jit
def size_bits(v, IGNORE_NAN: tl.constexpr):
    """|v| as int32, whose order is that of the sizes, NaN above infinity; NaN as 0 where it is to be ignored."""
    bits = v.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    if IGNORE_NAN:
        bits = tl.where(bits > 0x7F800000, 0, bits)
    return bits


@triton.jit
def philox(block, key0, key1):
    """Philox4x32-10 (Salmon et al., 2011): four words of 32 bits, of the counter `block` (int64)."""
    c0, c1 = block.to(tl.uint32), (block >> 32).to(tl.uint32)
    c2, c3 = tl.zeros_like(c0), tl.zeros_like(c0)
    k0, k1 = tl.cast(key0, tl.uint32), tl.cast(key1, tl.uint32)
    for _ in tl.static_range(10):
        first, second = c0.to(tl.uint64) * 0xD2511F53, c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (second >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (first >> 32).to(tl.uint32) ^ c3 ^ k1
        c1, c3 = second.to(tl.uint32), first.to(tl.uint32)
        k0 = (k0.to(tl.uint64) + 0x9E3779B9).to(tl.uint32)
        k1 = (k1.to(tl.uint64) + 0xBB67AE85).to(tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def places(tile, size, block, PART: tl.constexpr, PARTS: tl.constexpr, EXACT: tl.constexpr, PER: tl.constexpr,
           WIDE: tl.constexpr):  # fmt: skip
    """(places, which of them are inside): those of a tile of PARTS blocks in a dimension, every PER-th, over PER.

    size: of the dimension; block: values of a block, PART of them or, where not EXACT, fewer: then the tile has gaps.
    WIDE: int64.
    """
    n = tl.arange(0, PART * PARTS // PER)
    if WIDE:
        n, tile = n.to(tl.int64), tl.cast(tile, tl.int64)
    if EXACT:
        place = tile * (PART * PARTS // PER) + n
        return place, place < size // PER
    else:
        i = n % (PART // PER)
        place = (tile * PARTS + n // (PART // PER)) * (block // PER) + i
        return place, (i < block // PER) & (place < size // PER)


@triton.jit
def random_bits(m, k, fours, K, key0, key1, TILE_M: tl.constexpr, TILE_K: tl.constexpr):
    """32 bits for rows m, columns k: word i % 4 of counter i / 4, where i is a value's place.

    fours: a fourth of every fourth column, where all columns are given and K is a multiple of four; or None.
    """
    if fours is not None:
        a, b, c, d = philox(m[:, None] * (K // 4) + fours[None, :], key0, key1)
        return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (TILE_M, TILE_K))
    else:
        place = m[:, None] * K + k[None, :]
        a, b, c, d = philox(place >> 2, key0, key1)
        word = place & 3
        return tl.where(word < 2, tl.where(word == 0, a, b), tl.where(word == 2, c, d))


@triton.jit
def store_codes(
    codes, v, x, random, m, in_m, unit, in_unit, K,
    FORMAT: tl.constexpr, SATURATE: tl.constexpr, DOWN: tl.constexpr, HARDWARE: tl.constexpr,
    TILE_M: tl.constexpr, TILE_K: tl.constexpr,
):  # fmt: skip
    """Codes of v, made of x, at rows m (int64) and `unit` of (M, K): columns, of e2m1 pairs of columns, a byte each."""
    code = encode(v, x, random, FORMAT, SATURATE, DOWN, HARDWARE)
    if FORMAT == "e2m1":
        low, high = tl.split(tl.reshape(code, (TILE_M, TILE_K // 2, 2)))
        code = low | (high << 4)
    PER: tl.constexpr = 2 if FORMAT == "e2m1" else 1
    tl.store(codes + m[:, None] * (K // PER) + unit[None, :], code, in_m[:, None] & in_unit[None, :])
