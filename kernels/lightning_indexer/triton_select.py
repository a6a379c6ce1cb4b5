"""The k largest of each row on CUDA tensors: exact, of equal scores the lower index, in one or two looks at a row.

Scores become integers in the same order (`order_of`), so that a threshold is found by halving a range of integers and
counting how many scores reach its middle. A short row is counted in registers. Of a long one the k-th largest is first
guessed, a little low, from scores all over it; what reaches the guess is compacted, in the order of places, and counted
in registers. Where too few or too many reach it, or k is large, counting goes over the row itself, from L2.

    take(key) = key > high, or low <= key <= high and fewer than `still` such came before it
"""

import triton
import triton.language as tl

from deepseek_fast.kernels.lightning_indexer.triton_window import wide, window

NOT_THERE = tl.constexpr(-(2**31))  # below every score
LEAST = tl.constexpr(-2139095040)  # order_of(-infinity) + 1: what counts at all
MOST = tl.constexpr(2**31 - 1)  # NaN
# Scores that a warp loads at once, a thread one of each line: so running sums stay in a warp.
LINE = tl.constexpr(32)
PARTS = tl.constexpr(4)  # of a tile, whose running sums are one
INFINITY = tl.constexpr(0x7F800000)  # order_of(infinity)
GUESS_MARGIN = tl.constexpr(16)  # a quarter and 16 more of a sample than its share: 4 standard deviations of 128


@triton.jit
def order_of(score, IS_KEYS: tl.constexpr):
    """int32 in the order of scores: NaN highest, both zeros one."""
    if IS_KEYS:
        return score
    else:
        bits = score.to(tl.float32).to(tl.int32, bitcast=True)
        key = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
        key = tl.where(bits == NOT_THERE, 0, key)
        return tl.where((bits & 0x7FFFFFFF) > 0x7F800000, MOST, key)


@triton.jit
def _reaching(keys, low):
    return tl.sum((keys >= low).to(tl.int32))


@triton.jit
def _places(SIZE: tl.constexpr, zero):
    """0 ... SIZE - 1."""
    return tl.arange(0, SIZE) + zero


@triton.jit
def _keys_at(scores, j, begin, end, IS_KEYS: tl.constexpr):
    """Keys of the places j of a row; NOT_THERE outside [begin, end)."""
    inside = (j >= begin) & (j < end)
    return tl.where(inside, order_of(tl.load(scores + j, inside, 0), IS_KEYS), NOT_THERE)


@triton.jit
def _running(counts, SIZE: tl.constexpr):
    """Running sums of (SIZE,) and the whole sum."""
    by_lines = tl.reshape(counts, [SIZE // LINE, LINE])
    lines = tl.sum(by_lines, 1)
    sums = tl.cumsum(by_lines, 1) + (tl.cumsum(lines, 0) - lines)[:, None]
    return tl.reshape(sums, [SIZE]), tl.sum(lines, 0)


@triton.jit
def _middle(low, high):
    """(low + high) / 2, rounded up."""
    return ((low.to(tl.int64) + high.to(tl.int64) + 1) >> 1).to(tl.int32)


@triton.jit
def _threshold(keys, low, count, high, above, k, slack):
    """[low, high] around the k-th largest of keys, and how many reach low and lie above high: low is that key, or
    from k to k + slack keys reach it. Before: count >= k reach low, above < k lie above high."""
    while (low < high) & (count > k + slack):
        middle = _middle(low, high)
        reached = _reaching(keys, middle)
        if reached >= k:
            low, count = middle, reached
        else:
            high, above = middle - 1, reached
    return low, count, high, above


@triton.jit
def _reaching_in_row(scores, zero, begin, end, low, TILE: tl.constexpr, IS_KEYS: tl.constexpr):
    total = tl.zeros([TILE], tl.int32)
    for first in range(begin // TILE * TILE, end, TILE):
        total += (_keys_at(scores, first + _places(TILE, zero), begin, end, IS_KEYS) >= low).to(tl.int32)
    return tl.sum(total)


@triton.jit
def _put(out, out_keys, places, keys, position, taken, k, EMIT: tl.constexpr):
    tl.store(out + position, places, taken & (position < k))
    if EMIT:
        tl.store(out_keys + position, keys, taken & (position < k))


@triton.jit
def _put_rest(out, out_keys, count, k, TILE: tl.constexpr, EMIT: tl.constexpr):
    """-1 from count on."""
    for first in range(count // TILE * TILE, k, TILE):
        at = first + tl.arange(0, TILE)
        tl.store(out + at, tl.full([TILE], -1, tl.int32), (at >= count) & (at < k))
        if EMIT:
            tl.store(out_keys + at, tl.full([TILE], NOT_THERE, tl.int32), (at >= count) & (at < k))


@triton.jit(do_not_specialize=["zero"])
def _select(
    scores, begins, ends, places_of, found_places, out, out_keys,
    n, score_stride, zero, k, parts, part_size, next_n, first_row,
    SIZE: tl.constexpr, SAMPLE: tl.constexpr, TILE: tl.constexpr, FORM: tl.constexpr, HAS_BEGINS: tl.constexpr,
    ENDS: tl.constexpr, IS_KEYS: tl.constexpr, EMIT: tl.constexpr,
):  # fmt: skip
    """The k largest of one part of one row. FORM 0: a part has at most SIZE scores; 1: what reaches a guess is found
    first, at most SIZE; 2: no more than SIZE are not enough, the row is looked at each time.

    zero: 0, but not known to be: else addresses are known to be multiples of 16 bytes, loads take four scores a thread,
    and what they give takes another layout to be stored at places of its own.
    IS_KEYS: scores are keys already, and a place p of a row stands for places_of[row, p].
    EMIT: the keys of what is chosen are stored, too.
    """
    job = tl.program_id(0).to(tl.int64)
    row, part = job // parts, (job % parts).to(tl.int32)
    absolute = (row + first_row).to(tl.int32)
    begin, end = window(begins, ends, absolute, absolute >= 0, n, next_n, HAS_BEGINS, ENDS)
    begin = tl.maximum(begin, part * part_size)
    end = tl.minimum(end.to(tl.int64), (part + 1).to(tl.int64) * part_size).to(tl.int32)
    scores += row * score_stride
    out += job * k
    if IS_KEYS:
        places_of += row * score_stride
    if EMIT:
        out_keys += job * k
    low = tl.full([], LEAST, tl.int32)
    if FORM == 0:
        places = part * part_size + _places(SIZE, zero)
        keys = _keys_at(scores, places, begin, end, IS_KEYS)
        _from_keys(keys, places, places_of, low, out, out_keys, k, SAMPLE, IS_KEYS, EMIT)
    elif FORM == 1:
        low = _guess(scores, zero, begin, end, k, SAMPLE, IS_KEYS)
        found_places += job * SIZE
        low, found = _collect(scores, zero, begin, end, low, found_places, SIZE, TILE, IS_KEYS)
        if (found <= SIZE) & ((found >= k) | (low == LEAST)):
            tl.debug_barrier()  # what other threads stored
            at = _places(SIZE, zero)
            places = tl.load(found_places + at, at < found, -1)
            keys = _keys_at(scores, places, 0, end, IS_KEYS)
            _from_keys(keys, places, places_of, low, out, out_keys, k, SAMPLE, IS_KEYS, EMIT)
        else:
            _from_the_row(scores, zero, places_of, begin, end, out, out_keys, k, SAMPLE, TILE, IS_KEYS, EMIT)
    else:
        _from_the_row(scores, zero, places_of, begin, end, out, out_keys, k, SAMPLE, TILE, IS_KEYS, EMIT)


@triton.jit
def _from_keys(
    keys, places, places_of, low, out, out_keys, k,
    SAMPLE: tl.constexpr, IS_KEYS: tl.constexpr, EMIT: tl.constexpr,
):  # fmt: skip
    """Chooses among keys, all that reach low, in the order of their places."""
    count = _reaching(keys, low)
    high, above, reach = tl.full([], MOST, tl.int32), tl.full([], 0, tl.int32), count
    if count > k:
        low, reach, high, above = _threshold(keys, low, count, tl.max(keys), above, k, 0)
    greater, equal = keys > high, (keys >= low) & (keys <= high)
    taken, position, _, _ = _ranked(greater, equal, above * 0, above * 0, tl.minimum(reach, k) - above)
    if IS_KEYS:
        places = tl.load(places_of + places, taken, 0)
    _put(out, out_keys, places, keys, position, taken, k, EMIT)
    _put_rest(out, out_keys, tl.minimum(count, k), k, SAMPLE, EMIT)


@triton.jit
def _ranked(greater, equal, greaters, equals, still):
    """Which are taken, and their positions, after `greaters` and `equals` earlier ones; and those with these."""
    # One running sum for both: what is above in the low 16 bits, what is equal in the high ones.
    sums, total = _running(greater.to(tl.int32) + (equal.to(tl.int32) << 16), greater.shape[0])
    before = equals + (sums >> 16)
    taken = greater | (equal & (before <= still))
    position = greaters + (sums & 0xFFFF) + tl.minimum(before, still) - 1
    return taken, position, greaters + (total & 0xFFFF), equals + (total >> 16)


@triton.jit
def _guess(scores, zero, begin, end, k, SAMPLE: tl.constexpr, IS_KEYS: tl.constexpr):
    """A key that a little more than k scores of a row reach, most likely: from SAMPLE scores all over it."""
    length = tl.maximum(end - begin, 0)
    at = _places(SAMPLE, zero)
    line = (at // LINE).to(tl.int64) * tl.maximum(length - LINE, 0) // (SAMPLE // LINE - 1)
    places = begin + line.to(tl.int32) + at % LINE
    keys = _keys_at(scores, places, begin, end, IS_KEYS)
    share = (wide(k) * SAMPLE // tl.maximum(length, 1)).to(tl.int32) + 1
    share += share // 4 + GUESS_MARGIN
    low = tl.full([], LEAST, tl.int32)
    count = _reaching(keys, low)
    if count > share:
        low, count, _, _ = _threshold(keys, low, count, tl.max(keys), tl.full([], 0, tl.int32), share, share // 8)
    return low


@triton.jit
def _reaches(score, low, limit, IS_KEYS: tl.constexpr):
    if IS_KEYS:
        return score >= low
    else:
        return ~(score.to(tl.float32) < limit)  # NaN reaches


@triton.jit
def _collect(
    scores, zero, begin, end, low, found_places, SIZE: tl.constexpr, TILE: tl.constexpr, IS_KEYS: tl.constexpr
):
    """Stores the places of scores that reach low, in their order, SIZE at most; low (no NaN then) and how many."""
    if not IS_KEYS:
        low = tl.minimum(low, INFINITY)
    limit = tl.where(low < 0, low ^ 0x7FFFFFFF, low).to(tl.float32, bitcast=True)
    found = tl.full([], 0, tl.int32)
    field = tl.arange(0, PARTS) * 8
    for first in range(begin // TILE * TILE, end, TILE):
        j = first + _places(TILE, zero)
        inside = (j >= begin) & (j < end)
        score = tl.load(scores + j, inside, 0)
        reach = inside & _reaches(score, low, limit, IS_KEYS)
        # One running sum for all parts, each in 8 bits: a line has 32 scores.
        counts = tl.reshape(reach.to(tl.int32), [PARTS, TILE // LINE // PARTS, LINE])
        packed = tl.sum(counts << field[:, None, None], 0)
        lines = tl.reshape((tl.sum(packed, 1)[None, :] >> field[:, None]) & 0xFF, [TILE // LINE])
        before = tl.reshape(tl.cumsum(lines, 0) - lines, [PARTS, TILE // LINE // PARTS])
        sums = before[:, :, None] + ((tl.cumsum(packed, 1)[None, :, :] >> field[:, None, None]) & 0xFF)
        to = found - 1 + tl.reshape(sums, [TILE])
        tl.store(found_places + to, j, reach & (to < SIZE))
        found += tl.sum(lines, 0)
    return low, found


@triton.jit
def _from_the_row(
    scores, zero, places_of, begin, end, out, out_keys, k,
    SAMPLE: tl.constexpr, TILE: tl.constexpr, IS_KEYS: tl.constexpr, EMIT: tl.constexpr,
):  # fmt: skip
    """The same by looking at the whole row for each count: at most 33 times, and once more to write."""
    low, high = tl.full([], LEAST, tl.int32), tl.full([], MOST, tl.int32)
    above = tl.full([], 0, tl.int32)
    count = _reaching_in_row(scores, zero, begin, end, low, TILE, IS_KEYS)
    while (low < high) & (count > k):
        middle = _middle(low, high)
        reached = _reaching_in_row(scores, zero, begin, end, middle, TILE, IS_KEYS)
        if reached >= k:
            low, count = middle, reached
        else:
            high, above = middle - 1, reached
    still = tl.minimum(count, k) - above
    greaters, equals = tl.full([], 0, tl.int32), tl.full([], 0, tl.int32)
    for first in range(begin // TILE * TILE, end, TILE):
        j = first + _places(TILE, zero)
        keys = _keys_at(scores, j, begin, end, IS_KEYS)
        greater, equal = keys > high, (keys >= low) & (keys <= high)
        taken, position, greaters, equals = _ranked(greater, equal, greaters, equals, still)
        places = j
        if IS_KEYS:
            places = tl.load(places_of + j, taken, 0)
        _put(out, out_keys, places, keys, position, taken, k, EMIT)
    _put_rest(out, out_keys, tl.minimum(count, k), k, SAMPLE, EMIT)


@triton.jit
def _pack(scores, places, score_stride, k, parts, SIZE: tl.constexpr):
    """int64 of the chosen places of a row: larger for a larger score, then for a lower place; the least for -1.

    A row has `parts` programs, of SIZE places each.
    """
    row = (tl.program_id(0) // parts).to(tl.int64)
    at = tl.program_id(0) % parts * SIZE + tl.arange(0, SIZE)
    place = tl.load(places + row * k + at, at < k, -1)
    key = order_of(tl.load(scores + row * score_stride + place, place >= 0, 0), False)
    packed = (key.to(tl.int64) << 32) | (0x7FFFFFFF - place).to(tl.int64)
    return row, at, tl.where(place >= 0, packed, -(2**63))


@triton.jit
def _by_value(scores, places, score_stride, k, SIZE: tl.constexpr):
    """Sorts the k chosen places of a row, at most SIZE, by their scores, in place."""
    row, at, packed = _pack(scores, places, score_stride, k, 1, SIZE)
    packed = tl.sort(packed, 0, descending=True)
    place = 0x7FFFFFFF - (packed & 0x7FFFFFFF).to(tl.int32)
    tl.store(places + row * k + at, tl.where(packed != -(2**63), place, -1), at < k)


@triton.jit
def _packed_by_value(scores, places, packed, score_stride, k, SIZE: tl.constexpr):
    """For more than _by_value sorts: packed (rows, k), for torch.sort."""
    row, at, values = _pack(scores, places, score_stride, k, tl.cdiv(k, SIZE), SIZE)
    tl.store(packed + row * k + at, values, at < k)


@triton.jit
def _to_slots(places, table, count, width, a_request, page_size, table_stride, SIZE: tl.constexpr):
    """Positions in a request become page * page_size + offset, in place; a request has a_request places."""
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    place = tl.load(places + at, at < count, -1)
    entry = tl.maximum(place, 0) // page_size
    page = tl.load(table + at // a_request * table_stride + entry, (place >= 0) & (entry < width), 0)
    tl.store(places + at, tl.where(place < 0, -1, page * page_size + place % page_size), at < count)
