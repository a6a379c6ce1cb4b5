"""Small ONNX models for the tests of deepseek_fast.onnx, and the ways to run them."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import deepseek_fast
from deepseek_fast.onnx import explain
from deepseek_fast.onnx._runtime import LIBRARY, STOCK, Runner, library_problem

FIRST_GELU_OPSET = 20
CLOSE = 2e-6  # float32 sums of a few dozen values of size 1, in another order
OPSETS = range(13, 26)


def each_opset(opsets: Sequence[int]) -> list[Any]:
    """To parametrize over: `make test` runs the first, the last and 18, torch's default, `make test-all` every one."""
    quick = (opsets[0], 18, opsets[-1])
    return [pytest.param(opset, marks=() if opset in quick else pytest.mark.slow) for opset in opsets]


class Graph:
    """Writes a graph node by node; every method returns the name of the value it makes."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def input(self, name: str, *shape: int | str, dtype: int = onnx.TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, name: str, *, dtype: int = onnx.TensorProto.FLOAT, rank: int | None = None) -> None:
        shape = None if rank is None else [None] * rank
        self.outputs.append(helper.make_tensor_value_info(name, dtype, shape))

    def constant(self, name: str, array: Any, dtype: Any = np.float32) -> str:
        self.initializers.append(numpy_helper.from_array(np.array(array, dtype), name))
        return name

    def random(self, name: str, *shape: int, dtype: Any = np.float32) -> str:
        return self.constant(name, self.rng.standard_normal(shape), dtype)

    def op(self, op_type: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        output = output or f"{op_type.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=f"node_{output}", **attributes))
        return output

    def model(self, opset: int = 17, ir_version: int = 8) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "test", self.inputs, self.outputs, self.initializers)
        domains = {node.domain for node in self.nodes if node.domain}
        imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=max(ir_version, _ir_version(opset)))
        onnx.checker.check_model(model)
        return model


def _ir_version(opset: int) -> int:
    return helper.find_min_ir_version_for([helper.make_opsetid("", opset)])


def linear(graph: Graph, x: str, K: int, N: int, stem: str = "", *, bias: bool = True) -> str:
    product = graph.op("MatMul", x, graph.random(f"W{stem}", K, N), output=f"product{stem}")
    return graph.op("Add", product, graph.random(f"b{stem}", N), output=f"linear{stem}") if bias else product


def mlp(opset: int = 17, *, seed: int = 0) -> onnx.ModelProto:
    """x (batch, 5, 12) -> linear, gelu, linear, residual sum -> y (batch, 5, 12)."""
    graph = Graph(seed)
    x = graph.input("x", "batch", 5, 12)
    hidden = linear(graph, x, 12, 20, "_up")
    if opset >= FIRST_GELU_OPSET:
        hidden = graph.op("Gelu", hidden, output="gelu")
    else:
        erf = graph.op("Erf", graph.op("Div", hidden, graph.constant("sqrt2", 2**0.5)))
        half = graph.op("Mul", hidden, graph.op("Add", erf, graph.constant("one", 1)))
        hidden = graph.op("Mul", half, graph.constant("half", 0.5), output="gelu")
    graph.output(graph.op("Add", linear(graph, hidden, 20, 12, "_down"), x, output="y"), rank=3)
    return graph.model(opset)


def counts(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def weight(model: onnx.ModelProto, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(tensor for tensor in model.graph.initializer if tensor.name == name))


def quantize_rows(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rule of cpu.h in numpy, each operation rounded to float32: integers (as float32) and scales."""
    rows = rows.astype(np.float32)
    amax = np.abs(rows).max(-1, keepdims=True, initial=0)
    with np.errstate(all="ignore"):
        inverse = np.where(amax < np.float32(2**-100), np.float32(0), np.float32(127) / amax)
        finite = np.isfinite(amax)
        q = np.where(finite, np.rint(rows * inverse), np.float32(0))
        scale = np.where(finite, amax / np.float32(127), np.float32(np.nan))
    return q, scale[..., 0]


# A session or an evaluator takes longer to make than to run: the last ones are kept for the next feeds.
@functools.lru_cache(maxsize=4)
def _runner(model: bytes, runtime: str, isa: str) -> Runner:
    return Runner(onnx.load_model_from_string(model), runtime=runtime, threads=1)


@functools.lru_cache(maxsize=2)
def _evaluator(model: bytes) -> ReferenceEvaluator:
    return ReferenceEvaluator(onnx.load_model_from_string(model))


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray], runtime: str) -> dict[str, np.ndarray]:
    return _runner(model.SerializeToString(), runtime, deepseek_fast.isa()).run(feeds)


def run_stock(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return run(model, feeds, STOCK)


def run_reference(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """onnx's evaluator."""
    outputs: Any = _evaluator(model.SerializeToString()).run(None, feeds)
    return dict(zip((output.name for output in model.graph.output), outputs, strict=True))


def run_everywhere(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Outputs by runtime: stock ONNX Runtime, onnx's reference, and ours where it is built."""
    results = {"stock": run_stock(model, feeds)}
    with np.errstate(all="ignore"):
        results["reference"] = run_reference(model, feeds)
    if library_problem() is None:
        results["library"] = run(model, feeds, LIBRARY)
    return results


def assert_same_numbers(
    original: onnx.ModelProto, rewritten: onnx.ModelProto, feeds: dict[str, np.ndarray], close: float = CLOSE
) -> None:
    """The rewritten model gives the original's numbers in every runtime, to `close` of the largest."""
    onnx.checker.check_model(rewritten, full_check=True)
    want = run_stock(original, feeds)
    for runtime, got in run_everywhere(rewritten, feeds).items():
        for name, array in want.items():
            assert got[name].shape == array.shape, (runtime, name)
            error = np.abs(got[name].astype(np.float64) - array).max(initial=0)
            assert error <= close * max(np.abs(array).max(initial=0), 1), (runtime, name, error)


def normal(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def sentences(notes: Sequence[object]) -> str:
    return "\n".join(map(str, notes))


def fused(model: onnx.ModelProto, op_type: str = "FusedMatmul") -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == op_type]


def attribute(node: onnx.NodeProto, name: str) -> Any:
    return next(helper.get_attribute_value(a) for a in node.attribute if a.name == name)


def graph_with_x(rank: int = 3, K: int = 8) -> Graph:
    graph = Graph()
    graph.input("x", *["batch", 4][: rank - 1], K)
    return graph


def check_rewrite(graph: Graph, *, opset: int = 17, close: float = CLOSE, **options: Any) -> Any:
    """Optimizes, compares the numbers at two batch sizes, and returns what explain says."""
    model = graph.model(opset)
    result = explain(model, **options)
    for batch in (1, 3):
        feeds = {
            value.name: normal(*[d.dim_value or batch for d in value.type.tensor_type.shape.dim])
            for value in model.graph.input
        }
        assert_same_numbers(model, result.model, feeds, close)
    return result
