"""A first layer of few channels, its activation and a 3x3 max-pool of stride 2, without its sums in memory.

A program goes down some rows of the pool for BLOCK_M - 1 of its columns, of one or several images. A pooled value is
the largest of nine sums: of rows 2p - 1, 2p, 2p + 1 of the convolution and of columns 2q - 1, 2q, 2q + 1. Row 2p + 1
serves p + 1 as well, so its sums stay in registers; column 2q - 1 is column 2q + 1 of the neighbor, whose sums come
through shared memory. So nothing is computed twice but a column in BLOCK_M and two rows in a strip.

The taps of a filter's row over columns 2q and 2q + 1 lie in one run of RUN values of x, whose begin 8 bytes divide. One
copy of it is the operand of both columns: the matrix has each filter twice, at the places that each column needs, and
zeros elsewhere. Products are RUN / (S C) of what they need be (32 of 21), but values of x come in pieces of 8 bytes, a
quarter of them to a column, and two rows of the convolution share all but two of theirs. Zeros times what is not a
finite number are NaN: a strip in which a sum is NaN is computed again, column by column.
"""

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepseek_fast.gpu import launch as chip
from deepseek_fast.gpu.launch import launch
from deepseek_fast.gpu.numbers import dot, round_to
from deepseek_fast.gpu.tiles import Row, Table
from deepseek_fast.kernels.fused_conv.triton_end import conv_activate, larger

RUN = 32  # values: two steps of K of a tensor-core product of 2 bytes a value
PIECE = 4  # values in 8 bytes, which an asynchronous copy moves
# Of few instructions, and never falling: the largest sum has the largest value, so that one of nine is computed.
RISING = ("none", "relu", "relu6", "clip")
BEGIN_COST = 1  # of a program, until it has its filters and its first row, in rows of the pool
LAID_OUT = 32  # columns of the product that a program lays out

# BLOCKS: of them a multiprocessor has room for at once.
STEM = Table(
    "fused_conv_stem",
    "F",
    (
        Row(
            {"BLOCK_M": 64, "BLOCK_F": 16, "num_warps": 4, "num_stages": 2, "BLOCKS": 1}, archs=(80, 86, 89, 120),
            why="derived: mma.sync keeps the filters in registers: 56 of a thread's; 55 KiB",
        ),
        Row(
            {"BLOCK_M": 64, "BLOCK_F": 32, "num_warps": 4, "num_stages": 2, "BLOCKS": 1}, archs=(100,),
            why="derived: 148 KiB, as sums that are taken column by column go through shared memory here",
        ),
        Row(
            {"BLOCK_M": 64, "BLOCK_F": 32, "num_warps": 4, "num_stages": 2, "BLOCKS": 2}, F=64,
            why="derived: 104 KiB: of two blocks on a multiprocessor one multiplies while the other pools and copies",
        ),
        Row(
            {"BLOCK_M": 64, "BLOCK_F": 64, "num_warps": 8, "num_stages": 3, "BLOCKS": 1},
            why="derived: of more filters fewer blocks copy x; rows come two steps ahead, as no other block computes",
        ),
    ),
)  # fmt: skip


def serves(x: Any, weight: Any, window: Any, activation: str, max_pool: Any, residual: Tensor | None) -> bool:
    (stride, padding, dilation, groups), (_, C, _, W), S = window, x.sizes, weight.sizes[3]
    left = padding[1]
    return (
        residual is None
        and activation in RISING
        and x.tensor.dtype in (torch.bfloat16, torch.float16)
        and groups == 1
        and tuple(stride) == (2, 2)
        and tuple(dilation) == (1, 1)
        and list(max_pool[:6]) == [3, 3, 2, 2, 1, 1]
        and weight.sizes[2] <= 7
        and -left * C % PIECE + (2 + S) * C <= RUN
        # Dense rows, and whole pieces: what 16 divides Triton knows of.
        and x.strides[1] == 1
        and x.strides[3] == C
        and all(size % 16 == 0 for size in (W * C, x.strides[2], x.strides[0]))
        and x.tensor.data_ptr() % 16 == 0
    )


def run(
    x: Any,
    weight: Any,
    bias: Tensor | None,
    window: Any,
    params: tuple[float, float],
    activation: str,
    y: Tensor,
    geometry: tuple[int, int, int, int],
) -> None:
    """Fills y, which is dense and channels_last."""
    (_, padding, _, _), (N, C, H, W), (F, _, R, S) = window, x.sizes, weight.sizes
    P, Q, rows, columns = geometry
    config = STEM.choose(F=F)
    blocks = config.pop("BLOCKS", 1)
    lead = -padding[1] * C % PIECE
    filters = weight.tensor.new_empty((R, 2 * F, RUN))
    launch(
        _lay_out, (R * -(-F // (LAID_OUT // 2)),), weight.tensor, filters, F, *weight.strides,
        R=R, S=S, C=C, LEAD=lead, RUN=RUN, BLOCK=LAID_OUT,
    )  # fmt: skip
    tiles = -(-N * columns // (config["BLOCK_M"] - 1)) * -(-F // config["BLOCK_F"])
    strip = _strip_rows(tiles, rows, blocks * chip.multiprocessors())
    launch(
        _stem, (tiles * -(-rows // strip),), x.tensor, filters, bias, y, N * columns, H, W * C, F, P, Q,
        rows, columns, strip, x.strides[0], x.strides[2], *params,
        R=R, S=S, C=C, TOP=padding[0], LEFT=padding[1], HAS_BIAS=bias is not None, ACTIVATION=activation,
        ALL_ROWS=2 * rows == P, ALL_COLUMNS=2 * columns == Q, LEAD=lead, RUN=RUN, **config,
    )  # fmt: skip


@functools.lru_cache(maxsize=256)
def _strip_rows(tiles: int, rows: int, at_once: int) -> int:
    """Rows of the pool a program: as many as take the least time, with a row and what else it costs to begin."""

    def cost(strip: int) -> int:
        return -(-tiles * -(-rows // strip) // at_once) * (strip + 1 + BEGIN_COST)

    return min(range(1, rows + 1), key=lambda strip: (cost(strip), -strip))


@triton.jit
def _lay_out(
    weight, filters, F, w_f, w_c, w_r, w_s, R: tl.constexpr, S: tl.constexpr, C: tl.constexpr, LEAD: tl.constexpr,
    RUN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """filters[r, 2f + e]: row r of filter f, at its places in the run for column 2q + e, zeros elsewhere."""
    r = tl.program_id(0) % R
    i = tl.program_id(0) // R * BLOCK + tl.arange(0, BLOCK)[:, None]
    f, parity = i // 2, i % 2
    k = tl.arange(0, RUN)[None, :]
    tap = k - LEAD - parity * 2 * C
    inside = (tap >= 0) & (tap < S * C) & (f < F)
    at = weight + f.to(tl.int64) * w_f + (tap % C) * w_c + r * w_r + (tap // C) * w_s
    tl.store(filters + (r * 2 * F + i) * RUN + k, tl.load(at, inside, 0.0), f < F)


@triton.jit
def _stem(
    x, filters, bias, y, M, H, WC, F, P, Q, rows, columns, strip, x_n, x_h, param0, param1,
    R: tl.constexpr, S: tl.constexpr, C: tl.constexpr, TOP: tl.constexpr, LEFT: tl.constexpr,
    HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, ALL_ROWS: tl.constexpr, ALL_COLUMNS: tl.constexpr,
    LEAD: tl.constexpr, RUN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """M: columns of the pool, of all images. WC: values in a row of x. strip: rows of the pool a program."""
    per_tile = (F + BLOCK_F - 1) // BLOCK_F
    across = (M + BLOCK_M - 2) // (BLOCK_M - 1)
    block = tl.program_id(0)
    f0 = (block % per_tile) * BLOCK_F
    tile = (block // per_tile) % across
    p_begin = (block // (per_tile * across)) * strip
    # The first row of the tile only serves its neighbor.
    i = tl.arange(0, BLOCK_M)
    m = tile * (BLOCK_M - 1) - 1 + i
    stores_m = (i > 0) & (m < M)
    m = tl.minimum(tl.maximum(m, 0), M - 1)
    n, q = (m // columns).to(tl.int64), m % columns
    bad = _strip(
        x, filters, bias, y, n, q, stores_m, f0, p_begin, H, WC, F, P, Q, rows, columns, strip, x_n, x_h,
        param0, param1, R, S, C, TOP, LEFT, HAS_BIAS, ACTIVATION, ALL_ROWS, ALL_COLUMNS,
        LEAD, RUN, BLOCK_M, BLOCK_F, False,
    )  # fmt: skip
    if bad:
        _strip(
            x, filters, bias, y, n, q, stores_m, f0, p_begin, H, WC, F, P, Q, rows, columns, strip, x_n, x_h,
            param0, param1, R, S, C, TOP, LEFT, HAS_BIAS, ACTIVATION, ALL_ROWS, ALL_COLUMNS,
            LEAD, RUN, BLOCK_M, BLOCK_F, True,
        )  # fmt: skip


@triton.jit
def _strip(
    x, filters, bias, y, n, q, stores_m, f0, p_begin, H, WC, F, P, Q, rows, columns, strip, x_n, x_h,
    param0, param1,
    R: tl.constexpr, S: tl.constexpr, C: tl.constexpr, TOP: tl.constexpr, LEFT: tl.constexpr,
    HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, ALL_ROWS: tl.constexpr, ALL_COLUMNS: tl.constexpr,
    LEAD: tl.constexpr, RUN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_F: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Rows p_begin to p_begin + strip of the pool; returns whether a sum was NaN.

    EXACT: each column's sums by themselves, so that a value has part in those alone whose window it is in.
    """
    f = f0 + tl.arange(0, BLOCK_F)
    f_ok = f < F
    of_bias = (tl.load(bias + f, f_ok, 0.0).to(tl.float32) if HAS_BIAS else tl.zeros([BLOCK_F], tl.float32))[None, :]
    # The run of both columns, from a whole piece on.
    e = (q * (4 * C) - (LEFT * C + LEAD))[:, None] + tl.arange(0, RUN)[None, :]
    e_ok = (e >= 0) & (e < WC)
    run = x + (n * x_n)[:, None] + e
    taps = tl.arange(0, RUN)[:, None]
    of_rows = ()  # the product's columns: 2f, filter f for column 2q, and 2f + 1, for column 2q + 1
    if not EXACT:
        both = f0 * 2 + tl.arange(0, 2 * BLOCK_F)
        for r in tl.static_range(R):
            of_row = tl.load(filters + (r * 2 * F + both)[None, :] * RUN + taps, (both < 2 * F)[None, :], 0.0)
            of_rows = of_rows + (of_row,)  # type: ignore[assignment]  # noqa: RUF005
    neighbor = tl.maximum(tl.arange(0, BLOCK_M) - 1, 0)[:, None] + tl.zeros([BLOCK_M, BLOCK_F], tl.int32)

    below_even = tl.full([BLOCK_M, BLOCK_F], float("-inf"), tl.float32)  # row 2p - 1, columns 2q
    below_odd = tl.full([BLOCK_M, BLOCK_F], float("-inf"), tl.float32)
    seen = tl.zeros([BLOCK_M], tl.float32)  # NaN where a sum was
    # A row earlier for its row 2p + 1, which the first one needs.
    for p in range(tl.maximum(p_begin - 1, 0), tl.minimum(p_begin + strip, rows)):
        h0 = p * 4 - TOP
        row = ()  # rows of x, both of whose uses find them in shared memory
        if not EXACT:
            for r in tl.static_range(R + 2):
                h = h0 + r
                a = tl.load(run + h.to(tl.int64) * x_h, e_ok & (h >= 0) & (h < H), 0.0)
                row = row + (a,)  # type: ignore[assignment]  # noqa: RUF005
        even, odd = below_even, below_odd
        for last in tl.static_range(2):  # rows 2p and 2p + 1 of the convolution
            if EXACT:
                of_even, of_odd = _exact_row(
                    run, e_ok, h0 + 2 * last, H, x_h, filters, f, F, R, S, C, LEAD, RUN, BLOCK_M, BLOCK_F,
                )  # fmt: skip
            else:
                sums = tl.zeros([BLOCK_M, 2 * BLOCK_F], tl.float32)
                for r in tl.static_range(R):
                    sums = dot(row[r + 2 * last], of_rows[r], sums)
                of_even, of_odd = tl.split(tl.reshape(sums, [BLOCK_M, BLOCK_F, 2]))
            if not ALL_ROWS:
                of_even = tl.where(2 * p + last < P, of_even, float("-inf"))
                of_odd = tl.where(2 * p + last < P, of_odd, float("-inf"))
            even, odd = larger(even, of_even), larger(odd, of_odd)
            below_even, below_odd = of_even, of_odd
        seen += tl.sum(even + odd, 1)
        even = conv_activate(even + of_bias, param0, param1, ACTIVATION)
        odd = conv_activate(odd + of_bias, param0, param1, ACTIVATION)
        if not ALL_COLUMNS:
            even = tl.where((2 * q < Q)[:, None], even, float("-inf"))
            odd = tl.where((2 * q + 1 < Q)[:, None], odd, float("-inf"))
        # Rounded on the way, which keeps the largest the largest.
        before = tl.gather(round_to(odd, y.dtype.element_ty), neighbor, 0).to(tl.float32)
        before = tl.where((q > 0)[:, None], before, float("-inf"))
        largest = larger(larger(even, odd), before)
        at = y + ((n * rows + p) * columns + q)[:, None] * F + f[None, :]
        stores = (stores_m & (p >= p_begin))[:, None] & f_ok[None, :]
        tl.store(at, round_to(largest, y.dtype.element_ty), stores)
    return tl.sum((seen != seen).to(tl.int32), 0) > 0


@triton.jit
def _exact_row(
    run, e_ok, h0, H, x_h, filters, f, F,
    R: tl.constexpr, S: tl.constexpr, C: tl.constexpr, LEAD: tl.constexpr, RUN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """Sums of the convolution's row whose first tap is row h0 of x: of columns 2q, and of columns 2q + 1."""
    tap = tl.arange(0, RUN) - LEAD
    even, odd = tl.zeros([BLOCK_M, BLOCK_F], tl.float32), tl.zeros([BLOCK_M, BLOCK_F], tl.float32)
    for r in range(R):
        h = h0 + r
        a = tl.load(run + h.to(tl.int64) * x_h, e_ok & (h >= 0) & (h < H), 0.0)
        at = filters + (2 * (r * F + f) * RUN)[None, :] + tl.arange(0, RUN)[:, None]
        b = tl.load(at, (f < F)[None, :], 0.0)
        even = dot(tl.where(((tap >= 0) & (tap < S * C))[None, :], a, 0.0), b, even)
        b = tl.load(at + RUN, (f < F)[None, :], 0.0)
        odd = dot(tl.where(((tap >= 2 * C) & (tap < (S + 2) * C))[None, :], a, 0.0), b, odd)
    return even, odd
