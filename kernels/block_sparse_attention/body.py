"""BlockSparseAttention and TopKBlocks in ONNX: the nodes, their schemas, and their bodies in plain ai.onnx operators.

    out, lse = softmax(scale q k^T + token_bias, over the keys that a query sees) v
    block_mask = the num_blocks blocks of keys with the largest scores, for each block of queries

The meaning is in cpu.h, body_masks.py has which keys those are, body_top_k.py the second body. The first computes in
float32 what is dense: all scores of all queries, so that it is as slow as any dense attention, and right. It adds one
query and one key, which see each other only: then no maximum and no sum is of nothing, and a query that sees nothing is
no special case of an operator.

The body reads all inputs, so a writer passes a tensor of shape (0,) for one that is not there, and all attributes.
scale is NaN for the default, 1 / sqrt(D). A value of a key that no query of its group sees is replaced before the
product; what it was, NaN too, does not matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deepseek_fast.kernels.block_sparse_attention import body_top_k
from deepseek_fast.kernels.block_sparse_attention.body_masks import Masks
from deepseek_fast.onnx._body import DOMAIN, DOMAIN_VERSION, FLOAT_TYPES, MIN_16_BIT_OPSET, BodyWriter

if TYPE_CHECKING:
    import onnx

ATTENTION, TOP_K = "BlockSparseAttention", "TopKBlocks"
REQUIRED = ("q", "k", "v")
INDICES = ("row_offsets", "columns", "cu_seqlens_q", "cu_seqlens_k")
INPUTS = {
    ATTENTION: (
        *REQUIRED,
        "block_mask",
        "row_offsets",
        "columns",
        "token_bias",
        "sink_logits",
        "cu_seqlens_q",
        "cu_seqlens_k",
        "tables",
        "bits",
    ),
    TOP_K: ("q", "k"),
}
OUTPUTS = {ATTENTION: ("out", "lse"), TOP_K: ("block_mask",)}
DEFAULT_SCALE = float("nan")  # stands for 1 / sqrt(D)
# The attributes and their defaults.
DEFAULTS: dict[str, dict[str, Any]] = {
    ATTENTION: {
        "block_size": (128, 128),
        "scale": DEFAULT_SCALE,
        "is_causal": 0,
        "window": (-1, -1),  # left and right; -1 is no limit
        "sinks": 0,
        "q_offset": 0,
        "q_at_end": 0,  # 1: the last query stands on the last key
        "enable_gqa": 1,
        "key_stride": 1,  # key j stands at (j + 1) * key_stride - 1
    },
    TOP_K: {
        "num_blocks": 1,
        "block_size": (128, 128),
        "scale": DEFAULT_SCALE,
        "first": 1,
        "local": 1,
        "is_causal": 0,
        "q_offset": 0,
        "q_at_end": 0,
    },
}
# What an input that is not there has in its place: nothing, of this type of TensorProto. token_bias: q's.
FLOAT, INT32, INT64, BOOL = 1, 6, 7, 9
ABSENT_TYPES = {"block_mask": BOOL, "sink_logits": FLOAT, "tables": INT32, "bits": INT64} | dict.fromkeys(
    INDICES, INT32
)
MIN_OPSET = MIN_16_BIT_OPSET


def function_proto(opset: int, op_type: str = ATTENTION) -> onnx.FunctionProto:
    """The body of an operator in the ai.onnx operators of `opset`, 15 to 25."""
    body = BodyWriter(opset, MIN_OPSET)
    {ATTENTION: _attention, TOP_K: body_top_k.write}[op_type](body)
    return body.function(op_type, INPUTS[op_type], tuple(DEFAULTS[op_type]), OUTPUTS[op_type])


class _Sizes:
    """Of the call, int64 of shape (1,); of queries and keys one more than there are."""

    def __init__(self, body: BodyWriter) -> None:
        one = body.constant([1], "int64")

        def size(name: str, axis: int) -> str:
            return body.op("Gather", body.op("Shape", name), body.constant([axis], "int64"))

        self.one = one
        self.B, self.H, self.S_q, self.D = (size("q", axis) for axis in range(4))
        self.H_kv, self.S_k = size("k", 1), size("k", 2)
        self.D_v = size("v", 3)
        self.G = body.op("Div", self.H, self.H_kv)
        self.Q, self.K = (body.op("Add", count, one) for count in (self.S_q, self.S_k))


def _attention(body: BodyWriter) -> None:
    sizes = _Sizes(body)

    def shaped(value: str, *dims: str) -> str:
        return body.op("Reshape", value, body.op("Concat", *dims, axis=0), allowzero=1)

    def one_more(name: str, heads: str, last: str) -> str:
        """A query, key or value of zeros behind the others."""
        row = body.op("Expand", body.constant(0.0), body.op("Concat", sizes.B, heads, sizes.one, last, axis=0))
        return body.op("Concat", body.to_float(name), row, axis=2)

    B, H_kv, G, Q, K = sizes.B, sizes.H_kv, sizes.G, sizes.Q, sizes.K
    rows = body.op("Mul", G, Q)  # of a group: its heads lie one after the other
    q = shaped(one_more("q", sizes.H, sizes.D), B, H_kv, rows, sizes.D)
    k = one_more("k", H_kv, sizes.D)
    products = body.op(
        "MatMul", body.op("Mul", q, body_top_k.scale(body, sizes.D)), body.op("Transpose", k, perm=(0, 1, 3, 2))
    )
    masks = Masks(body, sizes)
    bias = masks.bias()
    z = body.op("Add", shaped(products, B, H_kv, G, Q, K), bias)
    infinite = body.constant(-float("inf"))
    seen = body.op("And", masks.seen(), body.op("Not", body.op("Equal", bias, infinite)))
    z = body.op("Where", seen, z, infinite)

    per_row = (B, H_kv, G, Q, sizes.one)
    largest = shaped(body.reduce_last("ReduceMax", z), *per_row)
    largest = body.op("Where", body.op("Equal", largest, infinite), body.constant(0.0), largest)
    p = body.op("Exp", body.op("Sub", z, largest))
    total = shaped(body.reduce_last("ReduceSum", p), *per_row)
    sink = body.op("Exp", body.op("Sub", _sink_logits(body, sizes), largest))
    divisor = body.op("Add", total, sink)
    # Of a query that sees nothing all sums are 0.
    divisor = body.op("Where", body.op("Equal", total, body.constant(0.0)), body.constant(1.0), divisor)

    some = body.reduce("ReduceMax", body.to_float(seen), [2, 3])
    some = body.op("Reshape", some, masks.shape_of_keys(seen), allowzero=1)
    v = one_more("v", H_kv, sizes.D_v)
    v = body.op("Where", body.op("Greater", some, body.constant(0.0)), v, body.constant(0.0))
    sums = shaped(body.op("MatMul", shaped(p, B, H_kv, rows, K), v), B, H_kv, G, Q, sizes.D_v)
    out = shaped(body.op("Div", sums, divisor), B, sizes.H, Q, sizes.D_v)
    lse = shaped(body.op("Add", body.op("Log", total), largest), B, sizes.H, Q)
    first, queries = body.constant([0], "int64"), body.constant([2], "int64")
    out = body.op("Slice", out, first, sizes.S_q, queries)
    body.op("Slice", lse, first, sizes.S_q, queries, output="lse")
    body.op("CastLike", out, "q", output="out")


def _sink_logits(body: BodyWriter, sizes: _Sizes) -> str:
    """(1, H_kv, G, 1, 1); -inf where there are none."""
    none = body.op("Expand", body.constant(-float("inf")), sizes.H)
    both = body.op("Concat", body.to_float("sink_logits"), none, axis=0)
    each = body.op("Slice", both, body.constant([0], "int64"), sizes.H)
    shape = body.op("Concat", sizes.one, sizes.H_kv, sizes.G, sizes.one, sizes.one, axis=0)
    return body.op("Reshape", each, shape)


def attention_node(inputs: Mapping[str, str], out: str, lse: str = "", **attributes: Any) -> onnx.NodeProto:
    """A BlockSparseAttention node; inputs: names by the names of INPUTS; attributes: those of DEFAULTS that differ."""
    return _node(ATTENTION, [inputs[name] for name in INPUTS[ATTENTION]], [out, lse] if lse else [out], attributes)


def top_k_node(q: str, k: str, block_mask: str, **attributes: Any) -> onnx.NodeProto:
    """A TopKBlocks node between named values; attributes: those of DEFAULTS that differ."""
    return _node(TOP_K, [q, k], [block_mask], attributes)


def _node(op_type: str, inputs: list[str], outputs: list[str], attributes: Mapping[str, Any]) -> onnx.NodeProto:
    from onnx import helper

    return helper.make_node(op_type, inputs, outputs, domain=DOMAIN, **(DEFAULTS[op_type] | dict(attributes)))


def schemas() -> list[onnx.defs.OpSchema]:
    """The operators' schemas, for tools that look operators up in onnx.defs."""
    from onnx import defs

    options, kinds = defs.OpSchema.FormalParameterOption, defs.OpSchema.AttrType
    attribute_kinds = {float: kinds.FLOAT, int: kinds.INT, tuple: kinds.INTS}
    # Offsets and columns, and the two cu_seqlens, may have a type each.
    types = dict.fromkeys((*REQUIRED, "out"), "T") | {name: f"I_{name}" for name in INDICES}
    types |= {"block_mask": "tensor(bool)", "token_bias": "F", "sink_logits": "tensor(float)"}
    types |= {"tables": "tensor(int32)", "bits": "tensor(int64)", "lse": "tensor(float)"}
    constraints = {"T": (FLOAT_TYPES, "one type for all"), "F": (FLOAT_TYPES, "float or q's type")}
    constraints |= {f"I_{name}": (["tensor(int32)", "tensor(int64)"], "indices") for name in INDICES}
    docs = {
        ATTENTION: "out, lse = softmax(scale q k^T + token_bias, over the keys that a query sees) v",
        TOP_K: "block_mask = the num_blocks blocks of keys with the largest scores, for each block of queries",
    }

    def parameters(names: tuple[str, ...], *required: str) -> list[defs.OpSchema.FormalParameter]:
        return [
            defs.OpSchema.FormalParameter(
                name, types[name], param_option=options.Single if name in required else options.Optional
            )
            for name in names
        ]

    return [
        defs.OpSchema(
            op_type,
            DOMAIN,
            DOMAIN_VERSION,
            doc=docs[op_type],
            inputs=parameters(INPUTS[op_type], *REQUIRED),
            outputs=parameters(OUTPUTS[op_type], "out", "block_mask"),
            type_constraints=[
                (name, *of)
                for name, of in constraints.items()
                if name in {types[value] for value in (*INPUTS[op_type], *OUTPUTS[op_type])}
            ],
            attributes=[
                defs.OpSchema.Attribute(name, attribute_kinds[type(value)], required=False)
                for name, value in DEFAULTS[op_type].items()
            ],
        )
        for op_type in INPUTS
    ]
