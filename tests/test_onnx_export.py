"""export: torch modules with our operators become nodes with bodies, with torch's numbers in every runtime."""

import logging

import numpy as np
import onnx
import pytest
import torch

import deepseek_fast
from deepseek_fast import nn
from deepseek_fast.onnx import export, optimize, verify
from tests.onnx_models import counts, each_opset, run_everywhere

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch.export about its own pytrees
BATCH = torch.export.Dim("batch", min=1, max=64)


class Block(torch.nn.Module):
    """Every way in which our operators appear in a module."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.FusedLinear.from_float(torch.nn.Linear(16, 32), activation="gelu")
        self.down = nn.Int8Linear.from_float(torch.nn.Linear(32, 16))
        self.plain = torch.nn.Linear(16, 8)
        self.register_buffer("weight", torch.randn(16, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.down(self.up(x))
        y = deepseek_fast.fused_matmul(y, self.weight, activation="silu", residual=x)
        y = deepseek_fast.fused_matmul(y, self.weight, residual=torch.full((1, 1, 1, 1), 0.5))
        return torch.relu(self.plain(y))


class Quantized(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Int8Linear.from_float(torch.nn.Linear(16, 32), activation="relu")
        self.second = nn.Int8Linear.from_float(torch.nn.Linear(32, 8, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


@pytest.fixture(params=each_opset([18, 23, 25]))
def opset(request: pytest.FixtureRequest) -> int:
    return request.param


def test_operators_become_nodes_with_bodies(opset, tmp_path):
    module = Block().eval()
    model = export(module, (torch.randn(2, 3, 16),), tmp_path / "m.onnx", dynamic_shapes=({0: BATCH},), opset=opset)
    assert onnx.load(tmp_path / "m.onnx") == model
    assert counts(model)["FusedMatmul"] == 3 and counts(model)["Int8Matmul"] == 1
    assert sorted(function.name for function in model.functions) == ["FusedMatmul", "Int8Matmul"]
    assert {(i.domain, i.version) for i in model.opset_import} == {("", opset), ("ai.deepseek_fast", 1)}
    num_inputs = {(node.op_type, len(node.input)) for node in model.graph.node if node.domain}
    assert num_inputs == {("FusedMatmul", 4), ("Int8Matmul", 5)}  # a body reads them all
    for candidate in (model, optimize(model)):
        report = verify(module, candidate, min_cosine=0.9999)
        assert report.ok, str(report)
    assert counts(optimize(model))["FusedMatmul"] == 4


def test_int8_is_bit_equal_in_torch_and_every_runtime():
    module, x = Quantized().eval(), torch.randn(5, 16)
    model = export(module, (x,), dynamic_shapes=({0: BATCH},), input_names=["x"], output_names=["y"])
    with torch.no_grad():
        want = module(x).numpy()
    for runtime, got in run_everywhere(model, {"x": x.numpy()}).items():
        np.testing.assert_array_equal(got["y"], want, err_msg=runtime)


def test_torch_export_and_optimize_quantize_alike():
    """The module with Int8Linear, and the float module optimized to w8a8, are one model."""
    linear, x = torch.nn.Linear(16, 8).eval(), torch.randn(5, 16)
    optimized = optimize(export(linear, (x,), input_names=["x"], output_names=["y"]), quantize="w8a8")
    with torch.no_grad():
        want = nn.Int8Linear.from_float(linear)(x).numpy()
    for runtime, got in run_everywhere(optimized, {"x": x.numpy()}).items():
        np.testing.assert_array_equal(got["y"], want, err_msg=runtime)


class Fp8(torch.nn.Module):
    """Codes of both formats, scales of both types, blocks that nothing divides."""

    def __init__(self, activations: str) -> None:
        super().__init__()
        self.up = nn.Fp8Linear.from_float(
            torch.nn.Linear(160, 300), activation="gelu", activations=activations, block=(64, 96)
        )
        weight, scale = deepseek_fast.fp8_quantize_weight(
            torch.randn(160, 300) / 17, block=(1, 32), dtype=torch.float8_e5m2
        )
        scale = (torch.frexp(scale).exponent + 126).to(torch.uint8).view(torch.float8_e8m0fnu)
        self.down = nn.Fp8Linear.from_quantized(weight, scale, block=(1, 32), activations=activations)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.down(self.up(x)) + x)


@pytest.mark.parametrize("activations", ["float", "fp8"])
@pytest.mark.parametrize("opset", each_opset([19, 23, 25]))
def test_fp8_layers_become_nodes_with_bodies(opset, activations, tmp_path):
    module, x = Fp8(activations).eval(), torch.randn(2, 3, 160)
    model = export(module, (x,), tmp_path / "m.onnx", dynamic_shapes=({0: BATCH},), opset=opset)
    assert module.down.scale.dtype == torch.float8_e8m0fnu  # the module is as it was
    assert onnx.load(tmp_path / "m.onnx") == model
    assert counts(model)["Fp8Matmul"] == 2 and [function.name for function in model.functions] == ["Fp8Matmul"]
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    kinds = onnx.TensorProto
    assert (types["up.weight"], types["down.weight"]) == (kinds.FLOAT8E4M3FN, kinds.FLOAT8E5M2)
    assert types["up.scale"] == types["down.scale"] == kinds.FLOAT
    blocks = [tuple(a.ints) for node in model.graph.node for a in node.attribute if a.name == "block"]
    assert blocks == [(64, 96), (1, 32)]
    optimized = optimize(model)
    for candidate in (model, optimized):
        report = verify(module, candidate, min_cosine=0.9999)
        assert report.ok, str(report)
        assert verify(module, candidate).ok
    assert counts(optimized)["Add"] == 0  # the residual is in the node


def test_fp8_needs_an_opset_with_float8():
    module = nn.Fp8Linear.from_float(torch.nn.Linear(32, 8)).eval()
    with pytest.raises(ValueError, match=r"^export: opset must be one from 19 on for Fp8Matmul; got 18$"):
        export(module, (torch.randn(2, 32),), opset=18)


def test_optimize_completes_an_fp8_node():
    """A node with its defaults and an e8m0 scale, which ONNX Runtime would refuse, gets what its body reads."""
    from onnx import helper, numpy_helper

    weight, x = torch.randn(8, 64).to(torch.float8_e4m3fn), np.random.randn(3, 64).astype(np.float32)
    codes = [("w", onnx.TensorProto.FLOAT8E4M3FN, (8, 64), weight), ("s", onnx.TensorProto.FLOAT8E8M0, (1, 1), None)]
    tensors = [
        onnx.TensorProto(
            name=name,
            data_type=kind,
            dims=dims,
            raw_data=b"\x7e" if value is None else value.view(torch.uint8).numpy().tobytes(),
        )
        for name, kind, dims, value in codes
    ]
    tensors.append(numpy_helper.from_array(np.ones(8, np.float32), "b"))
    node = helper.make_node("Fp8Matmul", ["x", "w", "s", "b"], ["y"], domain="ai.deepseek_fast")
    declared = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["M", n]) for name, n in (("x", 64), ("y", 8))
    ]
    graph = helper.make_graph([node], "test", declared[:1], declared[1:], tensors)
    imports = [helper.make_opsetid("", 24), helper.make_opsetid("ai.deepseek_fast", 1)]
    optimized = optimize(helper.make_model(graph, opset_imports=imports, ir_version=12))
    want = deepseek_fast.fp8_matmul(torch.from_numpy(x), weight, torch.full((1, 1), 0.5), torch.ones(8)).numpy()
    for runtime, got in run_everywhere(optimized, {"x": x}).items():
        np.testing.assert_allclose(got["y"], want, rtol=1e-5, atol=1e-5, err_msg=runtime)
    graph.initializer[1].CopyFrom(numpy_helper.from_array(np.full((1, 1), 0.5, np.float32), "s"))
    early = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18), imports[1]], ir_version=9)
    with pytest.raises(
        ValueError, match=r"^optimize: model must import an ai.onnx opset from 19 on for Fp8Matmul; got 18"
    ):
        optimize(early)


def test_warnings_about_torchvision_are_silenced_and_others_are_not(caplog):
    with caplog.at_level(logging.INFO):
        export(torch.nn.Linear(4, 4).eval(), (torch.zeros(2, 4),))
    assert not [record for record in caplog.records if "torchvision" in record.getMessage()]
    assert logging.getLogger("torch.onnx._internal.exporter._registration").level == logging.NOTSET


@pytest.mark.filterwarnings("ignore")
def test_an_opset_that_is_not_reached_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match=r"^export: opset must be one that .+; got 13"):
        export(Quantized().eval(), (torch.randn(2, 16),), tmp_path / "m.onnx", opset=13)
    assert list(tmp_path.iterdir()) == []
