"""The rules for what follows a product (Activation, Residual), and for the layout of Attention."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from deepseek_fast.onnx import explain
from tests.onnx_models import (
    Graph,
    assert_same_numbers,
    attribute,
    check_rewrite,
    counts,
    fused,
    graph_with_x,
    linear,
    normal,
    run_stock,
    sentences,
)

N, K = 6, 8


# Activation


def erf_gelu(order):
    def write(graph, y):
        one, half, root = graph.constant("one", 1), graph.constant("half", [0.5]), graph.constant("root", 2**0.5)
        scaled = graph.op("Div", y, root) if order % 2 else graph.op("Mul", graph.constant("inverse", 0.5**0.5), y)
        erf = graph.op("Erf", scaled)
        one_plus = graph.op("Add", one, erf) if order % 3 else graph.op("Add", erf, one)
        if order == 0:
            return graph.op("Mul", graph.op("Mul", y, half), one_plus, output="act")
        if order == 1:
            return graph.op("Mul", graph.op("Mul", y, one_plus), half, output="act")
        if order == 2:
            return graph.op("Mul", half, graph.op("Mul", one_plus, y), output="act")
        if order == 3:
            return graph.op("Mul", y, graph.op("Mul", one_plus, half), output="act")
        return graph.op("Div", graph.op("Mul", one_plus, y), graph.constant("two", 2), output="act")

    return write


def tanh_gelu(order):
    def write(graph, y):
        cubic, root = graph.constant("cubic", 0.044715), graph.constant("root", (2 / np.pi) ** 0.5)
        half, one = graph.constant("half", 0.5), graph.constant("one", 1)
        if order == 0:
            cube = graph.op("Pow", y, graph.constant("three", 3))
            inner = graph.op("Mul", root, graph.op("Add", y, graph.op("Mul", cubic, cube)))
        elif order == 1:
            cube = graph.op("Mul", graph.op("Mul", y, y), y)
            inner = graph.op("Mul", graph.op("Add", graph.op("Mul", cube, cubic), y), root)
        else:
            square = graph.op("Mul", graph.op("Mul", cubic, y), y)
            inner = graph.op("Mul", graph.op("Mul", y, root), graph.op("Add", one, square))
        one_plus = graph.op("Add", graph.op("Tanh", inner), one)
        return graph.op("Mul", graph.op("Mul", half, y), one_plus, output="act")

    return write


def clipped_hardswish(order):
    def write(graph, y):
        zero, three, six = (graph.constant(name, n) for name, n in (("zero", 0), ("three", 3), ("six", 6)))
        clip = graph.op("Clip", graph.op("Add", y, three), zero, six)
        if order == 0:
            return graph.op("Div", graph.op("Mul", y, clip), six, output="act")
        if order == 1:
            return graph.op("Mul", graph.op("Div", clip, six), y, output="act")
        return graph.op("Mul", graph.op("Mul", clip, graph.constant("sixth", 1 / 6)), y, output="act")

    return write


def hard_sigmoid(graph, y, **attributes):
    return graph.op("HardSigmoid", y, **attributes)


def relu6(graph, y, low=0, high=6):
    return graph.op("Clip", y, graph.constant("low", low), graph.constant("high", high), output="act")


ACTIVATIONS = {
    "relu": (17, "relu", lambda graph, y: graph.op("Relu", y, output="act")),
    "gelu-op": (20, "gelu", lambda graph, y: graph.op("Gelu", y, output="act")),
    "gelu-op-none": (20, "gelu", lambda graph, y: graph.op("Gelu", y, approximate="none", output="act")),
    "gelu-op-tanh": (20, "gelu_tanh", lambda graph, y: graph.op("Gelu", y, approximate="tanh", output="act")),
    "swish": (24, "silu", lambda graph, y: graph.op("Swish", y, output="act")),
    "silu": (17, "silu", lambda graph, y: graph.op("Mul", y, graph.op("Sigmoid", y), output="act")),
    "silu-turned": (17, "silu", lambda graph, y: graph.op("Mul", graph.op("Sigmoid", y), y, output="act")),
    "sigmoid": (17, "sigmoid", lambda graph, y: graph.op("Sigmoid", y, output="act")),
    "tanh": (17, "tanh", lambda graph, y: graph.op("Tanh", y, output="act")),
    "relu6": (17, "relu6", relu6),
    "hardswish-op": (17, "hardswish", lambda graph, y: graph.op("HardSwish", y, output="act")),
    "hardswish-hard-sigmoid": (
        17,
        "hardswish",
        lambda graph, y: graph.op("Mul", y, hard_sigmoid(graph, y, alpha=1 / 6, beta=0.5), output="act"),
    ),
    **{f"hardswish-{order}": (17, "hardswish", clipped_hardswish(order)) for order in range(3)},
    **{f"erf-{order}": (17, "gelu", erf_gelu(order)) for order in range(5)},
    **{f"tanh-{order}": (17, "gelu_tanh", tanh_gelu(order)) for order in range(3)},
}


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("as_gemm", [False, True])
def test_activation_is_rewritten(name, as_gemm):
    opset, activation, write = ACTIVATIONS[name]
    graph = graph_with_x(2)
    gemm_inputs = () if not as_gemm else ("x", graph.random("W", K, N), graph.random("b", N))
    y = graph.op("Gemm", *gemm_inputs, output="linear") if as_gemm else linear(graph, "x", K, N)
    graph.output(write(graph, y), rank=2)
    result = check_rewrite(graph, opset=opset)
    (node,) = result.model.graph.node
    assert attribute(node, "activation") == activation.encode() and list(node.output) == ["act"]


class HalfGraph(Graph):
    """Its constants are float16, as an exporter of a half model writes them."""

    def constant(self, name, array, dtype=np.float16):
        return super().constant(name, array, dtype)


@pytest.mark.parametrize("name", ["erf-1", "tanh-0", "silu"])
def test_activation_of_a_half_model_is_rewritten(name):
    opset, activation, write = ACTIVATIONS[name]
    graph = HalfGraph()
    graph.input("x", "batch", K, dtype=TensorProto.FLOAT16)
    product = graph.op("MatMul", "x", graph.random("W", K, N, dtype=np.float16))
    y = graph.op("Add", product, graph.random("b", N, dtype=np.float16))
    graph.output(write(graph, y), dtype=TensorProto.FLOAT16, rank=2)
    model = graph.model(opset)
    rewritten = explain(model).model
    assert counts(rewritten) == {"FusedMatmul": 1}
    assert attribute(fused(rewritten)[0], "activation") == activation.encode()
    # The plain model rounds to float16 after each of up to 11 nodes.
    assert_same_numbers(model, rewritten, {"x": normal(3, K).astype(np.float16)}, close=11 * 2.0**-11)


@pytest.mark.parametrize("quantize", ["w8a8", "w8a16"])
def test_activation_of_a_quantized_product(quantize):
    graph = graph_with_x(2)
    graph.output(ACTIVATIONS["silu"][2](graph, linear(graph, "x", K, N)), rank=2)
    already = explain(graph.model(), quantize=quantize, optim_level=1).model
    assert counts(already) == {"Int8Matmul": 1, "Sigmoid": 1, "Mul": 1}
    assert attribute(explain(already).model.graph.node[0], "activation") == b"silu"


def scaled_sigmoid(graph, y):
    return graph.op("Mul", y, graph.op("Sigmoid", graph.op("Mul", y, graph.constant("c", 1.702))), output="act")


def wrong_gelu(graph, y):
    erf = graph.op("Erf", graph.op("Mul", y, graph.constant("c", 0.70)))  # not 1 / sqrt 2
    half = graph.op("Mul", y, graph.op("Add", erf, graph.constant("one", 1)))
    return graph.op("Mul", half, graph.constant("half", 0.5), output="act")


@pytest.mark.parametrize(
    "write",
    [
        scaled_sigmoid,
        wrong_gelu,
        lambda g, y: g.op("Softsign", y, output="act"),
        lambda g, y: relu6(g, y, high=5),
        lambda g, y: relu6(g, y, low=-1),
        lambda g, y: g.op("Mul", y, hard_sigmoid(g, y), output="act"),  # alpha 0.2
        lambda g, y: g.op("Tanh", g.op("Neg", y), output="act"),
    ],
)
def test_other_activations_are_left_alone(write):
    graph = graph_with_x(2)
    graph.output(write(graph, linear(graph, "x", K, N)), rank=2)
    (node,) = fused(check_rewrite(graph).model)
    assert attribute(node, "activation") == b"none"


@pytest.mark.parametrize("kept", ["linear", "sigmoid"])
def test_activation_keeps_values_that_are_needed_elsewhere(kept):
    graph = graph_with_x(2)
    y = linear(graph, "x", K, N)
    graph.op("Sigmoid", y, output="sigmoid")
    graph.output(graph.op("Mul", y, "sigmoid", output="act"), rank=2)
    graph.output(graph.op("Neg", kept, output="other"), rank=2)
    result = check_rewrite(graph)
    assert counts(result.model) == {"FusedMatmul": 1, "Sigmoid": 1, "Mul": 1, "Neg": 1}
    assert f"'{kept}' has other uses and must stay" in sentences(result.refused)


def test_a_reader_that_nobody_reads_keeps_nothing():
    graph = graph_with_x(2)
    y = linear(graph, "x", K, N)
    graph.op("Neg", y, output="unused")
    graph.output(graph.op("Relu", y, output="act"), rank=2)
    assert counts(check_rewrite(graph).model) == {"FusedMatmul": 1}


def test_swish_of_another_slope_is_left_alone():
    graph = graph_with_x(2)
    graph.output(graph.op("Swish", linear(graph, "x", K, N), alpha=1.5, output="act"), rank=2)
    result = explain(graph.model(24))
    assert counts(result.model) == {"FusedMatmul": 1, "Swish": 1}
    assert "Swish must have alpha 1; got 1.5" in sentences(result.refused)


# Residual


@pytest.mark.parametrize("residual_first", [False, True])
def test_residual_is_rewritten(residual_first):
    graph = graph_with_x()
    r = graph.op("Neg", "x", output="r")
    y = graph.op("Relu", linear(graph, "x", K, K))
    graph.output(graph.op("Add", *((r, y) if residual_first else (y, r)), output="sum"), rank=3)
    result = check_rewrite(graph)
    (node,) = fused(result.model)
    assert node.input[3] == "r" and list(node.output) == ["sum"] and attribute(node, "activation") == b"relu"


def test_residual_may_be_x_itself_or_another_product():
    graph = graph_with_x()
    first = graph.op("Add", linear(graph, "x", K, K, "1"), "x", output="first")
    graph.output(graph.op("Add", linear(graph, first, K, N, "2"), linear(graph, "x", K, N, "3"), output="y"), rank=3)
    result = check_rewrite(graph)
    assert counts(result.model) == {"FusedMatmul": 3}
    assert fused(result.model)[0].input[3] == "x"


def test_residual_that_depends_on_the_product_is_left_alone():
    graph = graph_with_x()
    y = linear(graph, "x", K, N)
    graph.output(graph.op("Add", y, graph.op("Softmax", y), output="sum"), rank=3)
    result = check_rewrite(graph)
    assert counts(result.model) == {"FusedMatmul": 1, "Softmax": 1, "Add": 1}
    assert "'linear' has 2 uses and must stay" in sentences(result.refused)


def test_product_added_to_itself_is_left_alone():
    graph = graph_with_x()
    y = linear(graph, "x", K, N)
    graph.output(graph.op("Add", y, y, output="sum"), rank=3)
    assert counts(check_rewrite(graph).model) == {"FusedMatmul": 1, "Add": 1}


@pytest.mark.parametrize("shape", [(1, 4, N), ("other", 4, N), ("batch", 4, 1), (4, N)], ids=str)
def test_residual_of_another_shape_is_left_alone(shape):
    graph = graph_with_x()
    graph.input("r", *shape)
    graph.output(graph.op("Add", linear(graph, "x", K, N), "r", output="sum"), rank=3)
    result = explain(graph.model())
    assert counts(result.model) == {"FusedMatmul": 1, "Add": 1}
    assert "residual must surely have the output's shape; got shape" in sentences(result.refused)


def test_activation_after_the_residual_is_left_alone():
    graph = graph_with_x()
    total = graph.op("Add", linear(graph, "x", K, K), "x", output="sum")
    graph.output(graph.op("Relu", total, output="y"), rank=3)
    assert counts(check_rewrite(graph).model) == {"FusedMatmul": 1, "Relu": 1}


# ProductReshape


def folded_product(*, unfolded=(0, 4, N), row="batch"):
    graph = Graph()
    graph.input("x", row, 4, K)
    rows = graph.op("Reshape", "x", graph.constant("fold", [-1, K], np.int64))
    product = graph.op("Gemm", rows, graph.random("W", K, N), graph.random("b", N))
    unfold = graph.constant("unfold", unfolded, np.int64)
    if row == "batch":  # as exporters write it: the batch size from the shape of x
        size = graph.op(
            "Slice", graph.op("Shape", "x"), graph.constant("at0", [0], np.int64), graph.constant("at1", [1], np.int64)
        )
        unfold = graph.op("Concat", size, graph.constant("rest", unfolded[1:], np.int64), axis=0)
    back = graph.op("Reshape", product, unfold)
    graph.output(graph.op("Relu", back, output="y"), rank=len(unfolded))
    return graph


def test_product_reshape_is_rewritten():
    result = check_rewrite(folded_product())
    (node,) = result.model.graph.node
    assert node.op_type == "FusedMatmul" and node.input[0] == "x" and attribute(node, "activation") == b"relu"


@pytest.mark.parametrize("unfolded", [(4, 2, N), (2, 2, 2, N), (2, N, 4)], ids=str)
def test_product_reshape_that_mixes_rows_is_left_alone(unfolded):
    graph = folded_product(unfolded=unfolded, row=2)
    result = check_rewrite(graph)
    assert counts(result.model) == {"Reshape": 2, "FusedMatmul": 1, "Relu": 1}
    assert "must surely have the rows of 'x'; got shape" in sentences(result.refused)


# AttentionLayout


def attention(*, heads=2, mask=True, split="batch", output_perm=(0, 2, 1, 3)):
    graph = Graph()
    size = K // heads
    for name in "qkv":
        graph.input(name, "batch", "seq", K)
    shape4 = graph.constant("shape4", [0, 0, heads, size], np.int64)
    parts = []
    for name in "qkv":
        parts.append(graph.op("Transpose", graph.op("Reshape", name, shape4, output=f"{name}4"), perm=[0, 2, 1, 3]))
    if mask:
        graph.input("mask", "batch", 1, "seq", "seq", dtype=TensorProto.BOOL)
        parts.append("mask")
    y4 = graph.op("Attention", *parts, scale=0.3, output="y4")
    turned = graph.op("Transpose", y4, perm=list(output_perm), output="turned")
    graph.output(graph.op("Reshape", turned, graph.constant("shape3", [0, 0, K], np.int64), output="y"), rank=3)
    return graph.model(23)


@pytest.mark.parametrize("mask", [False, True])
def test_attention_layout_is_rewritten(mask):
    model = attention(mask=mask)
    result = explain(model)
    assert counts(result.model) == {"Attention": 1}
    (node,) = result.model.graph.node
    assert list(node.output) == ["y"] and list(node.input)[:3] == ["q", "k", "v"]
    assert attribute(node, "q_num_heads") == attribute(node, "kv_num_heads") == 2
    feeds = {name: normal(3, 5, K, seed=i) for i, name in enumerate("qkv")}
    if mask:
        feeds["mask"] = np.tril(np.ones((3, 1, 5, 5), bool))
    assert_same_numbers(model, result.model, feeds)
    np.testing.assert_array_equal(run_stock(model, feeds)["y"], run_stock(result.model, feeds)["y"])


def test_attention_layout_left_alone():
    assert not explain(attention(output_perm=(0, 1, 2, 3))).rewritten
    assert not explain(attention(), optim_level=2).rewritten
    assert not explain(attention(), fuse_ops=["MatMul"]).rewritten
    shared = attention()
    shared.graph.output.append(helper.make_tensor_value_info("turned", TensorProto.FLOAT, [None] * 4))
    result = explain(shared)
    assert not result.rewritten and "'turned' is also a graph output" in sentences(result.refused)
