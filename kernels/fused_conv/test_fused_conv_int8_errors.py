"""fused_conv_int8 refuses bad input in one sentence, the same at every door, with the right type of error."""

import math

import torch

from tests.conv_errors import (
    WEIGHT,
    Row,
    X,
    assert_refused_at_every_door,
    assert_refused_of_meta_tensors,
    each_of,
)

CODES = torch.zeros(2, 8, 7, 6, dtype=torch.uint8)
BAD: list[Row] = [
    ("fused_conv_int8", {"x": X}, TypeError, "x must be uint8 or int8; got dtype float32"),
    (
        "fused_conv_int8",
        {"weight": WEIGHT.to(torch.uint8)},
        TypeError,
        "weight must be int8; got dtype uint8",
    ),
    ("fused_conv_int8", {"bias": torch.ones(8)}, TypeError, "bias must be int32; got dtype float32"),
    ("fused_conv_int8", {"weight_scale": torch.ones(8).double()}, TypeError, "weight_scale must be float32; got dtype"),
    *(
        ("fused_conv_int8", {"weight_scale": torch.ones(shape)}, ValueError, "weight_scale must have shape (8,) or one")
        for shape in ((7,), (8, 1), (0,), (1, 1))
    ),
    *(
        ("fused_conv_int8", {name: value}, ValueError, f"{name} must be finite and above zero; got ")
        for name in ("x_scale", "y_scale")
        for value in (0.0, -0.0, -1.0, math.nan, math.inf, 1e-60, 1e60)
    ),
    *(
        (
            "fused_conv_int8",
            {"weight_scale": torch.tensor([1.0] * 5 + [value] + [1.0] * 2)},
            ValueError,
            f"weight_scale must be finite and above zero; got {text} at 5",
        )
        for value, text in ((0.0, "0"), (-2.5, "-2.5"), (math.nan, "nan"), (math.inf, "inf"))
    ),
    (
        "fused_conv_int8",
        {"residual": CODES, "residual_scale": 0.0},
        ValueError,
        "residual_scale must be finite and above zero; got 0",
    ),
    (
        "fused_conv_int8",
        {"x_scale": 1e30, "y_scale": 1e-30},
        ValueError,
        "y_scale must leave x_scale * weight_scale / y_scale finite; got 1e-30",
    ),
    (
        "fused_conv_int8",
        {"residual": CODES, "residual_scale": 1e30, "y_scale": 1e-30},
        ValueError,
        "y_scale must leave residual_scale / y_scale finite; got 1e-30",
    ),
    *(
        ("fused_conv_int8", {name: value}, ValueError, f"{name} must be from 0 to 255, as uint8; got ")
        for name in ("x_zero_point", "y_zero_point")
        for value in (-1, 256, 2**40)
    ),
    (
        "fused_conv_int8",
        {"y_zero_point": 128, "out_dtype": torch.int8},
        ValueError,
        "y_zero_point must be from -128 to 127, as int8; got 128",
    ),
    ("fused_conv_int8", {"x_scale": "1"}, TypeError, "x_scale must be a number; got '1'"),
    ("fused_conv_int8", {"y_zero_point": 1.5}, TypeError, "y_zero_point must be an integer; got 1.5"),
    (
        "fused_conv_int8",
        {"residual": CODES.to(torch.int8)},
        TypeError,
        "residual must have the result's dtype uint8; got dtype int8",
    ),
    ("fused_conv_int8", {"out_dtype": torch.float32}, TypeError, "out_dtype must be uint8 or int8; got dtype float32"),
    ("fused_conv_int8", {"out_dtype": torch.int32}, TypeError, "out_dtype must be uint8 or int8; got dtype int32"),
    (
        "fused_conv_int8",
        {
            "x": torch.zeros(1, 65794, 1, 1, dtype=torch.uint8),
            "weight": torch.zeros(8, 65794, 1, 1, dtype=torch.int8),
            "groups": 1,
        },
        ValueError,
        "weight must have at most 65793 values a filter; got shape (8, 65794, 1, 1)",
    ),
]


@each_of(BAD)
def test_one_sentence_at_every_door(row: Row) -> None:
    assert_refused_at_every_door(row)


@each_of(BAD)
def test_a_meta_tensor_is_refused_in_the_same_words(row: Row) -> None:
    assert_refused_of_meta_tensors(row)
