"""Int4Matmul in ONNX files: the body's numbers in every runtime and opset, completed nodes, and exported modules."""

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from deepseek_fast import nn
from deepseek_fast.kernels.int4_matmul import body, cases, ref
from deepseek_fast.onnx import export, optimize, verify
from tests import ort_nodes
from tests.doors import call, from_numpy, to_numpy
from tests.onnx_models import counts, each_opset, run_everywhere
from tests.oracle import assert_equal, assert_matches

TENSORS = ("q", "scale", "zeros", "bias", "residual")
ATTRIBUTES = ("activation", "compute", "group_size", "in_features")
SMOOTH_CLOSE = 1e-5  # the runtimes' own erf, tanh and exp, and sums in another order
LEAVES = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch.export about its own pytrees


def body_model(opset: int, inputs: dict[str, Any]) -> onnx.ModelProto:
    """A call with what its body needs in place of None."""
    dtype, scale = inputs["x"].dtype, inputs["scale"]
    absent = {
        "zeros": torch.full(scale.shape, body.NO_ZERO_POINT, dtype=torch.uint8),
        "bias": torch.zeros(scale.shape[0], dtype=dtype),
        "residual": torch.zeros(1, dtype=dtype),
    }
    tensors = [ort_nodes.tensor(name, absent[name] if inputs[name] is None else inputs[name]) for name in TENSORS]
    node = body.node("x", *TENSORS, "y", **{name: inputs[name] for name in ATTRIBUTES})
    shape = [None] * inputs["x"].ndim
    x, y = (helper.make_tensor_value_info(name, ort_nodes.ONNX_TYPES[dtype], shape) for name in "xy")
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("ai.deepseek_fast", 1)]
    graph = helper.make_graph([node], "test", [x], [y], tensors)
    ir_version = max(8, helper.find_min_ir_version_for(imports[:1]))
    functions = [body.function_proto(opset)]
    model = helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=ir_version)
    onnx.checker.check_model(model, full_check=True)
    return model


def check_everywhere(opset: int, inputs: dict[str, Any], what: str) -> None:
    """Bit for bit where the scheme says so; else within its bound, and SMOOTH_CLOSE more in the runtimes' own sums."""
    want, bound = ref.int4_matmul_ref(**inputs), ref.bound(**inputs)
    for runtime, got in run_everywhere(body_model(opset, inputs), {"x": to_numpy(inputs["x"])}).items():
        more = 0.0 if runtime == "library" else SMOOTH_CLOSE * (1 + want.double().abs())
        y = from_numpy(np.ascontiguousarray(got["y"]))
        assert_matches(y, want, bound + more, f"{what}, {runtime}, opset {opset}")


@pytest.mark.parametrize("opset", each_opset(range(body.MIN_OPSET, 26)))
@pytest.mark.parametrize("mode", cases.MODES)
def test_the_body_is_the_definition(opset: int, mode: str) -> None:
    for i, (group_size, zeros) in enumerate(cases.GROUPS):
        dtype = cases.DTYPES[i % 2] if opset >= 15 else "float32"  # bfloat16 needs CastLike
        activation, residual = cases.ACTIVATIONS[i % len(cases.ACTIVATIONS)], cases.RESIDUALS[i % 3]
        case = cases.Case(7, 37, 301, dtype, activation, True, residual, mode, group_size, zeros)
        check_everywhere(opset, case.inputs(torch.Generator().manual_seed(i)), case.id)


@pytest.mark.parametrize("mode", cases.MODES)
def test_any_shape(mode: str) -> None:
    for M, N, K in (*cases.EMPTY_SHAPES[:2], (1, 1, 1), (3, 5, 31), (2, 70, 32), (5, 65, 129)):
        for group_size in (32, 128, -1):
            case = cases.Case(M, N, K, compute=mode, group_size=group_size, zeros=True)
            check_everywhere(18, case.inputs(torch.Generator().manual_seed(1)), case.id)
    inputs = cases.Case(6, 9, 100, compute=mode).inputs(torch.Generator().manual_seed(2))
    for shape in ((100,), (2, 3, 100), (2, 0, 100), (0, 2, 100), (1, 2, 1, 100)):
        check_everywhere(14, inputs | {"x": torch.randn(shape)}, f"x of shape {shape}")


@pytest.mark.parametrize("opset", [14, 18, 21])
def test_rows_of_every_kind_are_bit_equal(opset: int) -> None:
    inputs = cases.Case(12, 33, 100, zeros=True).inputs(torch.Generator().manual_seed(3))
    x = inputs["x"]
    x[0] = 0
    x[1] *= 2.0**-110  # blocks whose largest magnitude is below 2^-100 count as zeros
    x[2] = 2.0**-100
    x[3] = 1e-42  # subnormal
    x[4, 3], x[5, 99], x[6, 40] = torch.nan, torch.inf, -torch.inf
    x[7] = 3e38 * x[7].sign()
    x[8] = torch.linspace(-127, 127, 100) + 0.5  # ties
    x[9, 32:64] *= 2.0**-60
    check_everywhere(opset, inputs, "rows of every kind")
    assert call("int4_matmul", "torch", inputs)[4:7].isnan().all()


@pytest.mark.parametrize("opset", [13, 26])
def test_other_opsets_are_refused(opset: int) -> None:
    with pytest.raises(ValueError, match=rf"^function_proto: opset must be from 14 to 25; got {opset}$"):
        body.function_proto(opset)


def test_schema_and_body_agree() -> None:
    schema, function = body.schema(), body.function_proto(17)
    assert [p.name for p in schema.inputs] == list(function.input) == list(body.INPUTS)
    assert set(schema.attributes) == set(function.attribute) == set(body.ATTRIBUTES)
    assert {imported.domain for imported in function.opset_import} == {""}


@pytest.mark.parametrize("constant", [ort_nodes.WEIGHTS, ()], ids=["constant weights", "weights of a run"])
def test_a_bare_node_is_completed(constant: Any) -> None:
    """Zero points, bias, residual and attributes that a node leaves out are put in, and change no bit."""
    inputs = cases.Case(5, 9, 64, bias=False).inputs(torch.Generator().manual_seed(5))
    model = ort_nodes.node_model("int4_matmul", inputs, constant=constant)
    del model.graph.node[0].attribute[:]
    complete = optimize(model)
    (node,) = [node for node in complete.graph.node if node.op_type == "Int4Matmul"]
    assert len(node.input) == 6 and all(node.input)
    assert {a.name for a in node.attribute} == set(body.ATTRIBUTES)
    feeds = {value.name: to_numpy(inputs[value.name]) for value in complete.graph.input}
    want = call("int4_matmul", "numpy", inputs)
    for runtime, got in run_everywhere(complete, feeds).items():
        assert_equal(torch.from_numpy(got["y"]), want, runtime)


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Int4Linear.from_float(torch.nn.Linear(41, 72), activation="relu")
        self.down = nn.Int4Linear.from_float(torch.nn.Linear(72, 41, bias=False), group_size=64, symmetric=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(x), x)


@LEAVES
@pytest.mark.parametrize("opset", each_opset([18, 23, 25]))
def test_an_exported_module_is_bit_equal_in_every_runtime(opset: int) -> None:
    module, x = Block().eval(), torch.randn(5, 41)
    batch = torch.export.Dim("batch", min=1, max=64)
    model = export(module, (x,), dynamic_shapes=({0: batch},), opset=opset, input_names=["x"], output_names=["y"])
    assert counts(model)["Int4Matmul"] == 2
    assert [function.name for function in model.functions] == ["Int4Matmul"]
    assert {len(node.input) for node in model.graph.node if node.op_type == "Int4Matmul"} == {6}
    for rows in (5, 1, 9):
        x = torch.randn(rows, 41)
        with torch.no_grad():
            want = module(x)
        for candidate in (model, optimize(model)):
            for runtime, got in run_everywhere(candidate, {"x": x.numpy()}).items():
                assert_equal(torch.from_numpy(got["y"]), want, f"{rows} rows, {runtime}")


@LEAVES
def test_verify_takes_a_4_bit_model_for_what_it_is() -> None:
    linear = torch.nn.Linear(256, 64).eval()
    module = nn.Int4Linear.from_float(linear).eval()
    report = verify(linear, export(module, (torch.randn(7, 256),), input_names=["input"]))
    assert report.ok, str(report)
    assert "Int4Matmul with int8 activations" in str(report)
