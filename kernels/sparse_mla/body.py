"""SparseMla and SparseMlaDecode in ONNX: the nodes, their schemas, and their bodies in plain ai.onnx operators.

    Y, max_logits, lse = SparseMla(Q, KV, I, S, L)
    Y, lse = SparseMlaDecode(Q, K, I, L, B, C, XK, XI, XL, S)

I indices, S attn_sink, L topk_length, B block_table, C cache_seqlens, X the extra cache's; the meaning is in cpu.h.
Everything is float32 in the bodies, weights too, which a kernel of bfloat16 rounds. K of layout v32 and v4 is uint8, of
which the bodies decode each number exactly. The attributes are the Python functions' arguments; a scale of 0 stands for
d_qk ** -0.5. The bodies read all inputs, so a writer passes a tensor of shape (0,) for what is not there, XK of K's
type.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from deepseek_fast.kernels.fp8_cast.body_scales import POWERS
from deepseek_fast.onnx._body import DOMAIN, DOMAIN_VERSION, FLOAT_TYPES, MAX_INT64, MIN_16_BIT_OPSET, BodyWriter

if TYPE_CHECKING:
    import onnx

OP_TYPE, DECODE = "SparseMla", "SparseMlaDecode"
INPUTS = {
    OP_TYPE: ("Q", "KV", "I", "S", "L"),
    DECODE: ("Q", "K", "I", "L", "B", "C", "XK", "XI", "XL", "S"),
}
NEEDED = {OP_TYPE: 3, DECODE: 2}  # inputs; the others may be left out
OUTPUTS = {OP_TYPE: ("Y", "max_logits", "lse"), DECODE: ("Y", "lse")}
DEFAULTS: dict[str, dict[str, Any]] = {
    OP_TYPE: {"scale": 0.0, "d_v": 512},
    DECODE: {"scale": 0.0, "d_v": 512, "layout": "plain", "is_causal": 0},
}
MIN_OPSET = MIN_16_BIT_OPSET
FLOAT, BFLOAT16, INT64 = 1, 16, 7  # TensorProto types
SCALE_KIND = 1  # AttributeProto.FLOAT
# What the 256 codes of float8e4m3fn mean.
E4M3_NUMBERS = [
    sign * (np.nan if code == 127 else ((code & 7) + (8 if code >> 3 else 0)) * 2.0 ** (max(code >> 3, 1) - 10))
    for sign in (1.0, -1.0)
    for code in range(128)
]
NOT_FINITE_EXPONENT = 255.0


def function_proto(opset: int, *, op_type: str = OP_TYPE) -> onnx.FunctionProto:
    """The body of an operator in the ai.onnx operators of `opset`, 15 to 25."""
    body = BodyWriter(opset, MIN_OPSET)
    {OP_TYPE: _prefill, DECODE: _decode}[op_type](body)
    return body.function(op_type, INPUTS[op_type], tuple(DEFAULTS[op_type]), OUTPUTS[op_type])


class _Ints:
    """Arithmetic of sizes, tensors of shape (1,)."""

    def __init__(self, body: BodyWriter) -> None:
        self.body = body
        self.zero, self.one, self.minus_one = (body.constant([value], "int64") for value in (0, 1, -1))

    def dim(self, value: str, axis: int) -> str:
        end = axis + 1 if axis != -1 else MAX_INT64
        return self.body.op("Slice", self.body.op("Shape", value), *(self.of([place]) for place in (axis, end)))

    def of(self, values: list[int]) -> str:
        return self.body.constant(values, "int64")

    def shape(self, *parts: str) -> str:
        return self.body.op("Concat", *parts, axis=0)

    def reshaped(self, value: str, *parts: str) -> str:
        return self.body.op("Reshape", value, self.shape(*parts), allowzero=1)

    def range(self, count: str) -> str:
        """0 ... count - 1."""
        scalar = self.body.op("Squeeze", count, self.zero)
        zero, one = (self.body.constant(value, "int64") for value in (0, 1))
        return self.body.op("Range", zero, scalar, one)

    def or_last(self, values: str, otherwise: str, count: str) -> str:
        """The vector of `count` values, or `otherwise` so often where it is empty."""
        padded = self.body.op("Concat", values, otherwise, axis=0)
        return self.body.op("Gather", padded, self.body.op("Min", self.range(count), self.body.op("Size", values)))

    def slice(self, value: str, begin: str, end: str, axis: int) -> str:
        return self.body.op("Slice", value, begin, end, self.of([axis]))


def _scale(body: BodyWriter, q: str) -> str:
    given = body._referred("scale", "value_float", SCALE_KIND)
    columns = body.to_float(_Ints(body).dim(q, -1))
    default = body.op("Pow", columns, body.constant([-0.5]))
    return body.op("Where", body.op("Equal", given, body.constant(0.0)), default, given)


def _attention(body: BodyWriter, q: str, rows: str, index: str, d_v: str, sinks: str) -> tuple[str, str, str]:
    """(out (n, groups, h, d_v), max_logits and lse (n, groups, h, 1)) of q (n, groups, h, d), numbers (count, d) and
    indices of their rows (n, groups, topk), -1 for what does not count; sinks (groups, h, 1)."""
    ints, minus_inf = _Ints(body), body.constant(-np.inf)
    width, count = ints.dim(rows, -1), ints.dim(rows, 0)
    padded = body.op("Concat", rows, ints_zeros(body, ints.shape(ints.one, width)), axis=0)
    # One entry more, which does not count: ONNX Runtime finds no largest of nothing.
    more = body.op("Expand", ints.minus_one, ints.shape(ints.dim(index, 0), ints.dim(index, 1), ints.one))
    index = body.op("Concat", index, more, axis=-1)
    counts = body.op("GreaterOrEqual", index, ints.zero)
    k = body.op("Gather", padded, body.op("Where", counts, index, count), axis=0)
    z = body.op("MatMul", q, body.op("Transpose", k, perm=(0, 1, 3, 2)))
    z = body.op("Mul", z, _scale(body, q))
    seen = body.op("Unsqueeze", counts, ints.of([2]))
    z = body.op("Where", seen, z, minus_inf)
    row = [ints.dim(z, axis) for axis in (0, 1, 2)]

    def reduced(op_type: str, value: str) -> str:  # of no rows ONNX Runtime returns the shape unreduced
        return ints.reshaped(body.reduce_last(op_type, value), *row, ints.one)

    top = reduced("ReduceMax", z)
    is_none = body.op("Equal", top, minus_inf)
    p = body.op("Exp", body.op("Sub", z, body.op("Where", is_none, body.constant(0.0), top)))
    total = reduced("ReduceSum", p)
    is_none = body.op("Equal", total, body.constant(0.0))
    one = body.constant(1.0)
    safe = body.op("Where", is_none, one, total)
    lse = body.op("Where", is_none, body.constant(np.inf), body.op("Add", top, body.op("Log", safe)))
    values = ints.slice(k, ints.zero, d_v, -1)
    out = body.op("Div", body.op("MatMul", p, values), safe)
    share = body.op("Reciprocal", body.op("Add", one, body.op("Exp", body.op("Sub", sinks, lse))))
    out = body.op("Where", is_none, body.constant(0.0), body.op("Mul", out, share))
    return out, top, lse


def ints_zeros(body: BodyWriter, shape: str) -> str:
    return body.op("ConstantOfShape", shape)


def _counted(body: BodyWriter, index: str, count: str, places: str, length: str) -> str:
    """int64 indices, -1 where one is outside [0, count) or its place is not below `length`."""
    ints = _Ints(body)
    inside = body.op("And", body.op("GreaterOrEqual", index, ints.zero), body.op("Less", index, count))
    inside = body.op("And", inside, body.op("Less", places, length))
    return body.op("Where", inside, index, ints.minus_one)


def _prefill(body: BodyWriter) -> None:
    ints = _Ints(body)
    s_q, h_q, d = (ints.dim("Q", axis) for axis in (0, 1, -1))
    s_kv, h_kv = ints.dim("KV", 0), ints.dim("KV", 1)
    group = body.op("Div", h_q, h_kv)
    topk = ints.dim("I", -1)
    index = body.op("Cast", "I", to=INT64)
    length = ints.or_last(body.op("Cast", "L", to=INT64), topk, s_q)
    length = ints.reshaped(length, s_q, ints.one, ints.one)
    index = _counted(body, index, s_kv, ints.range(topk), length)
    # Row j of head g is row g * s_kv + j of all.
    rows = ints.reshaped(body.op("Transpose", body.to_float("KV"), perm=(1, 0, 2)), body.op("Mul", h_kv, s_kv), d)
    ahead = ints.reshaped(body.op("Mul", ints.range(h_kv), s_kv), h_kv, ints.one)
    index = body.op("Where", body.op("Less", index, ints.zero), index, body.op("Add", index, ahead))
    q = ints.reshaped(body.to_float("Q"), s_q, h_kv, group, d)
    sinks = ints.reshaped(ints.or_last("S", body.constant([-np.inf]), h_q), h_kv, group, ints.one)
    d_v = body.integer("d_v")
    out, top, lse = _attention(body, q, rows, index, d_v, sinks)
    body.op("CastLike", ints.reshaped(out, s_q, h_q, d_v), "Q", output="Y")
    body.op("Reshape", top, ints.shape(s_q, h_q), output="max_logits", allowzero=1)
    body.op("Reshape", lse, ints.shape(s_q, h_q), output="lse", allowzero=1)


def _decode(body: BodyWriter) -> None:
    """Nothing asks for the rank of an input that may be absent: the lists of what is not there are empty."""
    ints = _Ints(body)
    b, s_q, h_q, d = (ints.dim("Q", axis) for axis in (0, 1, 2, -1))
    layout = body.attribute("layout")
    pages, page = _pages(body, "K")
    first = body.op("Mul", pages, page)
    extra = _list_of(body, "XI", "XL", body.op("Mul", *_pages(body, "XK")), b, s_q)
    extra = body.op("Where", body.op("Less", extra, ints.zero), extra, body.op("Add", extra, first))
    lists = (_list_of(body, "I", "L", first, b, s_q), _requests(body, page, b, s_q), extra)
    index = body.op("Concat", *lists, axis=-1)
    rows = body.op("Concat", _numbers(body, "K", layout, d), _numbers(body, "XK", layout, d), axis=0)
    n = body.op("Mul", b, s_q)
    index = ints.reshaped(index, n, ints.one, ints.dim(index, -1))
    q = ints.reshaped(body.to_float("Q"), n, ints.one, h_q, d)
    sinks = ints.reshaped(ints.or_last("S", body.constant([-np.inf]), h_q), ints.one, h_q, ints.one)
    d_v = body.integer("d_v")
    out, _, lse = _attention(body, q, rows, index, d_v, sinks)
    body.op("CastLike", ints.reshaped(out, b, s_q, h_q, d_v), "Q", output="Y")
    body.op("Transpose", ints.reshaped(lse, b, s_q, h_q), output="lse", perm=(0, 2, 1))


def _pages(body: BodyWriter, cache: str) -> tuple[str, str]:
    """Pages, and tokens of one; 0 and 1 of a cache that is not there."""
    ints = _Ints(body)
    sizes = body.op("Concat", body.op("Shape", cache), ints.one, axis=0)
    return ints.slice(sizes, ints.zero, ints.one, 0), ints.slice(sizes, ints.one, ints.of([2]), 0)


def _part_of_all(body: BodyWriter, value: str, parts: str) -> str:
    """Elements of each of so many parts."""
    ints = _Ints(body)
    size = body.op("Reshape", body.op("Size", value), ints.one)
    return body.op("Div", size, body.op("Max", parts, ints.one))


def _list_of(body: BodyWriter, indices: str, length: str, count: str, b: str, s_q: str) -> str:
    """int64 (b, s_q, topk), -1 for what does not count."""
    ints = _Ints(body)
    topk = _part_of_all(body, indices, body.op("Mul", b, s_q))
    index = ints.reshaped(body.op("Cast", indices, to=INT64), b, s_q, topk)
    lengths = ints.or_last(body.op("Cast", length, to=INT64), topk, b)
    lengths = ints.reshaped(lengths, b, ints.one, ints.one)
    return _counted(body, index, count, ints.range(topk), lengths)


def _requests(body: BodyWriter, page: str, b: str, s_q: str) -> str:
    """int64 (b, s_q, entries), the places of the requests' own tokens; no entries where there is no block_table."""
    ints = _Ints(body)
    columns = _part_of_all(body, "B", b)
    table = ints.reshaped(body.op("Cast", "B", to=INT64), b, columns)
    t = ints.range(body.op("Mul", columns, page))
    size = body.op("Max", page, ints.one)
    entry = body.op("Gather", table, body.op("Div", t, size), axis=1)
    place = body.op("Add", body.op("Mul", entry, page), body.op("Mod", t, size))
    length = ints.or_last(body.op("Cast", "C", to=INT64), ints.zero, b)
    later = body.op("Sub", body.op("Sub", s_q, ints.range(s_q)), ints.one)  # queries behind each
    later = body.op("Mul", ints.reshaped(later, s_q, ints.one), body.integer("is_causal"))
    seen = body.op("Less", t, body.op("Sub", ints.reshaped(length, b, ints.one, ints.one), later))
    return body.op("Where", seen, body.op("Unsqueeze", place, ints.one), ints.minus_one)


def _numbers(body: BodyWriter, cache: str, layout: str, d: str) -> str:
    """float32 (tokens, d) of a cache."""
    ints = _Ints(body)

    def plain() -> str:
        return ints.reshaped(data, tokens, d)

    data, (pages, page) = body.to_float(cache), _pages(body, cache)
    tokens = body.op("Mul", pages, page)

    def v32() -> str:
        token = ints.reshaped(data, tokens, ints.of([656]))
        four = ints.reshaped(_part(body, token, 512, 528), tokens, ints.of([4]), ints.of([4]))
        low, middle, high, top = (_part(body, four, i, i + 1) for i in range(4))
        mantissa = _sum(body, low, (256.0, middle), (65536.0, _low_bits(body, high, 128.0)))
        scales = _float_of(body, top, high, mantissa, 23)  # (tokens, 4, 1)
        return _joined(body, token, scales, ints.of([4]), ints.of([128]), 512, 528)

    def v4() -> str:
        whole = ints.reshaped(data, pages, body.op("Mul", page, ints.of([584])))
        middle = body.op("Mul", page, ints.of([576]))
        token = ints.reshaped(ints.slice(whole, ints.zero, middle, 1), tokens, ints.of([576]))
        tail = ints.reshaped(ints.slice(whole, middle, ints.of([MAX_INT64]), 1), tokens, ints.of([8]))
        scales = body.op("Gather", body.constant(POWERS), _place(body, _part(body, tail, 0, 7)))
        return _joined(body, token, body.op("Unsqueeze", scales, ints.of([2])), ints.of([7]), ints.of([64]), 448, 448)

    return body.choose(body.equals(layout, "plain"), plain, lambda: body.choose(body.equals(layout, "v32"), v32, v4))


def _joined(body: BodyWriter, token: str, scales: str, tiles: str, tile: str, coded: int, kept: int) -> str:
    """Numbers of tokens' bytes: bf16(code * scale), then those that are kept as bf16."""
    ints = _Ints(body)
    tokens = ints.dim(token, 0)
    codes = body.op("Gather", body.constant(E4M3_NUMBERS), _place(body, _part(body, token, 0, coded)))
    numbers = body.op("Mul", ints.reshaped(codes, tokens, tiles, tile), scales)
    numbers = body.to_float(body.op("Cast", numbers, to=BFLOAT16))
    numbers = ints.reshaped(numbers, tokens, ints.of([coded]))
    pairs = ints.reshaped(_part(body, token, kept, kept + 128), tokens, ints.of([64]), ints.of([2]))
    low, high = _part(body, pairs, 0, 1), _part(body, pairs, 1, 2)
    rest = _float_of(body, high, low, _low_bits(body, low, 128.0), 7)
    return body.op("Concat", numbers, ints.reshaped(rest, tokens, ints.of([64])), axis=-1)


def _part(body: BodyWriter, value: str, begin: int, end: int) -> str:
    ints = _Ints(body)
    return ints.slice(value, ints.of([begin]), ints.of([end]), -1)


def _place(body: BodyWriter, byte: str) -> str:
    """A byte as an index; other numbers than bytes, which no runtime computes with, as 0."""
    zero, end = body.constant(0.0), body.constant(256.0)
    is_byte = body.op("And", body.op("GreaterOrEqual", byte, zero), body.op("Less", byte, end))
    return body.op("Cast", body.op("Where", is_byte, byte, zero), to=INT64)


def _low_bits(body: BodyWriter, byte: str, count: float) -> str:
    """byte modulo count, a power of two."""
    above = body.op("Floor", body.op("Mul", byte, body.constant(1 / count)))
    return body.op("Sub", byte, body.op("Mul", above, body.constant(count)))


def _sum(body: BodyWriter, first: str, *terms: tuple[float, str]) -> str:
    for factor, term in terms:
        first = body.op("Add", first, body.op("Mul", term, body.constant(factor)))
    return first


def _float_of(body: BodyWriter, top: str, next_byte: str, mantissa: str, bits: int) -> str:
    """The f32 of a sign, 8 bits of exponent (the lowest is the highest of next_byte) and `bits` of mantissa."""
    zero, one, infinity = body.constant(0.0), body.constant(1.0), body.constant(np.inf)
    low = body.op("Floor", body.op("Mul", next_byte, body.constant(1 / 128.0)))
    exponent = _sum(body, low, (2.0, _low_bits(body, top, 128.0)))
    fraction = body.op("Mul", mantissa, body.constant(2.0**-bits))
    is_low, is_high = body.op("Equal", exponent, zero), body.op("Equal", exponent, body.constant(NOT_FINITE_EXPONENT))
    # 2^(exponent - 127) of a normal number; a subnormal one counts halves of the smallest normal one's.
    powers = body.constant([2.0**-126, *(2.0 ** (e - 127) for e in range(1, 255)), 1.0])
    power = body.op("Gather", powers, _place(body, exponent))
    size = body.op("Mul", body.op("Where", is_low, fraction, body.op("Add", one, fraction)), power)
    nan = body.constant(np.nan)
    size = body.op("Where", is_high, body.op("Where", body.op("Equal", mantissa, zero), infinity, nan), size)
    return body.op("Where", body.op("GreaterOrEqual", top, body.constant(128.0)), body.op("Neg", size), size)


def node(op_type: str, inputs: list[str], outputs: list[str], **attributes: Any) -> onnx.NodeProto:
    """A node between named values; attributes: those of DEFAULTS that differ."""
    from onnx import helper

    values: Mapping[str, Any] = DEFAULTS[op_type] | attributes
    return helper.make_node(op_type, inputs, outputs, domain=DOMAIN, **values)


def schemas() -> list[onnx.defs.OpSchema]:
    """The operators' schemas, for tools that look operators up in onnx.defs."""
    from onnx import defs

    options, kinds = defs.OpSchema.FormalParameterOption, defs.OpSchema.AttrType
    attribute_kinds = {str: kinds.STRING, int: kinds.INT, float: kinds.FLOAT}
    docs = {
        OP_TYPE: "Y = attention of Q to the rows of KV that I names",
        DECODE: "Y = attention of Q to the tokens of a paged cache",
    }
    types = dict.fromkeys(("Q", "KV", "Y"), "T") | dict.fromkeys(("K", "XK"), "K")
    types |= dict.fromkeys(("S", "max_logits", "lse"), "tensor(float)")

    def parameters(names: tuple[str, ...], needed: int) -> list[defs.OpSchema.FormalParameter]:
        return [
            defs.OpSchema.FormalParameter(
                name,
                types.get(name, "tensor(int32)"),
                param_option=options.Single if i < needed else options.Optional,
            )
            for i, name in enumerate(names)
        ]

    constraints = {"T": (FLOAT_TYPES, "numbers"), "K": ([*FLOAT_TYPES, "tensor(uint8)"], "numbers or bytes")}
    return [
        defs.OpSchema(
            op_type,
            DOMAIN,
            DOMAIN_VERSION,
            doc=docs[op_type],
            inputs=parameters(INPUTS[op_type], NEEDED[op_type]),
            outputs=parameters(OUTPUTS[op_type], len(OUTPUTS[op_type])),
            type_constraints=[(name, *of) for name, of in constraints.items() if name == "T" or op_type == DECODE],
            attributes=[
                defs.OpSchema.Attribute(name, attribute_kinds[type(value)], required=False)
                for name, value in DEFAULTS[op_type].items()
            ],
        )
        for op_type in INPUTS
    ]
