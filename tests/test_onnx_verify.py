"""verify: passes what is right, fails what is wrong, and names where it goes wrong."""

import json

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from deepseek_fast.onnx import optimize, verify
from deepseek_fast.onnx._compare import compare
from deepseek_fast.onnx._inputs import make_inputs
from deepseek_fast.onnx._runtime import STOCK, Runner, library_problem
from deepseek_fast.onnx.report import Tolerances
from tests.onnx_models import Graph, linear, mlp, normal

EXACT = Tolerances(0.0, None, None, "test")


def deep(opset=20):
    """Six linear layers with residual sums and normalizations between them."""
    graph = Graph()
    x = graph.input("x", "batch", 4, 16)
    for layer in range(3):
        hidden = graph.op("Gelu", linear(graph, x, 16, 32, f"_up{layer}"), output=f"gelu{layer}")
        total = graph.op("Add", linear(graph, hidden, 32, 16, f"_down{layer}"), x, output=f"sum{layer}")
        x = graph.op("LayerNormalization", total, graph.constant(f"gain{layer}", np.ones(16)), output=f"norm{layer}")
    graph.output(x, rank=3)
    return graph.model(opset)


def flip(model, index=40):
    """Changes the sign of one weight of the node that makes sum1; returns that node's name."""
    node = next(node for node in model.graph.node if "sum1" in node.output)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
    array = numpy_helper.to_array(tensor).copy()
    array.reshape(-1)[index] *= -1
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return node.name


@pytest.mark.parametrize("quantize", [None, "w8a8", "w8a16"])
def test_an_optimized_model_passes(quantize):
    model = deep()
    report = verify(model, optimize(model, quantize=quantize))
    assert report.ok, str(report)
    assert {o.batch_size for o in report.outputs} == {1, 3}
    assert {o.runtime for o in report.outputs} == ({"library", "stock"} if library_problem() is None else {"stock"})
    assert report.first_departure is None and not report.problems


def test_a_scalar_input_keeps_its_rank():
    graph = Graph()
    x, factor = graph.input("x", "batch", 16), graph.input("factor")
    graph.output(graph.op("Mul", linear(graph, x, 16, 32), factor), rank=2)
    graph.output(graph.op("Mul", factor, factor, output="square"), rank=0)
    model = graph.model()
    report = verify(model, optimize(model))
    assert report.ok and not report.problems, str(report)
    feeds = {"x": np.ones((2, 16), np.float32), "factor": np.array(3, np.float32)}
    square = Runner(model, runtime=STOCK).run(feeds)["square"]
    assert (square.shape, square.item()) == ((), 9)


@pytest.mark.parametrize("index", [0, 40, 511])
def test_one_flipped_weight_fails_and_is_named(index):
    model = deep()
    candidate = optimize(model)
    name = flip(candidate, index)
    report = verify(model, candidate)
    assert not report.ok
    assert (report.first_departure.node, report.first_departure.value) == (name, "sum1")
    assert report.first_departure.op_type == "FusedMatmul"
    assert f"first departure: FusedMatmul '{name}' (value 'sum1'" in str(report) and "FAILED" in str(report)


def test_one_broken_scale_of_a_quantized_model_is_named():
    model = deep()
    candidate = optimize(model, quantize="w8a8")
    node = next(node for node in candidate.graph.node if "sum1" in node.output)
    tensor = next(tensor for tensor in candidate.graph.initializer if tensor.name == node.input[2])
    tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
    report = verify(model, candidate)
    assert not report.ok and report.first_departure.value == "sum1"


def test_report_is_a_table_and_json():
    model = mlp(20)
    report = verify(model, optimize(model), runtimes=["stock"])
    lines = str(report).splitlines()
    assert lines[0].split() == ["runtime", "batch", "output", "shape", "max", "abs", "relative", "cosine"]
    assert lines[1].split()[:4] == ["stock", "1", "y", "1x5x12"] and lines[-1].startswith("ok (rtol ")
    data = json.loads(json.dumps(report.to_dict()))
    assert data["ok"] is True and data["outputs"][0]["difference"]["ok"] is True
    assert data["first_departure"] is None


def test_paths_and_external_data(tmp_path):
    model = deep()
    onnx.save(model, tmp_path / "reference.onnx")
    candidate = optimize(model)
    path = tmp_path / "candidate.onnx"
    onnx.save_model(candidate, path, save_as_external_data=True, location="candidate.data", size_threshold=100)
    assert verify(tmp_path / "reference.onnx", str(path)).ok
    name = flip(candidate := onnx.load(path))
    onnx.save_model(candidate, path, save_as_external_data=True, location="candidate2.data", size_threshold=100)
    report = verify(tmp_path / "reference.onnx", path, runtimes=["stock"])
    assert not report.ok and report.first_departure.node == name


def test_given_inputs():
    model = mlp(20)
    report = verify(model, optimize(model), {"x": normal(2, 5, 12)}, runtimes=["stock"])
    assert report.ok and [o.batch_size for o in report.outputs] == [None] and "given" in str(report)
    report = verify(model, optimize(model), [{"x": normal(b, 5, 12)} for b in (1, 2, 4)], runtimes=["stock"])
    assert [o.shape[0] for o in report.outputs] == [1, 2, 4]


class TwoInputs(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.from_numpy(numpy_helper.to_array(model.graph.initializer[0]).copy()))

    def forward(self, x, shift=None):
        return {"y": x @ self.weight + shift, "kept": x}


def two_inputs():
    graph = Graph()
    graph.input("shift", "batch", 6)  # not in the order of the module's forward
    graph.input("x", "batch", 8)
    graph.output(graph.op("Add", graph.op("MatMul", "x", graph.random("W", 8, 6)), "shift", output="y"), rank=2)
    graph.output(graph.op("Identity", "x", output="kept"), rank=2)
    return graph.model()


def test_torch_reference():
    model = two_inputs()
    module = TwoInputs(model)
    report = verify(module, optimize(model))
    assert report.ok and {o.name for o in report.outputs} == {"y", "kept"}
    with torch.no_grad():
        module.weight[0, 0] += 1
    report = verify(module, optimize(model))
    assert not report.ok and report.first_departure.value == "y"


def test_structure_problems_are_sentences():
    model = mlp(20)
    candidate = optimize(model)
    del candidate.functions[:]
    report = verify(model, candidate, runtimes=["stock"])
    assert not report.ok
    assert "verify: candidate must carry a function body for FusedMatmul; got none" in report.problems
    assert any(p.startswith("verify: candidate must run in the stock runtime; got ") for p in report.problems)
    renamed = mlp(20)
    renamed.graph.node[-1].output[0] = renamed.graph.output[0].name = "z"
    report = verify(model, renamed)
    assert not report.ok
    assert "verify: candidate must have the reference's outputs y (float); got z (float)" in report.problems


def test_checker_is_asked():
    candidate = mlp(20)
    candidate.graph.node[0].attribute.add(name="unknown", i=1, type=onnx.AttributeProto.INT)
    problems = verify(mlp(20), candidate).problems
    assert any(p.startswith("verify: candidate must pass onnx.checker; got ") for p in problems)


def test_masks_ids_and_sizes_are_made_sensibly():
    graph = Graph()
    for name in ("input_ids", "attention_mask"):
        graph.input(name, "batch", "seq", dtype=TensorProto.INT64)
    graph.input("token_type_ids", "batch", "seq", dtype=TensorProto.INT64)
    graph.input("pixels", "batch", 3)
    graph.input("flags", "batch", dtype=TensorProto.BOOL)
    words = graph.op("Gather", graph.random("words", 50, 4), "input_ids")
    kinds = graph.op("Gather", graph.random("kinds", 2, 4), graph.op("Cast", "token_type_ids", to=TensorProto.INT32))
    graph.output(graph.op("Add", words, kinds, output="y"), rank=3)
    model = graph.model()
    inputs = make_inputs(model, 3, seed=0)
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape == (3, 16)
    assert set(np.unique(inputs["attention_mask"])) <= {0, 1} and (inputs["attention_mask"][:, 0] == 1).all()
    assert inputs["input_ids"].max() < 50 and inputs["input_ids"].max() > 8 and inputs["token_type_ids"].max() == 1
    assert inputs["pixels"].dtype == np.float32 and inputs["flags"].dtype == np.bool_
    again = make_inputs(model, 3, seed=0)
    assert all((again[name] == array).all() for name, array in inputs.items())


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16], ids=str)
def test_16_bit_models_are_compared(dtype):
    onnx_type = getattr(TensorProto, np.dtype(dtype).name.upper())
    graph = Graph()
    graph.input("x", "batch", 8, dtype=onnx_type)
    W, b = (graph.random(name, *shape, dtype=dtype) for name, shape in (("W", (6, 8)), ("b", (6,))))
    cast = [graph.op("Cast", name, to=TensorProto.FLOAT) for name in ("x", W, b)]
    y = graph.op("Gemm", *cast, transB=1)
    graph.output(graph.op("Cast", y, to=onnx_type, output="y"), dtype=onnx_type, rank=2)
    model = graph.model(18)
    report = verify(model, model)
    assert report.ok and report.outputs[0].difference.max_abs == 0


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16], ids=str)
def test_an_optimized_16_bit_model_is_held_to_the_plain_one(dtype):
    """ONNX Runtime cannot run the plain one in bfloat16: onnx's own evaluator does."""
    onnx_type = getattr(TensorProto, np.dtype(dtype).name.upper())
    graph = Graph()
    graph.input("x", "batch", 8, dtype=onnx_type)
    W, b = (graph.random(name, *shape, dtype=dtype) for name, shape in (("W", (8, 6)), ("b", (6,))))
    linear = graph.op("Add", graph.op("MatMul", "x", W), b, output="linear")
    graph.output(graph.op("Relu", linear, output="y"), dtype=onnx_type, rank=2)
    model = graph.model(18)
    candidate = optimize(model)
    report = verify(model, candidate)
    assert report.ok and report.outputs[0].difference.cosine > 0.999, str(report)
    tensor = next(t for t in candidate.graph.initializer if list(t.dims) == [6, 8])
    tensor.raw_data = bytes(tensor.raw_data[:-1]) + bytes([tensor.raw_data[-1] ^ 0x80])
    report = verify(model, candidate)
    assert not report.ok and report.first_departure.value == "y"


def test_reference_that_onnx_runtime_breaks_by_optimizing():
    """ONNX Runtime 1.31.1 folds the first Mul into both readers and leaves one of them dangling."""
    graph = Graph()
    graph.input("x", "batch", 8)
    scaled = graph.op("Mul", "x", graph.constant("s1", 0.5))
    graph.output(graph.op("MatMul", scaled, graph.random("W0", 8, 4), output="y0"), rank=2)
    again = graph.op("Mul", scaled, graph.constant("s2", 0.5))
    graph.output(graph.op("MatMul", again, graph.random("W1", 8, 4), output="y1"), rank=2)
    model = graph.model()
    assert verify(model, optimize(model)).ok


def test_compare():
    def differ(a, b, tolerances=EXACT):
        return compare(np.array(a, np.float32), np.array(b, np.float32), tolerances)

    assert differ([1, 2], [1, 2]).ok and differ([1, 2], [1, 2]).cosine == pytest.approx(1)
    assert differ([np.nan, np.inf, 1], [np.nan, np.inf, 1]).ok
    for wrong in ([np.inf, np.nan, 1], [np.nan, -np.inf, 1], [0, np.inf, 1]):
        assert not differ(wrong, [np.nan, np.inf, 1]).ok
    assert not differ([1, 2, 3], [1, 2]).ok
    assert differ([[3e38, 0], [1e-40, 0]], [[3e38, 0], [1e-40, 0]]).cosine == pytest.approx(1)
    assert differ([[1, 0], [0, 1]], [[1, 0], [1, 0]]).cosine == 0
    assert differ([0, 0], [0, 0]).relative == 0 and differ([1, 0], [0, 0]).relative == np.inf
    assert differ(np.zeros((0, 3)), np.zeros((0, 3))).ok
    assert differ([1, 2.001], [1, 2], Tolerances(1e-9, 1e-3, None, "one is enough")).ok
    assert not differ([1, 2.001], [1, 2], Tolerances(1e-9, 1e-3, 1.1, "and the cosine")).ok
    assert not compare(np.array([1, 2]), np.array([1, 3]), EXACT).ok
    assert compare(np.array(["a"]), np.array(["a"]), EXACT).ok
