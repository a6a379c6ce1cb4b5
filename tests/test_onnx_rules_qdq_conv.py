"""The rules for convolutions of bytes: what is rewritten to QLinearConv's numbers, what is left alone."""

import numpy as np
import pytest

from deepseek_fast.onnx import explain
from deepseek_fast.onnx._runtime import LIBRARY, STOCK, Runner
from tests.onnx_models import attribute, counts, fused, normal, sentences
from tests.onnx_qdq import R_SCALE, S8, U8, W_SCALE, X_SCALE, Y_SCALE, C, F, H, Qdq, W, byte_values, check

BIASES = {True: ("none", "int32", "float", "other scale"), False: ("none", "float", "other scale")}


@pytest.mark.parametrize("w_type", [U8, S8])
@pytest.mark.parametrize(("per_channel", "bias"), [(kind, bias) for kind in BIASES for bias in BIASES[kind]])
def test_conv_is_rewritten(w_type, per_channel, bias):
    graph = Qdq()
    y = graph.conv(graph.x(), graph.weight(w_type, per_channel=per_channel), *graph.bias(bias))
    graph.bytes_out(graph.quantize(y, Y_SCALE, 3, output="y"))
    # A bias in other steps is rounded to those of the sum: stock ONNX Runtime leaves such a chain in float32.
    result = check(graph, {"x": byte_values(U8, 2, C, H, W)}, steps=1)
    assert counts(result.model) == {"FusedConvInt8": 1}
    assert "QdqConv: conv_" in sentences(result.rewritten) and not result.refused


@pytest.mark.parametrize("opset", [13, 19, 21, 23])
@pytest.mark.parametrize("types", [(U8, U8), (S8, S8), (U8, S8), (S8, U8)], ids=str)
def test_bytes_of_either_sign(types, opset):
    x_type, y_type = types
    graph = Qdq()
    y = graph.conv(graph.x(x_type), graph.weight(), *graph.bias("int32"), strides=[2, 1], dilations=[1, 2])
    graph.bytes_out(graph.quantize(y, Y_SCALE, 3, y_type, output="y"), y_type)
    result = check(graph, {"x": byte_values(x_type, 2, C, H, W)}, opset=opset, steps=1)
    assert counts(result.model) == {"FusedConvInt8": 1}


def test_zero_points_may_be_left_out():
    graph = Qdq()
    x = graph.op("DequantizeLinear", graph.byte_input("x", 1, C, H, W), graph.constant("sx", X_SCALE))
    w = graph.constant("w", graph.rng.integers(-127, 128, (F, C, 3, 3)), S8)
    y = graph.conv(x, graph.op("DequantizeLinear", w, graph.constant("sw", W_SCALE)))
    graph.bytes_out(graph.op("QuantizeLinear", y, graph.constant("sy", Y_SCALE), output="y"))
    assert counts(check(graph, {"x": byte_values(U8, 1, C, H, W)}).model) == {"FusedConvInt8": 1}


def test_groups_and_auto_pad():
    graph = Qdq()
    x = graph.dequantize(graph.byte_input("x", 2, C, H, W), X_SCALE, 7)
    y = graph.op("Conv", x, graph.weight(channels=2), group=2, auto_pad="SAME_UPPER", strides=[2, 2])
    graph.bytes_out(graph.quantize(y, Y_SCALE, 3, output="y"))
    (node,) = fused(check(graph, {"x": byte_values(U8, 2, C, H, W)}).model, "FusedConvInt8")
    assert attribute(node, "groups") == 2 and list(attribute(node, "padding")) == [1, 0, 1, 1]


def test_a_weight_quantized_in_the_graph():
    graph = Qdq()
    q = graph.quantize(graph.constant("w", graph.rng.standard_normal((F, C, 3, 3))), W_SCALE, 0, S8)
    y = graph.conv(graph.x(), graph.dequantize(q, W_SCALE, 0, S8))
    graph.bytes_out(graph.quantize(y, Y_SCALE, 3, output="y"))
    assert counts(check(graph, {"x": byte_values(U8, 2, C, H, W)}, steps=1).model) == {"FusedConvInt8": 1}


@pytest.mark.parametrize(
    "activation",
    [
        ("Relu", {}, "relu", 0),
        ("LeakyRelu", {"alpha": 0.2}, "leaky_relu", 1),
        ("HardSigmoid", {"alpha": 0.2, "beta": 0.5}, "hardsigmoid", 1),
        ("Sigmoid", {}, "sigmoid", 1),
        ("Tanh", {}, "tanh", 1),
        ("HardSwish", {}, "hardswish", 1),
    ],
    ids=lambda value: value[0],
)
def test_activations(activation):
    op_type, options, name, steps = activation
    graph = Qdq()
    y = graph.op(op_type, graph.conv(graph.x(), graph.weight(), *graph.bias("int32")), **options)
    graph.bytes_out(graph.quantize(y, Y_SCALE, 100, output="y"))
    result = check(graph, {"x": byte_values(U8, 2, C, H, W)}, steps=1 + steps)
    (node,) = fused(result.model, "FusedConvInt8")
    assert len(result.model.graph.node) == 1 and attribute(node, "activation").decode() == name
    assert f"FusedConvInt8 with {name}" in sentences(result.rewritten)


def test_clip():
    graph = Qdq()
    y = graph.conv(graph.x(), graph.weight(), *graph.bias("int32"))
    y = graph.op("Clip", y, graph.constant("low", -0.5), graph.constant("high", 1.5))
    graph.bytes_out(graph.quantize(y, Y_SCALE, 100, output="y"))
    (node,) = fused(check(graph, {"x": byte_values(U8, 2, C, H, W)}, steps=1).model, "FusedConvInt8")
    np.testing.assert_allclose(attribute(node, "activation_params"), [-0.5, 1.5])


@pytest.mark.parametrize("order", ["residual first", "residual last"])
@pytest.mark.parametrize("place", ["plain", "before", "after"])
def test_residual(place, order):
    graph = Qdq()
    r = graph.dequantize(graph.byte_input("r", "batch", F, H, W), R_SCALE, 20)
    y = graph.conv(graph.x(), graph.weight(), *graph.bias("int32"))
    if place == "after":
        y = graph.op("Relu", y)
    y = graph.op("Add", *((r, y) if order == "residual first" else (y, r)))
    if place == "before":
        y = graph.op("Relu", y)
    graph.bytes_out(graph.quantize(y, Y_SCALE, 100, output="y"))
    feeds = {"x": byte_values(U8, 2, C, H, W), "r": byte_values(U8, 2, F, H, W, seed=4)}
    (node,) = fused(check(graph, feeds, steps=1).model, "FusedConvInt8")
    assert attribute(node, "residual_at").decode() == ("after" if place == "after" else "before")
    assert attribute(node, "activation").decode() == ("none" if place == "plain" else "relu")


def test_pool_before_its_quantizer():
    graph = Qdq()
    y = graph.op("Relu", graph.conv(graph.x(), graph.weight()))
    y = graph.op("MaxPool", y, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    graph.bytes_out(graph.quantize(y, Y_SCALE, 3, output="y"))
    result = check(graph, {"x": byte_values(U8, 2, C, H, W)}, steps=1)
    assert counts(result.model) == {"FusedConvInt8": 1} and "with relu, MaxPool" in sentences(result.rewritten)


def test_qlinear_conv():
    for with_bias in (True, False):
        graph = Qdq()
        numbers = [*graph.scale(X_SCALE, 7, U8), graph.constant("w", byte_values(S8, F, C, 3, 3), S8)]
        numbers += [graph.constant("sw", graph.weight_scale()), graph.constant("zw", np.zeros(F), S8)]
        numbers += graph.scale(Y_SCALE, 3, U8)
        bias = [graph.constant("b", graph.rng.integers(-3000, 3000, F), np.int32)] if with_bias else []
        x = graph.byte_input("x", "batch", C, H, W)
        graph.bytes_out(graph.op("QLinearConv", x, *numbers, *bias, output="y", pads=[1, 1, 0, 0]))
        assert counts(check(graph, {"x": byte_values(U8, 2, C, H, W)}).model) == {"FusedConvInt8": 1}


def test_qlinear_conv_beside_operators_of_the_runtime_is_left_alone():
    graph = Qdq()
    x = graph.byte_input("x", "batch", C, H, W)
    numbers = [*graph.scale(X_SCALE, 7, U8), graph.constant("w", byte_values(S8, C, C, 3, 3), S8)]
    numbers += [*graph.scale(W_SCALE, 0, S8), *graph.scale(Y_SCALE, 3, U8)]
    y = graph.op("QLinearConv", x, *numbers, pads=[1, 1, 1, 1])
    scales = [*graph.scale(X_SCALE, 7, U8), *graph.scale(Y_SCALE, 3, U8)]
    more = [x, *scales[:2], y, *scales[2:], *scales[2:]]
    graph.bytes_out(graph.op("QLinearAdd", *more, output="y", domain="com.microsoft"))
    result = explain(graph.model())
    assert counts(result.model) == {"QLinearConv": 1, "QLinearAdd": 1}
    assert "NCHW would have to be turned for QLinearAdd; quantize with QuantFormat.QDQ" in sentences(result.refused)


def block(graph: Qdq) -> None:
    """Two convolutions with a pool and an average, all in bytes."""
    y = graph.quantize(graph.conv(graph.x(), graph.weight()), Y_SCALE, 3)
    y = graph.dequantize(y, Y_SCALE, 3)
    y = graph.op("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])
    y = graph.dequantize(graph.quantize(y, Y_SCALE, 3), Y_SCALE, 3)
    w = graph.constant("w2", graph.rng.integers(-127, 128, (C, F, 1, 1)), S8)
    y = graph.op("Conv", y, graph.dequantize(w, W_SCALE, 0, S8))
    y = graph.dequantize(graph.quantize(y, Y_SCALE, 120), Y_SCALE, 120)
    graph.output(graph.op("GlobalAveragePool", y, output="y"), rank=4)


def test_bytes_from_one_convolution_to_the_next():
    graph = Qdq()
    block(graph)
    model = graph.model()
    result = explain(model)
    assert counts(result.model) == {"FusedConvInt8": 2, "DequantizeLinear": 1, "Pool2d": 1}
    layouts = [
        (attribute(node, "x_layout").decode(), attribute(node, "y_layout").decode())
        for node in fused(result.model, "FusedConvInt8")
    ]
    assert layouts == [("NCHW", "NHWC"), ("NHWC", "NHWC")]
    feeds = {"x": byte_values(U8, 2, C, H, W)}
    want = Runner(model, runtime=STOCK).run(feeds)["y"]
    for runtime in (STOCK, LIBRARY):
        np.testing.assert_allclose(Runner(result.model, runtime=runtime).run(feeds)["y"], want, atol=1e-5)


def test_optimizing_twice_changes_nothing():
    graph = Qdq()
    block(graph)
    once = explain(graph.model()).model
    assert explain(once).model == once


def test_a_file_of_floats_quantized_at_its_ends():
    graph = Qdq()
    x = graph.dequantize(graph.quantize(graph.input("x", 2, C, H, W), X_SCALE, 128), X_SCALE, 128)
    y = graph.quantize(graph.conv(x, graph.weight(), *graph.bias("int32")), Y_SCALE, 100)
    graph.output(graph.dequantize(y, Y_SCALE, 100, output="y"), rank=4)
    result = check(graph, {"x": normal(2, C, H, W)}, steps=1)
    assert counts(result.model)["FusedConvInt8"] == 1 and counts(result.model)["Conv"] == 0


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        ("no quantizer", "a QuantizeLinear must follow; got Softplus"),
        ("shared", "has other uses and must stay"),
        ("output", "is also a graph output"),
        ("x per channel", "x's scale must be one float32 number; got float32 of shape (4,)"),
        ("x overridable", "x's scale must be constant, an overridable graph input"),
        ("float weight", "weight must come from DequantizeLinear; got 'w'"),
        ("weight along 1", "weight must have one scale and one zero point, or 6 along axis 0; got (4,)"),
        ("weight zero point", "weight less its zero point must fit int8; got -130 to 85"),
        ("computed bias", "bias must be constant, of shape (6,)"),
        ("wide bias", "bias must be int32 in steps of x_scale * w_scale, which are too wide to round it to"),
        ("float residual", "the residual must come from DequantizeLinear"),
        ("residual type", "the residual must have y's type uint8; got int8"),
        ("residual shape", "the residual must be computed and surely have the output's shape"),
        ("two activations", "one activation must be enough; got relu and sigmoid"),
        ("16 bits", "y must be uint8 or int8; got int16"),
        ("zero scale", "y's scale must be finite and above zero; got 0"),
        ("negative pads", "pads must not be negative; got (-1, 0, 0, 0)"),
    ],
)
def test_left_alone(case, sentence):
    graph = Qdq()
    bias: list[str] = []
    if case == "x per channel":
        x = graph.dequantize(graph.byte_input("x", 2, C, H, W), np.full(C, X_SCALE), np.zeros(C), axis=1)
    else:
        x = graph.x()
    if case == "float weight":
        w = graph.random("w", F, C, 3, 3)
    elif case == "weight along 1":
        q = graph.constant("w", graph.rng.integers(-127, 128, (F, C, 3, 3)), S8)
        w = graph.dequantize(q, np.full(C, W_SCALE), np.zeros(C), S8, axis=1)
    elif case == "weight zero point":
        w = graph.dequantize(graph.constant("w", np.arange(F * C * 9).reshape(F, C, 3, 3) + 40, U8), W_SCALE, 170, U8)
    else:
        w = graph.weight()
    if case == "computed bias":
        graph.input("b", F)
        bias = ["b"]
    y_scale = 0.0 if case == "zero scale" else Y_SCALE
    if case == "wide bias":
        bias, y_scale = [graph.random("b", F)], X_SCALE * W_SCALE
    y = graph.conv(x, w, *bias, **({"pads": [-1, 0, 0, 0]} if case == "negative pads" else {}))
    if case == "no quantizer":
        y = graph.op("Softplus", y)
    elif case == "shared":
        graph.output(graph.op("Softplus", y), rank=4)
    elif case == "output":
        graph.output(y, rank=4)
    elif case.endswith("residual"):
        y = graph.op("Add", y, graph.input("r", "batch", F, H, W))
    elif case.startswith("residual"):
        dtype, sizes = (S8, ("batch", F, H, W)) if case == "residual type" else (U8, (1, F, 1, W))
        y = graph.op("Add", y, graph.dequantize(graph.byte_input("r", *sizes, dtype=dtype), R_SCALE, 3, dtype))
    elif case == "two activations":
        y = graph.op("Relu", y)
        r = graph.dequantize(graph.byte_input("r", "batch", F, H, W), R_SCALE, 3)
        y = graph.op("Sigmoid", graph.op("Add", y, r))
    kind = np.int16 if case == "16 bits" else U8
    graph.bytes_out(graph.quantize(y, y_scale, 3, kind, output="y"), kind)
    if case == "x overridable":
        graph.input("s0")
    model = graph.model(21)
    result = explain(model)
    assert not fused(result.model, "FusedConvInt8")
    assert counts(result.model)["Conv"] == 1 and f"QdqConv: conv_{len(graph.nodes)}"[:13] in sentences(result.refused)
    assert sentence in sentences(result.refused)


# Sums
