"""sparse_mla's backward kernels, in the order they run, without atomics:

_shares           of a query and head: delta = dot(dout, out), f = the share of its weight that is not the sink's
_query_gradient   a query, a tile of its heads: dq; and of each entry of its list the weights scale * dz and f * P
_entry_gradient   a query: of each entry what its heads add to the row of kv: (scale dz)^T q + (f P)^T dout
_row_gradient     a row of kv: the sum over the entries that name it, in their order, which a stable sort found
"""

import triton
import triton.language as tl

from deepseek_fast.gpu.numbers import dot, round_to
from deepseek_fast.kernels.sparse_mla.triton_attend import LOG2_E, chunked_scores, query_part, scores
from deepseek_fast.kernels.sparse_mla.triton_tokens import PLAIN, find_tokens, load_part


@triton.jit(do_not_specialize=["lines"])
def _shares(
    dout, out, lse, sinks, shares, deltas, sink_terms, lines, h_q, dout_row, dout_head,
    D_V: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    line = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = line < lines
    c = tl.arange(0, WIDTH)
    mask = inside[:, None] & (c < D_V)[None, :]
    h = line % h_q
    a = tl.load(dout + (line // h_q * dout_row + h * dout_head)[:, None] + c[None, :], mask, 0.0).to(tl.float32)
    b = tl.load(out + line[:, None] * D_V + c[None, :], mask, 0.0).to(tl.float32)
    delta = tl.sum(a * b, 1)
    tl.store(deltas + line, delta, inside)
    share = tl.full([BLOCK], 1.0, tl.float32)
    if sinks is not None:
        # f = 1 / (1 + exp(sink - lse)); 1 where nothing counts
        of_lse = tl.load(lse + line, inside, float("inf"))
        power = tl.exp2((tl.load(sinks + h, inside, 0.0) - of_lse) * LOG2_E)
        share = tl.where(of_lse == float("inf"), 1.0, 1.0 / (1.0 + power))
        tl.store(sink_terms + line, -(1.0 - share) * delta, inside)
    tl.store(shares + line, share, inside)


@triton.jit(do_not_specialize=["first_query", "topk", "tokens"])
def _query_gradient(
    q, kv, indices, lengths, dout, lse, shares, deltas, dq, of_scores, of_values,
    scale, first_query, h_q, h_kv, q_row, q_head, dout_row, dout_head, list_row, list_head, topk,
    tokens, token_stride, head_stride,
    D: tl.constexpr, D_V: tl.constexpr, W0: tl.constexpr, W1: tl.constexpr, DTYPE: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_T: tl.constexpr, STAGES: tl.constexpr, APART: tl.constexpr, CHUNKED: tl.constexpr,
):  # fmt: skip
    group = h_q // h_kv
    tiles = tl.cdiv(group, BLOCK_H)
    program = tl.program_id(0)
    of_chunk = program // tiles  # query of the chunk and head of kv
    head = of_chunk % h_kv
    query = first_query + (of_chunk // h_kv).to(tl.int64)
    of_chunk = of_chunk.to(tl.int64)
    of_group = program % tiles * BLOCK_H + tl.arange(0, BLOCK_H)
    inside = of_group < group
    h = (head * group + of_group).to(tl.int64)
    count = topk
    if lengths is not None:
        count = tl.minimum(tl.maximum(tl.load(lengths + query), 0), topk)

    q_rows = q + query * q_row + h * q_head
    dout_rows = dout + query * dout_row + h * dout_head
    q0, q1, do = 0, 0, 0
    if not CHUNKED:
        q0 = query_part(q_rows, inside, 0, W0, D, DTYPE)
        q1 = query_part(q_rows, inside, W0, W1, D, DTYPE)
        do = query_part(dout_rows, inside, 0, W0, D_V, DTYPE)
    line = query * h_q + h
    of_lse = tl.load(lse + line, inside, float("inf"))
    share = tl.load(shares + line, inside, 0.0)
    shift = share * tl.load(deltas + line, inside, 0.0)
    dq0 = tl.zeros([BLOCK_H, W0], tl.float32)
    dq1 = tl.zeros([BLOCK_H, W1 if W1 > 0 else 16], tl.float32)
    entries = indices + query * list_row + head * list_head
    rows = kv + head * head_stride
    to = tl.arange(0, BLOCK_T)[None, :] * group + of_group[:, None]
    last = tl.cdiv(count, BLOCK_T)
    for step in tl.range(0, last, num_stages=STAGES):
        t0 = step * BLOCK_T
        t = t0 + tl.arange(0, BLOCK_T)
        counts, place, scales = find_tokens(
            entries, t, count, tokens, 0, 1, 0, token_stride, 0, PLAIN, False, False
        )  # fmt: skip
        k0 = load_part(rows, place, scales, counts, 0, W0, D, PLAIN, DTYPE, False)
        k1 = 0
        if W1 > 0:
            k1 = load_part(rows, place, scales, counts, W0, W1, D, PLAIN, DTYPE, False)
        z, dp = 0.0, 0.0
        if CHUNKED:
            z = chunked_scores(q_rows, inside, rows, place, counts, D, DTYPE)
            dp = chunked_scores(dout_rows, inside, rows, place, counts, D_V, DTYPE)
        ahead = (of_chunk * topk + t0) * group
        stored = inside[:, None] & (t < topk)[None, :]
        if APART:
            if step < last:
                dq0, dq1 = _gradient_step(
                    dq0, dq1, z, dp, q0, q1, do, k0, k1, scale, of_lse, share, shift, counts, of_scores + ahead,
                    of_values + ahead, to, stored, t0 < count, W1, DTYPE, APART, CHUNKED,
                )  # fmt: skip
        else:
            dq0, dq1 = _gradient_step(
                dq0, dq1, z, dp, q0, q1, do, k0, k1, scale, of_lse, share, shift, counts, of_scores + ahead,
                of_values + ahead, to, stored, True, W1, DTYPE, APART, CHUNKED,
            )  # fmt: skip
    to = dq + line * D
    _store_columns(to, dq0 * scale, inside, 0, W0, D)
    if W1 > 0:
        _store_columns(to, dq1 * scale, inside, W0, W1, D)


@triton.jit
def _gradient_step(
    dq0, dq1, z, dp, q0, q1, do, k0, k1, scale, of_lse, share, shift, counts, of_scores, of_values, to, stored, is_true,
    W1: tl.constexpr, DTYPE: tl.constexpr, APART: tl.constexpr, CHUNKED: tl.constexpr,
):  # fmt: skip
    """One block of tokens."""
    if not CHUNKED:
        none = tl.zeros([dq0.shape[0], k0.shape[0]], tl.float32)
        z = scores(q0, k0, none, is_true, APART)
        if W1 > 0:
            z = scores(q1, k1, z, is_true, APART)
        dp = scores(do, k0, none, is_true, APART)  # dout @ v.T
    # p = exp(z - lse), at most 1
    gap = z * scale - of_lse[:, None]
    p = tl.exp2(tl.minimum(gap * LOG2_E, 0.0))
    p = tl.where(gap != gap, gap, p)  # a minimum drops NaN
    # dz = p * (f * dp - f * delta); w = f * p
    dz = tl.where(counts[None, :], p * (share[:, None] * dp - shift[:, None]), 0.0)
    w = tl.where(counts[None, :], p * share[:, None], 0.0)
    tl.store(of_scores + to, round_to(dz * scale, of_scores.dtype.element_ty), stored)
    tl.store(of_values + to, round_to(w, of_values.dtype.element_ty), stored)
    # dq = scale * dz @ k
    dz = round_to(dz, DTYPE)
    dq0 = dot(dz, k0, dq0)
    if W1 > 0:
        dq1 = dot(dz, k1, dq1)
    return dq0, dq1


@triton.jit(do_not_specialize=["first_query", "topk"])
def _entry_gradient(
    of_scores, of_values, q, dout, lengths, entry_sums, first_query, h_q, h_kv, q_row, q_head, dout_row, dout_head,
    topk,
    D: tl.constexpr, D_V: tl.constexpr, DTYPE: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """(entries, heads) @ (heads, columns), twice; entries from the list's length on are not read by anyone.

    The grid: (blocks of columns, of entries, lists of the chunk), the first fastest.
    """
    block = tl.program_id(0) // tl.cdiv(D, BLOCK_C)
    column = tl.program_id(0) % tl.cdiv(D, BLOCK_C) * BLOCK_C
    of_chunk = block // tl.cdiv(topk, BLOCK_E)
    first = block % tl.cdiv(topk, BLOCK_E) * BLOCK_E
    group = h_q // h_kv
    head = of_chunk % h_kv
    query = first_query + (of_chunk // h_kv).to(tl.int64)
    of_chunk = of_chunk.to(tl.int64)
    count = topk
    if lengths is not None:
        count = tl.minimum(tl.maximum(tl.load(lengths + query), 0), topk)
    if first < count:
        e = first + tl.arange(0, BLOCK_E)
        c = column + tl.arange(0, BLOCK_C)
        k = tl.arange(0, BLOCK_K)
        weights = (of_chunk * topk + e)[:, None] * group + k[None, :]
        acc = tl.zeros([BLOCK_E, BLOCK_C], tl.float32)
        rows = q + query * q_row + c[None, :]
        for start in tl.range(0, group, BLOCK_K, num_stages=STAGES):
            left = k < group - start
            a = tl.load(of_scores + weights + start, (e < topk)[:, None] & left[None, :], 0.0)
            b = tl.load(rows + (head * group + start + k)[:, None] * q_head, left[:, None] & (c < D)[None, :], 0.0)
            acc = dot(a, b.to(DTYPE), acc)
        if column < D_V:
            rows = dout + query * dout_row + c[None, :]
            for start in tl.range(0, group, BLOCK_K, num_stages=STAGES):
                left = k < group - start
                a = tl.load(of_values + weights + start, (e < topk)[:, None] & left[None, :], 0.0)
                b = tl.load(
                    rows + (head * group + start + k)[:, None] * dout_head, left[:, None] & (c < D_V)[None, :], 0.0
                )
                acc = dot(a, b.to(DTYPE), acc)
        to = entry_sums + (of_chunk * topk + e)[:, None] * D + c[None, :]
        tl.store(to, acc, (e < topk)[:, None] & (c < D)[None, :])


@triton.jit(do_not_specialize=["first_key", "first_entry"])
def _row_gradient(
    entry_sums, order, bounds, sums, dkv, first_key, first_entry,
    D: tl.constexpr, WIDTH: tl.constexpr, BEGINS: tl.constexpr, ENDS: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """BEGINS, ENDS: whether this is the first chunk, the last; between them a row's sum waits in sums."""
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, WIDTH)
    inside = c < D
    begin = tl.load(bounds + first_key + row)
    end = tl.load(bounds + first_key + row + 1)
    acc = tl.zeros([WIDTH], tl.float32)
    if not BEGINS:
        acc = tl.load(sums + row * D + c, inside, 0.0)
    count = (end - begin).to(tl.int32)
    for first in range(0, count, BLOCK_E):
        e = first + tl.arange(0, BLOCK_E)
        entry = tl.load(order + begin + e, e < count, first_entry) - first_entry
        mask = (e < count)[:, None] & inside[None, :]
        acc += tl.sum(tl.load(entry_sums + entry[:, None] * D + c[None, :], mask, 0.0), 0)
    if ENDS:
        tl.store(dkv + row * D + c, round_to(acc, dkv.dtype.element_ty), inside)
    else:
        tl.store(sums + row * D + c, acc, inside)


@triton.jit
def _store_columns(to, x, inside, FIRST: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr):
    c = tl.arange(0, WIDTH)
    mask = inside[:, None] & (c < D - FIRST)[None, :]
    tl.store((to + FIRST)[:, None] + c[None, :], round_to(x, to.dtype.element_ty), mask)
