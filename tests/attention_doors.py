"""Every way to call block_sparse_attention from Python, behind one signature: torch tensors in, (out, lse) out."""

import functools
from typing import Any

import onnxruntime
import torch
from onnx import helper
from torch import Tensor

import deepseek_fast
from deepseek_fast import _attention, ort
from deepseek_fast._load import native
from deepseek_fast.kernels.block_sparse_attention import ref, ref_bounds
from deepseek_fast.kernels.block_sparse_attention.flex_lists import flex_block_lists, is_flex
from tests import doors, ort_nodes
from tests.plugin import seed_of

OP = "block_sparse_attention"
DOORS = ("torch", "numpy", "onnxruntime")
# Of the node, the torch operator and the NumPy door.
TENSORS = ("q", "k", "v", "block_mask", "row_offsets", "columns", "token_bias", "sink_logits", "cu_seqlens_q")
TENSORS += ("cu_seqlens_k", "tables", "bits")
OPTIONS = ("scale", "is_causal", "window", "sinks", "enable_gqa", "block_size", "q_offset")
DEFAULTS: dict[str, Any] = {"scale": None, "is_causal": False, "window": None, "sinks": None, "enable_gqa": True}
DEFAULTS |= {"block_size": 128, "q_offset": 0}
MASKS = ("row_offsets", "columns", "tables", "bits")


def call(door: str, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    if door == "torch":
        return deepseek_fast.block_sparse_attention(**inputs, return_lse=True)
    inputs = without_flex(inputs)
    if door == "numpy":
        given = {name: to_numpy(value) for name, value in inputs.items()}
        return tuple(map(doors.from_numpy, deepseek_fast.numpy.block_sparse_attention(**given, return_lse=True)))  # type: ignore[return-value]
    return run(session(inputs), inputs)


def gradients(door: str, dout: Tensor, dlse: Tensor | None, inputs: dict[str, Any]) -> list[Tensor]:
    """dq, dk, dv, and dsink_logits where there are any."""
    names = [name for name in ("q", "k", "v", "sink_logits") if name in inputs]
    if door == "torch":
        leaves = inputs | {name: inputs[name].detach().requires_grad_() for name in names}
        out, lse = deepseek_fast.block_sparse_attention(**leaves, return_lse=True)
        results, upstream = ((out,), (dout,)) if dlse is None else ((out, lse), (dout, dlse))
        return list(torch.autograd.grad(results, [leaves[name] for name in names], upstream))
    inputs = without_flex(inputs)
    forward = [doors.to_numpy(tensor) for tensor in call("numpy", inputs)]
    arrays = tuple(doors.to_numpy(tensor) for tensor in tensors(inputs))
    upstream = (doors.to_numpy(dout), doors.to_numpy(dlse))
    got = native().block_sparse_attention_backward(*upstream, *forward, arrays, options(inputs))
    return [doors.from_numpy(gradient) for gradient in got[: len(names)]]


def to_numpy(value: Any) -> Any:
    return tuple(map(doors.to_numpy, value)) if isinstance(value, tuple) else doors.to_numpy(value)


def without_flex(inputs: dict[str, Any]) -> dict[str, Any]:
    """A BlockMask as the lists that the torch function makes of it."""
    mask = inputs.get("block_mask")
    if not is_flex(mask):
        return inputs
    lists = flex_block_lists(mask, (inputs["q"].shape[-2], inputs["k"].shape[-2]))
    return inputs | {"block_mask": lists, "block_size": mask.BLOCK_SIZE}


def tensors(inputs: dict[str, Any]) -> list[Tensor | None]:
    """In the order of TENSORS."""
    parts = _attention.mask_parts(OP, inputs.get("block_mask"))
    named = inputs | dict(zip(("block_mask", *MASKS), parts, strict=True))
    return [named.get(name) for name in TENSORS]


def options(inputs: dict[str, Any]) -> tuple[Any, ...]:
    """As the operator takes them."""
    return _attention.options(OP, *(inputs.get(name, DEFAULTS[name]) for name in OPTIONS))


def attributes(inputs: dict[str, Any]) -> dict[str, Any]:
    """Of the node."""
    scale, is_causal, left, right, sinks, q_offset, at_end, gqa, block_q, block_k = options(inputs)
    found = {"is_causal": int(is_causal), "window": [left, right], "sinks": sinks, "q_offset": q_offset}
    found |= {"q_at_end": int(at_end), "enable_gqa": int(gqa), "block_size": [block_q, block_k]}
    return found if scale is None else found | {"scale": scale}


def session(inputs: dict[str, Any], **others: Any) -> onnxruntime.InferenceSession:
    """Of one node that takes the call's tensors; others: attributes in place of the call's."""
    given = dict(zip(TENSORS, tensors(inputs), strict=True))
    names = [name if given[name] is not None else "" for name in TENSORS]
    while not names[-1]:
        names.pop()
    node = helper.make_node(
        "BlockSparseAttention", names, ["out", "lse"], domain=ort_nodes.DOMAIN, **attributes(inputs) | others
    )
    values = [
        helper.make_tensor_value_info(name, ort_nodes.ONNX_TYPES[given[name].dtype], [None] * given[name].dim())
        for name in filter(None, names)
    ]
    results = [
        helper.make_tensor_value_info(name, ort_nodes.ONNX_TYPES[dtype], None)
        for name, dtype in (("out", inputs["q"].dtype), ("lse", torch.float32))
    ]
    graph = helper.make_graph([node], "attention", values, results)
    return ort.session(ort_nodes.model(graph).SerializeToString(), threads=1)


def run(made: onnxruntime.InferenceSession, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    given = dict(zip(TENSORS, tensors(inputs), strict=True))
    out, lse = made.run_with_ort_values(None, ort_nodes.feeds(made, given))
    return ort_nodes.from_ort(out), ort_nodes.from_ort(lse)


@functools.cache
def prepared(case: Any) -> tuple[dict[str, Any], Any, Any]:
    """A case's inputs, its reference and its bounds of (out, lse), computed once for all ISA levels."""
    inputs = case.inputs(torch.Generator().manual_seed(seed_of(f"{OP}-{case.id}")))
    want = ref.block_sparse_attention_ref(**inputs, return_lse=True)
    return inputs, want, ref_bounds.bound(**inputs, return_lse=True)


@functools.cache
def session_of(case: Any) -> onnxruntime.InferenceSession:
    return session(without_flex(prepared(case)[0]))


@functools.cache
def prepared_backward(case: Any) -> tuple[dict[str, Tensor], Any, Any]:
    """dout and dlse, the reference's gradients and their bounds."""
    inputs = prepared(case)[0]
    upstream = case.gradients(torch.Generator().manual_seed(seed_of(f"{OP}-backward-{case.id}")))
    want = ref.block_sparse_attention_backward_ref(**upstream, **inputs)
    return upstream, want, ref_bounds.backward_bound(**upstream, **inputs)
