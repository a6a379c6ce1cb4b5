"""What ONNX Runtime makes of a model quantized to FP8, and of the rest of it once it is optimized."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from deepseek_fast import cli
from deepseek_fast.onnx import _io, optimize, verify
from deepseek_fast.onnx._runtime import library_problem
from tests.fp8_qdq import (
    CLOSE,
    FORMATS,
    REFUSES,
    K,
    N,
    check,
    is_refused_by_stock,
    stock,
    with_x,
)
from tests.onnx_models import counts, fused, normal, run_everywhere, sentences


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("op_type", ["MatMul", "Gemm"])
def test_original_does_not_load(op_type, dtype):
    graph = with_x(dtype)
    graph.output(graph.op(op_type, graph.pair("x"), graph.weight("W", (K, N)), output="y"), rank=2)
    problem = is_refused_by_stock(graph.model(21))
    if not problem:
        pytest.skip(REFUSES)
    assert "MatMulIntegerToFloat" in problem or "QGemm" in problem
    check(graph)


def test_numbers_are_those_of_the_runtime_without_its_rewrites():
    graph = with_x()
    graph.output(graph.op("MatMul", graph.pair("x"), graph.weight("W", (K, N)), output="y"), rank=2)
    model, feeds = graph.model(21), {"x": normal(5, K)}
    (want,) = stock(model, session__disable_quant_qdq="1").run(None, feeds)
    for runtime, got in run_everywhere(optimize(model), feeds).items():
        np.testing.assert_allclose(got["y"], want, rtol=0, atol=CLOSE * np.abs(want).max(), err_msg=runtime)


@pytest.mark.parametrize("op_type", ["MatMul", "Add", "Mul", "Concat", "Softmax", "Sigmoid", "Flatten", "Gemm"])
def test_other_operators_between_pairs_load(op_type):
    graph = with_x(shape=(8, 8))
    inputs = [graph.pair("x")] * (2 if op_type in ("MatMul", "Add", "Mul", "Concat", "Gemm") else 1)
    graph.last(graph.pair(graph.op(op_type, *inputs, **({"axis": 1} if op_type == "Concat" else {}))))
    assert "Cast and Mul" in sentences(check(graph).rewritten)


def test_attention_in_fp8_loads():
    graph = with_x(shape=("batch", 5, K))
    q, k, v = (graph.pair(graph.linear("x", K, N, name)) for name in "qkv")
    scores = graph.pair(graph.op("MatMul", q, graph.op("Transpose", k, perm=[0, 2, 1])))
    graph.last(graph.op("MatMul", graph.pair(graph.op("Softmax", scores)), v), rank=3)
    result = check(graph)
    assert counts(result.model)["Fp8Matmul"] == 3
    assert "Fp8MatMul" in sentences(result.refused)  # products of two computed values


def test_pair_with_a_scale_a_channel_loads():
    graph = with_x(shape=(2, K, N))
    graph.codes("channel_z", np.zeros(N))
    scale = graph.constant("channel_s", 0.01 + 0.001 * np.arange(N))
    q = graph.op("QuantizeLinear", "x", scale, "channel_z", axis=2)
    x = graph.op("DequantizeLinear", q, scale, "channel_z", axis=2)
    graph.last(graph.pair(graph.op("Mul", x, graph.weight("W", (K, N)))), rank=3)
    assert "Cast and Mul" in sentences(check(graph).rewritten)


@pytest.mark.parametrize("opset", [19, 21])
@pytest.mark.parametrize("moved", [False, True])
def test_relu_before_a_pair_is_kept(opset, moved):
    graph = with_x()
    y = graph.op("Relu", "x")
    y = graph.op("Transpose", y, perm=[1, 0]) if moved else y
    graph.last(graph.pair(y))
    result = check(graph, opset=opset)
    assert "keep" in sentences(result.rewritten) and counts(result.model)["Relu"] == 1


def test_pair_that_no_one_joins_is_left_as_it_is():
    graph = with_x()
    graph.last(graph.op("Add", graph.pair("x"), "x"))
    result = check(graph)
    assert counts(result.model) == counts(graph.model(21)) and not result.rewritten


# Through the other doors


def test_verify_accepts_it_and_the_command_line_makes_it(tmp_path):
    graph = with_x()
    hidden = graph.op("Relu", graph.linear("x", K, N, "up"))
    graph.last(graph.linear(hidden, N, K, "down"))
    source, made = tmp_path / "qdq.onnx", tmp_path / "fast.onnx"
    onnx.save(graph.model(21), source)
    assert cli.main(["optimize", str(source), str(made), "--verify"]) == 0
    assert counts(_io.read_model(made, "test", "made"))["Fp8Matmul"] == 2
    assert made.stat().st_size < 30_000  # 4608 codes, once
    report = verify(source, made)
    assert report.ok, str(report)
    assert {output.runtime for output in report.outputs} == {"stock"} | (set() if library_problem() else {"library"})


def test_quantize_leaves_a_weight_in_fp8_as_it_is():
    graph = with_x()
    product = graph.op("MatMul", graph.op("MatMul", "x", graph.weight("W", (K, N))), graph.random("V", N, N))
    graph.last(product)
    assert counts(optimize(graph.model(21), quantize="w8a16")) == {"Fp8Matmul": 1, "Int8Matmul": 1, "Identity": 1}


def test_equal_scales_are_stored_once():
    graph = with_x()
    W = graph.weight("W", (K, N))
    graph.last(graph.op("Add", graph.op("MatMul", "x", W), graph.op("MatMul", graph.op("Neg", "x"), W)))
    model = check(graph).model
    assert len({node.input[1] for node in fused(model, "Fp8Matmul")}) == 1
    kept = [numpy_helper.to_array(tensor).nbytes for tensor in model.graph.initializer]
    assert sum(kept) < N * K + 200
