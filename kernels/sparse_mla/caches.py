"""DeepSeek's FP8 caches of latent keys, byte for byte as FlashMLA has them: to write and to read them with NumPy.

v32  (pages, page, 1, 656) bytes: a token's 512 e4m3 codes, 4 f32 scales (one for 128 codes), 64 bf16 of RoPE
v4   pages of page * 584 bytes, each beginning at a multiple of 576: first for each token 448 e4m3 codes and 64 bf16,
     then for each token 7 e8m0 scales (one for 64 codes) and a byte that is not looked at

number = bf16(code * scale), one rounding. A scale is 2^ceil(log2(max(amax / 448, 1e-4))) in both, so that a product
needs none; one cache that someone else wrote may have any f32. The ceiling is taken of the bits, not of a logarithm: of
s just above a power of two, exp2(ceil(log2(s))) in f32 is half of what is meant. A tile with NaN or inf has the scale
NaN and reads as NaN.
"""

from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

AMAX_MAX = np.float32(448)  # the largest e4m3
SCALE_MIN = np.float32(1e-4)
PAGE_ALIGNMENT = 576  # bytes, of v4's pages
BF16, E4M3, E8M0 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e8m0fnu


class Layout(NamedTuple):
    """Numbers of a token: coded ones, those kept as bf16, and how many codes share a scale."""

    coded: int
    kept: int
    tile: int
    scale_bytes: int  # of a token

    @property
    def d_qk(self) -> int:
        return self.coded + self.kept

    @property
    def token_bytes(self) -> int:
        return self.coded + 2 * self.kept + self.scale_bytes


LAYOUTS = {"v32": Layout(512, 64, 128, 16), "v4": Layout(448, 64, 64, 8)}


class Cache(NamedTuple):
    """Pages as rows of bytes, at a stride that may be longer than a page."""

    pages: NDArray[np.uint8]  # (num_pages, page_size * token_bytes)
    page_size: int


def write_cache(kv: NDArray[Any], layout: str, page_size: int, *, gap: int = 0, fill: int = 0) -> Cache:
    """A cache of kv (tokens, d_qk), bf16 or f32; the last page may end before its last token. gap: bytes between pages
    beyond those that the layout asks for; fill: what bytes of no token are."""
    form = LAYOUTS[layout]
    num_pages = -(-len(kv) // page_size)
    used = page_size * form.token_bytes
    stride = (-(-used // PAGE_ALIGNMENT) * PAGE_ALIGNMENT if layout == "v4" else used) + gap
    pages = np.full((num_pages, stride), fill, np.uint8)[:, :used]
    codes, scales = quantize(kv[:, : form.coded].astype(np.float32), form.tile)
    kept = np.ascontiguousarray(kv[:, form.coded :].astype(BF16)).view(np.uint8)
    for token in range(len(kv)):
        page, t = pages[token // page_size], token % page_size
        if layout == "v32":
            parts = (codes[token].view(np.uint8), scales[token].view(np.uint8), kept[token])
            page[t * form.token_bytes : (t + 1) * form.token_bytes] = np.concatenate(parts)
        else:
            front = form.coded + 2 * form.kept
            page[t * front : (t + 1) * front] = np.concatenate((codes[token].view(np.uint8), kept[token]))
            at = page_size * front + t * form.scale_bytes
            page[at : at + form.coded // form.tile] = scales[token].astype(E8M0).view(np.uint8)
    return Cache(pages, page_size)


def read_cache(cache: Cache, layout: str) -> NDArray[Any]:
    """bf16 (num_pages, page_size, d_qk)."""
    form, (pages, size) = LAYOUTS[layout], cache
    if layout == "v32":
        tokens = np.ascontiguousarray(pages).reshape(len(pages), size, form.token_bytes)
        codes, kept = tokens[..., : form.coded], tokens[..., form.coded + form.scale_bytes :]
        middle = np.ascontiguousarray(tokens[..., form.coded : form.coded + form.scale_bytes])
        scales = middle.view(np.float32)
    else:
        front = form.coded + 2 * form.kept
        tokens = np.ascontiguousarray(pages[:, : size * front]).reshape(len(pages), size, front)
        codes, kept = tokens[..., : form.coded], tokens[..., form.coded :]
        tail = np.ascontiguousarray(pages[:, size * front :]).reshape(len(pages), size, form.scale_bytes)
        scales = np.ascontiguousarray(tail[..., : form.coded // form.tile]).view(E8M0).astype(np.float32)
    numbers = np.ascontiguousarray(codes).view(E4M3).astype(np.float32) * np.repeat(scales, form.tile, -1)
    with np.errstate(invalid="ignore"):
        return np.concatenate([numbers.astype(BF16), np.ascontiguousarray(kept).view(BF16)], -1)


def quantize(x: NDArray[np.float32], tile: int) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Codes e4m3 of x (tokens, n) and scales f32 (tokens, n / tile), powers of two; the quotients are exact."""
    tiles = x.reshape(len(x), x.shape[1] // tile, tile)
    amax = np.abs(tiles).max(-1, initial=0.0)  # NaN where one is
    with np.errstate(invalid="ignore"):
        least = np.maximum(amax / AMAX_MAX, SCALE_MIN)
        mantissa, exponent = np.frexp(least)
        scales = np.ldexp(np.float32(1), exponent - (mantissa == 0.5)).astype(np.float32)
        scales = np.where(np.isfinite(amax), scales, np.float32(np.nan))
        codes = (tiles / scales[..., None]).astype(E4M3)
    return codes.reshape(x.shape), scales
