"""What a convolution takes into its kernel: activations, residuals, pools; Winograd, and LRN beside one: what is
rewritten to the same numbers, what is left alone and why."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from deepseek_fast.onnx import explain
from tests.onnx_convs import CLOSE, C, F, H, W, assert_stock_numbers, conv, images, layouts, rewritten
from tests.onnx_models import Graph, assert_same_numbers, attribute, counts, fused, normal, sentences

# Activations


ACTIVATIONS: dict[str, tuple[Any, list[float]]] = {
    "relu": (lambda g, t: g.op("Relu", t), []),
    "relu6": (lambda g, t: g.op("Clip", t, g.constant("low", 0), g.constant("high", 6)), []),
    "clip": (lambda g, t: g.op("Clip", t, g.constant("low", -0.5), g.constant("high", 0.25)), [-0.5, 0.25]),
    "leaky_relu": (lambda g, t: g.op("LeakyRelu", t, alpha=0.25), [0.25]),
    "prelu": (lambda g, t: g.op("PRelu", t, g.constant("slope", [[[0.25]]])), [0.25]),
    "hardsigmoid": (lambda g, t: g.op("HardSigmoid", t, alpha=0.25), [0.25, 0.5]),
    "hardswish": (lambda g, t: g.op("HardSwish", t), []),
    "hardswish chain": (lambda g, t: g.op("Mul", t, g.op("HardSigmoid", t, alpha=1 / 6)), []),
    "silu": (lambda g, t: g.op("Mul", t, g.op("Sigmoid", t)), []),
    "sigmoid": (lambda g, t: g.op("Sigmoid", t), []),
    "tanh": (lambda g, t: g.op("Tanh", t), []),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_is_fused(name):
    write, params = ACTIVATIONS[name]
    graph = images()
    graph.output(write(graph, conv(graph, "x", C, F)), rank=4)
    result = rewritten(graph, close=1e-5)
    assert counts(result.model) == {"FusedConv": 1}
    (node,) = fused(result.model, "FusedConv")
    wanted = {"prelu": "leaky_relu"}.get(name, name.split()[0])
    assert attribute(node, "activation").decode() == wanted and list(attribute(node, "activation_params")) == params


def test_clip_without_a_limit():
    graph = images()
    graph.output(graph.op("Clip", conv(graph, "x", C, F), graph.constant("low", -1)), rank=4)
    (node,) = fused(rewritten(graph).model, "FusedConv")
    assert list(attribute(node, "activation_params")) == [-1, np.inf]


@pytest.mark.parametrize("case", ["other reader", "output", "computed limit", "slopes"])
def test_activation_left_alone(case):
    graph = images()
    t = conv(graph, "x", C, F, stem="_t")
    op_type, extra = "Relu", []
    if case == "computed limit":
        op_type, extra = "Clip", [graph.op("ReduceMin", "x", keepdims=0)]
    if case == "slopes":
        op_type, extra = "PRelu", [graph.random("slope", F, 1, 1)]
    graph.output(graph.op(op_type, t, *extra, output="y"), rank=4)
    if case == "other reader":
        graph.output(graph.op("Exp", t), rank=4)
    if case == "output":
        graph.output(t, rank=4)
    result = rewritten(graph)
    wanted = {
        "other reader": "'conv_t' has other uses and must stay",
        "output": "'conv_t' is also a graph output",
        "computed limit": "the limits of Clip must be constant",
        "slopes": "PRelu must have one constant slope",
    }
    assert counts(result.model)[op_type] == 1 and wanted[case] in sentences(result.refused)


# Residual sums


@pytest.mark.parametrize("op_type", ["Add", "Sum"])
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("act", ["none", "before", "after"])
def test_residual_is_fused(op_type, order, act):
    graph = images()
    t = conv(graph, "x", C, C)
    if act == "before":
        t = graph.op("Relu", t)
    y = graph.op(op_type, *[t, "x"][::order])
    if act == "after":
        y = graph.op("Relu", y)
    graph.output(y, rank=4)
    result = rewritten(graph)
    assert counts(result.model) == {"FusedConv": 1}
    (node,) = fused(result.model, "FusedConv")
    assert attribute(node, "residual_at") == (b"after" if act == "before" else b"before") and node.input[3] == "x"


def test_of_two_convolutions_the_larger_one_takes_the_sum():
    graph = images()
    small = conv(graph, "x", C, F, 1, stem="_small")
    large = conv(graph, "x", C, F, 3, stem="_large")
    graph.output(graph.op("Relu", graph.op("Add", large, small)), rank=4)
    result = rewritten(graph)
    assert counts(result.model) == {"FusedConv": 2}
    first, last = fused(result.model, "FusedConv")
    assert first.input[1] == "W_small" and last.input[3] == first.output[0]


@pytest.mark.parametrize("case", ["broadcast", "other reader", "three"])
def test_residual_left_alone(case):
    graph = images()
    t = conv(graph, "x", C, C, stem="_t")
    op_type, others = "Add", ["x"]
    if case == "broadcast":
        others = [graph.input("r", 1, C, 1, 1)]
    if case == "three":
        op_type, others = "Sum", ["x", "x"]
    graph.output(graph.op(op_type, t, *others, output="y"), rank=4)
    if case == "other reader":
        graph.output(graph.op("Exp", t), rank=4)
    result = rewritten(graph)
    assert counts(result.model)[op_type] == 1
    wanted = {
        "broadcast": "residual must surely have the output's shape; got shape (1, 4, 1, 1) for shape (batch, 4, 9, 10)",
        "other reader": "'conv_t' has 2 uses and must stay",
        "three": "",
    }
    assert wanted[case] in sentences(result.refused)


# Pools


@pytest.mark.parametrize(
    "window",
    [
        {"kernel_shape": [2, 2], "strides": [2, 2]},
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1},
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 1, 1]},
        {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
        {"kernel_shape": [3, 2]},
    ],
    ids=str,
)
def test_max_pool_is_fused(window):
    graph = images()
    graph.output(graph.op("MaxPool", graph.op("Relu", conv(graph, "x", C, F)), **window), rank=4)
    model = graph.model()
    result = explain(model)
    assert counts(result.model) == {"FusedConv": 1}
    assert_stock_numbers(model, result.model, {"x": normal(2, C, H, W)})


@pytest.mark.parametrize("case", ["other reader", "indices", "padding", "dilation"])
def test_max_pool_that_cannot_be_fused(case):
    graph = images()
    t = conv(graph, "x", C, F, stem="_t")
    window: dict[str, Any] = {"kernel_shape": [2, 2], "strides": [2, 2]}
    window |= {"padding": {"pads": [0, 0, 1, 1], "kernel_shape": [1, 2]}, "dilation": {"dilations": [2, 2]}}.get(
        case, {}
    )
    if case == "padding":
        window["kernel_shape"], window["pads"] = [3, 3], [2, 0, 0, 0]
    graph.op("MaxPool", t, output="y", **window)
    if case == "indices":
        graph.nodes[-1].output.append("indices")
        graph.output("indices", dtype=TensorProto.INT64, rank=4)
    graph.output("y", rank=4)
    if case == "other reader":
        graph.output(graph.op("Exp", t), rank=4)
    model = graph.model()
    result = explain(model)
    wanted = {
        "other reader": "'conv_t' has 2 uses and must stay",
        "indices": "Indices must be unused",
        "padding": "pads must be at most half of kernel_shape (3, 3); got (2, 0, 0, 0)",
        "dilation": "dilations must be 1",
    }
    assert f"ConvPool: y: {wanted[case]}" in sentences(result.refused)
    assert counts(result.model)["Pool2d"] == (case == "other reader")
    assert_stock_numbers(model, result.model, {"x": normal(2, C, H, W)})


@pytest.mark.parametrize("op_type", ["MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"])
def test_pool_beside_a_convolution(op_type):
    window = {} if op_type.startswith("Global") else {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
    graph = images()
    graph.output(conv(graph, graph.op(op_type, "x", **window), C, F), rank=4)
    assert counts(rewritten(graph).model) == {"Pool2d": 1, "FusedConv": 1}


def test_pool_without_a_convolution_stays():
    graph = images()
    graph.output(graph.op("AveragePool", "x", kernel_shape=[2, 2]), rank=4)
    result = rewritten(graph)
    assert counts(result.model) == {"AveragePool": 1} and not result.refused


# Winograd


def algorithms(model: onnx.ModelProto) -> list[str]:
    return [attribute(node, "algorithm").decode() for node in model.graph.node if node.op_type == "FusedConv"]


@pytest.mark.parametrize("filters", [3, 20])
@pytest.mark.parametrize("pooled", [False, True])
def test_winograd(pooled, filters):
    graph = images(16, size=(12, 11))
    y = graph.op("Relu", conv(graph, "x", 16, filters))
    graph.output(graph.op("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2]) if pooled else y, rank=4)
    result = rewritten(graph, close=1e-4)
    assert algorithms(result.model) == ["winograd"]
    assert algorithms(explain(graph.model(), optim_level=2).model) == ["direct"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"size": (9, 9)}, "Y must have at least 100 pixels before a pool; got 81"),
        ({"size": ("height", 12)}, "X must have known rows and columns"),
        ({"C": 8}, "W must have at least 16 channels; got shape (16, 8, 3, 3)"),
        ({"strides": [2, 1]}, None),
        ({"dilations": [1, 2]}, None),
        ({"group": 2}, None),
        ({"k": 5}, None),
    ],
)
def test_no_winograd(change, sentence):
    channels, size, k = change.pop("C", 16), change.pop("size", (24, 24)), change.pop("k", 3)
    graph = images(channels, size=size)
    graph.output(conv(graph, "x", channels, 16, k, **change), rank=4)
    result = explain(graph.model())
    assert algorithms(result.model) == ["direct"]
    refusals = [text for text in sentences(result.refused).splitlines() if text.startswith("ConvWinograd")]
    assert refusals == ([f"ConvWinograd: conv0: {sentence}"] if sentence else [])


@pytest.mark.parametrize("attributes", [{"size": 5}, {"size": 3, "alpha": 0.2, "beta": 0.5, "bias": 2.0}], ids=str)
def test_lrn_is_ours_and_lies_as_the_convolutions_do(attributes):
    graph = images()
    t = graph.op("LRN", conv(graph, "x", C, F), **attributes)
    graph.output(conv(graph, t, F, C), rank=4)
    model = graph.model()
    result = explain(model)
    assert counts(result.model) == {"FusedConv": 2, "LocalResponseNorm": 1}
    assert layouts(result.model) == [("NCHW", "NHWC"), ("NHWC", "NHWC"), ("NHWC", "NCHW")]
    # As many images as LRN has channels: onnx 1.23's reference counts the one for the other.
    assert_same_numbers(model, result.model, {"x": normal(F, C, H, W)}, CLOSE)


def test_lrn_without_a_convolution():
    graph = images()
    graph.output(graph.op("LRN", "x", size=3), rank=4)
    model = graph.model()
    result = explain(model)
    assert counts(result.model) == {"LocalResponseNorm": 1}
    assert_same_numbers(model, result.model, {"x": normal(C, C, H, W)}, CLOSE)


@pytest.mark.parametrize("case", ["rank", "dtype"])
def test_lrn_that_stays(case):
    graph = Graph()
    rank = 3 if case == "rank" else 4
    dtype = TensorProto.DOUBLE if case == "dtype" else TensorProto.FLOAT
    graph.input("x", "batch", C, *(H, W)[: rank - 2], dtype=dtype)
    graph.output(graph.op("LRN", "x", size=3, output="y"), dtype=dtype, rank=rank)
    result = explain(graph.model())
    assert counts(result.model) == {"LRN": 1}
    wanted = {"rank": "x must have 4 dimensions", "dtype": "x must be float32 or bfloat16; got double"}
    assert f"LRN: y: {wanted[case]}" in sentences(result.refused)
