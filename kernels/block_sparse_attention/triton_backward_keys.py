"""block_sparse_attention's dk and dv on CUDA tensors: a program has a tile of keys and goes through who sees them.

w = f P;  dv = sum w dout;  dk = scale sum dz q. One program adds up all heads of a group: nothing is added atomically.
"""

import triton
import triton.language as tl

from deepseek_fast.gpu.numbers import dot, round_to
from deepseek_fast.kernels.block_sparse_attention.triton_backward import product_of_parts, weights_of
from deepseek_fast.kernels.block_sparse_attention.triton_forward import BIAS_OF_KEYS, LOG2_E
from deepseek_fast.kernels.block_sparse_attention.triton_walk import (
    BLOCKS,
    GATHERED,
    WHOLE,
    block_at,
    blocks_before,
    ends_of,
    load_tile,
    queries_that_see,
    sequence_at,
    sight,
    table_bits,
    trimmed,
)


@triton.jit
def first_query(rows, t, inside, e0, base, q_count, BLOCK_Q: tl.constexpr, BLOCK_M: tl.constexpr):
    """Of the tile t of BLOCK_M queries of a list of rows that begins at entry e0; base: the sequence's first row."""
    TILES: tl.constexpr = BLOCK_Q // BLOCK_M
    place = block_at(rows, e0 + t // TILES, inside, base, (q_count + BLOCK_Q - 1) // BLOCK_Q)
    return place * BLOCK_Q + t % TILES * BLOCK_M


@triton.jit
def queries_of(rows, f, total, e0, base, q_count, BLOCK_Q: tl.constexpr):
    """The queries at places f of a list's queries one after the other, q_count where there is none."""
    place = block_at(rows, e0 + f // BLOCK_Q, f < total, base, (q_count + BLOCK_Q - 1) // BLOCK_Q)
    return tl.where(f < total, tl.minimum(place * BLOCK_Q + f % BLOCK_Q, q_count), q_count)


@triton.jit(do_not_specialize=["behind", "ahead", "sinks", "offset", "entries", "num_tables"])
def _dkdv(
    dout, q, k, v, dk, dv, shift, lse_used, share, starts, ends, listed, entry_of, tables, bits, bias, sink_logits,
    ends_q, ends_k, scale, behind, ahead, sinks, offset, H_kv, S_q, S_k, tiles, entries, num_tables, num_sequences,
    dout_b, dout_h, dout_s, q_b, q_h, q_s, k_b, k_h, k_s, v_b, v_h, v_s, list_b, list_h, list_kv,
    bias_b, bias_h, bias_s,
    D: tl.constexpr, D_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, TOGETHER: tl.constexpr, FORM: tl.constexpr, BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr, STRIDE: tl.constexpr, POSITIONS: tl.constexpr, CAUSAL: tl.constexpr, AT_END: tl.constexpr,
    EVEN: tl.constexpr, FOLD: tl.constexpr, BIAS: tl.constexpr, SINK: tl.constexpr, TABLES: tl.constexpr,
    SEQUENCES: tl.constexpr, LISTS: tl.constexpr, GROUP: tl.constexpr, ALIKE: tl.constexpr,
):  # fmt: skip
    """The grid: (PARTS, tiles of keys, heads of k, batch), the first fastest. A part is BLOCK_D values of dk, dv.

    FORM: WHOLE, tiles of queries one after the other; BLOCKS, of listed rows; GATHERED, of the queries, listed or not,
    with those of all heads of the group side by side where TOGETHER. listed: rows, entry_of: their entries in tables.
    ALIKE: rows of dout lie as far apart as those of q, which spares registers.
    """
    ONE: tl.constexpr = D <= BLOCK_D and D_V <= BLOCK_DV
    TILES_A_BLOCK: tl.constexpr = (BLOCK_K + BLOCK_N - 1) // BLOCK_N
    program = tl.program_id(0)
    part = program % PARTS
    tile = program // PARTS % tiles
    rest = program // PARTS // tiles
    kv = rest % H_kv
    b = (rest // H_kv).to(tl.int64)
    column = tile // TILES_A_BLOCK
    q_begin, q_count, k_begin, k_count, base = column * 0, column * 0 + S_q, column * 0, column * 0 + S_k, column * 0
    block = column
    if SEQUENCES:
        n, k_begin, k_count, first_column = sequence_at(ends_k, num_sequences, S_k, column, BLOCK_K)
        q_begin, q_count = ends_of(ends_q, n, n < num_sequences, S_q)
        block = column - first_column
        if LISTS:
            base = blocks_before(ends_q, n, S_q, BLOCK_Q)
    key0 = block * BLOCK_K + tile % TILES_A_BLOCK * BLOCK_N
    key_end = tl.minimum(tl.minimum(key0 + BLOCK_N, (block + 1) * BLOCK_K), k_count)
    key = key0 + tl.arange(0, BLOCK_N)
    key_ok = key < key_end
    key_row = key.to(tl.int64)
    d, d_v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
    k_at = k + b * k_b + kv.to(tl.int64) * k_h + k_begin.to(tl.int64) * k_s
    v_at = v + b * v_b + kv.to(tl.int64) * v_h + k_begin.to(tl.int64) * v_s
    if ONE:
        k_tile = load_tile(
            k_at + key_row[:, None] * k_s + d[None, :], key_ok[:, None], d[None, :] < D, False, D == BLOCK_D
        )
        v_tile = load_tile(
            v_at + key_row[:, None] * v_s + d_v[None, :], key_ok[:, None], d_v[None, :] < D_V, False, D_V == BLOCK_DV
        )
    if AT_END:
        offset = (k_count - q_count).to(tl.int64)
    i_low, i_high = q_count * 0, q_count
    if POSITIONS:
        last_key = tl.maximum(key_end - 1, key0)
        i_low, i_high = queries_that_see(key0, last_key, offset, q_count, behind, ahead, sinks, STRIDE)
    i_high = tl.where(key0 < key_end, i_high, i_low)

    dk_sums = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv_sums = tl.zeros([BLOCK_N, BLOCK_DV], tl.float32)
    factor = scale * LOG2_E
    SIDE: tl.constexpr = TOGETHER and FORM == GATHERED  # heads of the group side by side in a tile
    OUTER: tl.constexpr = 1 if SIDE else GROUP
    for h in range(0, OUTER):
        head = kv * GROUP + h
        e0 = column.to(tl.int64) * 0
        heads_a_query: tl.constexpr = GROUP if SIDE else 1
        total = (i_high - i_low).to(tl.int64)
        if LISTS:
            at = b * list_b + head.to(tl.int64) * list_h + kv.to(tl.int64) * list_kv + column
            e0 = tl.minimum(tl.maximum(tl.load(starts + at), 0), entries).to(tl.int64)
            e1 = tl.minimum(tl.maximum(tl.load(ends + at), e0), entries).to(tl.int64)
            e0, e1 = trimmed(listed, e0, e1, base, i_low, i_high, BLOCK_Q)
            total = (e1 - e0) * BLOCK_Q
        first_tile = i_low // BLOCK_M
        if FORM == WHOLE:
            high = tl.maximum((i_high + BLOCK_M - 1) // BLOCK_M - first_tile, 0)
            i_next = first_tile * BLOCK_M
        elif FORM == BLOCKS:
            high = (total // BLOCK_M).to(tl.int32)
            i_next = first_query(listed, 0, high > 0, e0, base, q_count, BLOCK_Q, BLOCK_M)
        else:
            high = ((total * heads_a_query + BLOCK_M - 1) // BLOCK_M).to(tl.int32)
            place = tl.arange(0, BLOCK_M) // heads_a_query
            if LISTS:
                i_next = queries_of(listed, place, total, e0, base, q_count, BLOCK_Q)
            else:
                i_next = tl.where(place < total, i_low + place, q_count)
        for t in range(0, high):
            m_row = tl.arange(0, BLOCK_M)
            if FORM == GATHERED:
                i = i_next
                place = ((t + 1) * BLOCK_M + m_row) // heads_a_query
                if LISTS:
                    i_next = queries_of(listed, place, total, e0, base, q_count, BLOCK_Q)
                else:
                    i_next = tl.where(place < total, i_low + place, q_count)
                head_m = head + (t * BLOCK_M + m_row) % heads_a_query
            else:
                i0 = i_next
                i = i0 + m_row
                head_m = head + m_row * 0
                if FORM == BLOCKS:
                    i_next = first_query(listed, t + 1, t + 1 < high, e0, base, q_count, BLOCK_Q, BLOCK_M)
                else:
                    i_next = i0 + BLOCK_M
            row_ok = i < q_count
            of_q = (q_begin + i).to(tl.int64)
            if FORM == GATHERED:
                q_at, dout_at = q + b * q_b, dout + b * dout_b
                q_row = head_m.to(tl.int64) * q_h + of_q * q_s
                dout_row = head_m.to(tl.int64) * dout_h + of_q * dout_s
                token = (b * (GROUP * H_kv) + head_m) * S_q + of_q
                lse_at, shift_at, share_at = lse_used + token, shift + token, share
                if SINK:
                    share_at = share + token
            else:
                of_tile = (q_begin + i0).to(tl.int64)
                q_at = q + b * q_b + head.to(tl.int64) * q_h + of_tile * q_s
                dout_at = dout + b * dout_b + head.to(tl.int64) * dout_h + of_tile * dout_s
                q_row = m_row * q_s
                dout_row = q_row if ALIKE else m_row * dout_s
                token = (b * (GROUP * H_kv) + head) * S_q + of_tile
                lse_at, shift_at, share_at = lse_used + token + m_row, shift + token + m_row, share
                if SINK:
                    share_at = share + token + m_row
            of_part = part * BLOCK_D + d
            of_part_v = part * BLOCK_DV + d_v
            zeros = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
            q_tile = load_tile(
                q_at + q_row[:, None] + of_part[None, :],
                row_ok[:, None],
                of_part[None, :] < D,
                EVEN,
                PARTS * BLOCK_D == D,
            )
            dout_tile = load_tile(
                dout_at + dout_row[:, None] + of_part_v[None, :],
                row_ok[:, None], of_part_v[None, :] < D_V, EVEN, PARTS * BLOCK_DV == D_V,
            )  # fmt: skip
            if EVEN:
                lse_row, shift_row = tl.load(lse_at), tl.load(shift_at)
            else:
                lse_row, shift_row = tl.load(lse_at, row_ok, float("inf")), tl.load(shift_at, row_ok, 0.0)
            if ONE:
                z = dot(k_tile, tl.trans(q_tile), zeros)
            else:
                z = product_of_parts(k_at, key_row * k_s, key_ok, q_at, q_row, row_ok, zeros, D, BLOCK_D)
            if not FOLD:
                z = z * scale
                if BIAS == BIAS_OF_KEYS:
                    z += tl.load(bias + b * bias_b + k_begin + key, key_ok, 0.0).to(tl.float32)[:, None]
                elif BIAS:
                    at_bias = bias + b * bias_b + k_begin + head_m.to(tl.int64) * bias_h + of_q * bias_s
                    z += tl.load(at_bias[None, :] + key[:, None], row_ok[None, :] & key_ok[:, None], 0.0).to(tl.float32)
            p = weights_of(z, lse_row[None, :], factor, FOLD)
            if POSITIONS:
                begin, end, below = sight(i, offset, k_count, behind, ahead, sinks, POSITIONS, CAUSAL, STRIDE)
            if TABLES or (POSITIONS and FORM == GATHERED):
                seen = key_ok[:, None] & row_ok[None, :]
                if POSITIONS:
                    in_sight = (key[:, None] >= begin[None, :]) & (key[:, None] < end[None, :])
                    seen = seen & (in_sight | (key[:, None] < below[None, :]))
                if TABLES:
                    if FORM == GATHERED:
                        of_row = (t * BLOCK_M + m_row) // heads_a_query
                        entry = tl.load(entry_of + e0 + of_row // BLOCK_Q, of_row < total, 0)
                        table = tl.load(tables + entry, of_row < total, -1)[None, :]
                    else:
                        table = tl.load(tables + tl.load(entry_of + e0 + t // (BLOCK_Q // BLOCK_M)))
                    seen = seen & table_bits(
                        bits, table, (i % BLOCK_Q)[None, :], (key % BLOCK_K)[:, None], BLOCK_Q, BLOCK_K, num_tables
                    )
                p = tl.where(seen, p, 0.0)
            elif POSITIONS:
                _low_begin, low_end, low_below = sight(
                    i0, offset, k_count, behind, ahead, sinks, POSITIONS, CAUSAL, STRIDE
                )
                top = tl.maximum(tl.minimum(i0 + BLOCK_M, q_count) - 1, i0)
                top_begin, _top_end, _top_below = sight(
                    top, offset, k_count, behind, ahead, sinks, POSITIONS, CAUSAL, STRIDE
                )
                whole = ((key0 >= top_begin) & (key_end <= low_end)) | (key_end <= low_below)
                if not whole:
                    in_sight = (key[:, None] >= begin[None, :]) & (key[:, None] < end[None, :])
                    seen = (in_sight | (key[:, None] < below[None, :])) & row_ok[None, :]
                    p = tl.where(seen, p, 0.0)
            w = p
            if SINK:
                f = tl.load(share_at, row_ok, 1.0)
                w = p * f[None, :]
            dv_sums = dot(round_to(w, v.dtype.element_ty), dout_tile, dv_sums)
            if ONE:
                dp = dot(v_tile, tl.trans(dout_tile), zeros)
            else:
                dp = product_of_parts(v_at, key_row * v_s, key_ok, dout_at, dout_row, row_ok, zeros, D_V, BLOCK_DV)
            if SINK:
                dp = dp * f[None, :]
            dz = p * (dp - shift_row[None, :])
            if TABLES or POSITIONS:  # a key that no query sees may be NaN in v, too
                dz = tl.where(p == 0.0, 0.0, dz)
            dk_sums = dot(round_to(dz, k.dtype.element_ty), q_tile, dk_sums)

    at = (b * H_kv + kv) * S_k + k_begin + key
    of_part = part * BLOCK_D + d
    of_part_v = part * BLOCK_DV + d_v
    dk_at, dv_at = dk + at[:, None] * D + of_part[None, :], dv + at[:, None] * D_V + of_part_v[None, :]
    tl.store(dk_at, round_to(dk_sums * scale, dk.dtype.element_ty), key_ok[:, None] & (of_part[None, :] < D))
    tl.store(dv_at, round_to(dv_sums, dv.dtype.element_ty), key_ok[:, None] & (of_part_v[None, :] < D_V))
