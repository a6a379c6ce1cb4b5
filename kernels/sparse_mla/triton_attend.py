"""sparse_mla's and sparse_mla_decode's kernels: a query, a tile of its heads, the tokens of its list.

Scores are kept in units of log2: z = scale * log2(e) * dot. Tokens come BLOCK_T at a time; a step's numbers are loaded
once, as keys and as values. SPLIT: programs share a list, each leaves its sums, and `_combine` adds them in order.
"""

import triton
import triton.language as tl

from deepseek_fast.gpu.numbers import dot, round_to
from deepseek_fast.kernels.sparse_mla.triton_tokens import find_tokens, load_part

# Not compiled anew for each of them; strides are, since what divides them decides how wide a load is.
_COUNTS = ["s_q", "lines", "splits", "topk", "extra_topk", "tokens", "pages", "page", "scales_at"]
_COUNTS += ["extra_tokens", "extra_pages", "extra_page", "extra_scales_at", "lse_batch", "lse_row", "lse_head"]
LOG2_E, LN_2 = tl.constexpr(1.4426950408889634), tl.constexpr(0.6931471805599453)


@triton.jit(do_not_specialize=_COUNTS)
def _attend(
    q, kv, extra, indices, extra_indices, lengths, extra_lengths, sinks, out, max_logits, lse, sums, tops, totals,
    scale, s_q, h_q, h_kv, lines, splits,
    q_batch, q_row, q_head, list_batch, list_row, list_head, extra_batch, extra_row, topk, extra_topk,
    lse_batch, lse_row, lse_head,
    tokens, pages, page, page_stride, token_stride, scales_at, head_stride,
    extra_tokens, extra_pages, extra_page, extra_page_stride, extra_token_stride, extra_scales_at,
    D: tl.constexpr, D_V: tl.constexpr, W0: tl.constexpr, W1: tl.constexpr, W2: tl.constexpr, W3: tl.constexpr,
    LAYOUT: tl.constexpr, DENSE: tl.constexpr, CAUSAL: tl.constexpr, PAGED: tl.constexpr, EXTRA_PAGED: tl.constexpr,
    EXTRA: tl.constexpr, LENGTHS: tl.constexpr, EXTRA_LENGTHS: tl.constexpr, LENGTH_A_QUERY: tl.constexpr,
    SPLIT: tl.constexpr, DTYPE: tl.constexpr, NATIVE: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_T: tl.constexpr,
    STAGES: tl.constexpr, APART: tl.constexpr, CHUNKED: tl.constexpr,
):  # fmt: skip
    group = h_q // h_kv
    tiles = tl.cdiv(group, BLOCK_H)
    program = tl.program_id(0)
    split = tl.program_id(1)
    head_of_kv = program // tiles % h_kv
    row = program // tiles // h_kv
    # Divided as int32: divisions of int64 are calls.
    request = (row // s_q).to(tl.int64)
    query = (row % s_q).to(tl.int64)
    row = row.to(tl.int64)
    h = program % tiles * BLOCK_H + tl.arange(0, BLOCK_H)
    inside = h < group
    h = head_of_kv * group + h

    # How many entries of each list are looked at, and which of the steps are this program's.
    count = topk
    if DENSE:
        length = tl.load(lengths + request)
        count = tl.minimum(tl.maximum(length, 0), topk)
        if CAUSAL:
            count = tl.minimum(count, tl.maximum(length - s_q + query.to(tl.int32) + 1, 0))
    elif LENGTHS:
        length = tl.load(lengths + (query if LENGTH_A_QUERY else request))
        count = tl.minimum(tl.maximum(length, 0), topk)
    steps = tl.cdiv(count, BLOCK_T)
    extra_count = extra_topk
    if EXTRA_LENGTHS:
        extra_count = tl.minimum(tl.maximum(tl.load(extra_lengths + request), 0), extra_topk)
    all_steps = steps
    if EXTRA:
        all_steps += tl.cdiv(extra_count, BLOCK_T)
    first = 0
    last = all_steps
    if SPLIT:
        share = tl.cdiv(all_steps, splits)
        first = tl.minimum(split * share, all_steps)
        last = tl.minimum(first + share, all_steps)

    q_rows = q + request * q_batch + query * q_row + h.to(tl.int64) * q_head
    q0, q1, q2, q3 = 0, 0, 0, 0
    if not CHUNKED:
        q0 = query_part(q_rows, inside, 0, W0, D, DTYPE)
        q1 = query_part(q_rows, inside, W0, W1, D, DTYPE)
        q2 = query_part(q_rows, inside, W0 + W1, W2, D, DTYPE)
        q3 = query_part(q_rows, inside, W0 + W1 + W2, W3, D, DTYPE)
    IN_V1: tl.constexpr = W1 > 0 and W0 < D_V
    IN_V2: tl.constexpr = W2 > 0 and W0 + W1 < D_V
    IN_V3: tl.constexpr = W3 > 0 and W0 + W1 + W2 < D_V
    m = tl.full([BLOCK_H], float("-inf"), tl.float32)
    l = tl.zeros([BLOCK_H], tl.float32)  # noqa: E741
    acc0 = tl.zeros([BLOCK_H, W0], tl.float32)
    acc1 = tl.zeros([BLOCK_H, W1 if IN_V1 else 16], tl.float32)
    acc2 = tl.zeros([BLOCK_H, W2 if IN_V2 else 16], tl.float32)
    acc3 = tl.zeros([BLOCK_H, W3 if IN_V3 else 16], tl.float32)

    factor = scale * LOG2_E
    entries = indices + request * list_batch + query * list_row + head_of_kv * list_head
    m, l, acc0, acc1, acc2, acc3 = _walk(  # noqa: E741
        m, l, acc0, acc1, acc2, acc3, q0, q1, q2, q3, q_rows, inside, factor, kv + head_of_kv * head_stride, entries,
        first, tl.minimum(last, steps), count, tokens, pages, page, page_stride, token_stride, scales_at,
        D, D_V, W0, W1, W2, W3, LAYOUT, DENSE, PAGED, DTYPE, NATIVE, BLOCK_T, STAGES, APART, CHUNKED,
    )  # fmt: skip
    if EXTRA:
        entries = extra_indices + request * extra_batch + query * extra_row
        m, l, acc0, acc1, acc2, acc3 = _walk(  # noqa: E741
            m, l, acc0, acc1, acc2, acc3, q0, q1, q2, q3, q_rows, inside, factor, extra, entries,
            tl.maximum(first - steps, 0), tl.maximum(last - steps, 0), extra_count, extra_tokens, extra_pages,
            extra_page, extra_page_stride, extra_token_stride, extra_scales_at,
            D, D_V, W0, W1, W2, W3, LAYOUT, False, EXTRA_PAGED, DTYPE, NATIVE, BLOCK_T, STAGES, APART, CHUNKED,
        )  # fmt: skip

    if SPLIT:
        # [split, row, head]; sums of nothing are not stored, nor read
        line = split.to(tl.int64) * lines + row * h_q + h
        tl.store(tops + line, m, inside)
        tl.store(totals + line, l, inside)
        inside = inside & (m > float("-inf"))
        to = sums + line * D_V
        factor_of_row = tl.full([BLOCK_H], 1.0, tl.float32)
    else:
        sink = tl.full([BLOCK_H], float("-inf"), tl.float32)
        if sinks is not None:
            sink = tl.load(sinks + h, inside, 0.0)
        factor_of_row, lse_of_row, top = finish(m, l, sink)
        tl.store(lse + request * lse_batch + query * lse_row + h * lse_head, lse_of_row, inside)
        if max_logits is not None:
            tl.store(max_logits + row * h_q + h, top, inside)
        to = out + (row * h_q + h) * D_V
    _store_part(to, acc0, factor_of_row, inside, 0, W0, D_V)
    if IN_V1:
        _store_part(to, acc1, factor_of_row, inside, W0, W1, D_V)
    if IN_V2:
        _store_part(to, acc2, factor_of_row, inside, W0 + W1, W2, D_V)
    if IN_V3:
        _store_part(to, acc3, factor_of_row, inside, W0 + W1 + W2, W3, D_V)


@triton.jit
def _walk(
    m, l, acc0, acc1, acc2, acc3, q0, q1, q2, q3, q_rows, inside, factor, kv, entries, first, last, count,  # noqa: E741
    tokens, pages, page, page_stride, token_stride, scales_at,
    D: tl.constexpr, D_V: tl.constexpr, W0: tl.constexpr, W1: tl.constexpr, W2: tl.constexpr, W3: tl.constexpr,
    LAYOUT: tl.constexpr, DENSE: tl.constexpr, PAGED: tl.constexpr, DTYPE: tl.constexpr, NATIVE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    STAGES: tl.constexpr, APART: tl.constexpr, CHUNKED: tl.constexpr,
):  # fmt: skip
    """Steps [first, last) of one list: largest scores, sums of weights and of weighted values, as they go on."""
    for step in tl.range(first, last, num_stages=STAGES):
        t0 = step * BLOCK_T
        t = t0 + tl.arange(0, BLOCK_T)
        counts, place, scales = find_tokens(
            entries, t, count, tokens, pages, page, page_stride, token_stride, scales_at, LAYOUT, DENSE, PAGED
        )
        z = 0.0
        if CHUNKED:
            z = chunked_scores(q_rows, inside, kv, place, counts, D, DTYPE)
        k0 = load_part(kv, place, scales, counts, 0, W0, D, LAYOUT, DTYPE, NATIVE)
        k1, k2, k3 = 0, 0, 0
        if W1 > 0 and (not CHUNKED or W0 < D_V):
            k1 = load_part(kv, place, scales, counts, W0, W1, D, LAYOUT, DTYPE, NATIVE)
        if W2 > 0 and (not CHUNKED or W0 + W1 < D_V):
            k2 = load_part(kv, place, scales, counts, W0 + W1, W2, D, LAYOUT, DTYPE, NATIVE)
        if W3 > 0 and (not CHUNKED or W0 + W1 + W2 < D_V):
            k3 = load_part(kv, place, scales, counts, W0 + W1 + W2, W3, D, LAYOUT, DTYPE, NATIVE)
        if APART:
            # In an `if`, which is true, as `scores` has it: so the loads of the next step come before this step's
            # products, and not behind them.
            if step < last:
                m, l, acc0, acc1, acc2, acc3 = _step(  # noqa: E741
                    m, l, acc0, acc1, acc2, acc3, z, q0, q1, q2, q3, k0, k1, k2, k3, factor, counts, t0 < count,
                    D_V, W0, W1, W2, W3, DTYPE, APART, CHUNKED,
                )  # fmt: skip
        else:
            m, l, acc0, acc1, acc2, acc3 = _step(  # noqa: E741
                m, l, acc0, acc1, acc2, acc3, z, q0, q1, q2, q3, k0, k1, k2, k3, factor, counts, True,
                D_V, W0, W1, W2, W3, DTYPE, APART, CHUNKED,
            )  # fmt: skip
    return m, l, acc0, acc1, acc2, acc3


@triton.jit
def _step(
    m, l, acc0, acc1, acc2, acc3, z, q0, q1, q2, q3, k0, k1, k2, k3, factor, counts, is_true,  # noqa: E741
    D_V: tl.constexpr, W0: tl.constexpr, W1: tl.constexpr, W2: tl.constexpr, W3: tl.constexpr, DTYPE: tl.constexpr,
    APART: tl.constexpr, CHUNKED: tl.constexpr,
):  # fmt: skip
    """One block of tokens."""
    # z = scale * (q @ k.T)
    if not CHUNKED:
        z = scores(q0, k0, tl.zeros([acc0.shape[0], k0.shape[0]], tl.float32), is_true, APART)
        if W1 > 0:
            z = scores(q1, k1, z, is_true, APART)
        if W2 > 0:
            z = scores(q2, k2, z, is_true, APART)
        if W3 > 0:
            z = scores(q3, k3, z, is_true, APART)
    z = tl.where(counts[None, :], z * factor, float("-inf"))
    # p = exp(z - max)
    top = tl.maximum(m, tl.max(z, 1))
    base = tl.where(top == float("-inf"), 0.0, top)
    p = tl.exp2(z - base[:, None])
    again = tl.exp2(m - base)
    l = l * again + tl.sum(p, 1)  # noqa: E741
    # acc += p @ v
    p = round_to(p, DTYPE)
    acc0 = dot(p, k0, acc0 * again[:, None])
    if W1 > 0 and W0 < D_V:
        acc1 = dot(p, k1, acc1 * again[:, None])
    if W2 > 0 and W0 + W1 < D_V:
        acc2 = dot(p, k2, acc2 * again[:, None])
    if W3 > 0 and W0 + W1 + W2 < D_V:
        acc3 = dot(p, k3, acc3 * again[:, None])
    return top, l, acc0, acc1, acc2, acc3


@triton.jit
def scores(q, k, z, is_true, APART: tl.constexpr):
    """z + q @ k.T.

    APART: warps share the columns. Triton gives all columns to each warp where it sees a product that flows into
    another; behind an `if` it does not see that. LLVM knows that the condition holds, and takes the `if` away again.
    """
    if APART:
        none = tl.zeros([q.shape[0], k.shape[0]], tl.float32)
        if is_true:  # noqa: SIM108
            more = dot(q, tl.trans(k), none)
        else:
            more = dot(q, tl.trans(k), none + 1.0)
        return z + more
    else:
        return dot(q, tl.trans(k), z)


@triton.jit
def chunked_scores(q_rows, inside, kv, place, counts, D: tl.constexpr, DTYPE: tl.constexpr):
    """q @ k.T a few columns at a time, both read again: of float32 and of wide rows no multiprocessor holds a block."""
    z = tl.zeros([inside.shape[0], counts.shape[0]], tl.float32)
    CHUNK: tl.constexpr = 32  # columns: with 64 the parts of float32 spill on 10.0
    for first in tl.range(0, D, CHUNK, num_stages=2):
        c = first + tl.arange(0, CHUNK)
        a = tl.load(q_rows[:, None] + c[None, :], inside[:, None] & (c < D)[None, :], 0.0).to(DTYPE)
        b = tl.load(kv + place[:, None] + c[None, :], counts[:, None] & (c < D)[None, :], 0.0).to(DTYPE)
        z = dot(a, tl.trans(b), z)
    return z


@triton.jit
def finish(m, l, sink):  # noqa: E741
    """(1 / sum of weights with the sink's, lse, largest score) of m, in log2, and l; of nothing (0, inf, -inf)."""
    nothing = m == float("-inf")
    base = tl.where(nothing, 0.0, m)
    total = l + tl.exp2(sink * LOG2_E - base)
    inverse = tl.where(nothing, 0.0, 1.0 / total)
    lse = tl.where(nothing, float("inf"), (base + tl.log2(l)) * LN_2)
    top = tl.where(l == l, m * LN_2, float("nan"))
    return inverse, lse, top


@triton.jit
def query_part(rows, inside, FIRST: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr, DTYPE: tl.constexpr):
    if WIDTH == 0:
        return 0
    else:
        c = tl.arange(0, WIDTH)
        mask = inside[:, None]
        if FIRST + WIDTH > D:
            mask = mask & (c < D - FIRST)[None, :]
        return tl.load((rows + FIRST)[:, None] + c[None, :], mask, 0.0).to(DTYPE)


@triton.jit
def _store_part(to, acc, factor, inside, FIRST: tl.constexpr, WIDTH: tl.constexpr, D_V: tl.constexpr):
    c = tl.arange(0, WIDTH)
    mask = inside[:, None]
    if FIRST + WIDTH > D_V:
        mask = mask & (c < D_V - FIRST)[None, :]
    tl.store((to + FIRST)[:, None] + c[None, :], round_to(acc * factor[:, None], to.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["s_q", "lines", "splits", "lse_batch", "lse_row", "lse_head"])
def _combine(
    sums, tops, totals, sinks, out, max_logits, lse, s_q, h_q, lines, splits, lse_batch, lse_row, lse_head,
    D_V: tl.constexpr, WIDTH: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """What the splits of a row and head left, BLOCK_S at a time in their order."""
    line = tl.program_id(0)
    h = line % h_q
    row = line // h_q
    line = line.to(tl.int64)
    c = tl.arange(0, WIDTH)
    top = tl.full([BLOCK_S], float("-inf"), tl.float32)
    for start in range(0, splits, BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        top = tl.maximum(top, tl.load(tops + s.to(tl.int64) * lines + line, s < splits, float("-inf")))
    m = tl.max(top, 0)
    base = tl.where(m == float("-inf"), 0.0, m)
    l = 0.0  # noqa: E741
    acc = tl.zeros([WIDTH], tl.float32)
    for start in range(0, splits, BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        at = s.to(tl.int64) * lines + line
        m_s = tl.load(tops + at, s < splits, float("-inf"))
        some = m_s > float("-inf")
        weight = tl.exp2(m_s - base)
        l += tl.sum(tl.load(totals + at, some, 0.0) * weight, 0)  # noqa: E741
        mask = some[:, None] & (c < D_V)[None, :]
        acc += tl.sum(tl.load(sums + at[:, None] * D_V + c[None, :], mask, 0.0) * weight[:, None], 0)
    sink = float("-inf")
    if sinks is not None:
        sink = tl.load(sinks + h)
    inverse, lse_of_row, largest = finish(m, l, sink)
    if max_logits is not None:
        tl.store(max_logits + line, largest)
    tl.store(lse + (row // s_q).to(tl.int64) * lse_batch + row % s_q * lse_row + h * lse_head, lse_of_row)
    tl.store(out + line * D_V + c, round_to(acc * inverse, out.dtype.element_ty), c < D_V)
