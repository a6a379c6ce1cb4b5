"""SparseMla and SparseMlaDecode in a model: what their bodies read, and how export writes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deepseek_fast.onnx._body import DOMAIN, DOMAIN_VERSION

if TYPE_CHECKING:
    import onnx_ir as ir

    from deepseek_fast.onnx._rewriter import Rewriter

OP_TYPES = ("SparseMla", "SparseMlaDecode")


def complete_mla(node: ir.Node, rewriter: Rewriter) -> None:
    """The node gets all its inputs, of shape (0,) where there is none, and all its attributes."""
    import numpy as np
    import onnx_ir as ir

    from deepseek_fast.kernels.sparse_mla.body import DEFAULTS, INPUTS, NEEDED

    for name, value in DEFAULTS[node.op_type].items():
        if name not in node.attributes:
            node.attributes[name] = ir.convenience.convert_attribute(name, value)
    names, needed = INPUTS[node.op_type], NEEDED[node.op_type]
    if not needed <= len(node.inputs) <= len(names) or None in node.inputs[:needed]:
        rule = f"optimize: model must give {node.op_type} from {needed} to {len(names)} inputs"
        raise ValueError(f"{rule}; got {len(node.inputs)} in '{node.name}'")
    if len(node.inputs) < len(names):
        node.resize_inputs(len(names))
    for place, name in enumerate(names):
        if node.inputs[place] is not None:
            continue
        dtype = np.dtype(np.float32) if name == "S" else np.dtype(np.int32)
        if name == "XK":
            cache = node.inputs[1]
            dtype = cache.dtype.numpy() if cache is not None and cache.dtype else np.dtype(np.float32)
        node.replace_input_with(place, rewriter.zeros(0, dtype))


def translations(namespace: Any) -> dict[Callable[..., Any], Callable[..., Any]]:
    """How export writes torch.ops.deepseek_fast.sparse_mla and sparse_mla_decode."""
    return {
        namespace.sparse_mla.default: _sparse_mla,
        namespace.sparse_mla_decode.default: _sparse_mla_decode,
    }


def _sparse_mla(
    q: Any,
    kv: Any,
    indices: Any,
    scale: float | None = None,
    d_v: int = 512,
    attn_sink: Any = None,
    topk_length: Any = None,
) -> Any:
    from onnxscript import values

    ours = values.Opset(DOMAIN, DOMAIN_VERSION)
    return ours.SparseMla(q, kv, indices, attn_sink, topk_length, scale=_scale("sparse_mla", scale), d_v=d_v)


def _sparse_mla_decode(
    q: Any,
    k_cache: Any,
    indices: Any = None,
    scale: float | None = None,
    d_v: int = 512,
    layout: str = "plain",
    block_table: Any = None,
    cache_seqlens: Any = None,
    is_causal: bool = False,
    attn_sink: Any = None,
    topk_length: Any = None,
    extra_k_cache: Any = None,
    extra_indices: Any = None,
    extra_topk_length: Any = None,
) -> Any:
    import onnx_ir as ir
    from onnxscript import values

    op = "sparse_mla_decode"
    if layout != "plain" and k_cache.dtype is not None and k_cache.dtype != ir.DataType.UINT8:
        raise ValueError(f"{op}: k_cache must be uint8 in ONNX for layout {layout}; got {k_cache.dtype}")
    lists = (indices, topk_length, block_table, cache_seqlens, extra_k_cache, extra_indices, extra_topk_length)
    attributes = {"scale": _scale(op, scale), "d_v": d_v, "layout": layout, "is_causal": int(is_causal)}
    return values.Opset(DOMAIN, DOMAIN_VERSION).SparseMlaDecode(q, k_cache, *lists, attn_sink, **attributes)


def _scale(op: str, scale: float | None) -> float:
    """0 stands for none in ONNX."""
    if scale == 0:
        raise ValueError(f"{op}: scale must be another number than 0 in ONNX; got {scale}")
    return 0.0 if scale is None else float(scale)
