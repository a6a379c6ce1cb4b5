"""FusedConvInt8 in ONNX: the kernel has the bits of ref_int8.py, and so has the body in every runtime."""

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from deepseek_fast.kernels.fused_conv import body
from deepseek_fast.kernels.fused_conv.ref_int8 import CURVED, fused_conv_int8_ref
from deepseek_fast.onnx._runtime import LIBRARY, STOCK, Runner
from tests.onnx_models import each_opset

OPSETS = (13, 17, 19, 21, 25)
PARAMS: dict[str, tuple[float, ...]] = {"leaky_relu": (0.1,), "clip": (-0.5, 0.7), "hardsigmoid": (0.2, 0.5)}
TYPES = [(x, y) for x in (np.uint8, np.int8) for y in (np.uint8, np.int8)]
PROTO: dict[Any, int] = {np.dtype(np.uint8): TensorProto.UINT8, np.dtype(np.int8): TensorProto.INT8}
TORCH: dict[Any, torch.dtype] = {np.uint8: torch.uint8, np.int8: torch.int8}


def whole_range(rng: np.random.Generator, dtype: Any, *shape: int) -> np.ndarray:
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max + 1, shape).astype(dtype)


def pixels(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1))


def int8_case(seed: int, types: tuple[Any, Any], **given: Any) -> tuple[Any, dict[str, np.ndarray], Any, np.ndarray]:
    """(node, feeds, constants, the answer of ref_int8.py) of a convolution with these attributes."""
    rng, (x_type, y_type) = np.random.default_rng(seed), types
    given = {"padding": (1, 0, 2, 1)} | given
    options = body.DEFAULTS[body.CONV_INT8] | given
    groups, has_residual = options["groups"], options.pop("residual", False)
    attributes = {name: value for name, value in given.items() if name != "residual"}
    x, w = whole_range(rng, x_type, 2, 4, 9, 11), whole_range(rng, np.int8, 8, 4 // groups, 3, 2)
    bias = rng.integers(-3000, 3000, 8).astype(np.int32)
    scales = {"x_scale": 0.02, "w_scale": rng.uniform(0.005, 0.02, 8), "y_scale": 0.03, "r_scale": 0.05}
    constants: dict[str, Any] = {name: np.asarray(value, np.float32) for name, value in scales.items()}
    constants |= {"x_zero_point": x_type(100), "y_zero_point": y_type(7), "r_zero_point": y_type(3), "W": w, "B": bias}
    rows, columns = (9 + 3 - 3) // options["stride"][0] + 1, (11 + 1 - 2) // options["stride"][1] + 1
    residual = whole_range(rng, y_type, 2, 8, rows, columns) if has_residual else np.full((1, 1, 1, 1), 3, y_type)
    pool = (*options["pool_kernel"], *options["pool_stride"])
    want = fused_conv_int8_ref(
        torch.tensor(x),
        torch.tensor(w),
        float(constants["x_scale"]),
        100,
        torch.tensor(constants["w_scale"]),
        float(constants["y_scale"]),
        7,
        torch.tensor(bias),
        options["stride"],
        options["padding"],
        options["dilation"],
        groups,
        activation=options["activation"],
        activation_params=options["activation_params"],
        residual=torch.tensor(residual) if has_residual else None,
        residual_scale=float(constants["r_scale"]),
        residual_zero_point=3,
        residual_at=options["residual_at"],
        max_pool=None if pool == (1, 1, 1, 1) else (pool[:2], pool[2:]),
        out_dtype=TORCH[y_type],
    ).numpy()
    if options["x_layout"] == "NHWC":
        x = pixels(x)
    if options["y_layout"] == "NHWC":
        want, residual = pixels(want), pixels(residual)
    feeds = {"X": x} | ({"R": residual} if has_residual else {})
    constants |= {} if has_residual else {"R": residual}
    node = body.conv_int8_node({name: name for name in body.INPUTS[body.CONV_INT8]}, "y", **attributes)
    return node, feeds, constants, want


def check(opset: int, types: tuple[Any, Any], *, seed: int = 0, **attributes: Any) -> None:
    node, feeds, constants, want = int8_case(seed, types, **attributes)
    y_type = PROTO[np.dtype(types[1])]
    graph = helper.make_graph(
        [node],
        "test",
        [helper.make_tensor_value_info(name, PROTO[array.dtype], array.shape) for name, array in feeds.items()],
        [helper.make_tensor_value_info("y", y_type, [None] * 4)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("ai.deepseek_fast", 1)]
    functions = [body.function_proto(opset, op_type=body.CONV_INT8)]
    ir_version = max(8, helper.find_min_ir_version_for(imports[:1]))
    model = helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=ir_version)
    onnx.checker.check_model(model, full_check=True)
    reference: Any = ReferenceEvaluator(model).run(None, feeds)
    got = {name: Runner(model, runtime=name, threads=1).run(feeds)["y"] for name in (STOCK, LIBRARY)}
    for runtime, y in (got | {"reference": reference[0]}).items():
        assert (y.shape, y.dtype) == (want.shape, want.dtype), runtime
        steps = np.abs(y.astype(np.int32) - want.astype(np.int32)).max()
        assert steps <= (node_text(node, "activation") in CURVED), (runtime, steps)


def node_text(node: onnx.NodeProto, name: str) -> str:
    return next(a.s.decode() for a in node.attribute if a.name == name)


@pytest.mark.parametrize("opset", each_opset(OPSETS))
@pytest.mark.parametrize("types", TYPES, ids=str)
def test_body_of_every_type(types, opset):
    check(opset, types)
    check(opset, types, residual=True, activation="relu", pool_kernel=(2, 2), pool_stride=(2, 2))


@pytest.mark.parametrize("opset", (13, 20))
@pytest.mark.parametrize("activation", ["none", *body.CONV_ACTIVATIONS])
def test_body_with_every_activation(activation, opset):
    for types, residual_at in ((TYPES[0], "before"), (TYPES[3], "after")):
        params = PARAMS.get(activation, ())
        options = {"activation": activation, "activation_params": params, "residual_at": residual_at, "residual": True}
        check(opset, types, seed=1, **options)


@pytest.mark.parametrize("x_layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("y_layout", ["NCHW", "NHWC"])
def test_body_in_every_layout(x_layout, y_layout):
    for groups in (1, 4):
        options = {"x_layout": x_layout, "y_layout": y_layout, "groups": groups, "stride": (2, 1), "residual": True}
        check(18, TYPES[0], seed=2, **options)


# The kernel alone


def kernel_model(
    node: onnx.NodeProto, arrays: dict[str, Any], feeds: dict[str, np.ndarray], *, y: Any = np.uint8
) -> onnx.ModelProto:
    """Without a body; arrays that are not fed are initializers."""
    graph = helper.make_graph(
        [node],
        "test",
        [helper.make_tensor_value_info(name, proto_of(array), array.shape) for name, array in feeds.items()],
        [
            onnx.ValueInfoProto(
                name="y", type=onnx.TypeProto(tensor_type=onnx.TypeProto.Tensor(elem_type=PROTO[np.dtype(y)]))
            )
        ],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items() if name not in feeds],
    )
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("ai.deepseek_fast", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def proto_of(array: np.ndarray) -> int:
    return helper.np_dtype_to_tensor_dtype(array.dtype)


def library(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    y: np.ndarray = Runner(model, runtime=LIBRARY).run(feeds)["y"]
    return y


@pytest.mark.parametrize("fed", [("W",), ("x_scale",), ("w_scale", "y_zero_point"), tuple(body.INPUTS[body.CONV_INT8])])
def test_what_is_not_constant_is_read_at_a_run(fed):
    node, feeds, constants, want = int8_case(3, TYPES[1], residual=True)
    arrays = {name: np.asarray(array) for name, array in (feeds | constants).items()}
    given = {name: arrays[name] for name in {*feeds, *fed}}
    np.testing.assert_array_equal(library(kernel_model(node, arrays, given, y=np.int8), given), want)


def test_optional_inputs_may_be_left_out():
    node, feeds, constants, _ = int8_case(4, TYPES[0])
    arrays = feeds | constants | {"B": np.zeros(8, np.int32)}
    want = library(kernel_model(node, arrays, feeds), feeds)
    del node.input[7:]
    np.testing.assert_array_equal(library(kernel_model(node, arrays, feeds), feeds), want)


def test_a_batch_of_nothing():
    node, feeds, constants, _ = int8_case(4, TYPES[0])
    feeds = {"X": np.zeros((0, 4, 9, 11), np.uint8)}
    assert library(kernel_model(node, feeds | constants, feeds), feeds).shape == (0, 8, 10, 11)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"x_scale": np.array([1, 2], np.float32)}, "x_scale must be one value; got a tensor of 1 dimensions"),
        ({"y_scale": np.array(1.0)}, "y_scale must be float32; got dtype float64"),
        ({"y_scale": np.array(0, np.float32)}, "y_scale must be finite and above zero; got 0"),
        ({"x_zero_point": np.array(3, np.int32)}, "x_zero_point must be uint8 or int8; got dtype int32"),
        ({"x_zero_point": np.array(-3, np.int8)}, "x_zero_point must be from 0 to 255, as uint8; got -3"),
        ({"w_scale": np.ones(7, np.float32)}, "weight_scale must have shape (8,) or one value; got shape (7,)"),
        ({"W": np.ones((8, 4, 3, 2), np.uint8)}, "weight must be int8; got dtype uint8"),
        ({"B": np.ones(8, np.float32)}, "bias must be int32; got dtype float32"),
        ({"X": np.ones((2, 4, 9, 11), np.float32)}, "x must be uint8 or int8; got dtype float32"),
        ({"R": np.ones((2, 8, 9, 11), np.uint8)}, "residual must have shape (0, 8, 10, 11); got shape (0, 8, 9, 11)"),
        ({"R": np.ones((2, 8, 10, 11), np.int8)}, "residual must have the result's dtype uint8; got dtype int8"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refused_when_the_session_is_made(changes, sentence):
    node, feeds, constants, _ = int8_case(5, TYPES[0], residual="R" in changes)
    arrays = feeds | constants | changes
    model = kernel_model(node, arrays, {name: arrays[name] for name in ("X", *(("R",) if "R" in changes else ()))})
    with pytest.raises(Exception) as raised:
        Runner(model, runtime=LIBRARY)
    assert f"fused_conv_int8: {sentence}" in str(raised.value)


def test_refused_at_a_run():
    node, feeds, constants, _ = int8_case(5, TYPES[0])
    given = feeds | {"y_scale": np.array(-1, np.float32)}
    runner = Runner(kernel_model(node, feeds | constants, given), runtime=LIBRARY)
    with pytest.raises(Exception, match="fused_conv_int8: y_scale must be finite and above zero; got -1"):
        runner.run(given)


@pytest.mark.parametrize("types", TYPES, ids=str)
def test_every_level_has_the_bits(isa, types):
    for groups in (1, 2, 4):
        for x_layout, y_layout in (("NCHW", "NHWC"), ("NHWC", "NHWC"), ("NHWC", "NCHW")):
            options = {"groups": groups, "x_layout": x_layout, "y_layout": y_layout, "residual": True}
            node, feeds, constants, want = int8_case(6, types, activation="relu", **options)
            model = kernel_model(node, feeds | constants, feeds, y=types[1])
            np.testing.assert_array_equal(library(model, feeds), want)


def test_the_shape_is_inferred():
    node, feeds, constants, _ = int8_case(7, TYPES[1], y_layout="NHWC", pool_kernel=(2, 2), pool_stride=(2, 2))
    session = Runner(kernel_model(node, feeds | constants, feeds, y=np.int8), runtime=LIBRARY).session
    assert (session.get_outputs()[0].shape, session.get_outputs()[0].type) == ([2, 5, 5, 8], "tensor(int8)")
