"""BlockSparseAttention and TopKBlocks in a model: what their bodies read, and how export writes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deepseek_fast.onnx._body import DOMAIN, DOMAIN_VERSION

if TYPE_CHECKING:
    import onnx_ir as ir

    from deepseek_fast.onnx._rewriter import Rewriter

OP_TYPES = ("BlockSparseAttention", "TopKBlocks")
NO_LIMIT, BLOCK = -1, 128


def complete_attention(node: ir.Node, rewriter: Rewriter) -> None:
    """The node gets all its inputs and attributes, and its outputs their types."""
    import numpy as np
    import onnx_ir as ir

    from deepseek_fast.kernels.block_sparse_attention import body

    for name, value in body.DEFAULTS[node.op_type].items():
        if name not in node.attributes:
            node.attributes[name] = ir.convenience.convert_attribute(name, value)
    names = body.INPUTS[node.op_type]
    lowest = len(body.REQUIRED) if node.op_type == body.ATTENTION else len(names)
    if not lowest <= len(node.inputs) <= len(names) or None in node.inputs[:lowest]:
        rule = f"optimize: model must give {node.op_type} from {lowest} to {len(names)} inputs"
        raise ValueError(f"{rule}; got {len(node.inputs)} in '{node.name}'")
    if node.op_type == body.TOP_K:
        node.outputs[0].dtype = ir.DataType.BOOL
        return
    if len(node.inputs) < len(names):
        node.resize_inputs(len(names))
    q = node.inputs[0]
    assert q is not None  # see above
    q_type = q.dtype if q.dtype is not None else ir.DataType.FLOAT
    types = {name: ir.DataType(kind) for name, kind in body.ABSENT_TYPES.items()} | {"token_bias": q_type}
    for place, name in enumerate(names):
        if node.inputs[place] is None:
            node.replace_input_with(place, rewriter.zeros(0, np.dtype(types[name].numpy())))
    if len(node.outputs) < len(body.OUTPUTS[body.ATTENTION]):  # stock ONNX Runtime wants all that a body has
        node.resize_outputs(len(body.OUTPUTS[body.ATTENTION]))
    if not node.outputs[1].name:
        node.outputs[1].name = rewriter.unique(f"{node.outputs[0].name}_lse")
    for output, dtype in zip(node.outputs, (q_type, ir.DataType.FLOAT), strict=True):
        output.dtype = dtype


def translations(namespace: Any) -> dict[Callable[..., Any], Callable[..., Any]]:
    """How export writes torch.ops.deepseek_fast's attention and the builders of its masks."""
    return {
        namespace.block_sparse_attention.default: _block_sparse_attention,
        namespace.top_k_blocks.default: _top_k_blocks,
        namespace.sliding_window_blocks.default: _sliding_window_blocks,
        namespace.local_log_blocks.default: _local_log_blocks,
        namespace.block_lists.default: _block_lists,
    }


def _block_sparse_attention(
    q: Any,
    k: Any,
    v: Any,
    block_mask: Any = None,
    row_offsets: Any = None,
    columns: Any = None,
    token_bias: Any = None,
    sink_logits: Any = None,
    cu_seqlens_q: Any = None,
    cu_seqlens_k: Any = None,
    tables: Any = None,
    bits: Any = None,
    scale: float | None = None,
    is_causal: bool = False,
    left: int = NO_LIMIT,
    right: int = NO_LIMIT,
    sinks: int = 0,
    q_offset: int = 0,
    q_at_end: bool = False,
    enable_gqa: bool = True,
    block_q: int = BLOCK,
    block_k: int = BLOCK,
    key_stride: int = 1,
) -> Any:
    op = "block_sparse_attention"
    numbers = {"window": left, "sinks": sinks, "q_offset": q_offset, "block_size": block_q, "key_stride": key_stride}
    _check_numbers(op, **numbers)
    masks = (block_mask, row_offsets, columns, token_bias, sink_logits, cu_seqlens_q, cu_seqlens_k, tables, bits)
    return _ours().BlockSparseAttention(
        q,
        k,
        v,
        *masks,
        block_size=[block_q, block_k],
        **({} if scale is None else {"scale": float(scale)}),
        is_causal=int(is_causal),
        window=[left, right],
        sinks=sinks,
        q_offset=q_offset,
        q_at_end=int(q_at_end),
        enable_gqa=int(enable_gqa),
        key_stride=key_stride,
    )


def _top_k_blocks(
    q: Any,
    k: Any,
    num_blocks: int,
    scale: float | None = None,
    first: int = 1,
    local: int = 1,
    is_causal: bool = False,
    q_offset: int = 0,
    q_at_end: bool = False,
    block_q: int = BLOCK,
    block_k: int = BLOCK,
) -> Any:
    numbers = {"num_blocks": num_blocks, "first": first, "local": local}
    _check_numbers("top_k_blocks", **numbers, q_offset=q_offset, block_size=block_q)
    return _ours().TopKBlocks(
        q,
        k,
        block_size=[block_q, block_k],
        **({} if scale is None else {"scale": float(scale)}),
        **numbers,
        is_causal=int(is_causal),
        q_offset=q_offset,
        q_at_end=int(q_at_end),
    )


def _sliding_window_blocks(
    S_q: int,
    S_k: int,
    left: int,
    right: int,
    sinks: int = 0,
    is_causal: bool = False,
    q_offset: int = 0,
    q_at_end: bool = False,
    block_q: int = BLOCK,
    block_k: int = BLOCK,
) -> Any:
    numbers = [S_q, S_k, block_q, block_k, is_causal, q_offset, q_at_end, left, right, sinks]
    return _lists("sliding_window_blocks", False, numbers)


def _local_log_blocks(
    S_q: int,
    S_k: int,
    local: int = 2,
    first: int = 1,
    is_causal: bool = True,
    q_offset: int = 0,
    q_at_end: bool = False,
    block_q: int = BLOCK,
    block_k: int = BLOCK,
) -> Any:
    return _lists("local_log_blocks", True, [S_q, S_k, block_q, block_k, is_causal, q_offset, q_at_end, local, first])


def _lists(op: str, is_log: bool, numbers: list[Any]) -> tuple[Any, Any]:
    """The lists themselves, as constants."""
    from onnx import numpy_helper
    from onnxscript import opset18

    from deepseek_fast import _load

    _check_numbers(op, S_q=numbers[0], S_k=numbers[1], others=numbers[2:])
    offsets, columns = _load.native().block_pattern(op, is_log, [int(number) for number in numbers])
    constant: Any = opset18.Constant
    return constant(value=numpy_helper.from_array(offsets)), constant(value=numpy_helper.from_array(columns))


def _block_lists(block_mask: Any) -> tuple[Any, Any]:
    """Row by row the columns of what is kept; NonZero has them in that order."""
    from onnxscript import opset18

    standard: Any = opset18
    rank = len(block_mask.shape)
    if rank == 2:
        block_mask = standard.Unsqueeze(block_mask, standard.Constant(value_ints=[0, 1]))
    last = standard.Constant(value_ints=[-1])
    columns = standard.Gather(standard.NonZero(block_mask), standard.Constant(value_int=3), axis=0)
    counts = standard.ReduceSum(standard.Cast(block_mask, to=7), last, keepdims=0)  # (B | 1, heads, rows)
    shape = standard.Shape(counts)
    ends = standard.Reshape(standard.CumSum(standard.Reshape(counts, last), standard.Constant(value_int=0)), shape)
    zero, one = standard.Constant(value_ints=[0]), standard.Constant(value_ints=[1])
    starts = standard.Slice(standard.Sub(ends, counts), zero, one, last)
    return standard.Concat(starts, ends, axis=2), columns


def _check_numbers(op: str, **numbers: Any) -> None:
    """A node's attributes are numbers; what depends on the sizes of an input that are not known is none."""
    for arg, given in numbers.items():
        for value in given if isinstance(given, list) else [given]:
            if not isinstance(value, int):
                raise ValueError(f"{op}: {arg} must be a number in an exported model; got one that its inputs decide")


def _ours() -> Any:
    from onnxscript import values

    return values.Opset(DOMAIN, DOMAIN_VERSION)
