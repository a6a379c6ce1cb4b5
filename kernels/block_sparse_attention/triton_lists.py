"""Lists of blocks on the device, without waiting for their sizes: of a boolean mask, and the transpose of lists.

The transpose says for each block of keys which rows see it, ascending: backward goes through it for dk and dv. It is
made by counting: rows in chunks of _ROWS, a count for each chunk and column, their running sum, and then every chunk
writes its rows in order. A count is a whole number, so that the order in which it is added up changes nothing.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepseek_fast.gpu.launch import launch
from deepseek_fast.kernels.block_sparse_attention.triton_walk import blocks_before, ends_of, sequence_at

_ROWS = 128  # of a chunk: a program's, one after the other, which share the counts


def lists_of_mask(call: Any, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """starts, ends (lists * rows,) and columns, with room for every column of every row."""
    B, heads, rows, columns = kept.shape
    kept = kept.view(torch.uint8)
    numbers = B * heads * rows
    starts = kept.new_empty(numbers, dtype=torch.int64)
    ends = torch.empty_like(starts)
    listed = kept.new_empty(numbers * columns, dtype=torch.int32)
    b, h, r, c = kept.stride()
    launch(_lists_of_mask, (numbers,), kept, starts, ends, listed, heads, rows, columns, b, h, r, c, num_warps=4)
    return starts, ends, listed


@triton.jit
def _lists_of_mask(kept, starts, ends, listed, heads, rows, columns, kept_b, kept_h, kept_r, kept_c):
    number = tl.program_id(0).to(tl.int64)
    row, head, b = number % rows, number // rows % heads, number // rows // heads
    of_row = kept + b * kept_b + head * kept_h + row * kept_r
    first = number * columns
    at = first
    for c in range(0, columns, 1024):
        column = c + tl.arange(0, 1024)
        is_kept = (tl.load(of_row + column.to(tl.int64) * kept_c, column < columns, 0) != 0).to(tl.int32)
        place = tl.cumsum(is_kept, 0) - is_kept
        tl.store(listed + at + place, column, is_kept != 0)
        at += tl.sum(is_kept, 0)
    tl.store(starts + number, first)
    tl.store(ends + number, at)


def transposed(call: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """starts, ends (lists, columns of all sequences), rows and their entries."""
    lists, S_k = call.lists, call.k.shape[2]
    columns = S_k // call.block_k + call.sequences if call.sequences else -(-S_k // call.block_k)
    (B, heads, rows), most = lists.shape, lists.most
    number, chunks = B * heads, max(1, -(-rows // _ROWS))
    listed = lists.columns
    counts = torch.zeros((number, columns, chunks), dtype=torch.int32, device=listed.device)
    starts = torch.empty((number, columns), dtype=torch.int64, device=listed.device)
    ends = torch.empty_like(starts)
    found = torch.empty((2, number * most), dtype=torch.int32, device=listed.device)
    S_q = call.q.shape[2]
    # Of list b * heads + h the rows begin at b * list_b + h * list_head.
    list_b, list_head = lists.strides[0], max(lists.strides[1:])
    shared = (
        lists.starts, lists.ends, listed, call.ends_q, call.ends_k, counts, heads, rows, columns, chunks,
        listed.shape[0], list_b, list_head, S_q, S_k, call.sequences,
    )  # fmt: skip
    constants = {
        "BLOCK_Q": call.block_q, "BLOCK_K": call.block_k, "SEQUENCES": call.sequences > 0 or call.ends_q is not None,
        "ROWS": _ROWS, "num_warps": 1,
    }  # fmt: skip
    launch(_count, (number * chunks,), *shared, **constants)
    launch(_running_sums, (number,), counts, starts, ends, most, columns, chunks, num_warps=8)
    launch(_fill, (number * chunks,), *shared, found[0], found[1], most, **constants)
    return starts, ends, found[0], found[1]


@triton.jit
def _row_of_list(
    row, list_at, starts, ends, ends_q, ends_k, columns, entries, S_q, S_k, num_sequences,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, SEQUENCES: tl.constexpr,
):  # fmt: skip
    """Entries [e0, e1) of a row, the first column of its sequence among all, and its number of columns."""
    e0 = tl.minimum(tl.maximum(tl.load(starts + list_at + row), 0), entries).to(tl.int64)
    e1 = tl.minimum(tl.maximum(tl.load(ends + list_at + row), e0), entries).to(tl.int64)
    first, count = row * 0, row * 0 + columns
    if SEQUENCES:
        n, _, tokens, _ = sequence_at(ends_q, num_sequences, S_q, row, BLOCK_Q)
        first = blocks_before(ends_k, n, S_k, BLOCK_K)
        _, tokens_k = ends_of(ends_k, n, n < num_sequences, S_k)
        count = tl.where(tokens > 0, (tokens_k + BLOCK_K - 1) // BLOCK_K, 0)
    return e0, e1, first, count


@triton.jit
def _count(
    starts, ends, listed, ends_q, ends_k, counts, heads, rows, columns, chunks, entries, list_b, list_head, S_q, S_k,
    num_sequences, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, SEQUENCES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """counts[list, column, chunk]: rows of the chunk that keep the column."""
    chunk, number = tl.program_id(0) % chunks, (tl.program_id(0) // chunks).to(tl.int64)
    list_at = number // heads * list_b + number % heads * list_head
    for row in range(chunk * ROWS, tl.minimum(chunk * ROWS + ROWS, rows)):
        e0, e1, first, count = _row_of_list(
            row, list_at, starts, ends, ends_q, ends_k, columns, entries, S_q, S_k, num_sequences,
            BLOCK_Q, BLOCK_K, SEQUENCES,
        )  # fmt: skip
        for e in range(e0, e1, 32):
            entry = e + tl.arange(0, 32)
            column = tl.load(listed + entry, entry < e1, -1).to(tl.int64)
            kept = (column >= 0) & (column < count)
            tl.atomic_add(counts + (number * columns + first + column) * chunks + chunk, 1, kept, sem="relaxed")


@triton.jit
def _running_sums(counts, starts, ends, most, columns, chunks):
    """counts becomes where each (column, chunk) begins in its list."""
    number = tl.program_id(0).to(tl.int64)
    of_list = counts + number * columns * chunks
    before = number * 0
    for first in range(0, columns * chunks, 2048):
        at = first + tl.arange(0, 2048)
        inside = at < columns * chunks
        count = tl.load(of_list + at, inside, 0)
        behind = before.to(tl.int32) + tl.cumsum(count, 0)
        tl.store(of_list + at, behind - count, inside)
        of_column = number * columns + at // chunks
        begin = number * most + (behind - count).to(tl.int64)
        tl.store(starts + of_column, begin, inside & (at % chunks == 0))
        tl.store(ends + of_column, begin + count, inside & (at % chunks == chunks - 1))
        before += tl.sum(count, 0)


@triton.jit
def _fill(
    starts, ends, listed, ends_q, ends_k, counts, heads, rows, columns, chunks, entries, list_b, list_head, S_q, S_k,
    num_sequences, found_rows, found_entries, most,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, SEQUENCES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """One row after the other, so that a column's rows ascend: counts are places, which a row moves on by one."""
    chunk, number = tl.program_id(0) % chunks, (tl.program_id(0) // chunks).to(tl.int64)
    list_at = number // heads * list_b + number % heads * list_head
    for row in range(chunk * ROWS, tl.minimum(chunk * ROWS + ROWS, rows)):
        e0, e1, first, count = _row_of_list(
            row, list_at, starts, ends, ends_q, ends_k, columns, entries, S_q, S_k, num_sequences,
            BLOCK_Q, BLOCK_K, SEQUENCES,
        )  # fmt: skip
        for e in range(e0, e1, 32):
            entry = e + tl.arange(0, 32)
            column = tl.load(listed + entry, entry < e1, -1).to(tl.int64)
            kept = (column >= 0) & (column < count)
            place_at = counts + (number * columns + first + column) * chunks + chunk
            place = tl.load(place_at, kept, 0)
            tl.store(place_at, place + 1, kept)
            kept = kept & (place < most)
            at = number * most + place
            tl.store(found_rows + at, tl.zeros([32], tl.int32) + row, kept)
            tl.store(found_entries + at, entry.to(tl.int32), kept)
        tl.debug_barrier()  # the next row reads the places
