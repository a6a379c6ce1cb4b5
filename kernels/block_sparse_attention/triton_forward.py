"""block_sparse_attention forward on CUDA tensors: a program has a tile of queries and goes through their keys once.

Online softmax in base 2: with a scale above 0 and no bias the scale and log2(e) go into one multiply-add a score, and
m, the row's largest score, is kept as their product. Tiles that every query sees whole take no mask.
"""

import triton
import triton.language as tl

from deepseek_fast.gpu.numbers import dot, round_to
from deepseek_fast.kernels.block_sparse_attention.triton_walk import (
    BLOCKS,
    GATHERED,
    WHOLE,
    block_at,
    load_tile,
    sight,
    table_bits,
    tile_of_queries,
    trimmed,
)

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
NO_BIAS, BIAS_OF_KEYS, BIAS_OF_PAIRS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def first_key(columns, t, inside, e0, k_count, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr):
    """Of the tile t of BLOCK_N keys of a list that begins at entry e0."""
    TILES: tl.constexpr = BLOCK_K // BLOCK_N
    column = block_at(columns, e0 + t // TILES, inside, 0, (k_count + BLOCK_K - 1) // BLOCK_K)
    return column * BLOCK_K + t % TILES * BLOCK_N


@triton.jit
def keys_of(columns, f, total, e0, k_count, BLOCK_K: tl.constexpr):
    """The keys at places f of a list's keys one after the other, k_count where there is none."""
    column = block_at(columns, e0 + f // BLOCK_K, f < total, 0, (k_count + BLOCK_K - 1) // BLOCK_K)
    return tl.where(f < total, tl.minimum(column * BLOCK_K + f % BLOCK_K, k_count), k_count)


@triton.jit
def bias_tile(bias, bias_s, i, row_ok, key, key_ok, heads, BIAS: tl.constexpr):
    """token_bias in float32, (BLOCK_M, BLOCK_N) or (1, BLOCK_N); heads: where the rows' heads begin."""
    if BIAS == BIAS_OF_KEYS:
        return tl.load(bias + key, key_ok, 0.0).to(tl.float32)[None, :]
    else:
        at = bias + (heads + i.to(tl.int64) * bias_s)[:, None] + key[None, :]
        return tl.load(at, row_ok[:, None] & key_ok[None, :], 0.0).to(tl.float32)


@triton.jit(do_not_specialize=["behind", "ahead", "sinks", "offset", "entries", "num_tables"])
def _attend(
    q, k, v, out, lse, starts, ends, columns, tables, bits, bias, sink_logits, ends_q, ends_k,
    scale, behind, ahead, sinks, offset, group, H_kv, S_q, S_k, tiles, entries, num_tables, num_sequences,
    q_b, q_h, q_s, k_b, k_h, k_s, v_b, v_h, v_s, list_b, list_h, list_kv, bias_b, bias_h, bias_s,
    D: tl.constexpr, D_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PACK: tl.constexpr, FORM: tl.constexpr, BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr, STRIDE: tl.constexpr, POSITIONS: tl.constexpr, CAUSAL: tl.constexpr, AT_END: tl.constexpr,
    EVEN: tl.constexpr, FOLD: tl.constexpr, BIAS: tl.constexpr, SINK: tl.constexpr, TABLES: tl.constexpr,
    SEQUENCES: tl.constexpr,
):  # fmt: skip
    QUERIES: tl.constexpr = BLOCK_M // PACK
    CHUNKS: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    b, kv, head, part, row, place, i0, i_end, q_begin, q_count, k_begin, k_count = tile_of_queries(
        tl.program_id(0), tiles, group, H_kv, ends_q, ends_k, num_sequences, S_q, S_k,
        BLOCK_Q, QUERIES, PACK, PARTS, SEQUENCES, CAUSAL,
    )  # fmt: skip
    m_row = tl.arange(0, BLOCK_M)
    i = i0 + m_row % QUERIES
    head_m = head + m_row // QUERIES
    row_ok = (i < i_end) & (head_m < group)
    head_m = kv * group + head_m
    q_row = head_m.to(tl.int64) * q_h + (q_begin + i).to(tl.int64) * q_s
    d = tl.arange(0, BLOCK_D)
    q_at = q + b * q_b + q_row[:, None] + d[None, :]
    if CHUNKS == 1:
        q_tile = load_tile(q_at, row_ok[:, None], d[None, :] < D, False, D == BLOCK_D)
    k_at = k + b * k_b + kv.to(tl.int64) * k_h + k_begin.to(tl.int64) * k_s
    v_at = v + b * v_b + kv.to(tl.int64) * v_h + k_begin.to(tl.int64) * v_s
    d_v = part * BLOCK_DV + tl.arange(0, BLOCK_DV)

    if AT_END:
        offset = (k_count - q_count).to(tl.int64)
    begin, end, below = sight(i, offset, k_count, behind, ahead, sinks, POSITIONS, CAUSAL, STRIDE)
    first_begin, first_end, first_below = sight(i0, offset, k_count, behind, ahead, sinks, POSITIONS, CAUSAL, STRIDE)
    last_begin, last_end, last_below = sight(
        tl.maximum(i_end - 1, i0), offset, k_count, behind, ahead, sinks, POSITIONS, CAUSAL, STRIDE
    )
    last_end = tl.where(i0 < i_end, last_end, 0)

    # Tiles [low, high): of a list the entries that positions show
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

    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    l = tl.zeros([BLOCK_M], tl.float32)  # noqa: E741
    acc = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    factor = scale * LOG2_E
    for t in range(low, high):
        if FORM == GATHERED:
            key = key0
            key0 = keys_of(columns, (t + 1) * BLOCK_N + tl.arange(0, BLOCK_N), total, e0, k_count, BLOCK_K)
        else:
            at_key = key0
            key = at_key + tl.arange(0, BLOCK_N)
            if FORM == BLOCKS:  # the next tile's place is read while this one is computed
                key0 = first_key(columns, t + 1, t + 1 < high, e0, k_count, BLOCK_K, BLOCK_N)
            else:
                key0 = (t + 1 + tl.where(t + 1 < sink_tiles, 0, first_tile - sink_tiles)) * BLOCK_N
        if FORM == GATHERED:
            k_of_tile, v_of_tile = k_at, v_at
            k_rows, v_rows = key.to(tl.int64) * k_s, key.to(tl.int64) * v_s
        else:
            k_of_tile, v_of_tile = k_at + at_key.to(tl.int64) * k_s, v_at + at_key.to(tl.int64) * v_s
            k_rows, v_rows = tl.arange(0, BLOCK_N) * k_s, tl.arange(0, BLOCK_N) * v_s
        # What no query of the tile sees may be NaN: it is read as zeros.
        key_ok = key < k_count
        shown_ok = key_ok
        if POSITIONS:
            shown_ok = key_ok & (((key >= first_begin) & (key < last_end)) | (key < last_below))
        if CHUNKS == 1:
            k_t = load_tile(
                k_of_tile + k_rows[None, :] + d[:, None], d[:, None] < D, key_ok[None, :], D == BLOCK_D, EVEN
            )
            z = dot(q_tile, k_t, tl.zeros([BLOCK_M, BLOCK_N], tl.float32))
        else:
            z = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            for c in range(0, CHUNKS):
                d_c = c * BLOCK_D + d
                q_c = tl.load(q_at + c * BLOCK_D, row_ok[:, None] & (d_c[None, :] < D), 0.0)
                k_c = tl.load(k_of_tile + k_rows[None, :] + d_c[:, None], (d_c[:, None] < D) & key_ok[None, :], 0.0)
                z = dot(q_c, k_c, z)
        v_tile = load_tile(
            v_of_tile + v_rows[:, None] + d_v[None, :],
            shown_ok[:, None], d_v[None, :] < D_V, EVEN and not POSITIONS, D_V % BLOCK_DV == 0,
        )  # fmt: skip
        if not FOLD:
            z = z * scale
            if BIAS:
                z += bias_tile(
                    bias + b * bias_b + k_begin, bias_s, q_begin + i, row_ok, key, key_ok,
                    head_m.to(tl.int64) * bias_h, BIAS,
                )  # fmt: skip
        if TABLES or FORM == GATHERED:
            seen = key_ok[None, :] & (i >= 0)[:, None]
            if POSITIONS:
                in_sight = (key[None, :] >= begin[:, None]) & (key[None, :] < end[:, None])
                seen = seen & (in_sight | (key[None, :] < below[:, None]))
            if TABLES:
                if FORM == GATHERED:
                    f = t * BLOCK_N + tl.arange(0, BLOCK_N)
                    table = tl.load(tables + e0 + f // BLOCK_K, f < total, -1)[None, :]
                else:
                    table = tl.load(tables + e0 + t // (BLOCK_K // BLOCK_N))
                seen = seen & table_bits(
                    bits, table, (i - place * BLOCK_Q)[:, None], (key % BLOCK_K)[None, :], BLOCK_Q, BLOCK_K, num_tables
                )
                # Nor is a key read that no query's bits show.
                v_tile = tl.where((tl.max(seen.to(tl.int32), 0) > 0)[:, None], v_tile, 0.0)
            z = tl.where(seen, z, float("-inf"))
        elif POSITIONS:
            whole = ((at_key >= last_begin) & (at_key + BLOCK_N <= first_end)) | (at_key + BLOCK_N <= first_below)
            if not whole:
                in_sight = (key[None, :] >= begin[:, None]) & (key[None, :] < end[:, None])
                z = tl.where(in_sight | (key[None, :] < below[:, None]), z, float("-inf"))
        elif not EVEN:  # noqa: SIM102 (one is a constant, the other is not)
            if at_key + BLOCK_N > k_count:
                z = tl.where(key_ok[None, :], z, float("-inf"))
        # m = max(m, the tile's largest);  p = exp(z - m);  l = l r + sum p;  acc = acc r + p v,  r = exp(m before - m)
        if FOLD:
            m_new = tl.maximum(m, tl.max(z, 1) * factor)
            m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)
            p = tl.math.exp2(z * factor - m_safe[:, None])
            r = tl.math.exp2(m - m_safe)
        else:
            m_new = tl.maximum(m, tl.max(z, 1))
            m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)
            p = tl.math.exp2((z - m_safe[:, None]) * LOG2_E)
            r = tl.math.exp2((m - m_safe) * LOG2_E)
        m = m_new
        l = l * r + tl.sum(p, 1)  # noqa: E741
        acc = acc * r[:, None]
        acc = dot(round_to(p, v.dtype.element_ty), v_tile, acc)

    # out = acc / l, with a sink logit among the weights; lse without it
    nothing = l == 0.0
    unit: tl.constexpr = 1.0 if FOLD else LOG2_E  # of m, to base 2
    total_weight = tl.where(nothing, 1.0, l)
    if SINK:
        logit = tl.load(sink_logits + head_m, row_ok, float("-inf")) * LOG2_E
        top = tl.maximum(m * unit, logit)
        top = tl.where(nothing | (logit == float("inf")), 0.0, top)
        shrink = tl.math.exp2(m * unit - top)
        total_weight = l * shrink + tl.math.exp2(logit - top)
        result = acc * (shrink / total_weight)[:, None]
        result = tl.where((nothing | (logit == float("inf")))[:, None], 0.0, result)
    else:
        result = acc * (1.0 / total_weight)[:, None]
    H = group * H_kv
    token = (b * H + head_m) * S_q + q_begin + i
    out_at = out + token[:, None] * D_V + d_v[None, :]
    tl.store(out_at, round_to(result, out.dtype.element_ty), row_ok[:, None] & (d_v[None, :] < D_V))
    if part == 0:
        sums = tl.where(nothing, float("-inf"), m * (LN_2 if FOLD else 1.0) + tl.log(tl.where(nothing, 1.0, l)))
        tl.store(lse + token, sums, row_ok)
