"""Int4Matmul in ONNX: the node, its schema, and its body in plain ai.onnx operators.

Y = activation(X @ ((Q - Z) * S)^T + B) + R; the meaning, and the order of the float32 operations that the body replays
for compute "int8", are in cpu.h: products of integers below 2^24 are exact in a float32 MatMul, a batch of one block of
k each, and CumSum adds the blocks in their order. The body needs all six inputs, so a writer passes what is not there:
Z of shape (N, groups) full of 8, B of shape (N,) and R of shape (1,) full of zeros.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek_fast.onnx._body import DOMAIN, DOMAIN_VERSION, FLOAT_TYPES, BodyWriter

if TYPE_CHECKING:
    import onnx

OP_TYPE = "Int4Matmul"
INPUTS = ("X", "Q", "S", "Z", "B", "R")
ATTRIBUTES = ("activation", "compute", "gated", "group_size", "in_features")
MIN_OPSET = 14  # Reshape takes a size of zero as it is from here on
NO_ZERO_POINT = 8  # the zero point of a weight without any
WHOLE_ROW_BLOCK = 128  # values of k in a block where group_size is -1
INT8_MAX = 127.0
MIN_AMAX = 2.0**-100  # a block whose largest magnitude is below this counts as zeros


def function_proto(opset: int, *, gated: bool = False) -> onnx.FunctionProto:
    """The body of Int4Matmul in the ai.onnx operators of `opset`, 14 to 25; gated: for gated nodes, and the others."""
    body = BodyWriter(opset, MIN_OPSET, gated=gated)
    x = body.to_float("X")
    is_float = body.equals(body.attribute("compute"), "float")
    body.epilogue(body.choose(is_float, lambda: _float_product(body, x), lambda: _int8_product(body, x)))
    return body.function(OP_TYPE, INPUTS, ATTRIBUTES)


class _Sizes:
    """N, K, the number of blocks and the values of k in one, as int64 tensors of shape (1,)."""

    def __init__(self, body: BodyWriter) -> None:
        zero, one, two = (body.constant([value], "int64") for value in (0, 1, 2))
        shape = body.op("Shape", "Q")
        self.N = body.op("Slice", shape, zero, one)
        whole = body.op("Mul", body.op("Slice", shape, one, two), two)
        in_features, group_size = body.integer("in_features"), body.integer("group_size")
        self.K = body.op("Where", body.op("Less", in_features, zero), whole, in_features)
        whole_row = body.constant([WHOLE_ROW_BLOCK], "int64")
        self.block = body.op("Where", body.op("Less", group_size, zero), whole_row, group_size)
        rounded = body.op("Sub", body.op("Add", self.K, self.block), one)
        self.blocks = body.op("Div", rounded, self.block)
        self.missing = body.op("Sub", body.op("Mul", self.blocks, self.block), self.K)  # from K to whole blocks


def _in_blocks(body: BodyWriter, rows: str, count: str, sizes: _Sizes) -> str:
    """(count, K) -> (count, blocks, block), filled up with zeros."""
    no_pads = body.constant([0, 0, 0], "int64")
    full = body.op("Pad", rows, body.op("Concat", no_pads, sizes.missing, axis=0))
    return body.op("Reshape", full, body.op("Concat", count, sizes.blocks, sizes.block, axis=0), allowzero=1)


def _by_block(body: BodyWriter, values: str) -> str:
    """S or Z, (N, groups) -> (groups, 1, N); one group serves all blocks by broadcasting."""
    return body.op("Unsqueeze", body.op("Transpose", values, perm=[1, 0]), body.constant([1], "int64"))


def _weight(body: BodyWriter, sizes: _Sizes) -> str:
    """Q - Z, (blocks, block, N)."""
    axis = body.constant([2], "int64")
    codes, sixteen = body.to_float("Q"), body.constant(16.0)
    high = body.op("Floor", body.op("Div", codes, sixteen))
    low = body.op("Sub", codes, body.op("Mul", high, sixteen))
    pairs = body.op("Concat", body.op("Unsqueeze", low, axis), body.op("Unsqueeze", high, axis), axis=2)
    whole = body.op("Mul", body.op("Shape", "Q"), body.constant([1, 2], "int64"))
    rows = body.op("Reshape", pairs, whole, allowzero=1)
    rows = body.op("Slice", rows, body.constant([0], "int64"), sizes.K, body.constant([1], "int64"))
    # The Transpose is not the last step: ONNX Runtime 1.31.1 would make it part of the MatMul, which then divides by
    # zero where x has no rows. The same holds for x.
    by_block = body.op("Transpose", _in_blocks(body, rows, sizes.N, sizes), perm=[1, 2, 0])
    return body.op("Sub", by_block, _by_block(body, body.to_float("Z")))


def _float_product(body: BodyWriter, x: str) -> str:
    sizes = _Sizes(body)
    blocks = body.op("Mul", _weight(body, sizes), _by_block(body, "S"))
    full = body.op("Add", sizes.K, sizes.missing)
    columns = body.op("Reshape", blocks, body.op("Concat", full, sizes.N, axis=0), allowzero=1)
    zero = body.constant([0], "int64")
    return body.op("MatMul", x, body.op("Slice", columns, zero, sizes.K, zero))


def _int8_product(body: BodyWriter, x: str) -> str:
    """z in the order of cpu.h."""
    sizes = _Sizes(body)
    zero, one = body.constant([0], "int64"), body.constant([1], "int64")
    outer = body.op("Slice", body.op("Shape", x), zero, body.constant([-1], "int64"))
    M = body.op("Reshape", body.op("Size", body.op("ConstantOfShape", outer)), one)  # the product, 1 of nothing
    rows = body.op("Reshape", x, body.op("Concat", M, sizes.K, axis=0), allowzero=1)
    by_block = body.op("Transpose", _in_blocks(body, rows, M, sizes), perm=[1, 0, 2])
    x_q, x_scale = _quantize(body, by_block, body.op("Concat", sizes.blocks, M, one, axis=0))
    acc = body.op("MatMul", x_q, _weight(body, sizes))  # (blocks, M, N)
    terms = body.op("Mul", body.op("Mul", acc, x_scale), _by_block(body, "S"))
    # Sums begin at zero, a row of zeros. The column of zeros is for no rows at all: the CumSum of ONNX Runtime 1.31.1
    # divides by the size of a row.
    count = body.op("Mul", M, sizes.N)
    flat = body.op("Reshape", terms, body.op("Concat", sizes.blocks, count, axis=0), allowzero=1)
    padded = body.op("Pad", flat, body.constant([1, 0, 0, 1], "int64"))
    sums = body.op("CumSum", padded, body.constant(0, "int64"))
    last = body.op("Slice", body.op("Gather", sums, body.constant(-1, "int64"), axis=0), zero, count)
    return body.op("Reshape", last, body.op("Concat", outer, sizes.N, axis=0), allowzero=1)


def _quantize(body: BodyWriter, x: str, per_block: str) -> tuple[str, str]:
    """x (blocks, M, block) to integers, held in float32, and their scales (blocks, M, 1)."""

    def reduced(op_type: str, of: str) -> str:  # of no rows at all ONNX Runtime returns the shape unreduced
        return body.op("Reshape", body.reduce_last(op_type, of), per_block, allowzero=1)

    amax = reduced("ReduceMax", body.op("Abs", x))
    # ReduceMax may drop a NaN; this sum of zeros is NaN where the block holds NaN or inf, and adds 0 elsewhere.
    not_finite = reduced("ReduceSum", body.op("Mul", x, body.constant(0.0)))
    scale = body.op("Add", body.op("Div", amax, body.constant(INT8_MAX)), not_finite)
    is_zero = body.op("Less", amax, body.constant(MIN_AMAX))
    inverse = body.op(
        "Div",
        body.op("Where", is_zero, body.constant(0.0), body.constant(INT8_MAX)),
        body.op("Where", is_zero, body.constant(1.0), amax),
    )
    return body.op("Round", body.op("Mul", x, inverse)), scale


def node(
    x: str,
    q: str,
    scale: str,
    zeros: str,
    bias: str,
    residual: str,
    y: str,
    *,
    activation: str = "none",
    compute: str = "int8",
    group_size: int = 32,
    in_features: int = -1,
    gated: bool = False,
) -> onnx.NodeProto:
    """An Int4Matmul node between named values; q is (N, ceil(K / 2)) uint8, scale (N, groups) float, zeros uint8."""
    from onnx import helper

    return helper.make_node(
        OP_TYPE,
        [x, q, scale, zeros, bias, residual],
        [y],
        domain=DOMAIN,
        activation=activation,
        compute=compute,
        group_size=group_size,
        in_features=in_features,
        gated=int(gated),
    )


def schema() -> onnx.defs.OpSchema:
    """The operator's schema, for tools that look operators up in onnx.defs."""
    from onnx import defs

    def parameter(name: str, kind: str, *, optional: bool = False) -> defs.OpSchema.FormalParameter:
        options = defs.OpSchema.FormalParameterOption
        return defs.OpSchema.FormalParameter(name, kind, param_option=options.Optional if optional else options.Single)

    kinds = {"activation": "STRING", "compute": "STRING", "gated": "INT", "group_size": "INT", "in_features": "INT"}
    return defs.OpSchema(
        OP_TYPE,
        DOMAIN,
        DOMAIN_VERSION,
        doc="Y = activation(X @ ((Q - Z) * S)^T + B) + R, two 4-bit values of Q in a byte, S and Z by group of columns",
        inputs=[
            parameter("X", "T"),
            parameter("Q", "tensor(uint8)"),
            parameter("S", "tensor(float)"),
            parameter("Z", "tensor(uint8)", optional=True),
            parameter("B", "T", optional=True),
            parameter("R", "T", optional=True),
        ],
        outputs=[parameter("Y", "T")],
        type_constraints=[("T", FLOAT_TYPES, "one type for X, B, R and Y")],
        attributes=[
            defs.OpSchema.Attribute(name, getattr(defs.OpSchema.AttrType, kind), required=False)
            for name, kind in kinds.items()
        ],
    )
