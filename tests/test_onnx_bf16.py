"""optimize(precision="bf16"): what computes in bfloat16, what stays float32 and why, and the numbers."""

from collections import Counter
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional as F

from deepseek_fast.onnx import explain, optimize, verify
from deepseek_fast.onnx._bf16_regions import CARRIERS
from deepseek_fast.onnx._compare import LARGEST_OF_MANY
from deepseek_fast.onnx._runtime import STOCK, Runner, library_problem
from tests.onnx_models import Graph, attribute, counts, fused, normal, run_everywhere, run_stock

C, K = 32, 48  # channels of x and of a convolution: enough that bfloat16 saves more than two Casts take
SIZE = 12
BF16_UNIT = 2.0**-9
TYPES = {TensorProto.FLOAT: "float", TensorProto.BFLOAT16: "bf16"}


def images(channels: int = C, batch: int | str = "batch") -> Graph:
    graph = Graph()
    graph.input("x", batch, channels, SIZE, SIZE)
    return graph


def conv(graph: Graph, x: str, channels: int, filters: int = K, k: int = 3, *, y: str | None = None) -> str:
    weight = graph.random(f"W{len(graph.nodes)}", filters, channels, k, k)
    scaled = numpy_helper.to_array(graph.initializers[-1]) * np.float32(np.sqrt(2 / (channels * k * k)))
    graph.initializers[-1].CopyFrom(numpy_helper.from_array(scaled, weight))
    return graph.op("Conv", x, weight, graph.random(f"b{len(graph.nodes)}", filters), output=y, pads=[k // 2] * 4)


def notes(result: Any) -> list[str]:
    return [str(note) for note in (*result.rewritten, *result.refused) if note.rule == "bf16"]


def casts(model: onnx.ModelProto) -> list[tuple[str, str]]:
    """(input, type) of every Cast."""
    return [(node.input[0], TYPES[attribute(node, "to")]) for node in fused(model, "Cast")]


def close(model: onnx.ModelProto, result: Any, batch: int = 3) -> None:
    """Every output, in every runtime, to as many roundings to bfloat16 as there are nodes and constants of ours."""
    roundings = sum(node.op_type == "Cast" or bool(node.domain) for node in result.graph.node) + sum(
        tensor.data_type == TensorProto.BFLOAT16 for tensor in result.graph.initializer
    )
    onnx.checker.check_model(result, full_check=True)
    feeds = {v.name: normal(*[d.dim_value or batch for d in v.type.tensor_type.shape.dim]) for v in model.graph.input}
    want = run_stock(model, feeds)
    for runtime, got in run_everywhere(result, feeds).items():
        for name, array in want.items():
            assert (got[name].shape, got[name].dtype) == (array.shape, array.dtype), runtime
            error = np.abs(got[name] - array).max()
            assert error <= LARGEST_OF_MANY * BF16_UNIT * np.sqrt(roundings) * np.abs(array).max(), (runtime, error)


def turned(graph: Graph, opset: int = 17, **options: Any) -> Any:
    model = graph.model(opset)
    result = explain(model, precision="bf16", **options)
    for got, given in zip(result.model.graph.output, model.graph.output, strict=True):
        assert (got.name, got.type.tensor_type.elem_type) == (given.name, given.type.tensor_type.elem_type)
    close(model, result.model)
    return result


# What is turned

OTHERS = ("LocalResponseNorm", "Pool2d", "Flatten", "FusedMatmul", "Softmax")  # each once


@pytest.mark.parametrize("opset", [15, 17, 18, 25])
def test_a_network_has_one_cast_at_either_end(opset):
    graph = images()
    y = graph.op("Relu", conv(graph, "x", C))
    y = graph.op("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])
    y = graph.op("LRN", conv(graph, y, K), size=5)
    y = graph.op("AveragePool", y, kernel_shape=[3, 3], output="mean")
    y = graph.op("Flatten", y)
    y = graph.op("MatMul", y, graph.random("M", K * 16, 10), output="logits")
    graph.output(graph.op("Softmax", y, axis=1, output="y"), rank=2)
    result = turned(graph, opset)
    expected = dict.fromkeys(("Cast", "FusedConv"), 2) | dict.fromkeys(OTHERS, 1)
    assert counts(result.model) == expected
    assert casts(result.model) == [("x", "bf16"), ("logits_bf16", "float")]
    assert notes(result) == [
        "bf16: maxpool_2: 2 FusedConv, 1 LocalResponseNorm, 1 Pool2d, 1 FusedMatmul in bfloat16, Cast at 'x', "
        "back at 'logits' for Softmax"
    ]
    assert len({tensor.name for tensor in result.model.graph.initializer if tensor.data_type == TensorProto.FLOAT}) == 0
    assert {attribute(node, "algorithm") for node in fused(result.model, "FusedConv")} == {b"direct"}


def test_constants_are_rounded_to_nearest_even_once():
    graph = images(batch=1)
    graph.output(conv(graph, "x", C, y="y"), rank=4)
    halves = numpy_helper.to_array(graph.initializers[0]).copy()
    halves.flat[:4] = [1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 1 + 2**-8 + 2**-20]  # three ties, and above one
    graph.initializers[0].CopyFrom(numpy_helper.from_array(halves, "W0"))
    stored = {tensor.name: tensor for tensor in turned(graph).model.graph.initializer}["W0_bf16"]
    weight = numpy_helper.to_array(stored)
    assert weight.dtype == ml_dtypes.bfloat16
    assert weight.flat[:4].astype(np.float64).tolist() == [1, 1 + 2**-6, -1, 1 + 2**-7]
    assert np.array_equal(weight.view(np.uint16), torch.from_numpy(halves).bfloat16().view(torch.uint16).numpy())


@pytest.mark.parametrize("runtime", ["stock", "reference", "library"])
def test_the_numbers_are_those_of_torch_in_float64(runtime):
    graph = images(batch=2)
    y = conv(graph, graph.op("Relu", conv(graph, "x", C)), K, y="second")
    graph.output(graph.op("Add", y, conv(graph, "x", C, k=1), output="y"), rank=4)
    model = graph.model()
    candidate = optimize(model, precision="bf16")
    x = normal(2, C, SIZE, SIZE)
    found = run_everywhere(candidate, {"x": x})
    if runtime not in found:
        pytest.skip(f"ONNX Runtime has not our library: {library_problem()}")
    constants = [numpy_helper.to_array(tensor).astype(np.float64) for tensor in model.graph.initializer]
    w0, b0, w1, b1, w2, b2 = map(torch.from_numpy, constants)
    wide = torch.from_numpy(x).double()
    want = F.conv2d(F.conv2d(wide, w0, b0, padding=1).relu(), w1, b1, padding=1) + F.conv2d(wide, w2, b2)
    # Roundings of x, three weights, three biases and three results: 8 standard deviations of them.
    error = np.abs(found[runtime]["y"] - want.numpy()).max() / want.abs().max()
    assert error <= LARGEST_OF_MANY * BF16_UNIT * np.sqrt(10), error


def test_what_only_moves_values_stays_inside():
    graph = images(batch=2)
    graph.constant("halves", [K // 2, K // 2], np.int64)
    for name, value in {"start": 0, "end": K // 4, "axis": 1}.items():
        graph.constant(name, [value], np.int64)
    a = graph.op("Relu", conv(graph, "x", C))
    graph.nodes.append(helper.make_node("Split", [a, "halves"], ["s0", "s1"], axis=1))
    part = graph.op("Slice", "s0", "start", "end", "axis")
    joined = graph.op("Concat", part, "s1", "s0", axis=1)
    apart = graph.op("Reshape", joined, graph.constant("apart", [2, 4, 15, SIZE, SIZE], np.int64))
    swapped = graph.op("Transpose", apart, perm=[0, 2, 1, 3, 4])
    y = graph.op("Reshape", swapped, graph.constant("together", [2, 60, SIZE, SIZE], np.int64))
    graph.output(conv(graph, y, 60, y="y"), rank=4)
    result = turned(graph)
    assert casts(result.model) == [("x", "bf16"), ("y_bf16", "float")]


def test_other_operators_are_exits():
    graph = images()
    y = graph.op("Exp", conv(graph, "x", C, y="a"), output="l")
    y = graph.op("Erf", conv(graph, y, K, y="b"), output="e")
    graph.output(conv(graph, y, K, y="y"), rank=4)
    result = turned(graph)
    assert [kind for _, kind in casts(result.model)] == ["bf16", "float"] * 3
    assert [note.split(" in ")[1] for note in notes(result)] == [
        "bfloat16, Cast at 'x', back at 'a' for Exp",
        "bfloat16, Cast at 'l', back at 'b' for Erf",
        "bfloat16, Cast at 'e', back at 'y'",
    ]


def test_a_pool_at_the_border_stays_where_the_cast_is_smaller_after_it():
    graph = images()
    y = graph.op("Erf", conv(graph, "x", C))
    y = graph.op("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2], output="pooled")
    graph.output(conv(graph, y, K, y="y"), rank=4)
    result = turned(graph)
    assert any("Cast at 'pooled'" in note for note in notes(result))
    assert "bf16: pooled: the Casts around it would take longer than bfloat16 saves" in notes(result)


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("opset", [17, 18])
def test_a_mean_before_the_classifier_is_no_exit(keepdims, opset):
    graph = images()
    y = graph.op("Relu", conv(graph, "x", C))
    if opset < 18:
        y = graph.op("ReduceMean", y, axes=[-1, 2], keepdims=keepdims, output="mean")
    else:
        y = graph.op("ReduceMean", y, graph.constant("axes", [2, 3], np.int64), keepdims=keepdims, output="mean")
    y = graph.op("Flatten", y) if keepdims else y
    graph.output(graph.op("MatMul", y, graph.random("M", K, 10), output="y"), rank=2)
    result = turned(graph, opset)
    assert counts(result.model) == {"Cast": 2, "FusedConv": 1, "Pool2d": 1, "Flatten": 1, "FusedMatmul": 1}


def test_the_shape_of_a_value_needs_no_cast():
    graph = images()
    y = conv(graph, "x", C)
    graph.nodes.append(helper.make_node("Shape", [y], ["shape"]))
    graph.output("shape", dtype=TensorProto.INT64, rank=1)
    graph.output(conv(graph, y, K, y="y"), rank=4)
    assert casts(turned(graph).model) == [("x", "bf16"), ("y_bf16", "float")]


def test_one_cast_serves_all_readers():
    graph = images()
    graph.output(conv(graph, "x", C, y="a"), rank=4)
    graph.output(conv(graph, "x", C, y="b"), rank=4)
    assert Counter(kind for _, kind in casts(turned(graph).model)) == {"bf16": 1, "float": 2}


def test_a_value_inside_that_is_an_output_too():
    graph = images()
    y = conv(graph, "x", C, y="inner")
    graph.output("inner", rank=4)
    graph.output(conv(graph, y, K, y="y"), rank=4)
    result = turned(graph)
    assert Counter(kind for _, kind in casts(result.model)) == {"bf16": 1, "float": 2}
    assert {note.split("back at ")[1] for note in notes(result)} == {"'inner', 'y'"}


def test_a_branch_reads_float32_and_is_left_alone():
    """Its own convolution too: only the main graph is rewritten."""
    graph = images(batch=1)
    conv(graph, "x", C, y="a")
    branches = {}
    for name, op_type in (("then_branch", "Neg"), ("else_branch", "Erf")):
        node = helper.make_node(op_type, ["a"], [f"{op_type}_out"])
        out = helper.make_tensor_value_info(f"{op_type}_out", TensorProto.FLOAT, [1, K, SIZE, SIZE])
        branches[name] = helper.make_graph([node], name, [], [out])
    graph.constant("is_true", True, np.bool_)
    graph.nodes.append(helper.make_node("If", ["is_true"], ["chosen"], **branches))
    graph.output(conv(graph, "a", K, y="y"), rank=4)
    graph.output("chosen", rank=4)
    result = turned(graph)
    assert {kind for _, kind in casts(result.model)} == {"bf16", "float"} and len(casts(result.model)) == 3
    branch = attribute(fused(result.model, "If")[0], "then_branch")
    assert branch.node[0].input[0] in {node.output[0] for node in fused(result.model, "Cast")}


def test_winograd_is_undone():
    graph = images(batch=1)
    graph.output(conv(graph, "x", C, y="y"), rank=4)
    model = optimize(graph.model())
    assert attribute(fused(model, "FusedConv")[0], "algorithm") == b"winograd"
    result = explain(model, precision="bf16")
    assert attribute(fused(result.model, "FusedConv")[0], "algorithm") == b"direct"
    close(graph.model(), result.model)
    assert notes(explain(result.model, precision="bf16")) == []  # all of it is bfloat16


def test_quantized_products_stay_int8_of_the_float32_weight():
    graph = images()
    y = graph.op("Flatten", graph.op("GlobalAveragePool", conv(graph, "x", C)))
    graph.output(graph.op("MatMul", y, graph.random("M", K, 64), output="y"), rank=2)
    both, int8 = (optimize(graph.model(), quantize="w8a8", precision=name) for name in ("bf16", "float32"))
    assert counts(both) == {"Cast": 2, "FusedConv": 1, "Pool2d": 1, "Flatten": 1, "Int8Matmul": 1}
    weights = [
        next(numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type == TensorProto.INT8)
        for model in (both, int8)
    ]
    assert np.array_equal(*weights)
    assert verify(graph.model(), both).ok


def test_every_carrier_runs_in_stock_onnx_runtime():
    """Unoptimized, so that nothing cancels the Casts."""
    given: dict[str, tuple[list[list[int]], dict[str, Any]]] = {
        "Concat": ([], {"axis": 1}),
        "Gather": ([[0, 1]], {"axis": 1}),
        "Reshape": ([[2, -1]], {}),
        "Slice": ([[0], [1], [1]], {}),
        "Split": ([[2, 2]], {"axis": 1}),
        "Squeeze": ([[0]], {}),
        "Transpose": ([], {"perm": [0, 2, 1]}),
        "Unsqueeze": ([[0]], {}),
    }
    ranks = {"Flatten": 2, "Reshape": 2, "Squeeze": 2, "Unsqueeze": 4}
    for op_type in CARRIERS:
        constants, attributes = given.get(op_type, ([], {}))
        graph = Graph()
        graph.input("x", 1, 4, 6)
        narrow = graph.op("Cast", "x", to=TensorProto.BFLOAT16)
        inputs = [graph.constant(f"c{i}", values, np.int64) for i, values in enumerate(constants)]
        outputs = ["moved", "rest"] if op_type == "Split" else ["moved"]
        graph.nodes.append(helper.make_node(op_type, [narrow, *inputs], outputs, **attributes))
        graph.output(graph.op("Cast", "moved", to=TensorProto.FLOAT, output="y"), rank=ranks.get(op_type, 3))
        assert Runner(graph.model(), runtime=STOCK, optimized=False).run({"x": normal(1, 4, 6)})["y"].size


# What is left alone


@pytest.mark.parametrize("case", ["old opset", "computed weight", "too large", "too little"])
def test_left_alone(case):
    graph, opset = images(batch=1), 17
    if case == "old opset":
        conv(graph, "x", C, y="y")
        opset, sentence = 14, "a model in bfloat16 must be at opset 15 or later; got 14"
    elif case == "computed weight":
        graph = Graph()
        graph.input("x", 64, 64)
        node = helper.make_node("FusedMatmul", ["x", "x"], ["y"], domain="ai.deepseek_fast")
        graph.nodes.append(node)
        sentence = "weight must be constant; got 'x'"
    elif case == "too large":
        graph.op("Conv", "x", graph.constant("W", np.full((K, C, 1, 1), 3.4e38)), output="y")
        sentence = "constants must be finite in bfloat16; got 'W'"
    else:
        graph.op("Conv", "x", graph.random("W", C, 1, 1, 1), group=C, output="y")
        sentence = "the Casts around it would take longer than bfloat16 saves"
    graph.output("y", rank=2 if case == "computed weight" else 4)
    model = graph.model(opset)
    result = explain(model, precision="bf16")
    assert notes(result) == [f"bf16: y: {sentence}"]
    assert counts(result.model) == counts(explain(model).model)
    assert not [tensor for tensor in result.model.graph.initializer if tensor.data_type == TensorProto.BFLOAT16]


def test_the_default_changes_nothing_and_wrong_names_get_one_sentence():
    graph = images()
    graph.output(conv(graph, "x", C, y="y"), rank=4)
    assert optimize(graph.model()) == optimize(graph.model(), precision="float32")
    with pytest.raises(ValueError, match=r"^optimize: precision must be one of float32, bf16; got 'bfloat16'$"):
        optimize(graph.model(), precision="bfloat16")


# verify


def test_verify_holds_it_to_a_cosine_by_itself():
    graph = images()
    y = graph.op("Relu", conv(graph, "x", C))
    graph.output(conv(graph, y, K, y="y"), rank=4)
    model = graph.model()
    good = optimize(model, precision="bf16")
    report = verify(model, good)
    assert report.ok and report.tolerances.reason == "float32 nodes in bfloat16", str(report)
    broken = onnx.ModelProto()
    broken.CopyFrom(good)
    weight = next(tensor for tensor in broken.graph.initializer if tensor.name.startswith("W"))
    weight.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weight), weight.name))
    report = verify(model, broken)
    assert not report.ok and report.first_departure is not None and report.first_departure.value == "y"
    assert verify(good, good).tolerances.rtol is not None  # nothing was turned between these two
