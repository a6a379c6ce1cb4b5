"""Pool2d and LocalResponseNorm in ONNX: torch's numbers from the kernels, and from the bodies in stock ONNX Runtime and
in onnx's reference."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from deepseek_fast.kernels.fused_conv import body
from deepseek_fast.kernels.fused_conv.ref import lrn_ref
from deepseek_fast.onnx._runtime import LIBRARY, STOCK
from tests.conv_nodes import CLOSE, LAYOUTS, OPSETS, RUNTIMES, node_model, pixels, run
from tests.onnx_models import each_opset


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


@pytest.mark.parametrize("opset", each_opset(OPSETS))
@pytest.mark.parametrize("kind", ["max", "average"])
@pytest.mark.parametrize("layouts", LAYOUTS, ids=str)
def test_pool_body(kind, layouts, opset):
    x_layout, y_layout = layouts
    options = {"kind": kind, "kernel": (3, 3), "x_layout": x_layout, "y_layout": y_layout, "padding": (1, 1, 1, 1)}
    for stride in ((1, 1), (2, 2)):
        check_pool(RUNTIMES, opset, stride=stride, **options)


@pytest.mark.parametrize("opset", each_opset(OPSETS))
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


@pytest.mark.parametrize("opset", each_opset(OPSETS))
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
