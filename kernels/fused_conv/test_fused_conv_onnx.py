"""FusedConv, Pool2d and LocalResponseNorm in ONNX: torch's numbers from the kernel, and from the bodies in stock ONNX
Runtime and in onnx's reference; what the kernel refuses, and when."""

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import deepseek_fast
from deepseek_fast.kernels.fused_conv import body
from deepseek_fast.kernels.fused_conv.ref import lrn_ref
from deepseek_fast.onnx._runtime import LIBRARY, STOCK, Runner

OPSETS = (13, 15, 18, 20, 22, 25)
RUNTIMES = (LIBRARY, STOCK, "reference")
CLOSE = 1e-5  # float32 sums of a few dozen products of size 1, and a smooth activation of two runtimes
PARAMS = {"leaky_relu": (0.1,), "clip": (-0.5, 0.75), "hardsigmoid": (0.2, 0.5)}
LAYOUTS = [(x, y) for x in ("NCHW", "NHWC") for y in ("NCHW", "NHWC")]
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
ONNX_TYPES: dict[Any, int] = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(ml_dtypes.bfloat16): TensorProto.BFLOAT16,
    np.dtype(np.uint8): TensorProto.UINT8,
    np.dtype(np.int8): TensorProto.INT8,
}


def node_model(
    nodes: list[onnx.NodeProto], inputs: dict[str, np.ndarray], constants: dict[str, np.ndarray], opset: int = 18
) -> onnx.ModelProto:
    dtype = ONNX_TYPES[inputs["x"].dtype]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(name, dtype, array.shape) for name, array in inputs.items()],
        [helper.make_tensor_value_info("y", dtype, [None] * 4)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("ai.deepseek_fast", 1)]
    functions = [body.function_proto(opset, op_type=nodes[0].op_type)]
    ir_version = max(8, helper.find_min_ir_version_for(imports[:1]))
    model = helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=ir_version)
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray], runtime: str) -> np.ndarray:
    if runtime == "reference":
        outputs: Any = ReferenceEvaluator(model).run(None, feeds)
        return outputs[0]
    return Runner(model, runtime=runtime, threads=1).run(feeds)["y"]


def pixels(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1))


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


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("activation", ACTS)
def test_body_with_every_activation(activation, opset):
    params = PARAMS.get(activation, ())
    check_conv(1, opset, activation=activation, activation_params=params, padding=(1, 0, 2, 1))


@pytest.mark.parametrize("opset", OPSETS)
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


# Pool2d


def pool_case(seed: int, dtype: Any = np.float32, **attributes: Any) -> tuple[Any, ...]:
    rng = np.random.default_rng(seed)
    options = body.DEFAULTS[body.POOL] | attributes
    x = (rng.standard_normal((2, 3, 10, 11)) * 40).astype(dtype)
    x64 = torch.tensor(x.astype(np.float64))
    sizes = (options["kernel"], options["stride"], options["padding"][:2])
    if options["kind"] == "max":
        want = F.max_pool2d(x64, *sizes, ceil_mode=bool(options["ceil_mode"]))
    else:
        want = F.avg_pool2d(x64, *sizes, bool(options["ceil_mode"]), bool(options["count_include_pad"]))
    array = want.numpy()
    x = pixels(x) if options["x_layout"] == "NHWC" else x
    array = pixels(array) if options["y_layout"] == "NHWC" else array
    return body.pool_node("x", "y", **attributes), {"x": x}, {}, array


def check_pool(runtimes: tuple[str, ...], opset: int, **attributes: Any) -> None:
    node, inputs, constants, want = pool_case(6, **attributes)
    model = node_model([node], inputs, constants, opset)
    for runtime in runtimes:
        got = run(model, inputs, runtime)
        assert got.shape == want.shape and got.dtype == inputs["x"].dtype, runtime
        assert np.abs(got.astype(np.float64) - want).max() <= CLOSE * np.abs(want).max(), runtime


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("kind", ["max", "average"])
@pytest.mark.parametrize("layouts", LAYOUTS, ids=str)
def test_pool_body(kind, layouts, opset):
    x_layout, y_layout = layouts
    options = {"kind": kind, "kernel": (3, 3), "x_layout": x_layout, "y_layout": y_layout, "padding": (1, 1, 1, 1)}
    for stride in ((1, 1), (2, 2)):
        check_pool(RUNTIMES, opset, stride=stride, **options)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("kind", ["max", "average"])
@pytest.mark.parametrize("count_include_pad", [0, 1])
@pytest.mark.parametrize(
    "window", [((3, 3), (2, 2), (1, 1)), ((2, 3), (3, 2), (1, 0)), ((4, 2), (3, 3), (2, 1))], ids=str
)
def test_pool_body_in_ceil_mode(window, kind, count_include_pad, opset):
    """onnx 1.23's reference has other sizes and divisors in ceil_mode, so it is not asked."""
    kernel, stride, (rows, columns) = window
    options = {"kernel": kernel, "stride": stride, "padding": (rows, columns, rows, columns)}
    check_pool((LIBRARY, STOCK), opset, kind=kind, ceil_mode=1, count_include_pad=count_include_pad, **options)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, ml_dtypes.bfloat16], ids=str)
def test_pool_body_of_other_types(dtype):
    for x_layout, y_layout in LAYOUTS:
        check_pool(RUNTIMES, 18, dtype=dtype, kernel=(2, 2), stride=(2, 2), x_layout=x_layout, y_layout=y_layout)


# LocalResponseNorm


def lrn_case(size: int, dtype: Any = np.float32, **attributes: Any) -> tuple[Any, ...]:
    """As many images as channels: onnx 1.23's reference counts the one for the other."""
    options = body.DEFAULTS[body.LRN] | attributes
    x = (np.random.default_rng(8).standard_normal((7, 7, 3, 4)) * 8).astype(dtype)
    numbers = [options[name] for name in ("alpha", "beta", "k")]
    want = lrn_ref(torch.tensor(x.astype(np.float64)), size, *numbers, before=(size - 1) // 2).numpy()
    x = pixels(x) if options["x_layout"] == "NHWC" else x
    want = pixels(want) if options["y_layout"] == "NHWC" else want
    return body.lrn_node("x", "y", size=size, **attributes), {"x": x}, {}, want


def check_lrn(size: int, runtimes: tuple[str, ...], opset: int, **attributes: Any) -> None:
    node, inputs, constants, want = lrn_case(size, **attributes)
    model = node_model([node], inputs, constants, opset)
    for runtime in runtimes:
        got = run(model, inputs, runtime)
        assert got.shape == want.shape and got.dtype == inputs["x"].dtype, runtime
        close = CLOSE if got.dtype == np.float32 else 2.0**-8
        np.testing.assert_allclose(got.astype(np.float64), want, rtol=close, atol=CLOSE, err_msg=runtime)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("layouts", LAYOUTS, ids=str)
def test_lrn_body(layouts, opset):
    x_layout, y_layout = layouts
    for size, numbers in ((5, {}), (3, {"alpha": 0.3, "beta": 0.6, "k": 2.0}), (1, {"k": 0.5})):
        check_lrn(size, RUNTIMES, opset, x_layout=x_layout, y_layout=y_layout, **numbers)


def test_lrn_body_in_bfloat16():
    check_lrn(5, RUNTIMES, 18, dtype=ml_dtypes.bfloat16, alpha=0.3)


def test_windows_of_even_sizes_are_onnx_s(isa):
    """Stock ONNX Runtime refuses them."""
    for size in (2, 4, 6):
        check_lrn(size, (LIBRARY, "reference"), 18, alpha=0.5)


# The kernel alone


def kernel_model(attributes: dict[str, Any], *, dtype: int = TensorProto.FLOAT, **shapes: Any) -> onnx.ModelProto:
    """A FusedConv without a body; x (1, 4, 9, 9), a constant weight of (6, 4, 3, 3). shapes: others, of inputs too."""
    weight = np.ones(shapes.pop("weight", (6, 4, 3, 3)), np.float32)
    given = {"x": (1, 4, 9, 9), **shapes}
    inputs = [helper.make_tensor_value_info(name, dtype, shape) for name, shape in given.items()]
    names = ["x", "w", "b" if "b" in given else "", "r" if "r" in given else ""]
    op_type = attributes.pop("op_type", "FusedConv")
    if op_type in ("Pool2d", "LocalResponseNorm"):
        names = names[:1]
    node = helper.make_node(op_type, names, ["y"], domain="ai.deepseek_fast", **attributes)
    outputs = [onnx.ValueInfoProto(name="y", type=onnx.TypeProto(tensor_type=onnx.TypeProto.Tensor(elem_type=dtype)))]
    graph = helper.make_graph([node], "test", inputs, outputs, [numpy_helper.from_array(weight, "w")])
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("ai.deepseek_fast", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


@pytest.mark.parametrize(
    ("attributes", "shapes", "sentence"),
    [
        ({"x_layout": "NHCW"}, {}, "fused_conv: x_layout must be one of NCHW, NHWC; got 'NHCW'"),
        ({"y_layout": 3}, {}, "fused_conv: y_layout must be one of NCHW, NHWC; got '3'"),
        ({"stride": [1]}, {}, "fused_conv: stride must be 2 numbers; got (1,)"),
        ({"padding": [1, 1]}, {}, "fused_conv: padding must be 4 numbers; got (1, 1)"),
        ({"pool_kernel": [2, 2, 2]}, {}, "fused_conv: pool_kernel must be 2 numbers; got (2, 2, 2)"),
        ({"stride": [0, 1]}, {}, "fused_conv: stride must be from 1 to 2^"),
        ({"dilation": [2**40, 1]}, {}, "fused_conv: dilation must be from 1 to 2^"),
        ({"groups": 0}, {}, "fused_conv: groups must be positive; got 0"),
        ({"groups": 4}, {}, "fused_conv: weight must have a first dimension that groups = 4 divides; got shape (6, 4"),
        ({"activation": "selu"}, {}, "fused_conv: activation must be one of none, relu,"),
        ({"activation": "clip"}, {}, "fused_conv: activation_params must be (smallest, largest) for clip; got 0"),
        ({"residual_at": "never"}, {"r": (1, 6, 7, 7)}, "fused_conv: residual_at must be one of before, after; got"),
        (
            {"pool_kernel": [2, 2], "pool_padding": [2, 0, 0, 0]},
            {},
            "fused_conv: max_pool must have padding of at most",
        ),
        ({}, {"x": (1, 5, 9, 9)}, "fused_conv: weight must have 5 channels in its second dimension"),
        ({}, {"x": ("n", 4, 2, 2)}, "fused_conv: x must have at least (3, 3) rows and columns with its padding"),
        ({}, {"weight": (6, 4, 3)}, "fused_conv: weight must have 4 dimensions; got shape of 3"),
        ({}, {"r": (1, 6, 9, 9)}, "fused_conv: residual must have shape (0, 6, 7, 7); got shape (0, 6, 9, 9)"),
        ({}, {"dtype": TensorProto.FLOAT16}, "fused_conv: x must be float32 or bfloat16; got dtype float16"),
        ({"op_type": "Pool2d", "kind": "min"}, {}, "pool2d: kind must be one of max, average; got 'min'"),
        ({"op_type": "Pool2d", "kernel": [3]}, {}, "pool2d: kernel must be 2 numbers; got (3,)"),
        ({"op_type": "Pool2d", "kernel": [10, 2]}, {}, "pool2d: kernel must be at most (9, 9)"),
        ({"op_type": "LocalResponseNorm", "size": 0}, {}, "local_response_norm: size must be from 1 to 2^24; got 0"),
        (
            {"op_type": "LocalResponseNorm", "y_layout": "NCWH"},
            {},
            "local_response_norm: y_layout must be one of",
        ),
        (
            {"op_type": "LocalResponseNorm", "size": 3},
            {"dtype": TensorProto.DOUBLE},
            "local_response_norm: x must be float32 or bfloat16; got dtype float64",
        ),
    ],
    ids=str,
)
def test_refused_when_the_session_is_made(attributes, shapes, sentence):
    model = kernel_model(dict(attributes), **shapes)
    with pytest.raises(Exception) as raised:
        Runner(model, runtime=LIBRARY)
    assert sentence in str(raised.value)


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((1, 5, 9, 9), "fused_conv: weight_shape must have 5 channels in its second dimension"),
        ((1, 4, 2, 9), "fused_conv: x must have at least (3, 3) rows and columns with its padding"),
        ((4, 9, 9), "fused_conv: x must have 4 dimensions; got shape of 3"),
    ],
    ids=str,
)
def test_refused_at_a_run(shape, sentence):
    runner = Runner(kernel_model({}, x=["a", "b", "c", "d"][: len(shape)]), runtime=LIBRARY)
    with pytest.raises(Exception) as raised:
        runner.run({"x": np.zeros(shape, np.float32)})
    assert sentence in str(raised.value)


@pytest.mark.parametrize("layouts", LAYOUTS, ids=str)
@pytest.mark.parametrize(
    ("attributes", "rows"),
    [({}, 7), ({"padding": [2, 0, 1, 0], "stride": [2, 1]}, 5), ({"pool_kernel": [2, 2], "pool_ceil_mode": 1}, 4)],
    ids=str,
)
def test_shapes_are_inferred(attributes, rows, layouts):
    x_layout, y_layout = layouts
    x = ["n", 4, 9, "w"] if x_layout == "NCHW" else ["n", 9, "w", 4]
    model = kernel_model({**attributes, "x_layout": x_layout, "y_layout": y_layout}, x=x)
    shape = Runner(model, runtime=LIBRARY).session.get_outputs()[0].shape
    n, f, h, w = shape if y_layout == "NCHW" else [shape[i] for i in (0, 3, 1, 2)]
    assert (n, f, h) == ("n", 6, rows) and isinstance(w, str)


def test_a_batch_of_nothing():
    y = Runner(kernel_model({}, x=["n", 4, 9, 9]), runtime=LIBRARY).run({"x": np.zeros((0, 4, 9, 9), np.float32)})["y"]
    assert y.shape == (0, 6, 7, 7)


def test_inputs_and_attributes_may_be_left_out():
    x = np.random.default_rng(0).standard_normal((1, 4, 9, 9)).astype(np.float32)
    y = Runner(kernel_model({}), runtime=LIBRARY).run({"x": x})["y"]
    want = F.conv2d(torch.tensor(x), torch.ones(6, 4, 3, 3)).numpy()
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-4)


def test_winograd_is_the_kernel_s_choice_only():
    """The body knows one way to sum; a weight that Winograd is not for is refused."""
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal(shape).astype(np.float32) for shape in ((1, 8, 12, 12), (16, 8, 3, 3)))
    constants = {"w": weight, "b": np.zeros(16, np.float32), "r": np.zeros((1, 1, 1, 1), np.float32)}
    node = body.conv_node("x", "w", "b", "r", "y", algorithm="winograd")
    model = node_model([node], {"x": x}, constants)
    want = F.conv2d(torch.tensor(x).double(), torch.tensor(weight).double()).numpy()
    for runtime in RUNTIMES:
        np.testing.assert_allclose(run(model, {"x": x}, runtime), want, rtol=1e-3, atol=1e-3, err_msg=runtime)
    with pytest.raises(Exception, match="be 1 for algorithm winograd"):
        Runner(kernel_model({"algorithm": "winograd", "stride": [2, 2]}), runtime=LIBRARY)


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
