"""Inside the kernels of block_sparse_attention: which queries and keys a program reads, and which of them count.

walk.h has the same for the CPU. A tile of queries is BLOCK_M rows: PACK heads that read one head of k, QUERIES of each.
Its keys come in tiles of BLOCK_N, in one of three forms:

    WHOLE     no mask: all keys that positions show, one tile after the other
    BLOCKS    lists of blocks of a multiple of BLOCK_N keys: a tile lies in one block
    GATHERED  lists of blocks of any other size: the listed keys one after the other, BLOCK_N of them a tile
"""

import triton
import triton.language as tl

WHOLE, BLOCKS, GATHERED = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
_CHUNK: tl.constexpr = tl.constexpr(128)  # sequences, or entries of a list, that are looked through at once


@triton.jit
def ends_of(ends, n, inside, S):
    """Where sequences n begin and how many tokens they have, whatever the values are: inside [0, S]."""
    begin = tl.minimum(tl.maximum(tl.load(ends + n, inside, 0), 0), S).to(tl.int32)
    end = tl.minimum(tl.maximum(tl.load(ends + n + 1, inside, 0), 0), S).to(tl.int32)
    return begin, tl.maximum(end - begin, 0)


@triton.jit
def sequence_at(ends, num_sequences, S, index, BLOCK: tl.constexpr):
    """(n, begin, tokens, first block) of the sequence with block `index`, blocks counting on; no tokens: none has."""
    found, begin, count, first, before = index * 0, index * 0, index * 0, index * 0, index * 0
    for base in range(0, num_sequences, _CHUNK):
        n = base + tl.arange(0, _CHUNK)
        begins, counts = ends_of(ends, n, n < num_sequences, S)
        blocks = (counts + BLOCK - 1) // BLOCK
        behind = before + tl.cumsum(blocks, 0)
        here = (index >= behind - blocks) & (index < behind)
        found += tl.sum(tl.where(here, n, 0), 0)
        begin += tl.sum(tl.where(here, begins, 0), 0)
        count += tl.sum(tl.where(here, counts, 0), 0)
        first += tl.sum(tl.where(here, behind - blocks, 0), 0)
        before += tl.sum(blocks, 0)
    return found, begin, count, first


@triton.jit
def blocks_before(ends, sequence, S, BLOCK: tl.constexpr):
    """How many blocks the sequences before one have."""
    total = sequence * 0
    for base in range(0, sequence, _CHUNK):
        n = base + tl.arange(0, _CHUNK)
        _, counts = ends_of(ends, n, n < sequence, S)
        total += tl.sum((counts + BLOCK - 1) // BLOCK, 0)
    return total


@triton.jit
def keys_up_to(position, count, STRIDE: tl.constexpr):
    """Keys at or before a position (int64): key j stands at (j + 1) * STRIDE - 1."""
    keys = tl.maximum(position + 1, 0)
    if STRIDE != 1:
        keys = keys // STRIDE
    return tl.minimum(keys, count).to(tl.int32)


@triton.jit
def sight(i, offset, count, behind, ahead, sinks, POSITIONS: tl.constexpr, CAUSAL: tl.constexpr, STRIDE: tl.constexpr):
    """Keys that query i sees by its position: [begin, end), and those below the third."""
    nothing = i * 0
    if POSITIONS:
        at = i.to(tl.int64) + offset
        end = keys_up_to(at + ahead, count, STRIDE)
        begin = tl.minimum(keys_up_to(at - behind - 1, count, STRIDE), end)
        if CAUSAL:
            return begin, end, tl.minimum(nothing + sinks, end)
        else:
            return begin, end, tl.minimum(nothing + sinks, count)
    else:
        return nothing, nothing + count, nothing


@triton.jit
def queries_that_see(key, last, offset, q_count, behind, ahead, sinks, STRIDE: tl.constexpr):
    """Queries [begin, end) of which alone some may see a key of [key, last], by their positions."""
    begin = (key.to(tl.int64) + 1) * STRIDE - 1 - ahead - offset
    end = (last.to(tl.int64) + 1) * STRIDE + behind - offset
    end = tl.where(key < sinks, q_count, end)
    begin = tl.minimum(tl.maximum(begin, 0), q_count).to(tl.int32)
    return begin, tl.minimum(tl.maximum(end, begin), q_count).to(tl.int32)


@triton.jit
def trimmed(blocks, first, last, base, begin, end, BLOCK: tl.constexpr):
    """Entries [first, last) of an ascending list without those in front of token `begin` and from token `end` on.

    base: what is taken from an entry to give the block in its sequence.
    """
    before, inside = first * 0, first * 0
    for e in range(first, last, _CHUNK):
        entry = e + tl.arange(0, _CHUNK)
        block = tl.load(blocks + entry, entry < last, 0).to(tl.int64) - base
        before += tl.sum(((entry < last) & ((block + 1) * BLOCK <= begin)).to(tl.int32), 0)
        inside += tl.sum(((entry < last) & (block * BLOCK < end)).to(tl.int32), 0)
    return first + before, tl.maximum(first + inside, first + before)


@triton.jit
def block_at(blocks, entry, inside, base, count):
    """The block of an entry, in its sequence of `count` blocks, whatever its value is."""
    block = tl.load(blocks + entry, inside, 0).to(tl.int64) - base
    return tl.maximum(tl.minimum(block, count - 1), 0).to(tl.int32)


@triton.jit
def load_tile(at, rows, columns, ALL_ROWS: tl.constexpr, ALL_COLUMNS: tl.constexpr):
    """A tile with zeros where it is not inside; rows and columns as (., 1) and (1, .)."""
    if ALL_ROWS and ALL_COLUMNS:
        return tl.load(at)
    elif ALL_ROWS:
        return tl.load(at, columns, 0.0)
    elif ALL_COLUMNS:
        return tl.load(at, rows, 0.0)
    else:
        return tl.load(at, rows & columns, 0.0)


@triton.jit
def table_bits(bits, table, query, key, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, num_tables):
    """Whether the tables' bits of (query, key of the block) are set; of broadcastable shapes. bits: as int32."""
    WORDS: tl.constexpr = (BLOCK_K + 63) // 64 * 2
    counts = table >= 0
    known = tl.maximum(tl.minimum(table, num_tables - 1), 0).to(tl.int64)
    inside = counts & (num_tables > 0) & (query >= 0) & (query < BLOCK_Q)
    word = tl.load(bits + known * (BLOCK_Q * WORDS) + query * WORDS + key // 32, inside, -1)
    return ((word >> (key % 32)) & 1) != 0


@triton.jit
def tile_of_queries(
    program, tiles, group, H_kv, ends_q, ends_k, num_sequences, S_q, S_k,
    BLOCK_Q: tl.constexpr, QUERIES: tl.constexpr, PACK: tl.constexpr, PARTS: tl.constexpr, SEQUENCES: tl.constexpr,
    LAST_FIRST: tl.constexpr,
):  # fmt: skip
    """What a program of the grid (PARTS, tiles, heads of a group in PACKs, heads of k, batch), the first fastest, has.

    (b, head of k, first head of q in the group, part, row of blocks, its place in the sequence, first query, end of
    the queries, and of the sequence: first token of q and tokens, first token of k and tokens)
    """
    TILES_A_ROW: tl.constexpr = (BLOCK_Q + QUERIES - 1) // QUERIES
    part = program % PARTS
    tile = (program // PARTS) % tiles
    rest = program // PARTS // tiles
    if LAST_FIRST:  # with causal masks the last rows are the longest
        tile = tiles - 1 - tile
    packs = (group + PACK - 1) // PACK
    head = rest % packs * PACK
    kv = rest // packs % H_kv
    b = (rest // packs // H_kv).to(tl.int64)
    row = tile // TILES_A_ROW
    q_begin, q_count, k_begin, k_count, place = row * 0, row * 0 + S_q, row * 0, row * 0 + S_k, row
    if SEQUENCES:
        n, q_begin, q_count, first = sequence_at(ends_q, num_sequences, S_q, row, BLOCK_Q)
        k_begin, k_count = ends_of(ends_k, n, n < num_sequences, S_k)
        place = row - first
    i = place * BLOCK_Q + tile % TILES_A_ROW * QUERIES
    end = tl.minimum(tl.minimum(i + QUERIES, (place + 1) * BLOCK_Q), q_count)
    return b, kv, head, part, row, place, i, end, q_begin, q_count, k_begin, k_count
