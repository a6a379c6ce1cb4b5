"""The steps of the indexer's bodies in plain ai.onnx: numbers of a cache's bytes, logits, windows, the k largest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from deepseek_fast.onnx._body import MAX_INT64

if TYPE_CHECKING:
    from deepseek_fast.onnx._body import BodyWriter

SCALE_BYTES = 4
F32_FRACTION, F32_EXPONENTS = 1 << 23, 256
# Numbers of float64 that stand for infinity and for NaN, which is above it.
INFINITE, NAN = 1e300, 2e300


def e4m3_numbers() -> list[float]:
    """The number of each byte."""
    codes = np.arange(128)
    field, mantissa = codes >> 3, codes & 7
    values = np.where(field == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (field - 10.0))
    values[127] = np.nan
    return [*values, *-values]


class Steps:
    """A BodyWriter with the constants that everything here reads."""

    def __init__(self, body: BodyWriter) -> None:
        self.body, self.op = body, body.op
        self.zero, self.one, self.last = (body.constant([value], "int64") for value in (0, 1, -1))
        self.below = body.constant(-np.inf)

    def int64(self, value: str) -> str:
        from onnx import TensorProto

        return self.op("Cast", value, to=TensorProto.INT64)

    def int32(self, value: str, output: str | None = None) -> str:
        from onnx import TensorProto

        return self.op("Cast", value, output=output, to=TensorProto.INT32)

    def double(self, value: str) -> str:
        from onnx import TensorProto

        return self.op("Cast", value, to=TensorProto.DOUBLE)

    def sizes(self, value: str, begin: int, end: int | None = None) -> str:
        """Dimensions [begin, end) of a tensor, as a vector."""
        ends = self.body.constant([MAX_INT64 if end is None else end], "int64")
        return self.op("Slice", self.op("Shape", value), self.body.constant([begin], "int64"), ends)

    def shape(self, *sizes: str | int) -> str:
        """A shape of vectors and numbers."""
        parts = [size if isinstance(size, str) else self.body.constant([size], "int64") for size in sizes]
        return self.op("Concat", *parts, axis=0)

    def reshape(self, value: str, *sizes: str | int) -> str:
        return self.op("Reshape", value, self.shape(*sizes), allowzero=1)

    def counting(self, count: str) -> str:
        """0, 1 ... count - 1 of a vector of one number."""
        scalar = self.op("Squeeze", count, self.zero)
        return self.op("Range", self.body.constant(0, "int64"), scalar, self.body.constant(1, "int64"))

    def column(self, values: str) -> str:
        return self.op("Unsqueeze", values, self.last)

    def along(self, rows: str, places: str) -> str:
        """(n, c) of (n, m): rows[i, places[i, j]]. GatherElements of onnx's reference knows other shapes only."""
        first = self.op("Mul", self.column(self.counting(self.sizes(rows, 0, 1))), self.sizes(rows, 1))
        return self.op("Gather", self.op("Reshape", rows, self.last), self.op("Add", first, places))

    def padded(self, values: str, count: str, fill: str) -> str:
        """values with `count` columns of `fill` after the last."""
        more = self.op("Expand", self.op("CastLike", fill, values), self.shape(self.sizes(values, 0, -1), count))
        return self.op("Concat", values, more, axis=-1)


def weighed(steps: Steps, dots: str, weights: str, scale: str) -> str:
    """(rows, T): scale * sum_h weights[., h] * relu(dots[., h, .]); relu keeps NaN. scale broadcasts."""
    body, op = steps.body, steps.op
    positive = op("Where", op("Less", dots, body.constant(0.0)), body.constant(0.0), dots)
    sums = op("MatMul", op("Unsqueeze", weights, steps.one), positive)  # (rows, 1, T)
    return op("Mul", op("Squeeze", sums, steps.one), scale)


def dense_logits(steps: Steps) -> str:
    """float32 (s_q, s_kv) of q, k, k_scale, weights; -inf outside of [ks, ke)."""
    body, op = steps.body, steps.op
    q, k = body.to_float("q"), body.to_float("k")
    H, tokens = steps.sizes(q, 1, 2), steps.sizes(k, 0, 1)
    s_q, D = steps.sizes(q, 0, 1), steps.sizes(q, 2)
    rows = steps.reshape(q, op("Mul", s_q, H), D)
    dots = steps.reshape(op("MatMul", rows, op("Transpose", k, perm=[1, 0])), s_q, H, tokens)
    logits = weighed(steps, dots, "weights", "k_scale")
    begin, end = dense_window(steps, s_q, tokens)
    return windowed(steps, logits, begin, end, tokens)


def dense_window(steps: Steps, s_q: str, tokens: str) -> tuple[str, str]:
    """(s_q, 1) each: ks and ke, or where these are of shape (0,) what stands for them, clamped."""
    begin = or_default(steps, "ks", s_q, steps.zero)
    end = or_default(steps, "ke", s_q, tokens)
    return tuple(steps.column(steps.op(*way)) for way in (("Max", begin, steps.zero), ("Min", end, tokens)))  # type: ignore[return-value]


def or_default(steps: Steps, name: str, count: str, default: str) -> str:
    """int64 (count) of an input, or `default` so often where it is of shape (0,)."""
    values = steps.op("Concat", steps.int64(name), steps.op("Expand", default, count), axis=0)
    return steps.op("Slice", values, steps.zero, count)


def windowed(steps: Steps, logits: str, begin: str, end: str, tokens: str) -> str:
    op, place = steps.op, steps.counting(tokens)
    inside = op("And", op("Not", op("Less", place, begin)), op("Less", place, end))
    return op("Where", inside, logits, steps.below)


def compressed(steps: Steps, logits: str, columns: str) -> str:
    """Column j - ks of each row, as many as `columns`."""
    op = steps.op
    s_q, tokens = steps.sizes(logits, 0, 1), steps.sizes(logits, 1)
    begin, _ = dense_window(steps, s_q, tokens)
    places = op("Min", op("Add", begin, steps.counting(columns)), tokens)
    return steps.along(steps.padded(logits, steps.one, steps.below), places)


def bytes_to_float(steps: Steps, values: str) -> str:
    """float32 (..., 1) of (..., 4) bytes, the lowest first."""
    from onnx import TensorProto

    body, op = steps.body, steps.op

    def table(numbers: Any, at: str) -> str:
        return op("Gather", body.constant(numbers, "float64"), at)

    b0, b1, b2, b3 = (op("Gather", values, body.constant([i], "int64"), axis=-1) for i in range(SCALE_BYTES))
    low_bits, two = body.constant(128, "int64"), body.constant(2, "int64")
    exponent = op("Add", op("Mul", op("Mod", b3, low_bits), two), op("Div", b2, low_bits))
    high = op("Mul", op("Mod", b2, low_bits), body.constant(1 << 16, "int64"))
    fraction = steps.double(op("Add", high, op("Add", op("Mul", b1, body.constant(1 << 8, "int64")), b0)))
    exponents = np.arange(F32_EXPONENTS)
    hidden = np.where(exponents == 0, 0.0, F32_FRACTION)
    unit = 2.0 ** (np.maximum(exponents, 1) - 150.0)
    number = op("Mul", op("Add", table(hidden, exponent), fraction), table(unit, exponent))
    is_nan = op(
        "And",
        op("Equal", exponent, body.constant(255, "int64")),
        op("Greater", fraction, body.constant(0.0, "float64")),
    )
    number = op("Where", is_nan, body.constant(np.nan, "float64"), number)
    sign = table([1.0, -1.0], op("Div", b3, low_bits))
    return op("Cast", op("Mul", sign, number), to=TensorProto.FLOAT)


def paged_logits(steps: Steps) -> str:
    """float32 (b, next_n, T) of q, cache, weights, context_lens, block_table, T the tokens of the table's entries."""
    body, op = steps.body, steps.op
    q = body.to_float("q")
    b, next_n, H, D = (steps.sizes(q, i, i + 1) for i in range(4))
    page = steps.sizes("cache", 1, 2)
    codes, scales = cache_numbers(steps, D, page)
    entries = steps.sizes("block_table", 1)
    tokens = op("Mul", entries, page)
    token = steps.counting(tokens)
    pages = op("Gather", steps.int64("block_table"), op("Div", token, page), axis=1)
    # What no query sees may be no page: then the one of zeros, behind the last.
    none = steps.sizes("cache", 0, 1)
    known = op("And", op("Not", op("Less", pages, steps.zero)), op("Less", pages, none))
    slot = op("Add", op("Mul", op("Where", known, pages, none), page), op("Mod", token, page))
    k = op("Gather", codes, slot)  # (b, T, D)
    rows = steps.reshape(q, b, op("Mul", next_n, H), D)
    dots = steps.reshape(op("MatMul", rows, op("Transpose", k, perm=[0, 2, 1])), op("Mul", b, next_n), H, tokens)
    scale = op("Expand", op("Unsqueeze", op("Gather", scales, slot), steps.one), steps.shape(b, next_n, tokens))
    scale = steps.reshape(scale, op("Mul", b, next_n), tokens)
    logits = weighed(steps, dots, "weights", scale)
    logits = steps.reshape(logits, b, next_n, tokens)
    return windowed(steps, logits, steps.zero, paged_ends(steps, b, next_n), tokens)


def cache_numbers(steps: Steps, D: str, page: str) -> tuple[str, str]:
    """float32 (slots, D) and (slots) of the cache and a page of zeros after its last."""
    body, op = steps.body, steps.op
    width = op("Add", D, body.constant([SCALE_BYTES], "int64"))
    pages, page_bytes = steps.sizes("cache", 0, 1), op("Mul", page, width)
    values = steps.reshape(steps.int64("cache"), pages, page_bytes)
    values = op("Concat", values, op("Expand", steps.zero, steps.shape(1, page_bytes)), axis=0)
    slots, end = op("Mul", op("Add", pages, steps.one), page), op("Mul", page, D)
    codes = steps.reshape(op("Slice", values, steps.zero, end, steps.one), slots, D)
    scales = op("Slice", values, end, body.constant([MAX_INT64], "int64"), steps.one)
    scales = bytes_to_float(steps, steps.reshape(scales, slots, SCALE_BYTES))
    return op("Gather", body.constant(e4m3_numbers()), codes), op("Squeeze", scales, steps.last)


def paged_ends(steps: Steps, b: str, next_n: str) -> str:
    """(b, next_n, 1): how many tokens each query sees, of context_lens (b) or (b, next_n)."""
    op = steps.op
    lengths = steps.int64("context_lens")
    own = op("Slice", steps.shape(steps.sizes(lengths, 1), 1), steps.zero, steps.one)  # 1 of one dimension
    is_shared = op("Not", op("Equal", own, next_n))  # of one query a request it is the same
    before = op("Add", op("Sub", steps.counting(next_n), next_n), steps.one)
    rows = steps.reshape(lengths, b, own)
    rows = op("Where", is_shared, op("Add", op("Slice", rows, steps.zero, steps.one, steps.one), before), rows)
    return steps.column(rows)


def fitted(steps: Steps, logits: str, columns: str) -> str:
    """As many columns: more of -inf, or fewer."""
    wide = steps.padded(logits, columns, steps.below)
    return steps.op("Slice", wide, steps.zero, columns, steps.last)


def top_k(steps: Steps, scores: str, k: str, sorted_by: str) -> str:
    """int64 (..., k) of the k largest: NaN above infinity, -inf never, then -1; of equal ones the lower index.

    By value as ONNX's TopK gives them, else by index.
    """
    body, op = steps.body, steps.op
    key = steps.double(scores)
    infinite = body.constant([INFINITE, -INFINITE], "float64")
    most, least = (op("Gather", infinite, body.constant(i, "int64")) for i in (0, 1))
    key = op("Where", op("IsNaN", key), body.constant(NAN, "float64"), op("Max", op("Min", key, most), least))
    key = steps.padded(key, k, least)  # k is at most the number of columns
    values, places = body.fresh("values"), body.fresh("places")
    body.nodes.append(_top(key, k, values, places, largest=1))
    none = op("Equal", values, least)
    end = body.constant(MAX_INT64, "int64")
    by_index, unused = body.fresh("by_index"), body.fresh("unused")
    body.nodes.append(_top(op("Where", none, end, places), k, by_index, unused, largest=0))
    chosen = op("Where", body.equals(body.attribute(sorted_by), "value"), op("Where", none, end, places), by_index)
    return op("Where", op("Equal", chosen, end), steps.last, chosen)


def _top(values: str, k: str, kept: str, places: str, *, largest: int) -> Any:
    from onnx import helper

    return helper.make_node("TopK", [values, k], [kept, places], axis=-1, largest=largest, sorted=1)


def as_slots(steps: Steps, indices: str, as_slots: str) -> str:
    """indices (b, next_n, k) as places in the cache where the attribute says so; -1 stays."""
    op = steps.op
    b, rest = steps.sizes(indices, 0, 1), steps.sizes(indices, 1)
    page = steps.sizes("cache", 1, 2)
    table = steps.padded(steps.int64("block_table"), steps.one, steps.zero)
    token = op("Max", steps.reshape(indices, b, op("ReduceProd", rest, keepdims=1)), steps.zero)
    pages = steps.along(table, op("Div", token, page))
    slots = steps.reshape(op("Add", op("Mul", pages, page), op("Mod", token, page)), b, rest)
    is_slot = op("And", steps.body.flag(as_slots), op("Not", op("Less", indices, steps.zero)))
    return op("Where", is_slot, slots, indices)
