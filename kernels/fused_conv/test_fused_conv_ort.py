"""The kernels alone in ONNX Runtime: what they refuse, and when; shapes, and what a node may leave out."""

from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper

from deepseek_fast.kernels.fused_conv import body
from deepseek_fast.onnx._runtime import LIBRARY, Runner
from tests.conv_nodes import LAYOUTS, RUNTIMES, node_model, run


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
