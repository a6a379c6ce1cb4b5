"""FusedConv in ONNX: torch's numbers from the kernel, and from the body in stock ONNX Runtime and onnx's reference."""

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F

import deepseek_fast
from deepseek_fast.kernels.fused_conv import body
from deepseek_fast.onnx._runtime import LIBRARY, STOCK, Runner
from tests.conv_nodes import CLOSE, LAYOUTS, OPSETS, RUNTIMES, node_model, pixels, run
from tests.onnx_models import each_opset

PARAMS = {"leaky_relu": (0.1,), "clip": (-0.5, 0.75), "hardsigmoid": (0.2, 0.5)}


ACTS: dict[str, Any] = {
    "none": lambda z: z,
    "relu": F.relu,
    "relu6": F.relu6,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": F.silu,
    "hardswish": F.hardswish,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "leaky_relu": F.leaky_relu,
    "clip": torch.clamp,
    "hardsigmoid": lambda z, alpha, beta: (alpha * z + beta).clamp(0, 1),
}


def conv_case(seed: int, dtype: Any = np.float32, **attributes: Any) -> tuple[Any, ...]:
    """(node, inputs, constants, the answer in float64) of a convolution with these attributes."""
    rng = np.random.default_rng(seed)
    options = body.DEFAULTS[body.CONV] | attributes
    groups, has_residual = options["groups"], options.pop("residual", False)
    attributes.pop("residual", None)

    def random(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32).astype(dtype)

    x, weight, bias = random(2, 4, 9, 11), random(8, 4 // groups, 3, 2), random(8)
    top, left, bottom, right = options["padding"]
    padded = F.pad(torch.tensor(x.astype(np.float64)), (left, right, top, bottom))
    w64, b64 = (torch.tensor(a.astype(np.float64)) for a in (weight, bias))
    z = F.conv2d(padded, w64, b64, options["stride"], 0, options["dilation"], groups)
    residual = random(*z.shape) if has_residual else np.zeros((1, 1, 1, 1), dtype)
    r64 = torch.tensor(residual.astype(np.float64))
    if options["residual_at"] == "before":
        z = z + r64
    z = ACTS[options["activation"]](z, *options["activation_params"])
    if options["residual_at"] == "after":
        z = z + r64
    if options["pool_kernel"] != (1, 1) or options["pool_stride"] != (1, 1):
        pad, ceil_mode = options["pool_padding"][:2], bool(options["pool_ceil_mode"])
        z = F.max_pool2d(z, options["pool_kernel"], options["pool_stride"], pad, ceil_mode=ceil_mode)
    want = z.numpy()
    inputs, constants = {"x": x}, {"w": weight, "b": bias}
    if options["x_layout"] == "NHWC":
        inputs["x"] = pixels(x)
    if options["y_layout"] == "NHWC":
        want, residual = pixels(want), pixels(residual)
    (inputs if has_residual else constants)["r"] = residual
    return body.conv_node("x", "w", "b", "r", "y", **attributes), inputs, constants, want


def check_conv(seed: int, opset: int = 18, runtimes: tuple[str, ...] = RUNTIMES, **attributes: Any) -> None:
    node, inputs, constants, want = conv_case(seed, **attributes)
    model = node_model([node], inputs, constants, opset)
    for runtime in runtimes:
        got = run(model, inputs, runtime)
        assert got.shape == want.shape, runtime
        assert np.abs(got - want).max() <= CLOSE * np.abs(want).max(), runtime


@pytest.mark.parametrize("opset", each_opset(OPSETS))
@pytest.mark.parametrize("activation", ACTS)
def test_body_with_every_activation(activation, opset):
    params = PARAMS.get(activation, ())
    check_conv(1, opset, activation=activation, activation_params=params, padding=(1, 0, 2, 1))


@pytest.mark.parametrize("opset", each_opset(OPSETS))
@pytest.mark.parametrize("layouts", LAYOUTS, ids=str)
def test_body_in_every_layout(layouts, opset):
    x_layout, y_layout = layouts
    pool = {"pool_kernel": (3, 2), "pool_stride": (2, 2), "pool_padding": (1, 1, 1, 1)}
    for i, options in enumerate(({}, {"residual": True}, pool, {**pool, "residual": True})):
        check_conv(i, opset, x_layout=x_layout, y_layout=y_layout, activation="relu", **options)


@pytest.mark.parametrize("residual_at", ["before", "after"])
@pytest.mark.parametrize("activation", ["none", "relu", "hardswish"])
def test_body_adds_the_residual_before_or_after(activation, residual_at):
    check_conv(2, activation=activation, residual=True, residual_at=residual_at)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("stride", [(1, 1), (2, 1), (3, 2)], ids=str)
@pytest.mark.parametrize("dilation", [(1, 1), (2, 3)], ids=str)
def test_body_hands_the_numbers_on(groups, stride, dilation):
    check_conv(3, groups=groups, stride=stride, dilation=dilation, padding=(2, 1, 0, 3))


@pytest.mark.parametrize("ceil_mode", [0, 1])
@pytest.mark.parametrize("window", [((2, 2), (2, 2)), ((1, 1), (2, 2)), ((3, 3), (2, 1)), ((3, 3), (2, 2))], ids=str)
def test_body_pools(window, ceil_mode):
    kernel, stride = window
    check_conv(4, activation="relu", pool_kernel=kernel, pool_stride=stride, pool_ceil_mode=ceil_mode)


@pytest.mark.parametrize("runtime", [LIBRARY, STOCK])
def test_bfloat16_is_rounded_once(runtime):
    node, inputs, constants, want = conv_case(5, ml_dtypes.bfloat16, activation="relu", residual=True)
    got = run(node_model([node], inputs, constants), inputs, runtime)
    assert got.dtype == ml_dtypes.bfloat16
    np.testing.assert_allclose(got.astype(np.float64), want, rtol=2.0**-8, atol=1e-5)


def test_body_leaves_plain_nodes_to_stock_onnx_runtime(tmp_path):
    """Between neighbors in NHWC no Transpose remains, of the choices by attribute nothing."""
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.standard_normal((8, 8, 3, 3)).astype(np.float32),
        "b": np.zeros(8, np.float32),
        "r": np.zeros((1, 1, 1, 1), np.float32),
    }
    values, layouts = ["x", "a", "c", "y"], ["NCHW", "NHWC", "NHWC", "NCHW"]
    nodes = [
        body.conv_node(
            values[i], "w", "b", "r", values[i + 1], activation="relu", x_layout=layouts[i], y_layout=layouts[i + 1]
        )
        for i in range(3)
    ]
    model = node_model(nodes, {"x": np.zeros((1, 8, 12, 12), np.float32)}, constants)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    op_types = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert op_types == ["FusedConv"] * 3 + ["Cast"]  # the last to the graph output's own name


@pytest.mark.parametrize("isa_layouts", LAYOUTS, ids=str)
def test_every_level_has_the_same_answer(isa, isa_layouts):
    x_layout, y_layout = isa_layouts
    for groups in (1, 2, 4):
        options = {"groups": groups, "x_layout": x_layout, "y_layout": y_layout, "residual": True}
        check_conv(7, runtimes=(LIBRARY,), activation="relu", pool_kernel=(2, 2), **options)


# Exported from torch


class Exported(torch.nn.Module):
    """Two dimensions with a pool, one dimension with a residual, an unbatched pool."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(8, 3, 3, 3, generator=generator) / 5)
        self.bias = torch.nn.Parameter(torch.randn(8, generator=generator))
        self.line = torch.nn.Parameter(torch.randn(8, 4, 3, generator=generator) / 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = deepseek_fast.fused_conv(x, self.weight, self.bias, 2, 1, activation="leaky_relu", max_pool=(3, 2, 1, True))
        rows = y.flatten(2)
        z = deepseek_fast.fused_conv(rows, self.line, None, 1, 1, 1, 2, residual=rows, residual_at="after")
        z = deepseek_fast.local_response_norm(z, 3, 0.2)
        return deepseek_fast.pool2d(deepseek_fast.local_response_norm(z[None], 5)[0], 2, (1, 2), kind="average")


class EvenWindow(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return deepseek_fast.local_response_norm(x, 4)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch.export about its own pytrees
def test_export(tmp_path):
    module, x = Exported().eval(), torch.randn(2, 3, 17, 19, generator=torch.Generator().manual_seed(1))
    model = deepseek_fast.onnx.export(module, (x,), tmp_path / "model.onnx")
    ours = [node.op_type for node in model.graph.node if node.domain]
    assert ours == ["FusedConv", "FusedConv", "LocalResponseNorm", "LocalResponseNorm", "Pool2d"]
    want = module(x).detach().numpy()
    (name,) = (value.name for value in model.graph.input)
    (y,) = (value.name for value in model.graph.output)
    for runtime in (LIBRARY, STOCK):
        got = Runner(model, runtime=runtime).run({name: x.numpy()})[y]
        np.testing.assert_allclose(got, want, rtol=CLOSE, atol=CLOSE, err_msg=runtime)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_export_refuses_a_window_that_onnx_has_not(tmp_path):
    with pytest.raises(Exception, match="size of local_response_norm must be odd, as ONNX has another window; got 4"):
        deepseek_fast.onnx.export(EvenWindow().eval(), (torch.zeros(1, 4, 3, 3),), tmp_path / "model.onnx")


# What the module declares


@pytest.mark.parametrize("op_type", body.INPUTS)
def test_schema_and_body_agree(op_type):
    schema = next(schema for schema in body.schemas() if schema.name == op_type)
    function = body.function_proto(13, op_type=op_type)
    assert [parameter.name for parameter in schema.inputs] == list(function.input)
    assert set(schema.attributes) == set(function.attribute) == set(body.DEFAULTS[op_type])
    assert {imported.domain for imported in function.opset_import} == {""}


@pytest.mark.parametrize("opset", [12, 26])
@pytest.mark.parametrize("op_type", body.INPUTS)
def test_other_opsets_are_refused(op_type, opset):
    with pytest.raises(ValueError, match=rf"^function_proto: opset must be from 13 to 25; got {opset}$"):
        body.function_proto(opset, op_type=op_type)
