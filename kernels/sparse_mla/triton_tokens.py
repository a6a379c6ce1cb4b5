"""Inside sparse_mla's kernels: where the tokens of a list lie, and their numbers, a block of tokens at a time.

A row of numbers is taken in up to four parts whose widths are powers of two, W0 to W3, one after the other: plain rows
of 576 as 512 and 64, layout v4 as 256, 128 and 64 codes and 64 bf16. Of an FP8 cache no part has both.
"""

import triton
import triton.language as tl

from deepseek_fast.gpu.codes import decode_e4m3, decode_e8m0
from deepseek_fast.gpu.numbers import round_to

PLAIN, V32, V4 = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)  # layouts


@triton.jit
def find_tokens(
    entries, t, count, tokens, pages, page, page_stride, token_stride, scales_at, LAYOUT: tl.constexpr,
    DENSE: tl.constexpr, PAGED: tl.constexpr,
):  # fmt: skip
    """(counts, place of the token, place of its scales) of entries t of a list; places as offsets.

    entries: indices, or of DENSE a request's row of the block table. Whatever their values, what counts is a token; of
    what does not a place may be nonsense, and every load is masked by counts.
    """
    if DENSE:
        at_page = tl.load(entries + t // page, t < count, -1)
        counts = (at_page >= 0) & (at_page < pages)
        at_page = at_page.to(tl.int64)
        offset = (t % page).to(tl.int64)
        place = at_page * page_stride + offset * token_stride
    else:
        index = tl.load(entries + t, t < count, -1)
        counts = (index >= 0) & (index < tokens)
        index = tl.where(counts, index, 0)
        if PAGED:
            at_page = index // page
            offset = (index - at_page * page).to(tl.int64)
            at_page = at_page.to(tl.int64)
            place = at_page * page_stride + offset * token_stride
        else:
            place = index.to(tl.int64) * token_stride
    scales = place + 512
    if LAYOUT == V4:
        scales = at_page * page_stride + scales_at + offset * 8
    return counts, place, scales


@triton.jit
def load_part(
    kv, place, scales, counts, FIRST: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr, LAYOUT: tl.constexpr,
    DTYPE: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
    """Numbers [FIRST, FIRST + WIDTH) of tokens, of DTYPE; zeros beyond D and where a token does not count.

    NATIVE: the chip converts FP8 itself. number = bf16(code * scale), one rounding.
    """
    c = tl.arange(0, WIDTH)
    CODED: tl.constexpr = 512 if LAYOUT == V32 else 448
    if LAYOUT == PLAIN:
        mask = counts[:, None]
        if FIRST + WIDTH > D:
            mask = mask & (c < D - FIRST)[None, :]
        return tl.load((kv + FIRST) + place[:, None] + c[None, :], mask, 0.0).to(DTYPE)
    elif FIRST < CODED:
        TILE: tl.constexpr = 128 if LAYOUT == V32 else 64
        COUNT: tl.constexpr = WIDTH // TILE
        code = tl.load((kv + FIRST) + place[:, None] + c[None, :], counts[:, None], 0)
        tile = tl.arange(0, COUNT)[None, :] + FIRST // TILE
        if LAYOUT == V32:
            scale = tl.load((kv + scales).to(tl.pointer_type(tl.float32))[:, None] + tile, counts[:, None], 0.0)
        else:
            scale = decode_e8m0(tl.load(kv + scales[:, None] + tile, counts[:, None], 127))
        number = code.to(tl.float8e4nv, bitcast=True).to(tl.float32) if NATIVE else decode_e4m3(code)
        number = tl.reshape(number, [place.shape[0], COUNT, TILE]) * scale[:, :, None]
        return round_to(tl.reshape(number, [place.shape[0], WIDTH]), tl.bfloat16).to(DTYPE)
    else:
        KEPT: tl.constexpr = (528 if LAYOUT == V32 else 448) + 2 * (FIRST - CODED)
        row = (kv + KEPT + place).to(tl.pointer_type(tl.bfloat16))
        return tl.load(row[:, None] + c[None, :], counts[:, None], 0.0).to(DTYPE)
