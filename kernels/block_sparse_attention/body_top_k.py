"""TopKBlocks' body: ref_builders.top_k_blocks_ref in plain ai.onnx, in float32.

Which of equal scores TopK puts first is not the same in every runtime, so it only says the least score that is kept;
of those that equal it the lower columns are kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepseek_fast.onnx._body import BodyWriter

FLOAT, INT64 = 1, 7  # types of TensorProto


def scale(body: BodyWriter, D: str) -> str:
    """The attribute scale, or for NaN 1 / sqrt(D)."""
    from onnx import TensorProto

    given = body.number("scale")
    root = body.op("Sqrt", body.op("Cast", D, to=TensorProto.DOUBLE))
    default = body.op("Cast", body.op("Reciprocal", root), to=TensorProto.FLOAT)
    return body.op("Where", body.op("IsNaN", given), default, given)


def write(body: BodyWriter) -> None:
    """Sizes are int64 of shape (1,)."""
    sizes = body.integers("block_size")
    size_q, size_k = (body.op("Gather", sizes, body.constant([i], "int64")) for i in (0, 1))
    means_q, B, H, S_q, rows = _means(body, "q", size_q)
    means_k, _, H_kv, S_k, columns = _means(body, "k", size_k)
    D = body.op("Gather", body.op("Shape", "q"), body.constant([3], "int64"))
    by_group = body.op("Concat", B, H_kv, body.op("Mul", body.op("Div", H, H_kv), rows), D, axis=0)
    grouped = body.op("Reshape", means_q, by_group, allowzero=1)
    products = body.op("MatMul", grouped, body.op("Transpose", means_k, perm=(0, 1, 3, 2)))
    shape = body.op("Concat", B, H, rows, columns, axis=0)
    scores = body.op("Mul", body.op("Reshape", products, shape, allowzero=1), scale(body, D))

    forced, candidates = _by_place(body, (S_q, S_k), (size_q, size_k), (rows, columns))
    lowest, highest = body.constant(-float("inf")), body.constant(float("inf"))
    ranked = body.op("Where", forced, highest, body.op("Where", candidates, scores, lowest))
    wanted = body.op("Min", body.integer("num_blocks"), columns)
    per_row = body.op("Concat", B, H, rows, body.constant([1], "int64"), axis=0)
    num_rows = body.op("ReduceProd", per_row, keepdims=1)
    flat = body.op("Reshape", ranked, body.op("Concat", num_rows, columns, axis=0), allowzero=1)
    least, num_above = (
        body.op("Reshape", value, per_row, allowzero=1) for value in _least(body, flat, num_rows, wanted)
    )
    above, equal = body.op("Greater", ranked, least), body.op("Equal", ranked, least)
    number = body.op("CumSum", body.op("Cast", equal, to=INT64), body.constant(3, "int64"))
    among = body.op("And", equal, body.op("LessOrEqual", number, body.op("Sub", wanted, num_above)))
    kept = body.op("Or", body.op("Or", above, among), forced)
    body.op("And", kept, candidates, output="block_mask")


def _least(body: BodyWriter, values: str, num_rows: str, count: str) -> list[str]:
    """(num_rows, 1): the last of the `count` largest of each row, and how many are larger.

    With a row and a column of -inf more: nothing is reduced or sorted that is empty.
    """
    from onnx import helper

    zero, one = body.constant([0], "int64"), body.constant([1], "int64")
    lowest = body.constant(-float("inf"))
    columns = body.op("Gather", body.op("Shape", values), one)
    row = body.op("Expand", lowest, body.op("Concat", one, columns, axis=0))
    values = body.op("Concat", values, row, axis=0)
    column = body.op("Expand", lowest, body.op("Concat", body.op("Add", num_rows, one), one, axis=0))
    values = body.op("Concat", values, column, axis=1)
    count, largest = body.op("Max", count, one), body.fresh("largest")
    body.nodes.append(helper.make_node("TopK", [values, count], [largest, body.fresh("places")], axis=-1))
    least = body.op("Gather", largest, body.op("Sub", count, one), axis=1)
    above = body.op("Cast", body.op("Greater", values, least), to=INT64)
    num_above = body.op("ReduceSum", above, one, keepdims=1)
    return [body.op("Slice", value, zero, num_rows, zero) for value in (least, num_above)]


def _means(body: BodyWriter, name: str, size: str) -> tuple[str, str, str, str, str]:
    """(B, heads, blocks, D): each block's mean of the tokens that it has; then B, heads, S, blocks."""
    zero, one = body.constant([0], "int64"), body.constant([1], "int64")
    shape = body.op("Shape", name)
    B, heads, S, D = (body.op("Gather", shape, body.constant([i], "int64")) for i in range(4))
    blocks = body.op("Div", body.op("Sub", body.op("Add", S, size), one), size)
    whole = body.op("Mul", blocks, size)
    rest = body.op("Concat", B, heads, body.op("Sub", whole, S), D, axis=0)
    padded = body.op("Concat", body.to_float(name), body.op("Expand", body.constant(0.0), rest), axis=2)
    tokens = body.op("Reshape", padded, body.op("Concat", B, heads, blocks, size, D, axis=0), allowzero=1)
    sums = body.op("ReduceSum", tokens, body.constant([3], "int64"), keepdims=0)
    sums = body.op("Reshape", sums, body.op("Concat", B, heads, blocks, D, axis=0), allowzero=1)
    begins = body.op("Mul", _range(body, blocks), size)
    counts = body.op("Min", body.op("Sub", S, begins), size)
    counts = body.op("Unsqueeze", body.op("Cast", counts, to=FLOAT), body.op("Add", zero, one))
    return body.op("Div", sums, counts), B, heads, S, blocks


def _by_place(body: BodyWriter, S: tuple[str, str], size: tuple[str, str], blocks: tuple[str, str]) -> tuple[str, str]:
    """bool (rows, columns): the blocks that are kept whatever they score, and those that may be kept."""
    one, last = body.constant([1], "int64"), body.constant([-1], "int64")
    offset = body.op("Where", body.flag("q_at_end"), body.op("Sub", S[1], S[0]), body.integer("q_offset"))

    def column_of(position: str) -> str:  # Div rounds towards zero, and positions may be negative
        lower = body.op("Sub", position, body.op("Mod", position, size[1]))
        return body.op("Unsqueeze", body.op("Div", lower, size[1]), last)

    first = body.op("Mul", _range(body, blocks[0]), size[0])
    begin = column_of(body.op("Add", first, offset))
    behind = body.op("Min", body.op("Add", first, size[0]), S[0])
    end = column_of(body.op("Add", body.op("Sub", behind, one), offset))
    columns = _range(body, blocks[1])
    before = body.op("LessOrEqual", columns, end)
    candidates = body.op("Or", before, body.op("Not", body.flag("is_causal")))
    local = body.integer("local")
    near = body.op(
        "And",
        body.op("Less", body.op("Sub", begin, columns), local),
        body.op("Less", body.op("Sub", columns, end), local),
    )
    within = body.op("And", body.op("GreaterOrEqual", columns, begin), before)
    # `local` 0 does not keep the own blocks either.
    near = body.op(
        "And", near, body.op("Or", body.op("Not", within), body.op("Greater", local, body.constant([0], "int64")))
    )
    forced = body.op("Or", near, body.op("Less", columns, body.integer("first")))
    return body.op("And", forced, candidates), candidates


def _range(body: BodyWriter, count: str) -> str:
    return body.op("Range", body.constant(0, "int64"), body.op("Squeeze", count), body.constant(1, "int64"))
