"""Small models for the tests of the model benchmark, and ceilings that are measured in no time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from deepseek_fast.bench import ceiling, model_nodes
from tests.onnx_models import Graph, linear


def shorten_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ceilings of no worth."""
    monkeypatch.setattr(ceiling, "SECONDS", 1e-4)
    monkeypatch.setitem(ceiling.WORKING_SETS, "memory", 1 << 20)
    monkeypatch.setattr(model_nodes, "LARGEST_READ", 20)


def save(proto: onnx.ModelProto, path: Path) -> Path:
    onnx.save(proto, path)
    return path


def unchecked(graph: Graph, opset: int = 17) -> onnx.ModelProto:
    """As Graph.model, of a graph that onnx.checker may refuse."""
    made = helper.make_graph(graph.nodes, "test", graph.inputs, graph.outputs, graph.initializers)
    domains = {node.domain for node in graph.nodes if node.domain}
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(made, opset_imports=imports, ir_version=8)


def tiny_model() -> onnx.ModelProto:
    """x -> linear, relu, a product of two computed values -> y."""
    graph = Graph()
    graph.input("x", "batch", 16, 16)
    hidden = graph.op("Relu", linear(graph, "x", 16, 16))
    graph.output(graph.op("MatMul", hidden, hidden, output="y"), rank=3)
    return graph.model()


def loop_model() -> onnx.ModelProto:
    """x -> tanh(x @ w) four times -> y."""
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["s", "w"], ["t"], name="product"),
            helper.make_node("Tanh", ["t"], ["s_next"], name="tanh"),
            helper.make_node("Identity", ["c"], ["c_next"], name="go_on"),
        ],
        "body",
        [helper.make_tensor_value_info(*value) for value in (("i", 7, []), ("c", 9, []), ("s", 1, ["b", 64]))],
        [helper.make_tensor_value_info(*value) for value in (("c_next", 9, []), ("s_next", 1, ["b", 64]))],
    )
    graph = Graph()
    graph.input("x", "batch", 64)
    graph.constant("n", 4, np.int64)
    graph.random("w", 64, 64)
    graph.nodes.append(helper.make_node("Loop", ["n", "", "x"], ["y"], name="loop", body=body))
    graph.output("y", rank=2)
    return graph.model()
