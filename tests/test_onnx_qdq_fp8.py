"""Models quantized to FP8 by QuantizeLinear and DequantizeLinear: what becomes Fp8Matmul, and that all of it runs."""

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper

from deepseek_fast.onnx import explain, optimize, verify
from tests.fp8_qdq import (
    FORMATS,
    Fp8Graph,
    K,
    N,
    check,
    scale_of,
    stock,
    with_x,
)
from tests.onnx_models import Graph, attribute, counts, fused, normal, run_everywhere, sentences, weight

BLOCKS = {"tensor": [-1, -1], "channel": [1, -1], "block": [1, 32]}


@pytest.mark.parametrize("dtype", ["e4m3fn", "e5m2"])
@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("op_type", ["MatMul", "Gemm", "Gemm with C"])
def test_weight_stays_one_byte_a_value(op_type, kind, transposed, dtype):
    graph = with_x(dtype, zero_point=kind != "channel")
    scale, attributes = scale_of(kind, transposed)
    W = graph.weight("W", (N, K) if transposed else (K, N), scale, **attributes)
    x = graph.pair("x")
    if op_type == "MatMul":
        graph.op("MatMul", x, graph.op("Transpose", W, perm=[1, 0]) if transposed else W, output="y")
    else:
        C = [graph.random("C", N)] if op_type != "Gemm" else []
        graph.op("Gemm", x, W, *C, transB=transposed, output="y")
    graph.output("y", rank=2)
    result = check(graph)
    assert counts(result.model) == {"QuantizeLinear": 1, "DequantizeLinear": 1, "Fp8Matmul": 1} and not result.refused
    (node,) = fused(result.model, "Fp8Matmul")
    assert attribute(node, "block") == BLOCKS[kind] and attribute(node, "activations") == b"float"
    codes = next(tensor for tensor in result.model.graph.initializer if tensor.name == node.input[1])
    assert (codes.data_type, tuple(codes.dims)) == (FORMATS[dtype][0], (N, K))
    assert (node.input[1] == "W") == bool(transposed)  # as it was stored
    assert weight(result.model, node.input[2]).dtype == np.float32


@pytest.mark.parametrize("opset", [19, 20, 21, 23, 25])
@pytest.mark.parametrize("shape", [("batch", K), ("batch", 4, K), (K,)], ids=str)
def test_opsets_and_ranks(opset, shape):
    graph = with_x(shape=shape)
    graph.output(graph.op("MatMul", graph.pair("x"), graph.weight("W", (K, N)), output="y"), rank=len(shape))
    assert counts(check(graph, opset=opset).model)["Fp8Matmul"] == 1


@pytest.mark.parametrize("block", [32, 64, 96, 100])
def test_block_that_does_not_divide_k(block):
    graph = with_x(shape=("batch", 80))
    scale = 0.01 + 0.01 * np.random.default_rng(0).random((-(-80 // block), N))
    W = graph.weight("W", (80, N), scale, axis=0, block_size=block)
    graph.output(graph.op("MatMul", "x", W, output="y"), rank=2)
    (node,) = fused(explain(graph.model(21)).model, "Fp8Matmul")
    assert attribute(node, "block") == ([1, block] if block < 80 else [1, -1])
    if block != 100:  # larger than K: onnx's evaluator refuses it
        check(graph)


@pytest.mark.parametrize("source", ["Constant", "Transpose", "Identity", "QuantizeLinear"])
def test_weight_sources(source):
    graph = with_x()
    array = normal(K, N)
    if source == "QuantizeLinear":  # of a float weight, as quantization-aware training leaves it
        W = graph.pair(graph.constant("W", array))
    else:
        codes = graph.codes("W", (array.T if source == "Transpose" else array) * 20)
        if source == "Constant":
            codes = graph.op("Constant", value=graph.initializers.pop())
        elif source == "Transpose":
            codes = graph.op("Transpose", codes, perm=[1, 0])
        W = graph.op("DequantizeLinear", codes, "s", "z")
        W = graph.op("Identity", W) if source == "Identity" else W
    graph.output(graph.op("MatMul", graph.pair("x"), W, output="y"), rank=2)
    result = check(graph)
    assert counts(result.model) == {"QuantizeLinear": 1, "DequantizeLinear": 1, "Fp8Matmul": 1}


@pytest.mark.parametrize(("dtype", "bits"), [(np.float16, 11), (ml_dtypes.bfloat16, 8)], ids=["float16", "bfloat16"])
def test_16_bit_scales_and_inputs(dtype, bits):
    """The weight is not rounded to 16 bits on its way: a result nearer to the truth than the model's."""
    graph = Fp8Graph()
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph.input("x", "batch", K, dtype=kind)
    scale, attributes = scale_of("block", False)
    W = graph.weight("W", (K, N), scale, scale_dtype=dtype, **attributes)
    graph.output(graph.op("MatMul", "x", W, output="y"), dtype=kind, rank=2)
    model = graph.model(21)
    result = explain(model)
    assert counts(result.model) == {"Fp8Matmul": 1}
    x = normal(3, K).astype(dtype)
    exact = weight(model, "W").astype(np.float64) * np.repeat(weight(model, "W_s").astype(np.float64), 32, axis=0)
    want = x.astype(np.float64) @ exact
    for runtime, got in run_everywhere(result.model, {"x": x}).items():
        error = np.abs(got["y"].astype(np.float64) - want)
        assert (error <= 2.0**-bits * np.abs(want) + 1e-5).all(), runtime


# What follows a product, and pairs of Q and DQ around it


def test_bias_activation_and_residual_are_taken_in():
    graph = with_x()
    hidden = graph.op("Gelu", graph.linear("x", K, N, "up"))
    graph.last(graph.op("Add", graph.linear(hidden, N, K, "down"), "x"))
    result = check(graph)
    assert counts(result.model) == {"QuantizeLinear": 2, "DequantizeLinear": 2, "Fp8Matmul": 2, "Identity": 1}
    up, down = fused(result.model, "Fp8Matmul")
    assert attribute(up, "activation") == b"gelu" and down.input[-1] == "x"
    assert verify(graph.model(21), result.model).ok


def test_bias_left_alone():
    graph = with_x()
    product = graph.op("MatMul", "x", graph.weight("W", (K, N)), output="product")
    graph.output(graph.op("Relu", product, output="other"), rank=2)
    graph.output(graph.op("Add", product, graph.random("b", N), output="y"), rank=2)
    result = explain(graph.model(21))
    assert counts(result.model) == {"Fp8Matmul": 1, "Relu": 1, "Add": 1}
    assert "Bias: y: 'product' has 2 uses and must stay" in sentences(result.refused)


def test_bias_behind_a_reshape_is_taken_in():
    graph = Graph()
    graph.input("x", "batch", 4, 8)
    rows = graph.op("Reshape", "x", graph.constant("fold", [-1, 8], np.int64))
    product = graph.op("MatMul", rows, graph.random("W", 8, 6))
    shape = graph.op("Concat", graph.op("Shape", "x", start=0, end=2), graph.constant("n", [6], np.int64), axis=0)
    graph.input("like", "batch", 4, 6)
    graph.op("Reshape", product, shape, output="unfolded")
    graph.output(graph.op("Add", "unfolded", graph.random("b", 6), output="y"), rank=3)
    model = graph.model(17)
    model.graph.value_info.append(helper.make_tensor_value_info("unfolded", TensorProto.FLOAT, ["batch", 4, 6]))
    assert counts(explain(model).model)["FusedMatmul"] == 1 and counts(explain(model).model)["Add"] == 0


@pytest.mark.parametrize("opset", [19, 21])
@pytest.mark.parametrize("activation", ["none", "Relu", "Clip", "Sigmoid", "Gelu", "Softmax"])
def test_product_between_two_pairs(activation, opset):
    """After its body is inlined, ONNX Runtime must find in it no Gemm, Relu or Clip to join with the pairs."""
    graph = with_x()
    y = graph.linear("x", K, N, "W")
    if activation == "Clip":
        y = graph.op("Clip", y, graph.constant("low", 0), graph.constant("high", 6))
    elif activation != "none" and (opset, activation) != (19, "Gelu"):
        y = graph.op(activation, y)
    graph.last(graph.pair(y))
    assert counts(check(graph, opset=opset).model)["Fp8Matmul"] == 1


@pytest.mark.parametrize("saturate", [0, 1])
def test_saturate_is_kept(saturate):
    graph = with_x()
    x = graph.pair("x", saturate=saturate)
    graph.output(graph.op("MatMul", x, graph.weight("W", (K, N)), output="y"), rank=2)
    model = graph.model(21)
    x = np.ones((1, K), np.float32)
    x[0, 5] = 1e4  # 5e5 at a scale of 0.02: 448, or NaN
    for runtime, got in run_everywhere(optimize(model), {"x": x}).items():
        assert np.isfinite(got["y"]).all() == bool(saturate), runtime


def test_products_of_one_pair():
    graph = with_x()
    x = graph.pair("x")
    products = [graph.op("MatMul", x, graph.weight(name, (K, N))) for name in ("Wq", "Wk", "Wv")]
    graph.last(graph.pair(graph.op("Sum", *products)))
    result = check(graph)
    assert counts(result.model)["Fp8Matmul"] == 3 and counts(result.model)["QuantizeLinear"] == 2


@pytest.mark.parametrize("opset", [19, 20, 21, 25])
def test_pairs_around_moves(opset):
    graph = with_x()
    x = graph.op("Reshape", graph.pair("x"), graph.constant("shape", [-1, 4, 24], np.int64))
    x = graph.op("Transpose", x, perm=[1, 0, 2])
    y = graph.op("Transpose", graph.op("MatMul", x, graph.weight("W", (24, N))), perm=[1, 0, 2])
    graph.last(graph.pair(y), rank=3)
    assert counts(check(graph, opset=opset).model)["Fp8Matmul"] == 1


# What is left alone


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        ("computed", "weight must be constant; got 'quantizelinear_"),
        ("overridable", "weight must be constant; got 'W', an overridable graph input"),
        ("stack", "weight must have 2 dimensions and values; got shape (2, 96, 24)"),
        ("fnuz", "weight must be float8_e4m3fn or float8_e5m2; got float8_e4m3fnuz, which has other numbers"),
        ("small block", "block_size must be a multiple of 32; got 16"),
        ("blocks of N", "blocks must run along the input channels"),
        ("scale of K", "scale must run along the output channels, or in blocks"),
        ("scale given", "scale of 'W' must be constant"),
        ("scale of zero", "scale must be finite and above zero"),
        ("zero point", "zero point of 'W' must be constant and 0"),
        ("alpha", "alpha must be 1 beside a weight in FP8; got 0.5"),
        ("beta", "beta must be 1 beside a weight in FP8; got 2"),
        ("transA", "transA must be 0; got 1"),
    ],
)
def test_left_alone_and_still_made_to_load(case, sentence):
    graph = with_x("e4m3fnuz" if case == "fnuz" else "e4m3fn", shape=(4, K))
    x, shape, scale, attributes, rank = graph.pair("x"), (K, N), 0.01, {}, 2
    if case == "small block":
        scale, attributes = scale_of("block", False, 16)
    elif case == "blocks of N":
        scale, attributes = np.full((K, 3), 0.01), {"axis": 1, "block_size": 8}
    elif case == "scale of K":
        scale, attributes = np.full(K, 0.01), {"axis": 0}
    elif case == "scale of zero":
        scale = 0.0
    elif case == "stack":
        shape, rank = (2, K, N), 3
    is_computed = case == "computed"
    W = graph.pair(graph.input("w", K, N)) if is_computed else graph.weight("W", shape, scale, **attributes)
    if case == "overridable":
        graph.input("W", K, N, dtype=TensorProto.FLOAT8E4M3FN)
    elif case == "scale given":
        graph.initializers = [tensor for tensor in graph.initializers if tensor.name != "W_s"]
        graph.input("W_s")
    elif case == "zero point":
        graph.initializers = [tensor for tensor in graph.initializers if tensor.name != "W_z"]
        graph.codes("W_z", 1)
    if case in ("alpha", "beta", "transA"):
        if case == "transA":
            x = graph.op("Transpose", x, perm=[1, 0])
        options = {"alpha": {"alpha": 0.5}, "beta": {"beta": 2.0}, "transA": {"transA": 1}}[case]
        graph.op("Gemm", x, W, graph.random("C", N), output="y", **options)
    else:
        graph.op("MatMul", x, W, output="y")
    graph.output("y", rank=rank)
    if case in ("zero point", "overridable"):  # of which neither onnx's evaluator nor ours makes a number here
        result = explain(graph.model(21))
        stock(result.model)
    else:
        result = check(graph)
    assert counts(result.model)["Fp8Matmul"] == 0 and sentence in sentences(result.refused)


def test_float16_that_would_overflow_is_left_alone():
    graph = Fp8Graph()
    graph.input("x", "batch", K, dtype=TensorProto.FLOAT16)
    W = graph.weight("W", (K, N), 200.0, scale_dtype=np.float16)
    graph.output(graph.op("MatMul", "x", W, output="y"), dtype=TensorProto.FLOAT16, rank=2)
    result = explain(graph.model(21))
    assert counts(result.model)["MatMul"] == 1
    assert "scale must keep every code finite in float16; got 200" in sentences(result.refused)


def test_int8_pairs_are_left_to_the_runtime():
    graph = Graph()
    graph.input("x", "batch", 8)
    graph.constant("s", 0.02)
    graph.constant("z", 0, np.int8)
    x = graph.op("DequantizeLinear", graph.op("QuantizeLinear", "x", "s", "z"), "s", "z")
    W = graph.op("DequantizeLinear", graph.constant("W", np.ones((8, 6)), np.int8), "s", "z")
    graph.output(graph.op("Relu", graph.op("MatMul", x, W), output="y"), rank=2)
    model = graph.model(21)
    assert counts(optimize(model)) == counts(model)
