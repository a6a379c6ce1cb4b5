"""The rules for products (MatMul+Add, MatMul, Gemm): what is rewritten to the same numbers, what is left and why."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto

from deepseek_fast.onnx import explain
from tests.onnx_models import (
    Graph,
    assert_same_numbers,
    check_rewrite,
    counts,
    fused,
    graph_with_x,
    linear,
    normal,
    run_stock,
    sentences,
    weight,
)

N, K = 6, 8


# MatMul+Add and MatMul


@pytest.mark.parametrize("shape", [(N,), (1,), (), (1, N), (1, 1, N)], ids=str)
@pytest.mark.parametrize("bias_first", [False, True])
def test_matmul_add_is_rewritten(shape, bias_first):
    graph = graph_with_x()
    product = graph.op("MatMul", "x", graph.random("W", K, N))
    bias = graph.random("b", *shape)
    graph.output(graph.op("Add", *((bias, product) if bias_first else (product, bias)), output="y"), rank=3)
    result = check_rewrite(graph)
    (node,) = fused(result.model)
    assert list(node.output) == ["y"] and len(result.model.graph.node) == 1
    np.testing.assert_array_equal(weight(result.model, node.input[1]), weight(graph.model(), "W").T)
    assert weight(result.model, node.input[2]).shape == (N,)


@pytest.mark.parametrize("shape", [(4, 1), (4, N), (1, 1, 1, N)], ids=str)
def test_matmul_add_leaves_what_is_no_bias(shape):
    graph = graph_with_x()
    product = graph.op("MatMul", "x", graph.random("W", K, N))
    graph.output(graph.op("Add", product, graph.random("b", *shape), output="y"), rank=max(3, len(shape)))
    result = check_rewrite(graph)
    assert counts(result.model) == {"FusedMatmul": 1, "Add": 1}
    assert "MatMul+Add: y: bias" in sentences(result.refused)


def test_matmul_add_leaves_a_product_that_has_other_readers():
    graph = graph_with_x()
    graph.output(linear(graph, "x", K, N), rank=3)
    graph.output(graph.op("Relu", "product", output="z"), rank=3)
    result = check_rewrite(graph, fuse_ops=["MatMul+Add"])
    assert counts(result.model) == {"MatMul": 1, "Add": 1, "Relu": 1}
    assert "'product' has 2 uses and must stay" in sentences(result.refused)


def test_matmul_add_leaves_a_product_that_is_an_output():
    graph = graph_with_x()
    graph.output(linear(graph, "x", K, N), rank=3)
    graph.output("product", rank=3)
    result = check_rewrite(graph)
    assert counts(result.model) == {"FusedMatmul": 1, "Add": 1}
    assert "'product' is also a graph output" in sentences(result.refused)
    assert [o.name for o in result.model.graph.output] == ["linear", "product"]


def test_matmul_without_bias_is_rewritten():
    graph = graph_with_x()
    graph.output(graph.op("MatMul", "x", graph.random("W", K, N), output="y"), rank=3)
    (node,) = fused(check_rewrite(graph).model)
    assert list(node.output) == ["y"]


@pytest.mark.parametrize("case", ["computed", "stack", "double", "left", "overridable", "empty"])
def test_matmul_left_alone(case):
    graph = graph_with_x()
    dtype, sentence = TensorProto.FLOAT, ""
    if case == "computed":
        graph.op("MatMul", "x", graph.op("Transpose", "x", perm=[0, 2, 1]), output="y")
    elif case == "stack":
        graph.op("MatMul", "x", graph.random("W", 1, K, N), output="y")
        sentence = "weight must have 2 dimensions; got shape (1, 8, 6)"
    elif case == "double":
        dtype, sentence = TensorProto.DOUBLE, "weight must be float32, bfloat16 or float16; got dtype float64"
        graph.op("MatMul", graph.op("Cast", "x", to=dtype), graph.random("W", K, N, dtype=np.float64), output="y")
    elif case == "left":
        graph.op("MatMul", graph.random("W", N, 4), "x", output="y")
    elif case == "overridable":
        graph.op("MatMul", "x", graph.random("W", K, N), output="y")
        graph.input("W", K, N)
        sentence = "weight must be constant; got 'W', an overridable graph input"
    else:
        graph.op("MatMul", "x", graph.random("W", K, 0), output="y")
        sentence = "weight must have values; got shape (8, 0)"
    graph.output("y", dtype=dtype, rank=4 if case == "stack" else 3)
    result = explain(graph.model())
    assert fused(result.model) == [] and not result.rewritten
    assert sentence in sentences(result.refused)


# Weights: where they come from, who shares them


@pytest.mark.parametrize("source", ["Constant", "Transpose", "Identity", "Cast"])
def test_weight_sources(source):
    graph = graph_with_x()
    array = normal(K, N)
    if source == "Constant":
        W = graph.op("Constant", value=onnx.numpy_helper.from_array(array))
    elif source == "Transpose":
        W = graph.op("Transpose", graph.constant("Wt", array.T), perm=[1, 0])
    elif source == "Identity":
        W = graph.op("Identity", graph.constant("W", array))
    else:
        W = graph.op("Cast", graph.constant("W", array.astype(np.float64), np.float64), to=TensorProto.FLOAT)
    graph.output(graph.op("MatMul", "x", W, output="y"), rank=3)
    result = check_rewrite(graph)
    (node,) = fused(result.model)
    assert len(result.model.graph.node) == 1
    if source == "Transpose":
        assert node.input[1] == "Wt"  # as it was stored


@pytest.mark.parametrize("quantize", [None, "w8a16"])
def test_weight_that_would_grow_is_folded_only_to_quantize(quantize):
    graph = graph_with_x()
    q = graph.constant("q", np.arange(-24, 24).reshape(K, N), np.int8)
    W = graph.op("DequantizeLinear", q, graph.constant("s", 0.02), output="W")
    graph.output(graph.op("MatMul", "x", W, output="y"), rank=3)
    model = graph.model()
    result = explain(model, quantize=quantize)
    if quantize is None:
        assert fused(result.model) == []
        assert "weight must not grow unless quantize is given; got 'W', 48 bytes" in sentences(result.refused)
    else:
        assert counts(result.model) == {"Int8Matmul": 1}


def test_product_of_dequantized_activations_is_left_to_the_runtime():
    graph = graph_with_x()
    q = graph.op("QuantizeLinear", "x", graph.constant("s", 0.02), graph.constant("z", 0, np.int8))
    x = graph.op("DequantizeLinear", q, "s", "z")
    graph.output(graph.op("MatMul", x, graph.random("W", K, N), output="y"), rank=3)
    result = explain(graph.model())
    assert fused(result.model) == [] and "comes from DequantizeLinear" in sentences(result.refused)


def test_one_weight_for_several_products():
    graph = Graph()
    graph.input("x", "batch", K)
    graph.random("W", K, K)
    first = graph.op("MatMul", "x", "W")
    second = graph.op("MatMul", graph.op("Relu", first), "W")
    turned = graph.op("MatMul", second, graph.op("Transpose", "W", perm=[1, 0]))
    graph.output(graph.op("Gemm", turned, "W", transB=1, output="y"), rank=2)
    result = check_rewrite(graph)
    assert [node.input[1] for node in fused(result.model)] == ["W_nk", "W_nk", "W", "W"]


def test_weight_that_is_also_an_embedding_table():
    graph = Graph()
    graph.input("ids", "batch", 4, dtype=TensorProto.INT64)
    table = graph.random("table", 11, K)
    hidden = graph.op("Gather", table, "ids", output="hidden")
    graph.output(graph.op("MatMul", hidden, graph.op("Transpose", table, perm=[1, 0]), output="y"), rank=3)
    model = graph.model()
    result = explain(model)
    assert counts(result.model) == {"Gather": 1, "FusedMatmul": 1}
    assert fused(result.model)[0].input[1] == "table"
    assert_same_numbers(model, result.model, {"ids": np.arange(8).reshape(2, 4)})


@pytest.mark.parametrize(("dtype", "significant_bits"), [(ml_dtypes.bfloat16, 8), (np.float16, 11)], ids=str)
def test_16_bit_model_runs_where_the_runtime_has_no_16_bit_matmul(dtype, significant_bits):
    onnx_type = getattr(TensorProto, np.dtype(dtype).name.upper())
    graph = Graph()
    graph.input("x", "batch", K, dtype=onnx_type)
    linear_out = linear_in(graph, dtype)
    graph.output(graph.op("Relu", linear_out, output="y"), dtype=onnx_type, rank=2)
    x = normal(3, K).astype(dtype)
    model = graph.model(18)
    got = run_stock(explain(model).model, {"x": x})["y"]
    W, b = weight(model, "W"), weight(model, "b")
    want = np.maximum(x.astype(np.float64) @ W.astype(np.float64) + b.astype(np.float64), 0)
    np.testing.assert_allclose(got.astype(np.float64), want, rtol=2.0**-significant_bits, atol=1e-6)
    refused = explain(graph.model(13)).refused
    assert f"a {np.dtype(dtype).name} model must be at opset 15 or later; got 13" in sentences(refused)


def linear_in(graph, dtype):
    product = graph.op("MatMul", "x", graph.random("W", K, N, dtype=dtype))
    return graph.op("Add", product, graph.random("b", N, dtype=dtype))


# Gemm


@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("C", ["absent", (), (1,), (N,), (1, N)], ids=str)
def test_gemm_is_rewritten(trans_b, C):
    graph = Graph()
    graph.input("x", "batch", K)
    inputs = ["x", graph.random("W", *((N, K) if trans_b else (K, N)))]
    if C != "absent":
        inputs.append(graph.random("C", *C))
    graph.output(graph.op("Gemm", *inputs, transB=trans_b, alpha=0.5, beta=-2.0, output="y"), rank=2)
    assert counts(check_rewrite(graph).model) == {"FusedMatmul": 1}


def test_gemm_with_beta_zero_drops_the_bias():
    graph = Graph()
    graph.input("x", "batch", K)
    graph.output(graph.op("Gemm", "x", graph.random("W", K, N), graph.random("C", N), beta=0.0, output="y"), rank=2)
    result = check_rewrite(graph)
    assert not weight(result.model, fused(result.model)[0].input[2]).any()


@pytest.mark.parametrize(
    ("attributes", "C", "sentence"),
    [
        ({"transA": 1}, (N,), "transA must be 0; got 1"),
        ({"alpha": 0.1}, (N,), "alpha must fold into 'W' exactly; got 0.1"),
        ({"beta": 0.3}, (N,), "beta must fold into 'C' exactly; got 0.3"),
        ({}, (8, N), "bias must be one row of 6 values or one value; got shape (8, 6)"),
        ({}, (8, 1), "bias must be one row of 6 values or one value; got shape (8, 1)"),
    ],
)
def test_gemm_left_alone(attributes, C, sentence):
    graph = Graph()
    graph.input("x", 8, K)
    graph.op("Gemm", "x", graph.random("W", K, N), graph.random("C", *C), output="y", **attributes)
    graph.output("y", rank=2)
    result = explain(graph.model())
    assert counts(result.model) == {"Gemm": 1}
    assert sentence in sentences(result.refused)
