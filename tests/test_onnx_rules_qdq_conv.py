"""The rules for convolutions and pools of bytes: what is rewritten to QLinearConv's numbers, what is left alone."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from deepseek_fast.onnx import explain
from deepseek_fast.onnx._constants import FOLDING_OPSET
from deepseek_fast.onnx._runtime import LIBRARY, STOCK, Runner, library_problem
from tests.onnx_models import Graph, attribute, counts, fused, normal, sentences

C, F, H, W = 4, 6, 9, 10
U8, S8 = np.uint8, np.int8
X_SCALE, W_SCALE, Y_SCALE, R_SCALE = 0.02, 0.01, 0.03, 0.04


class Qdq(Graph):
    """A graph of bytes; x is an input of it, or of floats where a QuantizeLinear comes first."""

    def quantize(self, value: str, scale: float, zero: int, dtype: Any = U8, **options: Any) -> str:
        return self.op("QuantizeLinear", value, *self.scale(scale, zero, dtype), **options)

    def dequantize(self, value: str, scale: Any, zero: Any, dtype: Any = U8, **options: Any) -> str:
        return self.op("DequantizeLinear", value, *self.scale(scale, zero, dtype), **options)

    def scale(self, scale: Any, zero: Any, dtype: Any) -> list[str]:
        count = len(self.initializers)
        return [self.constant(f"s{count}", scale), self.constant(f"z{count}", zero, dtype)]

    def byte_input(self, name: str, *shape: Any, dtype: Any = U8) -> str:
        return self.input(name, *shape, dtype=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def x(self, dtype: Any = U8, scale: float = X_SCALE, channels: int = C) -> str:
        return self.dequantize(self.byte_input("x", "batch", channels, H, W, dtype=dtype), scale, 7, dtype)

    def weight(self, dtype: Any = S8, *, per_channel: bool = True, filters: int = F, channels: int = C) -> str:
        low, high, zero = (-127, 128, 0) if dtype == S8 else (0, 256, 128)
        w = self.constant("w", self.rng.integers(low, high, (filters, channels, 3, 3)), dtype)
        if not per_channel:
            return self.dequantize(w, W_SCALE, zero, dtype)
        return self.dequantize(w, self.weight_scale(filters), np.full(filters, zero), dtype, axis=0)

    def weight_scale(self, filters: int = F) -> np.ndarray:
        return np.linspace(W_SCALE / 4, W_SCALE, filters).astype(np.float32)

    def bias(self, kind: str) -> list[str]:
        if kind == "none":
            return []
        steps = np.float32(X_SCALE) * self.weight_scale()
        numbers = self.rng.integers(-3000, 3000, F)
        if kind == "float":
            return [self.constant("b", numbers * steps)]
        if kind == "other scale":
            return [self.dequantize(self.constant("b", numbers, np.int32), steps[0], 0, np.int32)]
        return [self.dequantize(self.constant("b", numbers, np.int32), steps, np.zeros(F), np.int32, axis=0)]

    def conv(self, x: str, *more: str, **options: Any) -> str:
        options.setdefault("pads", [1, 1, 1, 1])
        return self.op("Conv", x, *more, **options)

    def bytes_out(self, name: str, dtype: Any = U8) -> None:
        self.output(name, dtype=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), rank=4)


def byte_values(dtype: Any, *shape: int, seed: int = 3) -> np.ndarray:
    limits = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(limits.min, limits.max + 1, shape).astype(dtype)


def check(graph: Graph, feeds: dict[str, np.ndarray], *, opset: int = 21, steps: int = 0, **options: Any) -> Any:
    """The rewritten model gives QLinearConv's bytes, to `steps`, and the reference's of the original to a step more."""
    model = graph.model(opset)
    result = explain(model, **options)
    onnx.checker.check_model(result.model, full_check=True)
    names = [output.name for output in model.graph.output]
    assert [output.name for output in result.model.graph.output] == names
    want = Runner(model, runtime=STOCK, threads=1).run(feeds)
    reference: Any = want
    if opset >= FOLDING_OPSET:
        reference = dict(zip(names, ReferenceEvaluator(model).run(None, feeds), strict=True))
    for runtime in (STOCK, LIBRARY) if library_problem() is None else (STOCK,):
        for name, got in Runner(result.model, runtime=runtime, threads=1).run(feeds).items():
            assert got.dtype == want[name].dtype and got.shape == want[name].shape, runtime
            apart = np.abs(got.astype(np.float64) - want[name].astype(np.float64)).max()
            assert apart <= steps, (runtime, name, apart)
            apart = np.abs(got.astype(np.float64) - reference[name].astype(np.float64)).max()
            assert apart <= steps + 1, (runtime, name, apart)
    return result


# Convolutions


@pytest.mark.parametrize("bias", ["none", "int32", "float", "other scale"])
@pytest.mark.parametrize("weight", [(S8, True), (S8, False), (U8, True), (U8, False)], ids=str)
def test_conv_is_rewritten(weight, bias):
    w_type, per_channel = weight
    if bias == "int32" and not per_channel:
        pytest.skip("its steps are those of one scale a filter")
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

INNER_SCALE, SUM_SCALE = 0.1, 0.15  # so wide that no sum is above the bytes of its type


def summed(
    zero: int = 128, *, act: str = "", after: str = "", y_zero: int = 100, first: bool = True, r_type: Any = U8
) -> Qdq:
    """A convolution rounded to bytes of this zero point, the sum with other bytes, and what follows it."""
    graph = Qdq()
    r = graph.dequantize(graph.byte_input("r", "batch", F, H, W, dtype=r_type), R_SCALE, 20, r_type)
    y = graph.conv(graph.x(), graph.weight(), *graph.bias("int32"))
    y = graph.op(act, y) if act else y
    y = graph.dequantize(graph.quantize(y, INNER_SCALE, zero, output="inner"), INNER_SCALE, zero)
    y = graph.op("Add", y, r) if first else graph.op("Sum", r, y)
    y = graph.op(after, y) if after else y
    graph.bytes_out(graph.quantize(y, SUM_SCALE, y_zero, output="y"))
    return graph


@pytest.mark.parametrize(
    ("options", "activation", "residual_at"),
    [
        ({}, "none", "before"),
        ({"first": False}, "none", "before"),
        ({"after": "Relu"}, "relu", "before"),
        ({"after": "Relu", "y_zero": 0}, "none", "before"),
        ({"zero": 0}, "relu", "after"),
        ({"zero": 0, "act": "Relu"}, "relu", "after"),
        ({"zero": 0, "after": "Relu", "y_zero": 0}, "relu", "after"),
        ({"act": "LeakyRelu"}, "leaky_relu", "after"),
    ],
    ids=str,
)
def test_a_sum_of_bytes_is_not_rounded_on_the_way(options, activation, residual_at):
    feeds = {"x": byte_values(U8, 2, C, H, W), "r": byte_values(U8, 2, F, H, W, seed=4)}
    feeds["x"] //= 4
    result = check(summed(**options), feeds, steps=1)
    (node,) = fused(result.model, "FusedConvInt8")
    assert len(result.model.graph.node) == 1 and "'inner' not rounded" in sentences(result.rewritten)
    assert attribute(node, "activation").decode() == activation
    assert attribute(node, "residual_at").decode() == residual_at


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"zero": 0, "after": "Relu"}, "one activation must be enough; got relu and relu"),
        ({"after": "Softplus"}, "a QuantizeLinear must follow; got Softplus"),
        ({"zero": 255}, "the sum must have bytes above zero"),
        ({"r_type": S8}, "the residual must have y's type uint8; got int8"),
    ],
    ids=str,
)
def test_a_sum_left_alone(options, sentence):
    result = explain(summed(**options).model())
    (node,) = fused(result.model, "FusedConvInt8")
    assert "inner" in node.output[0] and counts(result.model)["Add"] == 1
    assert "QdqResidual: add_" in sentences(result.refused) and sentence in sentences(result.refused)


def test_a_sum_of_bytes_that_others_read_stays():
    graph = summed()
    graph.bytes_out("inner")
    result = explain(graph.model())
    assert counts(result.model)["Add"] == 1 and "'inner' is also a graph output" in sentences(result.refused)


# Pools


def test_pool_of_bytes_follows_its_convolution():
    graph = Qdq()
    y = graph.dequantize(graph.quantize(graph.conv(graph.x(), graph.weight()), Y_SCALE, 3), Y_SCALE, 3)
    y = graph.op("MaxPool", y, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
    graph.bytes_out(graph.quantize(y, Y_SCALE, 3, output="y"))
    result = check(graph, {"x": byte_values(U8, 2, C, H, W)}, steps=1)
    assert counts(result.model) == {"FusedConvInt8": 1}
    assert counts(explain(graph.model(), optim_level=1).model) == {"FusedConvInt8": 1, "MaxPool": 1}


@pytest.mark.parametrize("dtype", [U8, S8])
def test_pool_of_bytes_alone(dtype):
    graph = Qdq()
    x = graph.byte_input("x", "batch", C, H, W, dtype=dtype)
    pooled = graph.op("MaxPool", graph.dequantize(x, X_SCALE, 7, dtype), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    y = graph.dequantize(graph.quantize(pooled, X_SCALE, 7, dtype), X_SCALE, 7, dtype)
    graph.bytes_out(graph.quantize(graph.conv(y, graph.weight()), Y_SCALE, 3, output="y"))
    result = check(graph, {"x": byte_values(dtype, 2, C, H, W)}, steps=1)
    assert counts(result.model) == {"Pool2d": 1, "FusedConvInt8": 1}
    assert "MaxPool of bytes" in sentences(result.rewritten)


@pytest.mark.parametrize("beside", [True, False])
def test_a_channel_shuffle_of_bytes_moves_along(beside):
    """Only beside a convolution of bytes."""
    graph = Qdq()
    y = graph.byte_input("x", 2, C, H, W)
    if beside:
        y = graph.quantize(graph.conv(graph.dequantize(y, X_SCALE, 7), graph.weight(filters=C)), X_SCALE, 7)
    apart = graph.constant("apart", [2, 2, C // 2, H, W], np.int64)
    joined = graph.constant("joined", [2, C, H, W], np.int64)
    moves: list[tuple[str, list[str], dict[str, Any]]] = [
        ("Reshape", [apart], {}),
        ("Transpose", [], {"perm": [0, 2, 1, 3, 4]}),
        ("Reshape", [joined], {}),
    ]
    for op_type, more, options in moves:
        moved = graph.op(op_type, graph.dequantize(y, X_SCALE, 7), *more, **options)
        y = graph.quantize(moved, X_SCALE, 7)
    if beside:
        w = graph.dequantize(graph.constant("w2", byte_values(S8, F, C, 1, 1), S8), W_SCALE, 0, S8)
        y = graph.quantize(graph.op("Conv", graph.dequantize(y, X_SCALE, 7), w), Y_SCALE, 3)
    graph.bytes_out(y)
    result = check(graph, {"x": byte_values(U8, 2, C, H, W)}, steps=1)
    assert counts(result.model)["DequantizeLinear"] == (0 if beside else 3)
    layouts = [attribute(node, "y_layout").decode() for node in fused(result.model, "FusedConvInt8")]
    assert layouts == (["NHWC", "NCHW"] if beside else [])


def test_a_pool_of_two_scales_is_left_alone():
    graph = Qdq()
    y = graph.dequantize(graph.quantize(graph.conv(graph.x(), graph.weight()), Y_SCALE, 3), Y_SCALE, 3)
    pooled = graph.op("MaxPool", y, kernel_shape=[2, 2], output="pooled")
    graph.bytes_out(graph.quantize(pooled, 2 * Y_SCALE, 7, output="y"))
    result = explain(graph.model())
    assert counts(result.model)["DequantizeLinear"] == 1
    assert "QdqMove: pooled: x and y must have one scale; got 0.03 and 0.06" in sentences(result.refused)
