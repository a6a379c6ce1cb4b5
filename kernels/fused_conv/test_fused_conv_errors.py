"""fused_conv refuses bad input in one sentence, the same at every door, with the right type of error."""

import math

import ml_dtypes
import numpy as np
import pytest
import torch

import deepseek_fast.numpy
from deepseek_fast import _conv
from deepseek_fast.kernels.fused_conv import op as conv_op
from tests.conv_doors import call, to_numpy
from tests.conv_errors import (
    BIG,
    GOOD,
    LRN,
    STEPS,
    WEIGHT,
    Row,
    X,
    assert_refused_at_every_door,
    assert_refused_of_meta_tensors,
    each_of,
)

PADS = "padding must be 'same', 'valid', an integer, (rows, columns) or (top, left, bottom, right); got "
NAMES = f"activation must be one of {', '.join(_conv.ACTIVATIONS)}; got "
RESIDUAL = torch.randn(2, 8, 7, 6)
BAD: list[Row] = [
    *(
        ("fused_conv", {"x": X.to(dtype)}, TypeError, f"x must be float32 or bfloat16; got dtype {str(dtype)[6:]}")
        for dtype in (torch.float64, torch.float16, torch.int64, torch.uint8)
    ),
    ("fused_conv", {"x": X[0, 0]}, ValueError, "x must have 3 or 4 dimensions, as weight has 4; got shape (9, 8)"),
    ("fused_conv", {"x": X[None]}, ValueError, "x must have 3 or 4 dimensions, as weight has 4; got shape (1, 2, 6"),
    ("fused_conv", {"weight": WEIGHT[..., 0]}, ValueError, "x must have 2 or 3 dimensions, as weight has 3; got shape"),
    ("fused_conv", {"weight": WEIGHT[0, 0]}, ValueError, "weight must have 3 or 4 dimensions; got shape (3, 3)"),
    ("fused_conv", {"weight": WEIGHT[None]}, ValueError, "weight must have 3 or 4 dimensions; got shape (1, 8, 3"),
    ("fused_conv", {"weight": WEIGHT.bfloat16()}, TypeError, "weight must have x's dtype float32; got dtype bfloat16"),
    ("fused_conv", {"weight": WEIGHT.to(torch.int8)}, TypeError, "weight must have x's dtype float32; got dtype int8"),
    ("fused_conv", {"x": X[:, :0]}, ValueError, "x must be empty in no dimension but the batch's; got shape (2, 0"),
    ("fused_conv", {"x": X[:, :, :0]}, ValueError, "x must be empty in no dimension but the batch's; got shape (2, 6"),
    ("fused_conv", {"weight": WEIGHT[:0]}, ValueError, "weight must have no empty dimension; got shape (0, 3, 3, 3)"),
    ("fused_conv", {"weight": WEIGHT[:, :, :0]}, ValueError, "weight must have no empty dimension; got shape (8, 3, 0"),
    ("fused_conv", {"groups": 0}, ValueError, "groups must be positive; got 0"),
    ("fused_conv", {"groups": -2}, ValueError, "groups must be positive; got -2"),
    ("fused_conv", {"x": X[:, :5]}, ValueError, "x must have channels that groups = 2 divides; got shape (2, 5, 9, 8)"),
    (
        "fused_conv",
        {"weight": WEIGHT[:7]},
        ValueError,
        "weight must have a first dimension that groups = 2 divides; got shape (7, 3, 3, 3)",
    ),
    (
        "fused_conv",
        {"groups": 1},
        ValueError,
        "weight must have 6 channels in its second dimension, x's over groups; got shape (8, 3, 3, 3)",
    ),
    *(
        ("fused_conv", {"stride": s}, ValueError, "stride must be from 1 to 2^24; got (")
        for s in (0, -1, (1, 0), 2**25)
    ),
    *(("fused_conv", {"dilation": d}, ValueError, "dilation must be from 1 to 2^24; got (") for d in (0, (2, -3))),
    *(("fused_conv", {"padding": p}, ValueError, "padding must be from 0 to 2^24; got (") for p in (-1, (0, 0, 0, -1))),
    *(("fused_conv", {"stride": s}, ValueError, f"stride must {STEPS}") for s in (1.5, "2", (1, 2, 3), (), None, True)),
    *(("fused_conv", {"dilation": d}, ValueError, f"dilation must {STEPS}") for d in (1.5, (1, "2"), [1, 2, 3])),
    *(("fused_conv", {"padding": p}, ValueError, PADS) for p in (0.5, "full", (1, 2, 3), (1, 2, 3, 4, 5), None)),
    (
        "fused_conv",
        {"padding": "same", "stride": 2},
        ValueError,
        "padding must be in numbers where stride is not 1; got 'same'",
    ),
    *(
        (
            "fused_conv",
            change,
            ValueError,
            f"x must have at least {needed} rows and columns with its padding, as the weight spans; got {got}",
        )
        for change, needed, got in (
            ({"x": X[:, :, :2]}, "(3, 3)", "(2, 8)"),
            ({"x": X[..., :1], "padding": (3, 0, 0, 1)}, "(3, 3)", "(12, 2)"),
            ({"dilation": 4}, "(9, 9)", "(9, 8)"),
            ({"dilation": 2**24}, "(33554433, 33554433)", "(9, 8)"),
        )
    ),
    (
        "fused_conv",
        {"weight": BIG(8, 3, 2**38, 1), "dilation": (2**24, 1)},
        ValueError,
        "dilation must spread the weight over fewer than 2^58 rows and columns; got (16777216, 1)",
    ),
    (
        "fused_conv",
        {"weight": BIG(8, 3, 2**38, 2**20)},
        ValueError,
        "weight must have at most 2^58 elements; got shape",
    ),
    (
        "fused_conv",
        {"x": BIG(2**53, 6, 9, 8)},
        ValueError,
        "x must have at most 2^58 elements; got shape (9007199254740992, 6, 9, 8)",
    ),
    (
        "fused_conv",
        {"x": BIG(0, 6, 2**50, 2**10)},
        ValueError,
        "x must have at most 2^58 elements; got shape (0, 6, 1125899906842624, 1024)",
    ),
    (
        "fused_conv",
        {"x": BIG(2**48, 6, 9, 8)},
        ValueError,
        "x must give an output that fits into memory; got shape (281474976710656, 6, 9, 8)",
    ),
    (
        "fused_conv",
        {"x": BIG(1, 6, 2**38, 8), "padding": 2**24},
        ValueError,
        "x must give an output of at most 2^58 elements; got shape (1, 6, 274877906944, 8)",
    ),
    ("fused_conv", {"bias": torch.ones(7)}, ValueError, "bias must have shape (8,); got shape (7,)"),
    ("fused_conv", {"bias": torch.ones(8, 1)}, ValueError, "bias must have shape (8,); got shape (8, 1)"),
    ("fused_conv", {"bias": torch.ones(8).half()}, TypeError, "bias must have x's dtype float32; got dtype float16"),
    *(
        (
            "fused_conv",
            {"residual": residual, "residual_at": place},
            ValueError,
            "residual must have shape (2, 8, 7, 6); got shape ",
        )
        for place in ("before", "after")
        for residual in (RESIDUAL[:1], RESIDUAL[0], RESIDUAL[:, :1], torch.ones(()), RESIDUAL[..., :5])
    ),
    (
        "fused_conv",
        {"residual": RESIDUAL[:, :, ::2, ::2], "max_pool": 2},
        ValueError,
        "residual must have shape (2, 8, 7, 6), that of what is pooled; got shape (2, 8, 4, 3)",
    ),
    (
        "fused_conv",
        {"x": X[0], "residual": RESIDUAL},
        ValueError,
        "residual must have shape (8, 7, 6); got shape (2, 8, 7, 6)",
    ),
    (
        "fused_conv",
        {"residual": RESIDUAL.bfloat16()},
        TypeError,
        "residual must have x's dtype float32; got dtype bfloat16",
    ),
    ("fused_conv", {"residual_at": "between"}, ValueError, "residual_at must be one of before, after; got 'between'"),
    ("fused_conv", {"activation": "swish"}, ValueError, f"{NAMES}'swish'"),
    ("fused_conv", {"activation": ""}, ValueError, f"{NAMES}''"),
    ("fused_conv", {"activation": 3}, TypeError, "activation must be a name; got 3"),
    ("fused_conv", {"residual_at": None}, TypeError, "residual_at must be a name; got None"),
    ("fused_conv", {"groups": 1.5}, TypeError, "groups must be an integer; got 1.5"),
    *(
        ("fused_conv", {"activation": name, "activation_params": params}, ValueError, f"activation_params must {rule}")
        for name, params, rule in (
            ("clip", (), "be (smallest, largest) for clip; got 0 of them"),
            ("clip", (1.0, 2.0, 3.0), "be (smallest, largest) for clip; got 3 of them"),
            ("clip", (1.0, math.nan), "not be NaN; got nan"),
            ("leaky_relu", (1.0, 2.0), "be (slope,) or nothing for leaky_relu; got 2 of them"),
            ("hardsigmoid", (1.0,), "be (alpha, beta) or nothing for hardsigmoid; got 1 of them"),
            ("relu", (1.0,), "be left out for this activation; got 1 of them"),
        )
    ),
    (
        "fused_conv",
        {"activation": "clip", "activation_params": ("a", 1)},
        TypeError,
        "activation_params must be a number; got 'a'",
    ),
    ("fused_conv", {"algorithm": "fft"}, ValueError, "algorithm must be one of direct, winograd; got 'fft'"),
    (
        "fused_conv",
        {"algorithm": "winograd"},
        ValueError,
        "weight must be float32, 3x3 and of one group for algorithm winograd; got float32, 3x3 in 2 groups",
    ),
    *(
        (
            "fused_conv",
            {"x": X[:, :3], "groups": 1, "algorithm": "winograd", name: (1, 2)},
            ValueError,
            f"{name} must be 1 for algorithm winograd; got (1, 2)",
        )
        for name in ("stride", "dilation")
    ),
    *(
        ("fused_conv", {"max_pool": pool}, ValueError, f"max_pool must {rule}")
        for pool, rule in (
            (0, "have a kernel from 1 to 2^24; got (0, 0)"),
            ((3, 0), "have a stride from 1 to 2^24; got (0, 0)"),
            ((3, 2, -1), "have padding from 0 to 2^24; got (-1, -1, -1, -1)"),
            ((3, 2, 2), "have padding of at most half the kernel (3, 3); got (2, 2, 2, 2)"),
            (((2, 4), 1, (0, 2, 2, 1)), "have padding of at most half the kernel (2, 4); got (0, 2, 2, 1)"),
            (8, "have a kernel of at most (7, 6), as what is pooled has with its padding; got (8, 8)"),
            ((), "be (kernel, stride, padding, ceil_mode) or the first of them; got ()"),
            ((1, 1, 0, False, 1), "be (kernel, stride, padding, ceil_mode) or the first of them; got (1"),
            ("3", "be (kernel, stride, padding, ceil_mode) or the first of them; got '3'"),
            ((2, 2, 0, 1), "be (kernel, stride, padding, ceil_mode) or the first of them; got 1"),
            ((1.5,), f"{STEPS}1.5"),
            ((2, 2, "same"), "be an integer, (rows, columns) or (top, left, bottom, right); got 'same'"),
        )
    ),
]


@each_of(BAD)
def test_one_sentence_at_every_door(row: Row) -> None:
    assert_refused_at_every_door(row)


@each_of(BAD)
def test_a_meta_tensor_is_refused_in_the_same_words(row: Row) -> None:
    assert_refused_of_meta_tensors(row)


@pytest.mark.parametrize("name", GOOD)
def test_the_good_calls_are_good(name: str) -> None:
    for door in ("torch", "numpy"):
        try:
            call(name, door, GOOD[name])
        except RuntimeError as error:
            assert "this build has kernels for" in str(error)


def test_arguments_that_are_no_arrays() -> None:
    for value in ([1.0], "x", None, 3.0):
        kind = type(value).__name__
        for name, arg in (("fused_conv", "x"), ("fused_conv", "weight"), ("pool2d", "x"), (LRN, "x")):
            with pytest.raises(TypeError, match=f"^{name}: {arg} must be a tensor; got {kind}$"):
                getattr(deepseek_fast, name)(**GOOD[name] | {arg: value})
            arrays = {n: to_numpy(v) for n, v in GOOD[name].items()} | {arg: value}
            with pytest.raises(TypeError, match=f"^{name}: {arg} must be a NumPy array; got {kind}$"):
                getattr(deepseek_fast.numpy, name)(**arrays)


def test_numpy_refuses_other_byte_orders() -> None:
    arrays = {name: to_numpy(value) for name, value in GOOD["fused_conv"].items()}
    for x in (arrays["x"].astype(">f4"), arrays["x"].astype(object), arrays["x"].astype(ml_dtypes.float8_e4m3fn)):
        with pytest.raises(TypeError, match=r"^fused_conv: x must be float32 or bfloat16; got dtype "):
            deepseek_fast.numpy.fused_conv(**(arrays | {"x": x}))


def test_lists_of_another_length_through_torch_ops() -> None:
    """The front end makes these lists; the operator itself checks them too."""
    good = [X, WEIGHT, None, [1, 1], [0, 0, 0, 0], [1, 1], 2, "none", [], None, "before", []]
    for place, value, sentence in (
        (3, [1], "stride must be 2 numbers; got 1 of them"),
        (4, [0, 0], "padding must be 4 numbers; got 2 of them"),
        (5, [1, 1, 1], "dilation must be 2 numbers; got 3 of them"),
        (11, [1, 2], "max_pool must be 9 numbers; got 2 of them"),
    ):
        for x in (X, X.to("meta")):
            bad = [x, WEIGHT.to(x.device), *good[2:]]
            bad[place] = value
            with pytest.raises((RuntimeError, ValueError), match=sentence):
                conv_op._OP(*bad)


def test_rows_of_a_convolution_of_one_dimension() -> None:
    x, weight = torch.randn(2, 6, 20), torch.randn(8, 6, 3)
    good = [x, weight, None, [1, 1], [0, 0, 0, 0], [1, 1], 1, "none", [], None, "before", []]
    assert conv_op._OP(*good).shape == (2, 8, 18)
    with pytest.raises(RuntimeError, match="padding must have no rows where weight has 3 dimensions"):
        conv_op._OP(*good[:4], [1, 0, 1, 0], *good[5:])


def test_numpy_reads_what_is_not_aligned() -> None:
    arrays = {name: to_numpy(value) for name, value in GOOD["fused_conv"].items()}
    want = deepseek_fast.numpy.fused_conv(**arrays)
    for name in ("x", "weight", "bias"):
        memory = np.zeros(arrays[name].nbytes + 1, np.uint8)
        moved = memory[1:].view(np.float32).reshape(arrays[name].shape)
        moved[...] = arrays[name]
        assert not moved.flags.aligned
        assert np.array_equal(deepseek_fast.numpy.fused_conv(**arrays | {name: moved}), want)
        backwards = np.ascontiguousarray(arrays[name][..., ::-1])[..., ::-1]
        assert np.array_equal(deepseek_fast.numpy.fused_conv(**arrays | {name: backwards}), want)
