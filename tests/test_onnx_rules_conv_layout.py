"""Layouts of convolutions: NHWC between neighbors, one Transpose where it has to be."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from deepseek_fast.onnx import explain
from deepseek_fast.onnx._runtime import STOCK, Runner
from tests.onnx_convs import CLOSE, C, F, H, W, conv, images, layouts, layouts_of, rewritten, transposes
from tests.onnx_models import Graph, assert_same_numbers, counts, fused, normal, sentences


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
    written = [y_layout for _, y_layout in layouts(rewritten(graph).model)]
    assert written == ["NCHW", "NCHW", "NHWC", "NCHW"]  # captured, an output, between the two, an output


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
