"""The rules for convolutions: what is rewritten to the same numbers, what is left alone and why."""

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from deepseek_fast.onnx import explain
from deepseek_fast.onnx._runtime import LIBRARY, STOCK, Runner, library_problem
from tests.onnx_models import Graph, assert_same_numbers, attribute, check_rewrite, counts, fused, normal, sentences

C, F = 4, 6
H, W = 9, 10
CLOSE = 2e-5  # float32 sums of a few hundred products, with constants folded into them


def images(channels: int = C, *, batch: int | str = "batch", size: tuple[Any, Any] = (H, W)) -> Graph:
    graph = Graph()
    graph.input("x", batch, channels, *size)
    return graph


def conv(graph: Graph, x: str, C: int, F: int, k: int = 3, *, bias: bool = True, stem: str = "", **options: Any) -> str:
    """A Conv with He-normal weights; its output keeps the name conv{stem}."""
    count = len(graph.nodes)
    groups = options.get("group", 1)
    weight = graph.random(f"W{stem or count}", F, C // groups, k, k)
    scaled = numpy_helper.to_array(graph.initializers[-1]) * np.sqrt(2 / (C // groups * k * k))
    graph.initializers[-1].CopyFrom(numpy_helper.from_array(scaled.astype(np.float32), weight))
    inputs = [x, weight] + ([graph.random(f"b{stem or count}", F)] if bias else [])
    options.setdefault("pads", [k // 2] * 4)
    return graph.op("Conv", *inputs, output=f"conv{stem or count}", **options)


def batch_norm(graph: Graph, x: str, channels: int, **options: Any) -> str:
    count = len(graph.nodes)
    numbers = [graph.random(f"{name}{count}", channels) for name in ("gamma", "beta", "mean")]
    variance = graph.constant(f"variance{count}", graph.rng.uniform(0.5, 2, channels))
    return graph.op("BatchNormalization", x, *numbers, variance, **options)


def rewritten(graph: Graph, opset: int = 17, **options: Any) -> Any:
    options.setdefault("close", CLOSE)
    return check_rewrite(graph, opset=opset, **options)


def assert_stock_numbers(model: onnx.ModelProto, rewritten: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> None:
    """As assert_same_numbers, without onnx 1.23's reference: no negative pads, and other sizes of some pools."""
    want = Runner(model, runtime=STOCK).run(feeds)
    for runtime in (STOCK, LIBRARY) if library_problem() is None else (STOCK,):
        for name, got in Runner(rewritten, runtime=runtime).run(feeds).items():
            assert got.shape == want[name].shape, runtime
            np.testing.assert_allclose(got, want[name], rtol=CLOSE, atol=CLOSE, err_msg=runtime)


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


@pytest.mark.parametrize("pooled", [False, True])
def test_winograd(pooled):
    graph = images(16, size=(12, 11))
    y = graph.op("Relu", conv(graph, "x", 16, 20))
    graph.output(graph.op("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2]) if pooled else y, rank=4)
    result = rewritten(graph, close=1e-4)
    assert algorithms(result.model) == ["winograd"]
    assert algorithms(explain(graph.model(), optim_level=2).model) == ["direct"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"size": (9, 9)}, "Y must have at least 100 pixels before a pool; got 81"),
        ({"size": ("height", 12)}, "X must have known rows and columns"),
        ({"C": 8}, "W must have at least 16 channels in and out; got shape (16, 8, 3, 3)"),
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


# Layouts


def layouts(model: onnx.ModelProto) -> list[tuple[str, str]]:
    return layouts_of(model, "FusedConv", "Pool2d", "LocalResponseNorm")


def layouts_of(model: onnx.ModelProto, *op_types: str) -> list[tuple[str, str]]:
    """(x_layout, y_layout) of our nodes."""
    ours = [node for node in model.graph.node if node.op_type in op_types]
    return [(attribute(node, "x_layout").decode(), attribute(node, "y_layout").decode()) for node in ours]


def transposes(model: onnx.ModelProto) -> int:
    return counts(model)["Transpose"]


def test_channels_lie_side_by_side_between_convolutions():
    graph = images()
    t = conv(graph, "x", C, F)
    t = graph.op("Relu", t)
    t = conv(graph, t, F, F)
    graph.output(conv(graph, t, F, C, stem="_y"), rank=4)
    result = rewritten(graph)
    assert layouts(result.model) == [("NCHW", "NHWC"), ("NHWC", "NHWC"), ("NHWC", "NCHW")]
    assert transposes(result.model) == 0 and "ConvLayout" in sentences(result.rewritten)


@pytest.mark.parametrize("opset", [13, 18, 22])
def test_what_moves_along(opset):
    """Elementwise nodes with numbers of every shape, Concat, Split and a global pool of unknown size."""
    graph = images(size=("h", "w"))
    t = conv(graph, "x", C, F)
    t = graph.op("Mul", graph.op("Exp", t), graph.random("m", F, 1, 1))
    t = graph.op("Add", t, graph.random("n", 1, 1, 1, 1))
    t = graph.op("Max", t, graph.constant("low", 0.5))
    t = graph.op("Concat", t, conv(graph, t, F, F, 1), axis=-3)
    graph.nodes.append(helper.make_node("Split", [t], ["s", "u"], axis=1, **({"num_outputs": 2} if opset > 17 else {})))
    pooled = graph.op("GlobalAveragePool", "s")
    scaled = graph.op("Mul", "u", conv(graph, pooled, F, F, 1))
    graph.output(conv(graph, scaled, F, C), rank=4)
    model = graph.model(opset)
    result = explain(model)
    assert_same_numbers(model, result.model, {"x": normal(2, C, H, W)}, CLOSE)
    assert transposes(result.model) == 0 and counts(result.model)["GlobalAveragePool"] == 0
    assert layouts(result.model) == [("NCHW", "NHWC"), *[("NHWC", "NHWC")] * 2, ("NHWC", "NCHW")]


@pytest.mark.parametrize("known", [True, False])
def test_channel_shuffle_moves_along(known):
    size = (H, W) if known else ("h", "w")
    graph = images(size=size)
    t = conv(graph, "x", C, F)
    if known:
        shape = graph.constant("apart", [-1, 2, F // 2, H, W], np.int64)
        joined = graph.constant("joined", [-1, F, H, W], np.int64)
    else:
        shape = graph.constant("apart", [0, 2, F // 2, H, W], np.int64)
        joined = graph.constant("joined", [0, F, H, W], np.int64)
    t = graph.op("Transpose", graph.op("Reshape", t, shape), perm=[0, 2, 1, 3, 4])
    graph.output(conv(graph, graph.op("Reshape", t, joined), F, C), rank=4)
    model = graph.model()
    result = explain(model)
    assert_same_numbers(model, result.model, {"x": normal(2, C, H, W)}, CLOSE)
    assert layouts(result.model) == ([("NCHW", "NHWC"), ("NHWC", "NCHW")] if known else [("NCHW", "NCHW")] * 2)


def test_operators_that_need_planes_get_them_from_a_convolution():
    graph = images()
    t = graph.op("Softmax", conv(graph, "x", C, F), axis=1)
    t = conv(graph, conv(graph, t, F, F), F, F)
    graph.output(graph.op("Flatten", t, output="y"), rank=2)
    result = rewritten(graph)
    assert layouts(result.model) == [("NCHW", "NCHW"), ("NCHW", "NHWC"), ("NHWC", "NCHW")]
    assert transposes(result.model) == 0


def test_one_transpose_where_many_read_a_value():
    graph = images()
    t = conv(graph, "x", C, F)
    ends = [conv(graph, t, F, F, 1) for _ in range(3)]
    graph.output(graph.op("Concat", *ends, axis=1, output="joined"), rank=4)
    graph.output(graph.op("Softmax", t, axis=1), rank=4)
    result = rewritten(graph)
    assert transposes(result.model) == 1
    (node,) = fused(result.model, "Transpose")
    assert list(node.output) == ["conv0"]  # the name that the value had
    assert "Transpose at 'conv0'" in sentences(result.rewritten)


def test_values_that_are_outputs_or_captured_keep_their_shape():
    graph = images(batch=2)
    t = conv(graph, "x", C, F)
    u = conv(graph, t, F, F)
    v = conv(graph, u, F, F)
    inner = Graph()
    inner.op("Relu", t, output="inner")
    branch = helper.make_graph(inner.nodes, "b", [], [helper.make_tensor_value_info("inner", 1, [None] * 4)])
    condition = graph.op("Greater", graph.op("ReduceSum", "x", keepdims=0), graph.constant("zero", 0))
    graph.output(graph.op("If", condition, then_branch=branch, else_branch=branch, output="y"), rank=4)
    graph.output(u, rank=4)
    graph.output(conv(graph, v, F, C), rank=4)
    rewritten(graph)


def test_transposes_of_a_model_in_nhwc_vanish():
    graph = Graph()
    graph.input("x", "batch", H, W, C)
    t = conv(graph, graph.op("Transpose", "x", perm=[0, 3, 1, 2]), C, F)
    t = conv(graph, t, F, F)
    t = graph.op("Transpose", t, perm=[0, 2, 3, 1])
    graph.output(graph.op("ReduceSum", t, graph.constant("axes", [3], np.int64), output="y"), rank=4)
    result = rewritten(graph)
    assert transposes(result.model) == 0
    assert layouts(result.model) == [("NHWC", "NHWC")] * 2


def test_optimizing_twice_changes_nothing():
    graph = images()
    t = graph.op("MaxPool", graph.op("Relu", conv(graph, "x", C, F)), kernel_shape=[2, 2], strides=[2, 2])
    graph.output(conv(graph, t, F, C), rank=4)
    once = explain(graph.model()).model
    assert explain(once).model == once


def test_bare_nodes_are_completed():
    """Inputs and attributes that a writer left out get what the kernel and torch take for them."""
    graph = images()
    x = graph.op("FusedConv", "x", graph.random("w", F, C, 3, 3), domain="ai.deepseek_fast", activation="leaky_relu")
    graph.output(graph.op("Pool2d", x, domain="ai.deepseek_fast", kernel=[2, 2], output="y"), rank=4)
    completed = explain(graph.model(), optim_level=0).model
    feeds = {"x": normal(2, C, H, W)}
    leaky = Graph()
    leaky.input("x", "batch", C, H, W)
    leaky.initializers.extend(graph.initializers)
    t = leaky.op("LeakyRelu", leaky.op("Conv", "x", "w"))
    leaky.output(leaky.op("MaxPool", t, kernel_shape=[2, 2], strides=[2, 2], output="y"), rank=4)
    assert_same_numbers(leaky.model(), completed, feeds, CLOSE)


def test_a_bare_node_of_bytes_is_completed():
    graph = Graph()
    graph.input("x", "batch", C, H, W, dtype=TensorProto.UINT8)
    numbers = [graph.constant("sx", 0.02), graph.constant("zx", 3, np.uint8)]
    numbers += [graph.constant("w", graph.rng.integers(-127, 128, (F, C, 3, 3)), np.int8), graph.random("sw", F)]
    numbers += [graph.constant("sy", 0.5), graph.constant("zy", 0, np.int8)]
    graph.output(graph.op("FusedConvInt8", "x", *numbers, domain="ai.deepseek_fast"), dtype=TensorProto.INT8, rank=4)
    completed = explain(graph.model(), optim_level=0).model
    (node,) = fused(completed, "FusedConvInt8")
    assert len(node.input) == 11 and all(node.input)
    onnx.checker.check_model(completed, full_check=True)
    y = Runner(completed, runtime=STOCK).run({"x": np.zeros((1, C, H, W), np.uint8)})
    assert next(iter(y.values())).shape == (1, F, H - 2, W - 2)


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("op_type", ["FusedConv", "FusedConvInt8"])
def test_a_residual_turns_with_its_convolution(op_type, constant):
    graph, dtype = Graph(), np.dtype(np.float32 if op_type == "FusedConv" else np.int8)
    onnx_type = helper.np_dtype_to_tensor_dtype(dtype)
    x = graph.input("x", 1, C, H, W, dtype=onnx_type)

    def ours(value: str, residual: str, output: str) -> str:
        w = graph.constant(f"w_{output}", graph.rng.integers(-9, 9, (C, C, 1, 1)), dtype)
        if op_type == "FusedConv":
            inputs = [value, w, "", residual]
        else:
            scale, zero = graph.constant(f"s_{output}", 0.05), graph.constant(f"z_{output}", 3, dtype)
            ones = graph.constant(f"ones_{output}", [0.5])
            inputs = [value, scale, zero, w, ones, scale, zero, "", residual, scale, zero]
        return graph.op(op_type, *inputs, output=output, domain="ai.deepseek_fast")

    r = graph.constant("r", graph.rng.integers(-99, 99, (1, C, H, W)), dtype) if constant else ""
    first = ours(x, r, "first")
    graph.output(ours(first, r or first, "y"), dtype=onnx_type, rank=4)
    model = graph.model()
    as_given, moved = explain(model, optim_level=0).model, explain(model).model
    assert layouts_of(moved, op_type) == [("NCHW", "NHWC"), ("NHWC", "NCHW" if constant else "NHWC")]
    assert transposes(moved) == (0 if constant else 1)
    feeds = {"x": (normal(1, C, H, W) * 20).astype(dtype)}
    want, got = (Runner(made, runtime=STOCK).run(feeds)["y"] for made in (as_given, moved))
    np.testing.assert_allclose(got, want, rtol=CLOSE)


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
