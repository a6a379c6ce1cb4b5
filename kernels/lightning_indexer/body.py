"""The indexer's operators in ONNX: the nodes, their schemas, and their bodies in plain ai.onnx operators.

A body reads all inputs, so a writer passes an int32 tensor of shape (0,) for ks, ke or lengths that are not there.
dtype is 1 (float) or 16 (bfloat16); sorted_by "any" stands for None, and gives what "index" gives. The bodies' sums are
in another order than the kernels', so that their logits agree within the bound, and a selection from them up to scores
as near as that; topk_indices of given scores is the same everywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deepseek_fast.kernels.lightning_indexer import body_steps
from deepseek_fast.kernels.lightning_indexer.body_steps import Steps
from deepseek_fast.onnx._body import DOMAIN, DOMAIN_VERSION, FLOAT_TYPES, BodyWriter

if TYPE_CHECKING:
    import onnx

OP_TYPE, PAGED, LOGITS = "LightningIndexer", "LightningIndexerPaged", "Fp8MqaLogits"
PAGED_LOGITS, TOPK = "Fp8PagedMqaLogits", "TopkIndices"
_DENSE_INPUTS = ("q", "k", "k_scale", "weights", "ks", "ke")
_PAGED_INPUTS = ("q", "cache", "weights", "context_lens", "block_table")
INPUTS = {
    LOGITS: _DENSE_INPUTS,
    PAGED_LOGITS: _PAGED_INPUTS,
    OP_TYPE: _DENSE_INPUTS,
    PAGED: _PAGED_INPUTS,
    TOPK: ("scores", "lengths"),
}
OPTIONAL = ("ks", "ke", "lengths")  # int32
OUTPUTS = {LOGITS: "logits", PAGED_LOGITS: "logits", OP_TYPE: "indices", PAGED: "indices", TOPK: "indices"}
FLOAT = 1  # TensorProto type
ANY_ORDER = "any"
# The attributes and their defaults.
DEFAULTS: dict[str, dict[str, Any]] = {
    LOGITS: {"max_seqlen_k": 0, "dtype": FLOAT},
    PAGED_LOGITS: {"max_context_len": 0, "dtype": FLOAT},
    OP_TYPE: {"top_k": 0, "sorted_by": ANY_ORDER},
    PAGED: {"top_k": 0, "sorted_by": ANY_ORDER, "as_slots": 0},
    TOPK: {"k": 0, "sorted_by": ANY_ORDER},
}
MIN_OPSETS = dict.fromkeys(INPUTS, 19) | {TOPK: 15}  # 19: the first whose Cast knows float8; 15: CastLike


def function_proto(opset: int, op_type: str = OP_TYPE) -> onnx.FunctionProto:
    """The body of an operator in the ai.onnx operators of `opset`, 19 to 25; from 15 of TopkIndices."""
    body = BodyWriter(opset, MIN_OPSETS[op_type])
    steps = Steps(body)
    if op_type in (LOGITS, PAGED_LOGITS):
        body.cast_as("dtype", (_logits if op_type == LOGITS else _paged_logits)(steps), "logits")
    else:
        indices = {OP_TYPE: _indexer, PAGED: _paged_indexer, TOPK: _topk}[op_type](steps)
        steps.int32(indices, OUTPUTS[op_type])
    return body.function(op_type, INPUTS[op_type], tuple(DEFAULTS[op_type]), (OUTPUTS[op_type],))


def _logits(steps: Steps) -> str:
    body = steps.body
    logits, columns = body_steps.dense_logits(steps), body.integer("max_seqlen_k")
    is_whole = body.op("Less", body.scalar("max_seqlen_k"), body.constant(1, "int64"))
    return body.choose(is_whole, lambda: logits, lambda: body_steps.compressed(steps, logits, columns))


def _paged_logits(steps: Steps) -> str:
    logits, columns = body_steps.paged_logits(steps), steps.body.integer("max_context_len")
    logits = body_steps.fitted(steps, logits, columns)
    rows = steps.op("Mul", steps.sizes(logits, 0, 1), steps.sizes(logits, 1, 2))
    return steps.reshape(logits, rows, columns)


def _indexer(steps: Steps) -> str:
    return body_steps.top_k(steps, body_steps.dense_logits(steps), steps.body.integer("top_k"), "sorted_by")


def _paged_indexer(steps: Steps) -> str:
    logits = body_steps.paged_logits(steps)
    indices = body_steps.top_k(steps, logits, steps.body.integer("top_k"), "sorted_by")
    return body_steps.as_slots(steps, indices, "as_slots")


def _topk(steps: Steps) -> str:
    scores, op = steps.body.to_float("scores"), steps.op
    outer, columns = steps.sizes(scores, 0, -1), steps.sizes(scores, -1)
    count = op("ReduceProd", steps.shape(1, outer), keepdims=1)
    lengths = op("Reshape", "lengths", steps.last)
    flat = steps.op("Concat", steps.int64(lengths), op("Expand", columns, count), axis=0)
    ends = steps.column(steps.reshape(op("Slice", flat, steps.zero, count), outer))
    scores = body_steps.windowed(steps, scores, steps.zero, ends, columns)
    return body_steps.top_k(steps, scores, steps.body.integer("k"), "sorted_by")


def node(op_type: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    """A node between named values; attributes: those of DEFAULTS that differ."""
    from onnx import helper

    return helper.make_node(op_type, inputs, [output], domain=DOMAIN, **(DEFAULTS[op_type] | attributes))


def _types_of(op_type: str) -> str:
    return "T" * (op_type == TOPK) + "L" * (OUTPUTS[op_type] == "logits")


def schemas() -> list[onnx.defs.OpSchema]:
    """The operators' schemas, for tools that look operators up in onnx.defs."""
    from onnx import defs

    options, kinds = defs.OpSchema.FormalParameterOption, defs.OpSchema.AttrType
    attribute_kinds = {str: kinds.STRING, int: kinds.INT}
    types = dict.fromkeys(("ks", "ke", "lengths", "context_lens", "block_table"), "tensor(int32)")
    types |= {"q": "tensor(float8e4m3fn)", "k": "tensor(float8e4m3fn)", "cache": "tensor(uint8)"}
    types |= {"weights": "tensor(float)", "k_scale": "tensor(float)", "scores": "T"}
    docs = {
        LOGITS: "logits = k_scale * sum over heads of weights * relu(q . k), -inf outside of [ks, ke)",
        PAGED_LOGITS: "Fp8MqaLogits of a paged cache",
        OP_TYPE: "indices = the top_k largest of Fp8MqaLogits",
        PAGED: "indices = the top_k largest of Fp8PagedMqaLogits",
        TOPK: "indices = where the k largest scores of a row are",
    }
    constraints = {
        "T": ("T", FLOAT_TYPES, "scores"),
        "L": ("L", ["tensor(float)", "tensor(bfloat16)"], "logits"),
    }
    return [
        defs.OpSchema(
            op_type,
            DOMAIN,
            DOMAIN_VERSION,
            doc=docs[op_type],
            inputs=[
                defs.OpSchema.FormalParameter(
                    name, types[name], param_option=options.Optional if name in OPTIONAL else options.Single
                )
                for name in INPUTS[op_type]
            ],
            outputs=[
                defs.OpSchema.FormalParameter(
                    OUTPUTS[op_type], "L" if OUTPUTS[op_type] == "logits" else "tensor(int32)"
                )
            ],
            type_constraints=[constraints["T"]] * (op_type == TOPK)
            + [constraints["L"]] * (OUTPUTS[op_type] == "logits"),
            attributes=[
                defs.OpSchema.Attribute(name, attribute_kinds[type(value)], required=False)
                for name, value in DEFAULTS[op_type].items()
            ],
        )
        for op_type in INPUTS
    ]
