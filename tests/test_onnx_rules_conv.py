"""The rules that make a FusedConv, and for what has no kernel of its own beside one: padding, BatchNormalization, nodes
without effect. What is rewritten to the same numbers, what is left alone and why."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from deepseek_fast.onnx import explain
from deepseek_fast.onnx._runtime import STOCK, Runner
from tests.onnx_convs import CLOSE, C, F, H, W, assert_stock_numbers, batch_norm, conv, images, rewritten
from tests.onnx_models import Graph, assert_same_numbers, attribute, counts, fused, normal, sentences

# Conv


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"strides": [2, 1], "pads": [1, 0, 2, 1], "dilations": [1, 2]},
        {"group": 2, "pads": [0, 0, 0, 0]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
        {"auto_pad": "VALID"},
        {"kernel_shape": [3, 3]},
    ],
    ids=str,
)
def test_conv_is_rewritten(options, bias):
    graph = images()
    if "auto_pad" in options:
        options = {**options, "pads": None}
    given = {name: value for name, value in options.items() if value is not None}
    y = conv(graph, "x", C, F, bias=bias, stem="_y", **(given if "pads" in given else given | {"pads": [1, 1, 1, 1]}))
    if "auto_pad" in options:
        del graph.nodes[-1].attribute[[a.name for a in graph.nodes[-1].attribute].index("pads")]
    graph.output(y, rank=4)
    result = rewritten(graph)
    assert counts(result.model) == {"FusedConv": 1}
    assert [node.output[0] for node in fused(result.model, "FusedConv")] == ["conv_y"]


@pytest.mark.parametrize("case", ["computed", "1-D", "double", "overridable", "unknown size", "negative pads"])
def test_conv_left_alone(case):
    graph, rank, dtype = images(), 4, TensorProto.FLOAT
    if case == "computed":
        graph = images(batch=1)
        graph.op("Conv", "x", graph.op("Identity", "x"), output="y")
        sentence = "weight must be constant; got 'x'"
    elif case == "1-D":
        graph, rank = Graph(), 3
        graph.input("x", "batch", C, W)
        graph.op("Conv", "x", graph.random("W", F, C, 3), output="y")
        sentence = "weight must have 4 dimensions, none empty; got shape (6, 4, 3)"
    elif case == "double":
        dtype = TensorProto.DOUBLE
        graph.op("Conv", graph.op("Cast", "x", to=dtype), graph.random("W", F, C, 3, 3, dtype=np.float64), output="y")
        sentence = "weight must be float32 or bfloat16; got dtype float64"
    elif case == "overridable":
        graph.op("Conv", "x", graph.random("W", F, C, 3, 3), output="y")
        graph.input("W", F, C, 3, 3)
        sentence = "weight must be constant; got 'W', an overridable graph input"
    elif case == "unknown size":
        graph = images(size=("h", "w"))
        graph.op("Conv", "x", graph.random("W", F, C, 3, 3), output="y", auto_pad="SAME_UPPER")
        sentence = "auto_pad SAME_UPPER needs known rows and columns"
    else:
        graph.op("Conv", "x", graph.random("W", F, C, 3, 3), output="y", pads=[-1, 0, 0, 0])
        sentence = "pads must not be negative; got (-1, 0, 0, 0)"
    graph.output("y", dtype=dtype, rank=rank)
    result = explain(graph.model())
    assert fused(result.model, "FusedConv") == []
    assert f"Conv: y: {sentence}" in sentences(result.refused)


def test_conv_of_dequantized_activations_is_left_to_the_runtime():
    graph = images()
    q = graph.op("QuantizeLinear", "x", graph.constant("s", 0.02), graph.constant("z", 0, np.int8))
    graph.output(conv(graph, graph.op("DequantizeLinear", q, "s", "z"), C, F), rank=4)
    result = explain(graph.model())
    assert fused(result.model, "FusedConv") == [] and "comes from DequantizeLinear" in sentences(result.refused)


def test_conv_in_a_branch_is_left_alone():
    graph = images()
    inner = Graph()
    inner.op("Conv", "x", "W", output="inner")
    branch = helper.make_graph(inner.nodes, "b", [], [helper.make_tensor_value_info("inner", 1, [None] * 4)])
    graph.random("W", F, C, 3, 3)
    condition = graph.op("Greater", graph.op("ReduceSum", "x", keepdims=0), graph.constant("zero", 0))
    graph.output(graph.op("If", condition, then_branch=branch, else_branch=branch, output="y"), rank=4)
    result = explain(graph.model())
    assert fused(result.model, "FusedConv") == []


# Identity and Dropout


def test_nodes_without_effect_go():
    graph = images()
    dropped = graph.op("Dropout", conv(graph, "x", C, F), graph.constant("ratio", 0.5))
    graph.output(graph.op("Relu", graph.op("Identity", dropped), output="y"), rank=4)
    assert counts(rewritten(graph).model) == {"FusedConv": 1}


def test_dropout_that_trains_stays():
    graph = images()
    dropped = graph.op("Dropout", conv(graph, "x", C, F), "", graph.constant("training", True, np.bool_))
    graph.output(graph.op("Relu", dropped, output="y"), rank=4)
    result = explain(graph.model())
    assert counts(result.model)["Dropout"] == 1
    assert "NoOp: dropout_1: training_mode must be false" in sentences(result.refused)


def test_identity_that_names_an_output_stays():
    graph = images()
    graph.output(graph.op("Identity", conv(graph, "x", C, F), output="y"), rank=4)
    result = rewritten(graph)
    assert [o.name for o in result.model.graph.output] == ["y"]
    assert "NoOp: y: 'y' is also a graph output" in sentences(result.refused)


# Padding


@pytest.mark.parametrize("with_axes", [False, True])
def test_padding_is_folded(with_axes):
    graph = images()
    pads = graph.constant("pads", [1, 2, 0, 3] if with_axes else [0, 0, 1, 2, 0, 0, 0, 3], np.int64)
    extra = [graph.constant("value", 0.0), graph.constant("axes", [2, -1], np.int64)] if with_axes else []
    padded = graph.op("Pad", "x", pads, *extra)
    graph.output(conv(graph, padded, C, F, pads=[1, 1, 1, 1]), rank=4)
    result = rewritten(graph, opset=18)
    (node,) = fused(result.model, "FusedConv")
    assert list(attribute(node, "padding")) == [2, 3, 1, 4] and len(result.model.graph.node) == 1


@pytest.mark.parametrize("case", ["value", "mode", "channels", "shared", "negative"])
def test_padding_left_alone(case):
    graph = images(batch=2)
    amounts = {"channels": [0, 1, 0, 0, 0, 0, 0, 0], "negative": [0, 0, -1, 0, 0, 0, 0, 0]}
    pads = graph.constant("pads", amounts.get(case, [0, 0, 1, 1, 0, 0, 1, 1]), np.int64)
    value = [graph.constant("value", 1.0)] if case == "value" else []
    padded = graph.op("Pad", "x", pads, *value, output="padded", mode="reflect" if case == "mode" else "constant")
    graph.output(conv(graph, padded, C + (case == "channels"), F, stem="_y"), rank=4)
    if case == "shared":
        graph.output(graph.op("Relu", padded), rank=4)
    wanted = {
        "value": "the value must be a constant 0",
        "mode": "mode must be constant; got reflect",
        "channels": "pads must leave the batch and the channels alone",
        "shared": "'padded' has 2 uses and must stay",
        "negative": "pads must not be negative",
    }
    model = graph.model()
    result = explain(model)
    assert_stock_numbers(model, result.model, {"x": normal(2, C, H, W)})
    assert counts(result.model)["Pad"] == 1 and f"ConvPad: conv_y: {wanted[case]}" in sentences(result.refused)


# BatchNormalization and its relatives


@pytest.mark.parametrize("group", [1, 2])
def test_batch_norm_is_folded_in_float64(group):
    graph = images()
    graph.output(batch_norm(graph, conv(graph, "x", C, F, group=group), F), rank=4)
    assert counts(rewritten(graph).model) == {"FusedConv": 1}


@pytest.mark.parametrize("shape", [(F, 1, 1), (1, F, 1, 1), (), (1,)], ids=str)
@pytest.mark.parametrize("op_type", ["Mul", "Add", "Sub", "Div"])
def test_scale_and_shift_are_folded(op_type, shape):
    graph = images()
    m = graph.constant("m", graph.rng.uniform(0.5, 2, shape))
    t = conv(graph, "x", C, F)
    graph.output(graph.op(op_type, *((m, t) if op_type in ("Mul", "Add") else (t, m))), rank=4)
    assert counts(rewritten(graph).model) == {"FusedConv": 1}


def test_caffe_normalization_is_one_convolution():
    """BatchNormalization, then Mul and Add by numbers that Unsqueeze turns to (F, 1, 1)."""
    graph = images()
    t = batch_norm(graph, conv(graph, "x", C, F), F)
    axes = graph.constant("axes", [1, 2], np.int64)
    t = graph.op("Mul", t, graph.op("Unsqueeze", graph.random("scale", F), axes))
    t = graph.op("Add", t, graph.op("Unsqueeze", graph.random("shift", F), axes))
    graph.output(graph.op("Relu", t), rank=4)
    result = rewritten(graph)
    assert counts(result.model) == {"FusedConv": 1}
    assert attribute(fused(result.model, "FusedConv")[0], "activation") == b"relu"


@pytest.mark.parametrize("shape", [(W,), (1, 1, 1, W), (F, 1, W), (3, F, 1, 1)], ids=str)
def test_numbers_that_are_not_one_a_channel_stay(shape):
    graph = images(batch=3)
    graph.output(graph.op("Mul", conv(graph, "x", C, F), graph.random("m", *shape), output="y"), rank=4)
    result = rewritten(graph)
    assert counts(result.model)["Mul"] == 1
    assert f"ConvScale: y: the constant must be one number a channel; got shape {shape}" in sentences(result.refused)


def test_a_weight_that_two_convolutions_share_is_folded_for_one_only():
    graph = images()
    graph.random("W", C, C, 3, 3)
    first = graph.op("Conv", "x", "W", pads=[1] * 4)
    graph.output(graph.op("Conv", batch_norm(graph, first, C), "W", output="y"), rank=4)
    result = rewritten(graph)
    folded, plain = (node.input[1] for node in fused(result.model, "FusedConv"))
    assert (folded, plain) == ("W_folded", "W")


@pytest.mark.parametrize("case", ["other reader", "output", "overridable", "infinite"])
def test_batch_norm_that_cannot_be_folded_stands_by_itself(case):
    graph = images()
    t = conv(graph, "x", C, F, stem="_t")
    y = batch_norm(graph, t, F)
    graph.output(y, rank=4)
    if case == "other reader":
        graph.output(graph.op("Relu", t), rank=4)
    elif case == "output":
        graph.output(t, rank=4)
    elif case == "overridable":
        graph.input("gamma1", F)
    else:
        graph.initializers[-1].CopyFrom(numpy_helper.from_array(np.full(F, -1, np.float32), "variance1"))
    result = explain(graph.model())
    stays = case in ("overridable", "infinite")
    assert counts(result.model)["BatchNormalization"] == stays
    wanted = {
        "other reader": "'conv_t' has 2 uses and must stay",
        "output": "'conv_t' is also a graph output",
        "overridable": "scale, bias, mean and variance must be constant",
        "infinite": "the folded weight and bias must be finite",
    }
    assert wanted[case] in sentences(result.refused)
    if not stays:
        assert_same_numbers(graph.model(), result.model, {"x": normal(2, C, H, W)}, CLOSE)


def test_batch_norm_without_a_convolution_stays():
    graph = images()
    graph.output(batch_norm(graph, "x", C), rank=4)
    result = rewritten(graph)
    assert counts(result.model) == {"BatchNormalization": 1} and not result.refused


def test_batch_norm_before_a_convolution_takes_its_activation():
    graph = images()
    t = graph.op("Relu", batch_norm(graph, "x", C))
    graph.output(conv(graph, t, C, F), rank=4)
    result = rewritten(graph)
    assert counts(result.model) == {"FusedConv": 2}
    first, _ = fused(result.model, "FusedConv")
    assert attribute(first, "groups") == C and attribute(first, "activation") == b"relu"


def test_levels_of_a_convolution():
    graph = images()
    t = graph.op("Relu", batch_norm(graph, conv(graph, "x", C, C), C))
    graph.output(graph.op("MaxPool", graph.op("Add", t, "x"), kernel_shape=[2, 2]), rank=4)
    wanted = [
        {"Conv": 1, "BatchNormalization": 1, "Relu": 1, "Add": 1, "MaxPool": 1},
        {"FusedConv": 1, "Relu": 1, "Add": 1, "MaxPool": 1},
        {"FusedConv": 1, "Add": 1, "MaxPool": 1},
        {"FusedConv": 1},
    ]
    for level, nodes in enumerate(wanted):
        assert counts(rewritten(graph, optim_level=level).model) == nodes


def test_bfloat16_model_runs_where_the_runtime_has_no_such_convolution():
    bf16 = ml_dtypes.bfloat16
    graph = Graph()
    graph.input("x", "batch", C, H, W, dtype=TensorProto.BFLOAT16)
    t = graph.op("Conv", "x", graph.random("W", F, C, 3, 3, dtype=bf16), graph.random("b", F, dtype=bf16))
    graph.output(graph.op("Relu", t, output="y"), dtype=TensorProto.BFLOAT16, rank=4)
    x = normal(2, C, H, W).astype(bf16)
    model = graph.model(18)
    got = Runner(explain(model).model, runtime=STOCK).run({"x": x})["y"]
    wide = Graph()
    wide.input("x", "batch", C, H, W)
    for tensor in model.graph.initializer:
        wide.constant(tensor.name, numpy_helper.to_array(tensor).astype(np.float32))
    wide.output(wide.op("Relu", wide.op("Conv", "x", "W", "b")), rank=4)
    want: Any = ReferenceEvaluator(wide.model()).run(None, {"x": x.astype(np.float32)})
    np.testing.assert_allclose(got.astype(np.float32), want[0], rtol=2.0**-8, atol=1e-4)
    refused = explain(graph.model(13)).refused
    assert "a bfloat16 model must be at opset 15 or later; got 13" in sentences(refused)
