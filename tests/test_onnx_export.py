"""export: torch modules with our operators become nodes with bodies, with torch's numbers in every runtime."""

import logging

import numpy as np
import onnx
import pytest
import torch

import deepseek_fast
from deepseek_fast import nn
from deepseek_fast.onnx import export, optimize, verify
from tests.onnx_models import counts, run_everywhere

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


@pytest.fixture(params=[18, 23, 25])
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
