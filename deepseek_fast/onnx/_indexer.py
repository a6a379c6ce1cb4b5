"""The indexer's operators in a model: what their bodies read, and how export writes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deepseek_fast.onnx._body import DOMAIN, DOMAIN_VERSION

if TYPE_CHECKING:
    import onnx_ir as ir

    from deepseek_fast.onnx._rewriter import Rewriter

OP_TYPES = ("Fp8MqaLogits", "Fp8PagedMqaLogits", "LightningIndexer", "LightningIndexerPaged", "TopkIndices")


def complete_indexer(node: ir.Node, rewriter: Rewriter) -> None:
    """The node gets all its inputs and attributes, and its output its type."""
    import numpy as np
    import onnx_ir as ir

    from deepseek_fast.kernels.lightning_indexer.body import DEFAULTS, INPUTS, OPTIONAL

    for name, value in DEFAULTS[node.op_type].items():
        if name not in node.attributes:
            node.attributes[name] = ir.convenience.convert_attribute(name, value)
    names = INPUTS[node.op_type]
    needed = sum(name not in OPTIONAL for name in names)
    if not needed <= len(node.inputs) <= len(names) or None in node.inputs[:needed]:
        rule = f"optimize: model must give {node.op_type} from {needed} to {len(names)} inputs"
        raise ValueError(f"{rule}; got {len(node.inputs)} in '{node.name}'")
    if len(node.inputs) < len(names):
        node.resize_inputs(len(names))
    for place, value in enumerate(node.inputs):
        if value is None:
            node.replace_input_with(place, rewriter.zeros(0, np.dtype(np.int32)))
    is_logits = "dtype" in node.attributes
    node.outputs[0].dtype = ir.DataType(node.attributes["dtype"].value) if is_logits else ir.DataType.INT32


def translations(namespace: Any) -> dict[Callable[..., Any], Callable[..., Any]]:
    """How export writes torch.ops.deepseek_fast's indexer."""
    return {
        namespace.fp8_mqa_logits.default: _fp8_mqa_logits,
        namespace.fp8_paged_mqa_logits.default: _fp8_paged_mqa_logits,
        namespace.lightning_indexer.default: _lightning_indexer,
        namespace.lightning_indexer_paged.default: _lightning_indexer_paged,
        namespace.topk_indices.default: _topk_indices,
    }


def _fp8_mqa_logits(
    q: Any, k: Any, k_scale: Any, weights: Any, ks: Any = None, ke: Any = None, max_seqlen_k: int = 0, dtype: Any = None
) -> Any:
    return _ours().Fp8MqaLogits(q, k, k_scale, weights, ks, ke, max_seqlen_k=max_seqlen_k, dtype=int(dtype))


def _fp8_paged_mqa_logits(
    q: Any,
    cache: Any,
    weights: Any,
    context_lens: Any,
    block_table: Any,
    max_context_len: int = 0,
    dtype: Any = None,
) -> Any:
    attributes = {"max_context_len": max_context_len, "dtype": int(dtype)}
    return _ours().Fp8PagedMqaLogits(q, cache, weights, context_lens, block_table, **attributes)


def _lightning_indexer(
    q: Any,
    k: Any,
    k_scale: Any,
    weights: Any,
    top_k: int = 0,
    ks: Any = None,
    ke: Any = None,
    sorted_by: str = "any",
) -> Any:
    return _ours().LightningIndexer(q, k, k_scale, weights, ks, ke, top_k=top_k, sorted_by=sorted_by)


def _lightning_indexer_paged(
    q: Any,
    cache: Any,
    weights: Any,
    context_lens: Any,
    block_table: Any,
    top_k: int = 0,
    sorted_by: str = "any",
    as_slots: bool = False,
) -> Any:
    attributes = {"top_k": top_k, "sorted_by": sorted_by, "as_slots": int(as_slots)}
    return _ours().LightningIndexerPaged(q, cache, weights, context_lens, block_table, **attributes)


def _topk_indices(scores: Any, k: int = 0, sorted_by: str = "any", lengths: Any = None) -> Any:
    return _ours().TopkIndices(scores, lengths, k=k, sorted_by=sorted_by)


def _ours() -> Any:
    from onnxscript import values

    return values.Opset(DOMAIN, DOMAIN_VERSION)
