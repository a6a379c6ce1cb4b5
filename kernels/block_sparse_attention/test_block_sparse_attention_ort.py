"""The node BlockSparseAttention in ONNX Runtime: shapes before a run, what stands for none, threads, constants."""

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from deepseek_fast import ort
from tests import ort_nodes
from tests.attention_doors import TENSORS, attributes, call, run, session
from tests.oracle import assert_equal

OP_TYPE = "BlockSparseAttention"
Q, K, V = torch.randn(2, 4, 70, 16), torch.randn(2, 2, 90, 16), torch.randn(2, 2, 90, 8)
KEPT = torch.rand(2, 4, 3, 6) < 0.5
INPUTS: dict[str, Any] = {"q": Q, "k": K, "v": V, "block_mask": KEPT, "block_size": (32, 16), "is_causal": True}
ABSENT = {"block_mask": torch.bool, "row_offsets": torch.int64, "columns": torch.int64, "token_bias": torch.float32}
ABSENT |= {"sink_logits": torch.float32, "cu_seqlens_q": torch.int64, "cu_seqlens_k": torch.int64}
ABSENT |= {"tables": torch.int32, "bits": torch.int64}


def node_session(names: list[str], values: list[Any], **how: Any) -> Any:
    node = helper.make_node(OP_TYPE, names, ["out", "lse"], domain=ort_nodes.DOMAIN, **attributes(INPUTS))
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("out", "lse")]
    graph = helper.make_graph([node], "attention", values, results, **how)
    return ort.session(ort_nodes.model(graph).SerializeToString(), threads=1)


def value(name: str, dtype: torch.dtype, shape: Any) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, ort_nodes.ONNX_TYPES[dtype], shape)


@pytest.mark.parametrize("present", ["block_mask", "row_offsets", "neither"])
def test_empty_tensors_stand_for_none(present: str) -> None:
    inputs = {name: value for name, value in INPUTS.items() if name != "block_mask" or present == "block_mask"}
    if present == "row_offsets":
        inputs["block_mask"] = (torch.tensor([0, 0, 0, 0]), torch.zeros(0, dtype=torch.int64))  # of no blocks at all
    given = {"q": Q, "k": K, "v": V}
    given |= {name: torch.zeros(0, dtype=dtype) for name, dtype in ABSENT.items()}
    if present == "block_mask":
        given["block_mask"] = KEPT
    if present == "row_offsets":
        given["row_offsets"] = inputs["block_mask"][0]
    values = [value(name, tensor.dtype, [None] * tensor.dim()) for name, tensor in given.items()]
    made = node_session(list(TENSORS), values)
    got = made.run_with_ort_values(None, ort_nodes.feeds(made, given))
    for result, expected in zip(got, call("torch", inputs), strict=True):
        assert_equal(ort_nodes.from_ort(result), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_shapes_and_types_are_inferred(dtype: torch.dtype) -> None:
    shapes = {"q": ["B", 4, "S", 16], "k": ["B", 2, "T", 16], "v": ["B", 2, "T", 8]}
    node = helper.make_node(OP_TYPE, list("qkv"), ["out", "lse"], domain=ort_nodes.DOMAIN)
    values = [value(name, dtype, shape) for name, shape in shapes.items()]
    after = [
        helper.make_node("Identity", ["out"], ["same_out"]),
        helper.make_node("Identity", ["lse"], ["same_lse"]),
    ]
    results = [onnx.ValueInfoProto(name=name) for name in ("same_out", "same_lse")]
    graph = helper.make_graph([node, *after], "attention", values, results)
    made = ort.session(ort_nodes.model(graph).SerializeToString(), threads=1)
    kind = {torch.float32: "float", torch.bfloat16: "bfloat16", torch.float16: "float16"}[dtype]
    out, lse = made.get_outputs()
    assert (out.type, out.shape) == (f"tensor({kind})", ["B", 4, "S", 8])
    assert (lse.type, lse.shape) == ("tensor(float)", ["B", 4, "S"])


@pytest.mark.parametrize(
    ("name", "given", "sentence"),
    [
        ("block_size", [64], "block_size must be 2 numbers; got (64,)"),
        ("block_size", [0, 64], "block_size must be from 1 to 2^30; got (0, 64)"),
        ("window", [1, 2, 3], "window must be 2 numbers; got (1, 2, 3)"),
        ("window", [-2, 0], "window must have sides from 0, or -1 where there is no limit; got (-2, 0)"),
        ("sinks", 3, "sinks must come with a window; got 3"),
        ("scale", float("inf"), "scale must be finite in float32; got inf"),
        ("q_offset", 2**60, "q_offset must be from -2^58 to 2^58; got 1152921504606846976"),
    ],
)
def test_wrong_attributes_are_refused_before_a_run(name: str, given: Any, sentence: str) -> None:
    with pytest.raises(Exception, match="must") as raised:
        session(INPUTS, **{name: given})
    assert f"block_sparse_attention: {sentence}" in str(raised.value)


def test_wrong_types_are_refused_before_a_run() -> None:
    for change, sentence in (
        ({"k": K.half()}, "k must have q's dtype float32; got dtype float16"),
        ({"block_mask": KEPT.byte()}, "block_mask must be bool; got dtype uint8"),
        ({"sink_logits": torch.zeros(4).half()}, "sink_logits must be float32; got dtype float16"),
    ):
        with pytest.raises(Exception, match="must") as raised:
            session(INPUTS | change)
        assert f"block_sparse_attention: {sentence}" in str(raised.value)


def test_the_session_s_threads_change_nothing() -> None:
    want = call("torch", INPUTS)
    given = dict(zip(TENSORS, (Q, K, V, KEPT), strict=False))
    values = [value(name, tensor.dtype, tensor.shape) for name, tensor in given.items()]
    node = helper.make_node(OP_TYPE, list(given), ["out", "lse"], domain=ort_nodes.DOMAIN)
    node.attribute.extend(helper.make_attribute(name, v) for name, v in attributes(INPUTS).items())
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("out", "lse")]
    model = ort_nodes.model(helper.make_graph([node], "attention", values, results)).SerializeToString()
    for threads in (1, 2, 3):
        made = ort.session(model, threads=threads)
        got = made.run_with_ort_values(None, ort_nodes.feeds(made, given))
        for result, expected in zip(got, want, strict=True):
            assert_equal(ort_nodes.from_ort(result), expected, f"{threads} threads")


def test_sizes_may_change_from_run_to_run() -> None:
    dense = {name: tensor for name, tensor in INPUTS.items() if name in ("q", "k", "v", "is_causal")}
    made = session(dense)
    for S in (1, 90, 33):
        part = dense | {"q": Q[:, :, :S], "k": K[:, :, :S], "v": V[:, :, :S]}
        for got, expected in zip(run(made, part), call("torch", part), strict=True):
            assert_equal(got, expected)
            assert np.isfinite(got.numpy()).all()
