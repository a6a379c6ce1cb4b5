"""Logits of the indexer on CUDA tensors: a tile of tokens stays, the queries' heads pass by.

    dot[j, h]  = k[j] . q[i, h]                            tokens are the rows of a product, heads its columns
    out[i, j]  = k_scale[j] * sum over h of weights[i, h] * relu(dot[j, h])   for begin_i <= j < end_i, else -inf

So a token's sum over heads stays within the threads that hold its row, and what is loaded in the loop, a query's codes
and weights, is a quarter of what a tile of tokens would be.
"""

import triton
import triton.language as tl

from deepseek_fast.gpu.numbers import INTERPRET, dot, round_to
from deepseek_fast.kernels.lightning_indexer.triton_window import wide, window


@triton.jit
def _numbers(codes, FP8: tl.constexpr):
    """e4m3 codes (uint8) as the dot takes them: as they are, or as float16, exactly, NaN too."""
    if FP8:
        return codes
    else:
        bits = codes.to(tl.uint16)
        size = ((bits & 0x7F) << 7).to(tl.float16, bitcast=True) * 256.0
        size = tl.where((bits & 0x7F) == 0x7F, float("nan"), size)
        return (size.to(tl.uint16, bitcast=True) | ((bits & 0x80) << 8)).to(tl.float16, bitcast=True)


@triton.jit
def _keys(at, seen, d, D, EVEN: tl.constexpr, FP8: tl.constexpr):
    """Numbers (tokens, BLOCK_D); of tokens that are not seen anything, as nothing of theirs is kept."""
    if EVEN:
        return _numbers(tl.load(at[:, None] + d[None, :], seen[:, None]), FP8)
    else:
        return _numbers(tl.load(at[:, None] + d[None, :], seen[:, None] & (d < D)[None, :], 0.0), FP8)


@triton.jit
def _heads(q, row, h, inside, H, D, d0, BLOCK_D: tl.constexpr, EVEN: tl.constexpr):
    """Codes (columns, BLOCK_D) of the heads h of queries row, rows of a contiguous q."""
    d = d0 + tl.arange(0, BLOCK_D)
    at = q + ((row.to(tl.int64) * H + h) * D)[:, None] + d[None, :]
    if EVEN:
        return tl.load(at)
    else:
        return tl.load(at, inside[:, None] & (d < D)[None, :], 0.0)


@triton.jit
def _scores(
    q, weights, at, seen, first, last, h0, H, D, w_stride,
    keys, BLOCK_KV: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
    ONE_D: tl.constexpr, EVEN: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    """Sums over the heads from h0 on, (BLOCK_KV, BLOCK_Q), of queries first ... last - 1; at: where the codes of
    the tokens lie; keys: their numbers, where all of D is in one block."""
    n = tl.arange(0, BLOCK_Q * BLOCK_H)
    row, h = tl.minimum(first + n // BLOCK_H, last - 1), h0 + n % BLOCK_H
    counted = h < H
    if EVEN:
        w = tl.load(weights + row.to(tl.int64) * w_stride + h)
    else:
        w = tl.load(weights + row.to(tl.int64) * w_stride + h, counted, 0.0)
    dots = tl.zeros([BLOCK_KV, BLOCK_Q * BLOCK_H], tl.float32)
    if ONE_D:
        heads = _heads(q, row, h, counted, H, D, 0, BLOCK_D, EVEN)
        dots = _dot(keys, heads.T, dots)
    else:
        for d0 in range(0, D, BLOCK_D):
            d = d0 + tl.arange(0, BLOCK_D)
            heads = _heads(q, row, h, counted, H, D, d0, BLOCK_D, False)
            dots = _dot(_keys(at, seen, d, D, False, FP8), heads.T, dots)
    # A head that is not there is 0 times 0; of a token whose codes are NaN it is NaN, and so are the others.
    spoken = tl.maximum(dots, 0.0, propagate_nan=tl.PropagateNan.ALL) * w[None, :]
    return tl.sum(tl.reshape(spoken, [BLOCK_KV, BLOCK_Q, BLOCK_H]), 2)


@triton.jit
def _dot(a, b, acc):
    if INTERPRET or a.dtype == tl.float16:
        return dot(a, b, acc)
    else:
        return tl.dot(a, b, acc)


@triton.jit
def _tile_of_queries(
    q, weights, begins, ends, out, at, seen, scale, j, first, last, tokens, next_n, H, D, w_stride, out_stride, columns,
    BLOCK_KV: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
    ONE_D: tl.constexpr, ONE_H: tl.constexpr, EVEN: tl.constexpr, FP8: tl.constexpr, HAS_BEGINS: tl.constexpr,
    ENDS: tl.constexpr, CUT: tl.constexpr, COMPRESSED: tl.constexpr, PAGED: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Logits of queries first ... last - 1 and of the tokens j, whose codes lie at `at` where seen."""
    keys = tl.zeros([BLOCK_KV, 1], tl.uint8)
    if ONE_D:
        keys = _keys(at, seen, tl.arange(0, BLOCK_D), D, EVEN, FP8)
    for i in tl.range(first, last, BLOCK_Q, num_stages=STAGES):
        if ONE_H:
            sums = _scores(
                q, weights, at, seen, i, last, 0, H, D, w_stride, keys,
                BLOCK_KV, BLOCK_Q, BLOCK_H, BLOCK_D, ONE_D, EVEN, FP8,
            )  # fmt: skip
        else:
            sums = tl.zeros([BLOCK_KV, BLOCK_Q], tl.float32)
            for h0 in range(0, H, BLOCK_H):
                sums += _scores(
                    q, weights, at, seen, i, last, h0, H, D, w_stride, keys,
                    BLOCK_KV, BLOCK_Q, BLOCK_H, BLOCK_D, ONE_D, EVEN, FP8,
                )  # fmt: skip
        row = i + tl.arange(0, BLOCK_Q)
        logits = sums * scale[:, None]
        to = out + row.to(tl.int64)[None, :] * out_stride
        if CUT:
            begin, end = window(begins, ends, row, row < last, tokens, next_n, HAS_BEGINS, ENDS)
            visible = (j[:, None] >= begin[None, :]) & (j[:, None] < end[None, :]) & seen[:, None]
            logits = round_to(tl.where(visible, logits, float("-inf")), out.dtype.element_ty)
            if COMPRESSED:
                column = j[:, None] - begin[None, :]
                tl.store(to + column, logits, visible & (column < columns))
            else:
                tl.store(to + j[:, None], logits, (row < last)[None, :] & (j < columns)[:, None])
        else:
            if PAGED:
                logits = tl.where(seen[:, None], logits, float("-inf"))
            tl.store(to + j[:, None], logits, (row < last)[None, :] & (j < columns)[:, None])


@triton.jit
def _nothing(out, j, first, last, out_stride, columns, BLOCK_KV: tl.constexpr):
    """Columns j of rows first ... last - 1 become -inf."""
    for i in range(first, last):
        nothing = round_to(tl.full([BLOCK_KV], float("-inf"), tl.float32), out.dtype.element_ty)
        tl.store(out + wide(i) * out_stride + j, nothing, j < columns)


@triton.jit
def _logits(
    q, k, k_scale, weights, begins, ends, out,
    s_q, tokens, H, D, k_stride, w_stride, out_stride, columns, tiles, group,
    BLOCK_KV: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr,
    ONE_D: tl.constexpr, ONE_H: tl.constexpr, EVEN: tl.constexpr, FP8: tl.constexpr,
    HAS_BEGINS: tl.constexpr, ENDS: tl.constexpr, CUT: tl.constexpr, COMPRESSED: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """A tile of tokens and `group` queries, at most GROUP. CUT: what no query sees becomes -inf, else it is not written
    where none of the group sees any of the tile."""
    job = tl.program_id(0)
    first = job // tiles * group
    last = tl.minimum(first + group, s_q)
    j0 = job % tiles * BLOCK_KV
    j = j0 + tl.arange(0, BLOCK_KV)
    row = first + tl.arange(0, GROUP)
    begin, end = window(begins, ends, row, row < last, tokens, 1, HAS_BEGINS, ENDS)
    meets = (begin < j0 + BLOCK_KV) & (end > j0) & (begin < end)
    if tl.max(meets.to(tl.int32), 0) > 0:
        seen = j < tokens
        scale = tl.load(k_scale + j, seen, 0.0)
        at = k + j.to(tl.int64) * k_stride
        _tile_of_queries(
            q, weights, begins, ends, out, at, seen, scale, j, first, last, tokens, 1, H, D, w_stride, out_stride,
            columns, BLOCK_KV, BLOCK_Q, BLOCK_H, BLOCK_D, ONE_D, ONE_H, EVEN, FP8, HAS_BEGINS, ENDS, CUT, COMPRESSED,
            False, STAGES,
        )  # fmt: skip
    elif CUT and not COMPRESSED:
        _nothing(out, j, first, last, out_stride, columns, BLOCK_KV)


@triton.jit
def _paged_logits(
    q, cache, cache_bytes, weights, ends, table, out,
    first_row, next_n, tokens, H, D, pages, page_size, page_stride, table_stride, w_stride, out_stride, columns,
    tiles,
    BLOCK_KV: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr,
    ONE_D: tl.constexpr, ONE_H: tl.constexpr, EVEN: tl.constexpr, FP8: tl.constexpr,
    ENDS: tl.constexpr, CUT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """A tile of a request's tokens and all its queries, of rows from first_row on (whole requests).

    GROUP: at least next_n. cache: of each page all codes first, then all scales, float32 at any alignment.
    """
    job = tl.program_id(0)
    request = first_row // next_n + job // tiles
    first = request * next_n
    last = first + next_n
    j0 = job % tiles * BLOCK_KV
    j = j0 + tl.arange(0, BLOCK_KV)
    row = first + tl.arange(0, GROUP)
    _, end = window(ends, ends, row, row < last, tokens, next_n, False, ENDS)
    most = tl.max(end, 0)
    out -= wide(first_row) * out_stride
    if most > j0:
        page = tl.load(table + request.to(tl.int64) * table_stride + j // page_size, j < most, -1)
        seen = (page >= 0) & (page < pages)
        place = page.to(tl.int64) * page_stride
        at_scale = place + wide(page_size) * D + (j % page_size) * 4
        bits = tl.zeros([BLOCK_KV], tl.uint32)
        for byte in tl.static_range(4):
            bits |= tl.load(cache_bytes + at_scale + byte, seen, 0).to(tl.uint32) << (8 * byte)
        scale = bits.to(tl.float32, bitcast=True)
        at = cache + place + (j % page_size).to(tl.int64) * D
        _tile_of_queries(
            q, weights, ends, ends, out, at, seen, scale, j, first, last, tokens, next_n, H, D, w_stride, out_stride,
            columns, BLOCK_KV, BLOCK_Q, BLOCK_H, BLOCK_D, ONE_D, ONE_H, EVEN, FP8, False, ENDS, CUT, False,
            True, STAGES,
        )  # fmt: skip
    elif CUT:
        _nothing(out, j, first, last, out_stride, columns, BLOCK_KV)
