"""FusedConvInt8 in ONNX: the body has the bits of ref_int8.py in stock ONNX Runtime and in onnx's reference."""

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from deepseek_fast.kernels.fused_conv import body
from deepseek_fast.kernels.fused_conv.ref_int8 import CURVED, fused_conv_int8_ref
from deepseek_fast.onnx._runtime import STOCK, Runner

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
    attributes.setdefault("padding", (1, 0, 2, 1))
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
    got = {STOCK: Runner(model, runtime=STOCK, threads=1).run(feeds)["y"], "reference": reference[0]}
    for runtime, y in got.items():
        assert (y.shape, y.dtype) == (want.shape, want.dtype), runtime
        steps = np.abs(y.astype(np.int32) - want.astype(np.int32)).max()
        assert steps <= (node_text(node, "activation") in CURVED), (runtime, steps)


def node_text(node: onnx.NodeProto, name: str) -> str:
    return next(a.s.decode() for a in node.attribute if a.name == name)


@pytest.mark.parametrize("opset", OPSETS)
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
