"""optimize as a whole: levels, opsets, quantization, and everything that must survive it."""

import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deepseek_fast.onnx import _io, explain, optimize
from deepseek_fast.onnx._runtime import library_problem
from tests.onnx_models import (
    OPSETS,
    Graph,
    assert_same_numbers,
    counts,
    linear,
    mlp,
    normal,
    quantize_rows,
    run_everywhere,
    run_stock,
    weight,
)

X = {"x": normal(3, 5, 12)}


@pytest.mark.parametrize("opset", OPSETS)
def test_every_opset(opset):
    model = mlp(opset)
    optimized = optimize(model)
    assert counts(optimized) == {"FusedMatmul": 2}
    assert_same_numbers(model, optimized, X)
    (function,) = optimized.functions
    assert {(i.domain, i.version) for i in function.opset_import} == {("", opset)}
    assert {(i.domain, i.version) for i in optimized.opset_import} == {("", opset), ("ai.deepseek_fast", 1)}


@pytest.mark.parametrize("opset", [7, 9, 11, 12])
def test_older_opsets_are_raised(opset):
    graph = Graph()
    graph.input("x", "batch", 12)
    graph.output(graph.op("Relu", linear(graph, "x", 12, 7), output="y"), rank=2)
    model = graph.model(opset, ir_version=4)
    model.metadata_props.add(key="author", value="me")
    optimized = optimize(model)
    assert counts(optimized) == {"FusedMatmul": 1}
    assert [(p.key, p.value) for p in optimized.metadata_props] == [("author", "me")]
    assert_same_numbers(model, optimized, {"x": normal(3, 12)})


def test_ir_version_3_lists_initializers_as_inputs():
    graph = Graph()
    graph.input("x", "batch", 12)
    graph.output(linear(graph, "x", 12, 7), rank=2)
    graph.input("W", 12, 7)
    graph.input("b", 7)
    model = graph.model(13)
    model.ir_version = 3
    optimized = optimize(model)
    assert counts(optimized) == {"FusedMatmul": 1}
    assert [value.name for value in optimized.graph.input] == ["x"]
    assert_same_numbers(model, optimized, {"x": normal(3, 12)})


@pytest.mark.parametrize(
    ("level", "want"),
    [
        (0, {"MatMul": 2, "Add": 3, "Gelu": 1}),
        (1, {"FusedMatmul": 2, "Add": 1, "Gelu": 1}),
        (2, {"FusedMatmul": 2, "Add": 1}),
        (3, {"FusedMatmul": 2}),
    ],
)
def test_levels(level, want):
    model = mlp(20)
    optimized = optimize(model, optim_level=level)
    assert counts(optimized) == want
    assert_same_numbers(model, optimized, X)
    if level == 0:
        assert list(optimized.graph.node) == list(model.graph.node)
        assert {t.name for t in optimized.graph.initializer} == {t.name for t in model.graph.initializer}


def test_level_0_quantizes_without_fusing():
    optimized = optimize(mlp(20), optim_level=0, quantize="w8a8")
    assert counts(optimized) == {"Int8Matmul": 2, "Add": 3, "Gelu": 1}


def test_fuse_ops_names_what_may_run():
    assert counts(optimize(mlp(20), fuse_ops=["MatMul+Add"])) == {"FusedMatmul": 2, "Gelu": 1, "Add": 1}
    assert counts(optimize(mlp(20), fuse_ops=["MatMul", "Activation"])) == {"FusedMatmul": 2, "Gelu": 1, "Add": 3}
    assert counts(optimize(mlp(20), fuse_ops=["Gemm"])) == {"MatMul": 2, "Gelu": 1, "Add": 3}
    assert counts(optimize(mlp(20), fuse_ops=[])) == {"MatMul": 2, "Gelu": 1, "Add": 3}


@pytest.mark.parametrize("opset", [13, 18, 25])
def test_w8a8_replays_the_definition_bit_for_bit(opset):
    graph = Graph()
    graph.input("x", "batch", 12)
    graph.output(graph.op("Relu", linear(graph, "x", 12, 7), output="y"), rank=2)
    model = graph.model(opset)
    optimized = optimize(model, quantize="w8a8")
    (node,) = optimized.graph.node
    q, scale = quantize_rows(weight(model, "W").T)
    np.testing.assert_array_equal(weight(optimized, node.input[1]), q)
    np.testing.assert_array_equal(weight(optimized, node.input[2]), scale)
    x = normal(9, 12)
    x[1], x[2, 3], x[3] = 0, np.nan, x[3] * np.float32(2.0**-120)
    x_q, x_scale = quantize_rows(x)
    z = (x_q @ q.T) * x_scale[:, None] * scale + weight(model, "b")
    want = np.where(z < 0, np.float32(0), z)
    for runtime, got in run_everywhere(optimized, {"x": x}).items():
        np.testing.assert_array_equal(got["y"], want, err_msg=runtime)


def test_w8a16_is_close_to_the_float_model():
    model = mlp(20)
    want = run_stock(model, X)["y"]
    for runtime, got in run_everywhere(optimize(model, quantize="w8a16"), X).items():
        error = np.abs(got["y"] - want).max()
        assert 0 < error < 0.05 * np.abs(want).max(), runtime


def test_quantize_shares_what_the_model_shares():
    graph = Graph()
    graph.input("x", "batch", 8)
    graph.random("W", 8, 8)
    graph.output(graph.op("MatMul", graph.op("MatMul", "x", "W"), "W", output="y"), rank=2)
    optimized = optimize(graph.model(), quantize="w8a8")
    assert sorted(t.data_type for t in optimized.graph.initializer).count(TensorProto.INT8) == 1
    assert not any(list(t.dims) == [8, 8] and t.data_type == TensorProto.FLOAT for t in optimized.graph.initializer)


def test_quantize_takes_up_an_optimized_model():
    once = optimize(mlp(20))
    assert counts(optimize(once, quantize="w8a8")) == {"Int8Matmul": 2}
    assert {f.name for f in optimize(once, quantize="w8a8").functions} == {"Int8Matmul"}


@pytest.mark.parametrize("quantize", [None, "w8a8", "w8a16"])
def test_idempotent(quantize):
    once = optimize(mlp(20), quantize=quantize)
    result = explain(once, quantize=quantize)
    assert not result.rewritten and not result.refused
    assert result.model.SerializeToString(deterministic=True) == once.SerializeToString(deterministic=True)


def test_the_given_model_is_not_changed():
    for model in (mlp(20), mlp(17)):
        before = model.SerializeToString(deterministic=True)
        optimize(model, quantize="w8a8")
        assert model.SerializeToString(deterministic=True) == before


def test_names_metadata_and_shapes_are_kept():
    model = mlp(20)
    model.metadata_props.add(key="task", value="test")
    model.producer_name, model.doc_string, model.graph.doc_string = "someone", "doc", "graph doc"
    model.graph.node[-1].metadata_props.add(key="source", value="model.py:3")
    optimized = optimize(model)
    assert optimized.graph.input == model.graph.input and optimized.graph.output == model.graph.output
    assert [(p.key, p.value) for p in optimized.metadata_props] == [("task", "test")]
    assert (optimized.producer_name, optimized.doc_string) == ("someone", "doc")
    assert optimized.graph.doc_string == "graph doc"
    assert [(n.name, *n.output) for n in optimized.graph.node] == [("node_gelu", "gelu"), ("node_y", "y")]
    assert [(p.key, p.value) for p in optimized.graph.node[-1].metadata_props] == [("source", "model.py:3")]


def test_equal_initializers_are_merged_and_unused_ones_dropped():
    graph = Graph()
    graph.input("x", "batch", 8)
    array = normal(8, 8)
    graph.constant("unused", array)
    first = graph.op("MatMul", "x", graph.constant("W1", array))
    graph.output(graph.op("MatMul", first, graph.constant("W2", array), output="y"), rank=2)
    model = graph.model()
    optimized = optimize(model)
    assert len({node.input[1] for node in optimized.graph.node}) == 1
    assert sum(list(t.dims) == [8, 8] for t in optimized.graph.initializer) == 1
    assert_same_numbers(model, optimized, {"x": normal(3, 8)})


def test_values_that_a_subgraph_reads_stay():
    """An If reads the sum inside; a product inside a branch is left as it is."""
    graph = Graph()
    graph.input("x", "batch", 8)
    graph.input("flag", dtype=TensorProto.BOOL)
    linear(graph, "x", 8, 8)
    graph.op("Relu", "linear", output="act")
    out = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("then", "otherwise")]
    branches = {
        "then_branch": helper.make_graph([helper.make_node("MatMul", ["linear", "W"], ["then"])], "t", [], [out[0]]),
        "else_branch": helper.make_graph([helper.make_node("Neg", ["act"], ["otherwise"])], "e", [], [out[1]]),
    }
    graph.output(graph.op("If", "flag", output="y", **branches), rank=2)
    model = graph.model()
    result = explain(model)
    assert counts(result.model) == {"FusedMatmul": 1, "Relu": 1, "If": 1}
    assert "'linear' has other uses and must stay" in str(result)
    for flag in (False, True):
        assert_same_numbers(model, result.model, {"x": normal(3, 8), "flag": np.array(flag)})


def test_local_functions_of_the_model_stay():
    model = mlp(20)
    body = helper.make_function(
        "test", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 20)]
    )
    model.functions.append(body)
    model.opset_import.append(helper.make_opsetid("test", 1))
    model.graph.node.append(helper.make_node("Twice", ["y"], ["twice"], domain="test"))
    model.graph.output[0].name = "twice"
    optimized = optimize(model)
    assert {f.name for f in optimized.functions} == {"Twice", "FusedMatmul"}
    assert_same_numbers(model, optimized, X)


def test_nodes_without_body_or_optional_inputs_are_completed():
    """As another writer, or an exporter, may leave them: no bias, no residual, no attributes, no body."""
    graph = Graph()
    graph.input("x", "batch", 8)
    first = helper.make_node("FusedMatmul", ["x", graph.random("W", 6, 8)], ["first"], domain="ai.deepseek_fast")
    q = graph.constant("q", np.ones((5, 6)), np.int8)
    inputs = ["first", q, graph.constant("s", np.full(5, 0.5)), "", graph.constant("r", [1.0])]
    second = helper.make_node("Int8Matmul", inputs, ["y"], domain="ai.deepseek_fast", activations="float")
    graph.nodes += [first, second]
    graph.output("y", rank=2)
    model = graph.model()
    x = normal(3, 8)
    want = (x @ weight(model, "W").T) @ np.full((6, 5), 0.5) + 1
    for runtime, got in run_everywhere(optimize(model, optim_level=0), {"x": x}).items():
        np.testing.assert_allclose(got["y"], want, rtol=1e-5, atol=1e-5, err_msg=runtime)


def test_a_body_is_dropped_with_its_last_node():
    model = optimize(mlp(20))
    model.graph.node[-1].output[0] = "unused"
    model.graph.node.append(helper.make_node("Identity", ["x"], ["y"]))
    optimized = optimize(model)
    assert not optimized.functions and {i.domain for i in optimized.opset_import} == {""}


def test_explain_reads_as_sentences():
    text = str(explain(mlp(20), quantize="w8a8"))
    assert text.startswith("6 rewritten, 0 refused\n")
    assert "  MatMul+Add: linear_up: FusedMatmul with bias\n" in text
    assert "  Residual: y: FusedMatmul with residual 'x'" in text
    assert "  w8a8: y: Int8Matmul" in text


# Files


def save_external(model, folder, size_threshold=0):
    path = folder / "model.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="weights.bin", size_threshold=size_threshold)
    return path


def test_paths_in_and_out(tmp_path):
    model = mlp(20)
    source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(model, source)
    returned = optimize(str(source), output=target)
    assert onnx.load(target) == returned
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.onnx", "out.onnx"]
    assert_same_numbers(model, onnx.load(target), X)


def test_output_may_be_the_input(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(mlp(20), path)
    optimize(path, output=path)
    assert counts(onnx.load(path)) == {"FusedMatmul": 2}


def test_external_data_inside_the_folder(tmp_path):
    model = mlp(20)
    optimized = optimize(save_external(mlp(20), tmp_path))
    assert not any(t.data_location == TensorProto.EXTERNAL for t in optimized.graph.initializer)
    assert_same_numbers(model, optimized, X)


def test_weights_past_one_file_go_to_external_data(tmp_path, monkeypatch):
    monkeypatch.setattr(_io, "MAX_FILE_BYTES", 1000)
    monkeypatch.setattr(_io, "MIN_EXTERNAL_BYTES", 100)
    model, path = mlp(20), tmp_path / "out.onnx"
    returned = optimize(model, output=path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.onnx", "out.onnx.data"]
    bare = onnx.load(path, load_external_data=False)
    assert {t.data_location for t in bare.graph.initializer if len(t.dims) == 2} == {TensorProto.EXTERNAL}
    assert_same_numbers(model, onnx.load(path), X)
    assert_same_numbers(model, returned, X)
    if library_problem() is None:
        from deepseek_fast import ort

        (y,) = ort.session(path, threads=1).run(None, X)
        np.testing.assert_allclose(y, run_stock(model, X)["y"], rtol=1e-4, atol=1e-4)


def test_constant_tensors_of_every_kind_survive(tmp_path):
    """float data kept in typed fields, strings, and an empty tensor."""
    graph = Graph()
    graph.input("x", "batch", 8)
    y = linear(graph, "x", 8, 8)
    graph.initializers += [
        helper.make_tensor("typed", TensorProto.FLOAT, [8], np.arange(8.0)),
        helper.make_tensor("text", TensorProto.STRING, [1], [b"word"]),
        numpy_helper.from_array(np.zeros((0,), np.int64), "empty"),
    ]
    graph.op("Reshape", graph.op("Slice", y, graph.constant("at", [0], np.int64), "at"), "empty", output="none")
    graph.output(graph.op("Mul", y, "typed", output="y"), rank=2)
    graph.output(graph.op("Identity", "text", output="word"), dtype=TensorProto.STRING, rank=1)
    model = graph.model()
    optimized = optimize(model, output=tmp_path / "out.onnx")
    assert {t.name for t in optimized.graph.initializer} >= {"typed", "text"}
    got = run_stock(onnx.load(tmp_path / "out.onnx"), {"x": normal(3, 8)})
    assert got["word"].tolist() == ["word"] and got["y"].shape == (3, 8)


def test_importing_the_package_imports_no_framework():
    """And its functions are functions, whatever was imported first."""
    code = """
import sys
from deepseek_fast.onnx._notes import Note
import deepseek_fast.onnx.verify
from deepseek_fast.onnx.optimize import explain
import deepseek_fast.onnx as package
heavy = {"onnx", "onnx_ir", "onnxruntime", "onnxscript", "torch", "numpy", "ml_dtypes"} & set(sys.modules)
assert not heavy, heavy
assert all(callable(getattr(package, name)) for name in package.__all__)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
