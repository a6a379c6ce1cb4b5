"""block_sparse_attention's gradients on CUDA tensors: what a row needs once, dq, and dsink_logits.

P = exp(z - lse);  dz = P (f dp - shift),  dp = dout . v,  shift = f delta - dlse;  dq = scale sum dz k
f is a row's share of weight that no sink logit takes. A row that sees nothing has lse +inf here: P = 0.
"""

import triton
import triton.language as tl

from deepseek_fast.gpu.numbers import dot, round_to
from deepseek_fast.kernels.block_sparse_attention.triton_forward import LOG2_E, bias_tile, first_key, keys_of
from deepseek_fast.kernels.block_sparse_attention.triton_walk import (
    BLOCKS,
    GATHERED,
    WHOLE,
    load_tile,
    sight,
    table_bits,
    tile_of_queries,
    trimmed,
)


@triton.jit
def _row_terms(
    dout, out, lse, dlse, sink_logits, shift, lse_used, share, sink_part, rows, H, S_q,
    dout_b, dout_h, dout_s, out_b, out_h, out_s,
    D_V: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_M: tl.constexpr, FOLD: tl.constexpr, SINK: tl.constexpr,
    HAS_DLSE: tl.constexpr,
):  # fmt: skip
    """rows: B * H * S_q; the results are as many float32 side by side."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = row < rows
    s, h, b = row % S_q, row // S_q % H, row // S_q // H
    # delta = sum of dout * out
    delta = tl.zeros([BLOCK_M], tl.float32)
    for first in range(0, D_V, BLOCK_DV):
        d = first + tl.arange(0, BLOCK_DV)
        mask = inside[:, None] & (d[None, :] < D_V)
        upstream = tl.load(dout + (b * dout_b + h * dout_h + s * dout_s)[:, None] + d[None, :], mask, 0.0)
        result = tl.load(out + (b * out_b + h * out_h + s * out_s)[:, None] + d[None, :], mask, 0.0)
        delta += tl.sum(upstream.to(tl.float32) * result.to(tl.float32), 1)
    of_row = tl.load(lse + row, inside, 0.0)
    f = tl.full([BLOCK_M], 1.0, tl.float32)
    if SINK:  # f = 1 / (1 + exp(sink - lse)), 1 - f from the same exponential
        distance = tl.load(sink_logits + h, inside, 0.0) - of_row
        nothing = of_row == float("-inf")
        e = tl.exp(-tl.abs(distance))
        f = tl.where(nothing, 1.0, tl.where(distance > 0, e, 1.0) / (1.0 + e))
        rest = tl.where(nothing, 0.0, tl.where(distance > 0, 1.0, e) / (1.0 + e))
        tl.store(share + row, f, inside)
        tl.store(sink_part + row, rest * delta, inside)
    value = f * delta
    if HAS_DLSE:
        value -= tl.load(dlse + row, inside, 0.0)
    tl.store(shift + row, value, inside)
    used = of_row * LOG2_E if FOLD else of_row
    tl.store(lse_used + row, tl.where(of_row == float("-inf"), float("inf"), used), inside)


@triton.jit
def _sink_gradient(sink_part, dsink, B, H, S_q, BLOCK: tl.constexpr):
    """dsink[h] = - the sum over b and i, one program a head in one order."""
    h = tl.program_id(0).to(tl.int64)
    sums = tl.zeros([BLOCK], tl.float32)
    for b in range(0, B):
        of_head = sink_part + (b * H + h) * S_q
        for first in range(0, S_q, BLOCK):
            i = first + tl.arange(0, BLOCK)
            sums += tl.load(of_head + i, i < S_q, 0.0)
    tl.store(dsink + h, -tl.sum(sums, 0))


@triton.jit
def weights_of(z, lse_used, factor, FOLD: tl.constexpr):
    """P = exp(z - lse); z as products where FOLD, else in natural units; lse broadcast to it."""
    if FOLD:
        return tl.math.exp2(z * factor - lse_used)
    else:
        return tl.math.exp2((z - lse_used) * LOG2_E)


@triton.jit
def product_of_parts(
    a, a_rows, a_ok, b, b_rows, b_ok, z, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """z + a b^T over heads of WIDTH values, BLOCK of them at a time: for heads wider than a tile."""
    for c in range(0, (WIDTH + BLOCK - 1) // BLOCK):
        d = c * BLOCK + tl.arange(0, BLOCK)
        left = tl.load(a + a_rows[:, None] + d[None, :], a_ok[:, None] & (d[None, :] < WIDTH), 0.0)
        right = tl.load(b + b_rows[None, :] + d[:, None], b_ok[None, :] & (d[:, None] < WIDTH), 0.0)
        z = dot(left, right, z)
    return z


@triton.jit(do_not_specialize=["behind", "ahead", "sinks", "offset", "entries", "num_tables"])
def _dq(
    dout, q, k, v, dq, shift, lse_used, share, starts, ends, columns, tables, bits, bias, sink_logits, ends_q, ends_k,
    scale, behind, ahead, sinks, offset, group, H_kv, S_q, S_k, tiles, entries, num_tables, num_sequences,
    dout_b, dout_h, dout_s, q_b, q_h, q_s, k_b, k_h, k_s, v_b, v_h, v_s, list_b, list_h, list_kv,
    bias_b, bias_h, bias_s,
    D: tl.constexpr, D_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PACK: tl.constexpr, FORM: tl.constexpr, BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr, STRIDE: tl.constexpr, POSITIONS: tl.constexpr, CAUSAL: tl.constexpr, AT_END: tl.constexpr,
    EVEN: tl.constexpr, FOLD: tl.constexpr, BIAS: tl.constexpr, SINK: tl.constexpr, TABLES: tl.constexpr,
    SEQUENCES: tl.constexpr,
):  # fmt: skip
    """As _attend goes through the keys; a part is BLOCK_D values of dq."""
    QUERIES: tl.constexpr = BLOCK_M // PACK
    ONE: tl.constexpr = D <= BLOCK_D and D_V <= BLOCK_DV  # a tile has whole heads
    b, kv, head, part, row, place, i0, i_end, q_begin, q_count, k_begin, k_count = tile_of_queries(
        tl.program_id(0), tiles, group, H_kv, ends_q, ends_k, num_sequences, S_q, S_k,
        BLOCK_Q, QUERIES, PACK, PARTS, SEQUENCES, CAUSAL,
    )  # fmt: skip
    m_row = tl.arange(0, BLOCK_M)
    i = i0 + m_row % QUERIES
    head_m = head + m_row // QUERIES
    row_ok = (i < i_end) & (head_m < group)
    head_m = kv * group + head_m
    token = (b * (group * H_kv) + head_m) * S_q + q_begin + i
    q_row = head_m.to(tl.int64) * q_h + (q_begin + i).to(tl.int64) * q_s
    dout_row = head_m.to(tl.int64) * dout_h + (q_begin + i).to(tl.int64) * dout_s
    q_at, dout_at = q + b * q_b, dout + b * dout_b
    d, d_v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
    if ONE:
        q_tile = load_tile(q_at + q_row[:, None] + d[None, :], row_ok[:, None], d[None, :] < D, False, D == BLOCK_D)
        dout_tile = load_tile(
            dout_at + dout_row[:, None] + d_v[None, :], row_ok[:, None], d_v[None, :] < D_V, False, D_V == BLOCK_DV
        )
    lse_row = tl.load(lse_used + token, row_ok, float("inf"))
    shift_row = tl.load(shift + token, row_ok, 0.0)
    k_at = k + b * k_b + kv.to(tl.int64) * k_h + k_begin.to(tl.int64) * k_s
    v_at = v + b * v_b + kv.to(tl.int64) * v_h + k_begin.to(tl.int64) * v_s

    if AT_END:
        offset = (k_count - q_count).to(tl.int64)
    begin, end, below = sight(i, offset, k_count, behind, ahead, sinks, POSITIONS, CAUSAL, STRIDE)
    first_begin, first_end, first_below = sight(i0, offset, k_count, behind, ahead, sinks, POSITIONS, CAUSAL, STRIDE)
    last_begin, last_end, last_below = sight(
        tl.maximum(i_end - 1, i0), offset, k_count, behind, ahead, sinks, POSITIONS, CAUSAL, STRIDE
    )
    last_end = tl.where(i0 < i_end, last_end, 0)
    low, high, e0 = row * 0, row * 0, row.to(tl.int64) * 0
    sink_tiles, first_tile = row * 0, row * 0
    if FORM == WHOLE:
        sink_tiles = tl.where(i0 < i_end, (last_below + BLOCK_N - 1) // BLOCK_N, 0)
        first_tile = tl.maximum(first_begin // BLOCK_N, sink_tiles)
        high = sink_tiles + tl.maximum((last_end + BLOCK_N - 1) // BLOCK_N - first_tile, 0)
        key0 = tl.where(sink_tiles > 0, 0, first_tile) * BLOCK_N
    else:
        at = b * list_b + (kv * group + head).to(tl.int64) * list_h + kv.to(tl.int64) * list_kv + row
        e0 = tl.minimum(tl.maximum(tl.load(starts + at), 0), entries).to(tl.int64)
        e1 = tl.minimum(tl.maximum(tl.load(ends + at), e0), entries).to(tl.int64)
        shown = tl.where(last_below > 0, 0, first_begin)
        e0, e1 = trimmed(columns, e0, e1, 0, shown, last_end, BLOCK_K)
        total = (e1 - e0) * BLOCK_K
        n_steps = (total + BLOCK_N - 1) // BLOCK_N
        high = n_steps.to(tl.int32)
        if FORM == BLOCKS:
            key0 = first_key(columns, 0, high > 0, e0, k_count, BLOCK_K, BLOCK_N)
        else:
            key0 = keys_of(columns, tl.arange(0, BLOCK_N), total, e0, k_count, BLOCK_K)

    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    factor = scale * LOG2_E
    for t in range(low, high):
        if FORM == GATHERED:
            key = key0
            key0 = keys_of(columns, (t + 1) * BLOCK_N + tl.arange(0, BLOCK_N), total, e0, k_count, BLOCK_K)
        else:
            at_key = key0
            key = at_key + tl.arange(0, BLOCK_N)
            if FORM == BLOCKS:
                key0 = first_key(columns, t + 1, t + 1 < high, e0, k_count, BLOCK_K, BLOCK_N)
            else:
                key0 = (t + 1 + tl.where(t + 1 < sink_tiles, 0, first_tile - sink_tiles)) * BLOCK_N
        if FORM == GATHERED:
            k_of_tile, v_of_tile = k_at, v_at
            k_rows, v_rows = key.to(tl.int64) * k_s, key.to(tl.int64) * v_s
        else:
            k_of_tile, v_of_tile = k_at + at_key.to(tl.int64) * k_s, v_at + at_key.to(tl.int64) * v_s
            k_rows, v_rows = tl.arange(0, BLOCK_N) * k_s, tl.arange(0, BLOCK_N) * v_s
        key_ok = key < k_count
        shown_ok = key_ok
        if POSITIONS:  # what no query of the tile sees may be NaN
            shown_ok = key_ok & (((key >= first_begin) & (key < last_end)) | (key < last_below))
        ALL: tl.constexpr = EVEN and not POSITIONS
        zeros = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        k_tile = load_tile(
            k_of_tile + k_rows[:, None] + (part * BLOCK_D + d)[None, :],
            shown_ok[:, None], (part * BLOCK_D + d)[None, :] < D, ALL, D % BLOCK_D == 0,
        )  # fmt: skip
        if ONE:
            v_t = load_tile(
                v_of_tile + v_rows[None, :] + d_v[:, None], d_v[:, None] < D_V, shown_ok[None, :], D_V == BLOCK_DV, ALL
            )
            z = dot(q_tile, tl.trans(k_tile), zeros)
            dp = dot(dout_tile, v_t, zeros)
        else:
            z = product_of_parts(q_at, q_row, row_ok, k_of_tile, k_rows, shown_ok, zeros, D, BLOCK_D)
            dp = product_of_parts(dout_at, dout_row, row_ok, v_of_tile, v_rows, shown_ok, zeros, D_V, BLOCK_DV)
        if not FOLD:
            z = z * scale
            if BIAS:
                z += bias_tile(
                    bias + b * bias_b + k_begin, bias_s, q_begin + i, row_ok, key, key_ok,
                    head_m.to(tl.int64) * bias_h, BIAS,
                )  # fmt: skip
        p = weights_of(z, lse_row[:, None], factor, FOLD)
        if SINK:
            f = tl.load(share + token, row_ok, 1.0)
            dp = dp * f[:, None]
        dz = p * (dp - shift_row[:, None])
        if TABLES or FORM == GATHERED:
            seen = key_ok[None, :] & (i >= 0)[:, None]
            if POSITIONS:
                in_sight = (key[None, :] >= begin[:, None]) & (key[None, :] < end[:, None])
                seen = seen & (in_sight | (key[None, :] < below[:, None]))
            if TABLES:
                if FORM == GATHERED:
                    of_key = t * BLOCK_N + tl.arange(0, BLOCK_N)
                    table = tl.load(tables + e0 + of_key // BLOCK_K, of_key < total, -1)[None, :]
                else:
                    table = tl.load(tables + e0 + t // (BLOCK_K // BLOCK_N))
                seen = seen & table_bits(
                    bits, table, (i - place * BLOCK_Q)[:, None], (key % BLOCK_K)[None, :], BLOCK_Q, BLOCK_K, num_tables
                )
                k_tile = tl.where((tl.max(seen.to(tl.int32), 0) > 0)[:, None], k_tile, 0.0)
            dz = tl.where(seen, dz, 0.0)
        elif POSITIONS:
            whole = ((at_key >= last_begin) & (at_key + BLOCK_N <= first_end)) | (at_key + BLOCK_N <= first_below)
            if not whole:
                in_sight = (key[None, :] >= begin[:, None]) & (key[None, :] < end[:, None])
                dz = tl.where(in_sight | (key[None, :] < below[:, None]), dz, 0.0)
        elif not EVEN:  # noqa: SIM102 (one is a constant, the other is not)
            if at_key + BLOCK_N > k_count:
                dz = tl.where(key_ok[None, :], dz, 0.0)
        acc = dot(round_to(dz, k.dtype.element_ty), k_tile, acc)
    of_part = part * BLOCK_D + d
    tl.store(
        dq + token[:, None] * D + of_part[None, :],
        round_to(acc * scale, dq.dtype.element_ty),
        row_ok[:, None] & (of_part[None, :] < D),
    )
