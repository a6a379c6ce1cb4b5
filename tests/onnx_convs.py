"""Graphs of convolutions for the rules' tests, and what became of them."""

from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from deepseek_fast.onnx._runtime import LIBRARY, STOCK, library_problem
from tests.onnx_models import Graph, attribute, check_rewrite, counts, run, run_stock

C, F = 4, 6
H, W = 9, 10
CLOSE = 2e-5  # float32 sums of a few hundred products, with constants folded into them


def images(channels: int = C, *, batch: int | str = "batch", size: tuple[Any, Any] = (H, W)) -> Graph:
    graph = Graph()
    graph.input("x", batch, channels, *size)
    return graph


def conv(graph: Graph, x: str, C: int, F: int, k: int = 3, *, bias: bool = True, stem: str = "", **options: Any) -> str:
    """A Conv with He-normal weights; its output keeps the name conv{stem}."""
    count = len(graph.nodes)
    groups = options.get("group", 1)
    weight = graph.random(f"W{stem or count}", F, C // groups, k, k)
    scaled = numpy_helper.to_array(graph.initializers[-1]) * np.sqrt(2 / (C // groups * k * k))
    graph.initializers[-1].CopyFrom(numpy_helper.from_array(scaled.astype(np.float32), weight))
    inputs = [x, weight] + ([graph.random(f"b{stem or count}", F)] if bias else [])
    options.setdefault("pads", [k // 2] * 4)
    return graph.op("Conv", *inputs, output=f"conv{stem or count}", **options)


def batch_norm(graph: Graph, x: str, channels: int, **options: Any) -> str:
    count = len(graph.nodes)
    numbers = [graph.random(f"{name}{count}", channels) for name in ("gamma", "beta", "mean")]
    variance = graph.constant(f"variance{count}", graph.rng.uniform(0.5, 2, channels))
    return graph.op("BatchNormalization", x, *numbers, variance, **options)


def rewritten(graph: Graph, opset: int = 17, **options: Any) -> Any:
    options.setdefault("close", CLOSE)
    return check_rewrite(graph, opset=opset, **options)


def assert_stock_numbers(model: onnx.ModelProto, rewritten: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> None:
    """As assert_same_numbers, without onnx 1.23's reference: no negative pads, and other sizes of some pools."""
    want = run_stock(model, feeds)
    for runtime in (STOCK, LIBRARY) if library_problem() is None else (STOCK,):
        for name, got in run(rewritten, feeds, runtime).items():
            assert got.shape == want[name].shape, runtime
            np.testing.assert_allclose(got, want[name], rtol=CLOSE, atol=CLOSE, err_msg=runtime)


def layouts(model: onnx.ModelProto) -> list[tuple[str, str]]:
    return layouts_of(model, "FusedConv", "Pool2d", "LocalResponseNorm")


def layouts_of(model: onnx.ModelProto, *op_types: str) -> list[tuple[str, str]]:
    """(x_layout, y_layout) of our nodes."""
    ours = [node for node in model.graph.node if node.op_type in op_types]
    return [(attribute(node, "x_layout").decode(), attribute(node, "y_layout").decode()) for node in ours]


def transposes(model: onnx.ModelProto) -> int:
    return counts(model)["Transpose"]
