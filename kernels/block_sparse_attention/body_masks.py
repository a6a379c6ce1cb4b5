"""Which keys a query sees, in BlockSparseAttention's body: ref_masks.py in plain ai.onnx.

Q and K, the numbers of queries and keys, count one more than there are. Tensors of all scores are
(B, H_kv, G, Q, K), G heads of q to one of k, with 1 for a dimension that does not matter. The additional query and key
belong to a sequence of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deepseek_fast.onnx._body import MAX_INT64

if TYPE_CHECKING:
    from deepseek_fast.onnx._body import BodyWriter

FAR = 2**62  # keys: a window's side without a limit
WORD = 64  # keys in an element of bits
HIDDEN, WHOLE = -2, -1  # in place of the number of a partial block's table
INT64, BOOL, UINT64 = 7, 9, 13  # types of TensorProto


class Side:
    """Queries or keys: of each its place in its sequence, its sequence, and its block; int64 of shape (Q,) or (K,)."""

    def __init__(self, body: BodyWriter, count: str, ends: str, block: str) -> None:
        zero, one = body.constant([0], "int64"), body.constant([1], "int64")
        last, all_of_them = body.constant([-1], "int64"), body.constant([MAX_INT64], "int64")
        index = body.op("Range", body.constant(0, "int64"), body.op("Squeeze", count), body.constant(1, "int64"))
        later = body.op("Slice", ends, one, all_of_them)
        over = body.op("GreaterOrEqual", body.op("Unsqueeze", index, last), later)  # ends that are behind
        pad = body.op("Expand", body.constant(False, "bool"), body.op("Concat", count, one, axis=0))
        over = body.op("Cast", body.op("Concat", over, pad, axis=1), to=INT64)
        self.sequence = body.op("Squeeze", body.op("ReduceSum", over, last, keepdims=1), last)
        self.place = body.op("Sub", index, body.op("Gather", ends, self.sequence))
        lengths = body.op("Sub", later, body.op("Slice", ends, zero, last))
        self.lengths = body.op("Concat", lengths, zero, axis=0)
        up = body.op("Sub", body.op("Add", self.lengths, block), one)
        self.blocks = body.op("Div", up, block)  # of each sequence
        self.block = body.op("Div", self.place, block)
        self.of_block = body.op("Mod", self.place, block)


class Masks:
    def __init__(self, body: BodyWriter, sizes: Any) -> None:
        self.body, self.sizes = body, sizes
        self.zero = body.constant([0], "int64")
        block = body.integers("block_size")
        self.block_q, self.block_k = (body.op("Gather", block, body.constant([i], "int64")) for i in (0, 1))
        ends_q = self._first_of("cu_seqlens_q", body.op("Concat", self.zero, sizes.S_q, axis=0))
        has_q = body.op("Greater", body.op("Size", "cu_seqlens_q"), body.constant(0, "int64"))
        whole = body.op("Concat", self.zero, sizes.S_k, axis=0)
        ends_k = self._first_of("cu_seqlens_k", body.choose(has_q, lambda: ends_q, lambda: whole, INT64))
        self.queries = Side(body, sizes.Q, ends_q, self.block_q)
        self.keys = Side(body, sizes.K, ends_k, self.block_k)

    def seen(self) -> str:
        """bool, with five dimensions or two."""
        return self.body.op("And", self._by_position(), self._by_mask())

    def bias(self) -> str:
        """float (B | 1, H_kv | 1, G | 1, Q | 1, K), of zeros where there is none."""
        body, one = self.body, self.sizes.one
        given = self._four_dims(body.to_float("token_bias"))
        B, H, S, columns = self._dims(given, 4)
        rest = body.op("Sub", self.sizes.K, columns)
        right = body.op("Expand", body.constant(0.0), body.op("Concat", B, H, S, rest, axis=0))
        wide = body.op("Concat", given, right, axis=3)
        # One for all queries, or another row.
        more = body.op("Where", body.op("Equal", S, one), self.zero, one)
        below = body.op("Expand", body.constant(0.0), body.op("Concat", B, H, more, self.sizes.K, axis=0))
        return self._by_group(body.op("Concat", wide, below, axis=2))

    def shape_of_keys(self, seen: str) -> str:
        """(B | 1, H_kv | 1, K, 1), of a mask with five dimensions."""
        B, H_kv, _, _, K = self._dims(seen, 5)
        return self.body.op("Concat", B, H_kv, K, self.sizes.one, axis=0)

    def _by_position(self) -> str:
        """bool (Q, K): sequences, causality, window and sinks."""
        body, queries, keys = self.body, self.queries, self.keys
        lengths = body.op("Sub", *(body.op("Gather", side.lengths, queries.sequence) for side in (keys, queries)))
        offset = body.op("Where", body.flag("q_at_end"), lengths, body.integer("q_offset"))
        at = self._upright(body.op("Add", queries.place, offset))
        stride, one = body.integer("key_stride"), self.sizes.one
        j = body.op("Sub", body.op("Mul", body.op("Add", keys.place, one), stride), one)
        window, far = body.integers("window"), body.constant([FAR], "int64")
        left, right = (body.op("Gather", window, body.constant([i], "int64")) for i in (0, 1))
        left, right = (body.op("Where", body.op("Less", side, self.zero), far, side) for side in (left, right))
        near = body.op(
            "And",
            body.op("GreaterOrEqual", j, body.op("Sub", at, left)),
            body.op("LessOrEqual", j, body.op("Add", at, right)),
        )
        near = body.op("Or", near, body.op("Less", keys.place, body.integer("sinks")))
        before = body.op("Or", body.op("LessOrEqual", j, at), body.op("Not", body.flag("is_causal")))
        same = body.op("Equal", self._upright(queries.sequence), keys.sequence)
        return body.op("And", same, body.op("And", near, before))

    def _by_mask(self) -> str:
        """bool (B | 1, H_kv | 1, G | 1, Q, K): kept blocks; all where there is no mask."""
        body = self.body
        has_lists = body.op("Greater", body.op("Size", "row_offsets"), body.constant(0, "int64"))
        has_tables = body.op("Greater", body.op("Size", "tables"), body.constant(0, "int64"))
        # Not within a branch: ONNX Runtime 1.24 to 1.30 loses constants above 127 bytes where it takes a branch.
        shifts = body.constant(range(WORD), "uint64")
        given = self._four_dims("block_mask")

        def listed() -> str:
            return body.op("Not", body.op("Equal", self._listed(), body.constant(HIDDEN, "int64")))

        def whole() -> str:
            kept = body.choose(has_lists, listed, lambda: given, BOOL)
            return self._of_each_score(kept, body.constant(True, "bool"))

        kept = body.choose(has_tables, lambda: self._partial(shifts), whole, BOOL)
        return self._by_group(kept)

    def _listed(self) -> str:
        """int64 (B | 1, heads, rows, columns): HIDDEN, WHOLE, or the number of the table of a listed block."""
        body, one, last = self.body, self.sizes.one, self.body.constant([-1], "int64")
        offsets = body.op("Cast", self._at_least("row_offsets", 3), to=INT64)
        begins = body.op("Slice", offsets, self.zero, last, last)
        ends = body.op("Slice", offsets, one, body.constant([MAX_INT64], "int64"), last)
        counts = body.op("Reshape", body.op("Sub", ends, begins), last)
        longest = body.reduce("ReduceMax", body.op("Concat", counts, self.zero, axis=0), [0])
        steps = body.op("Range", body.constant(0, "int64"), body.op("Squeeze", longest), body.constant(1, "int64"))
        entry = body.op("Add", body.op("Unsqueeze", begins, last), steps)
        is_entry = body.op("Less", entry, body.op("Unsqueeze", ends, last))
        entry = body.op("Where", is_entry, entry, body.op("Size", "columns"))
        # Behind the columns of all entries one more, of those that are none.
        num_columns = body.reduce("ReduceMax", self.keys.blocks, [0])
        columns = body.op("Concat", body.op("Cast", "columns", to=INT64), num_columns, axis=0)
        tables = body.op("Cast", "tables", to=INT64)
        whole = body.op("Expand", body.constant(WHOLE, "int64"), body.op("Shape", columns))
        tables = body.op("Concat", tables, whole, axis=0)
        wide = body.op("Add", num_columns, one)
        # (0,) stands for tables of blocks that are whole: then the first entries are those of `whole`.
        shape = body.op("Concat", body.op("Shape", begins), wide, axis=0)
        nothing = body.op("Expand", body.constant(HIDDEN, "int64"), shape)
        places, values = (body.op("Gather", of, entry) for of in (columns, tables))
        matrix = body.op("ScatterElements", nothing, places, values, axis=3)
        return body.op("Slice", matrix, self.zero, num_columns, body.constant([3], "int64"))

    def _partial(self, shifts: str) -> str:
        """bool (B | 1, heads, Q, K): the bit of a table, or what a block that is not partial is."""
        body = self.body
        _, _, words = self._dims(self._at_least("bits", 3), 3)
        count = body.op("Mul", body.op("Size", "bits"), body.constant([WORD], "int64"))
        word = body.op("Unsqueeze", body.op("Cast", "bits", to=UINT64), body.constant([-1], "int64"))
        shifted = body.op("BitShift", word, shifts, direction="RIGHT")
        bits = body.op("Equal", body.op("Mod", shifted, body.constant(2, "uint64")), body.constant(1, "uint64"))
        bits = body.op("Reshape", bits, body.constant([-1], "int64"))
        bits = body.op("Concat", bits, body.constant([False, True], "bool"), axis=0)
        table = self._of_each_score(self._listed(), body.constant(WHOLE, "int64"))
        width = body.op("Mul", words, body.constant([WORD], "int64"))
        in_table = body.op("Add", body.op("Mul", self._upright(self.queries.of_block), width), self.keys.of_block)
        place = body.op("Add", body.op("Mul", table, body.op("Mul", self.block_q, width)), in_table)
        is_hidden = body.op("Equal", table, body.constant(HIDDEN, "int64"))
        other = body.op("Where", is_hidden, count, body.op("Add", count, self.sizes.one))
        is_partial = body.op("GreaterOrEqual", table, body.constant(0, "int64"))
        return body.op("Gather", bits, body.op("Where", is_partial, place, other))

    def _of_each_score(self, matrix: str, otherwise: str) -> str:
        """(B | 1, heads, Q, K) of (B | 1, heads, rows, columns): that of its block; otherwise where there is none."""
        body, last = self.body, self.body.constant([-1], "int64")
        B, heads, rows, columns = self._dims(matrix, 4)
        size = body.op("Mul", rows, columns)
        flat = body.op("Reshape", matrix, body.op("Concat", B, heads, size, axis=0), allowzero=1)
        pad = body.op("Expand", otherwise, body.op("Concat", B, heads, self.sizes.one, axis=0))
        flat = body.op("Concat", flat, pad, axis=2)
        ends = body.op("CumSum", self.queries.blocks, body.constant(0, "int64"))
        first = body.op("Sub", ends, self.queries.blocks)  # row of each sequence
        row = body.op("Add", self.queries.block, body.op("Gather", first, self.queries.sequence))
        place = body.op("Add", body.op("Mul", body.op("Unsqueeze", row, last), columns), self.keys.block)
        return body.op("Gather", flat, body.op("Min", place, size), axis=2)

    def _by_group(self, value: str) -> str:
        """(B | 1, H_kv | 1, G | 1, Q | 1, K) of (B | 1, H | H_kv | 1, Q | 1, K)."""
        body, one = self.body, self.sizes.one
        B, heads, Q, K = self._dims(value, 4)
        G = body.op("Where", body.op("Equal", heads, self.sizes.H), self.sizes.G, one)
        shape = body.op("Concat", B, body.op("Div", heads, G), G, Q, K, axis=0)
        return body.op("Reshape", value, shape, allowzero=1)

    def _first_of(self, name: str, otherwise: str) -> str:
        """int64: the input `name`, or what stands in for it."""
        body = self.body
        given = body.op("Cast", name, to=INT64)
        has = body.op("Greater", body.op("Size", name), body.constant(0, "int64"))
        return body.choose(has, lambda: given, lambda: otherwise, INT64)

    def _four_dims(self, value: str) -> str:
        return self._at_least(value, 4)

    def _at_least(self, value: str, rank: int) -> str:
        """With dimensions of 1 before the others, so that there are `rank`."""
        body = self.body
        dims = body.op("Concat", body.constant([1] * rank, "int64"), body.op("Shape", value), axis=0)
        end = body.constant([MAX_INT64], "int64")
        return body.op("Reshape", value, body.op("Slice", dims, body.constant([-rank], "int64"), end), allowzero=1)

    def _dims(self, value: str, rank: int) -> list[str]:
        shape = self.body.op("Shape", value)
        return [self.body.op("Gather", shape, self.body.constant([i], "int64")) for i in range(rank)]

    def _upright(self, values: str) -> str:
        return self.body.op("Unsqueeze", values, self.body.constant([-1], "int64"))
