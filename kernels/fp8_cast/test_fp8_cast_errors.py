"""fp8_cast and its family refuse bad input in one sentence, the same at every door, with the right type of error."""

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import deepseek_fast.numpy
from deepseek_fast.kernels.fp8_cast.ref_formats import E2M1, E4M3, E8M0
from tests.cast_doors import CAST_DOORS, call
from tests.oracle import SENTENCE

X = torch.ones(4, 64)
FLOAT = "x must be float32, bfloat16 or float16; got "
BLOCK = "block must be two positive numbers, or -1 for all; got "
ABOVE_ZERO = "scale must be finite and above zero; got "
FORMAT = "dtype must be float8_e4m3fn, float8_e5m2, float8_e4m3fnuz, float8_e5m2fnuz or float4_e2m1fn_x2; got "
# (op, what changes in a good call, type of error, the sentence's beginning after "<op>: ")
BAD: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    *(
        (op, {"x": torch.zeros(4, 64, dtype=dtype)}, TypeError, f"{FLOAT}dtype {str(dtype)[6:]}")
        for op in ("fp8_cast", "fp8_amax", "int8_cast", "fp8_cast_transposed", "silu_mul_cast", "rms_norm_cast")
        for dtype in (torch.int64, torch.float64, torch.bool)
    ),
    *(
        (op, {"x": torch.tensor(1.0)}, ValueError, "x must have at least one dimension; got shape ()")
        for op in ("fp8_cast", "fp8_amax", "int8_cast", "silu_mul_cast")
    ),
    *(
        (op, {"block": block}, ValueError, BLOCK)
        for op in ("fp8_cast", "fp8_amax")
        for block in ((0, 128), (1, 0), (-2, 128), (1, -2), (-(2**40), 1))
    ),
    *(
        (op, {"block": block}, ValueError, BLOCK)
        for op in ("fp8_cast", "fp8_amax", "fp8_cast_transposed")
        for block in (128, (128,), (1, 128, 1), (1, 1.5), "ab", (1, "128"))
    ),
    ("fp8_cast", {"dtype": torch.float16}, TypeError, FORMAT),
    ("fp8_cast", {"dtype": torch.int8}, TypeError, FORMAT),
    ("fp8_cast", {"dtype": E8M0}, TypeError, FORMAT),
    ("fp8_cast", {"mode": "deepseek"}, ValueError, "mode must be one of v3, v32, "),
    ("fp8_cast", {"mode": ""}, ValueError, "mode must be one of v3, v32, "),
    ("fp8_cast", {"mode": "V3"}, ValueError, "mode must be one of v3, v32, "),
    ("fp8_cast", {"scale": "e8m0"}, ValueError, "scale must be one of f32, ue8m0, e4m3; got 'e8m0'"),
    ("fp8_cast", {"rounding": "up"}, ValueError, "rounding must be one of nearest, stochastic; got 'up'"),
    (
        "fp8_cast",
        {"out_layout": "col"},
        ValueError,
        "out_layout must be one of row, column, tma, packed; got 'col'",
    ),
    ("fp8_cast", {"out_layout": "packed"}, ValueError, "out_layout must be 'row', 'column' or 'tma' unless"),
    ("fp8_cast", {"x": torch.ones(2, 3, 64), "out_layout": "tma"}, ValueError, "out_layout must be 'row' where x"),
    *(
        ("fp8_cast", {"mode": f"torchao_{rule}"}, ValueError, "mode must go with scale='ue8m0'")
        for rule in ("ceil", "even", "rceil")
    ),
    ("fp8_cast", {"scale": "e4m3"}, ValueError, "scale must go with dtype float4_e2m1fn_x2 and mode='torchao'"),
    ("fp8_cast", {"scale": "e4m3", "mode": "torchao"}, ValueError, "scale must go with dtype float4_e2m1fn_x2"),
    ("fp8_cast", {"scale": "e4m3", "dtype": E2M1}, ValueError, "scale must go with dtype float4_e2m1fn_x2 and mode"),
    ("fp8_cast", {"x": torch.ones(4, 63), "dtype": E2M1}, ValueError, "x must have an even last dimension for FP4"),
    ("fp8_cast", {"block": (1, 7), "dtype": E2M1}, ValueError, "block must have an even number of columns for FP4"),
    *(
        ("fp8_cast", {"scale": torch.full((4, 1), value)}, ValueError, ABOVE_ZERO)
        for value in (0.0, -0.0, -1.0, math.nan, math.inf, -math.inf)
    ),
    (
        "fp8_cast",
        {"scale": torch.full((4, 1), 255, dtype=torch.uint8).view(E8M0)},
        ValueError,
        ABOVE_ZERO,
    ),
    *(
        ("fp8_cast", {"scale": torch.ones(shape)}, ValueError, "scale must have shape (4, 1), one value a block; got")
        for shape in ((4, 2), (1, 1), (4,), (), (1, 4, 1), (0, 1))
    ),
    ("fp8_cast", {"scale": torch.ones(4, 1).double()}, TypeError, "scale must be float32 or float8_e8m0fnu; got dtype"),
    ("fp8_cast", {"scale": torch.ones(4, 1).to(E4M3)}, TypeError, "scale must be float32 or float8_e8m0fnu; got dtype"),
    ("fp8_cast", {"scale": torch.ones(1, 1), "block": None}, ValueError, "scale must be left out where block is None"),
    *(
        ("fp8_cast", {"tensor_scale": torch.tensor(1.0)} | options, ValueError, "tensor_scale must be left out unless")
        for options in ({}, {"scale": "ue8m0"}, {"block": None}, {"scale": torch.ones(4, 1)})
    ),
    *(
        (
            "fp8_cast",
            {"scale": "e4m3", "mode": "torchao", "dtype": E2M1, "block": (1, 16), "tensor_scale": tensor_scale},
            kind,
            f"tensor_scale must {rule}",
        )
        for tensor_scale, kind, rule in (
            (torch.tensor(0.0), ValueError, "be finite and above zero; got"),
            (torch.tensor(-1.0), ValueError, "be finite and above zero; got"),
            (torch.tensor(math.nan), ValueError, "be finite and above zero; got"),
            (torch.ones(2), ValueError, "have one element; got shape (2,)"),
            (torch.ones(1).double(), TypeError, "be float32; got dtype float64"),
        )
    ),
    ("fp8_dequantize", {"codes": torch.ones(4, 64)}, TypeError, "codes must be float8_e4m3fn, "),
    ("fp8_dequantize", {"codes": torch.ones(()).to(E4M3)}, ValueError, "codes must have at least one dimension"),
    ("fp8_dequantize", {"scale": torch.ones(4, 2)}, ValueError, "scale must have shape (4, 1), one value a block; got"),
    ("fp8_dequantize", {"scale": torch.ones(4, 1).half()}, TypeError, "scale must be float32, float8_e8m0fnu, "),
    ("fp8_dequantize", {"block": (0, 1)}, ValueError, BLOCK),
    ("fp8_dequantize", {"dtype": torch.float64}, TypeError, "dtype must be float32, bfloat16 or float16; got"),
    (
        "fp8_dequantize",
        {"scale": None, "tensor_scale": torch.tensor(1.0)},
        ValueError,
        "tensor_scale must be left out where scale is",
    ),
    ("fp8_cast_transposed", {"x": torch.ones(2, 3, 64)}, ValueError, "x must have 2 dimensions; got shape (2, 3, 64)"),
    ("fp8_cast_transposed", {"x": torch.ones(64)}, ValueError, "x must have 2 dimensions; got shape (64,)"),
    ("fp8_cast_transposed", {"block": (2, 128)}, ValueError, "block must be (1, n) with n from 1 to 128; got"),
    ("fp8_cast_transposed", {"block": (1, 256)}, ValueError, "block must be (1, n) with n from 1 to 128; got"),
    ("silu_mul_cast", {"x": torch.ones(4, 63)}, ValueError, "x must have an even last dimension; got shape (4, 63)"),
    ("silu_mul_cast", {"block": (2, 32)}, ValueError, "block must have one row; got"),
    ("rms_norm_cast", {"weight": torch.ones(63)}, ValueError, "weight must have shape (64,); got shape (63,)"),
    ("rms_norm_cast", {"weight": torch.ones(64).half()}, TypeError, "weight must have x's dtype float32; got dtype"),
    ("rms_norm_cast", {"eps": -1e-6}, ValueError, "eps must be finite and not negative; got"),
    ("rms_norm_cast", {"eps": math.nan}, ValueError, "eps must be finite and not negative; got"),
]


def good(op: str) -> dict[str, Any]:
    """A call with nothing wrong."""
    if op == "fp8_dequantize":
        return {"codes": X.to(E4M3), "scale": torch.ones(4, 1), "block": (1, 128)}
    return {"x": X} | ({"weight": torch.ones(64), "eps": 1e-6} if op == "rms_norm_cast" else {})


def test_good_calls_are_good() -> None:
    for op in {row[0] for row in BAD}:
        for door in CAST_DOORS:
            assert all(result.numel() for result in call(op, door, good(op)))


@pytest.mark.parametrize("door", CAST_DOORS)
@pytest.mark.parametrize(("op", "change", "kind", "beginning"), BAD, ids=[f"{row[0]}-{i}" for i, row in enumerate(BAD)])
def test_bad_input(op: str, change: dict[str, Any], kind: type[Exception], beginning: str, door: str) -> None:
    with pytest.raises(kind) as raised:
        call(op, door, good(op) | change)
    sentence = str(raised.value)
    assert sentence.startswith(f"{op}: {beginning}"), sentence
    assert SENTENCE.match(sentence), sentence
    assert "\n" not in sentence and len(sentence) < 300


@pytest.mark.parametrize("door", CAST_DOORS)
@pytest.mark.parametrize("x", [None, 3.0, [[1.0]], "x"], ids=str)
def test_x_that_is_no_tensor(x: Any, door: str) -> None:
    for op in ("fp8_cast", "fp8_amax", "int8_cast"):
        with pytest.raises(TypeError):
            call(op, door, {"x": x})


def test_options_are_named() -> None:
    import deepseek_fast

    with pytest.raises(TypeError):
        deepseek_fast.fp8_cast(X, (1, 128))
    with pytest.raises(TypeError, match="unknown"):
        deepseek_fast.fp8_cast(X, unknown=1)


@pytest.mark.parametrize(
    ("op", "change", "sentence"),
    [
        ("fp8_cast", {"mode": None}, "fp8_cast: mode must be a name; got None"),
        ("fp8_cast", {"out_layout": 1}, "fp8_cast: out_layout must be a name; got 1"),
        ("silu_mul_cast", {"scale": 3}, "silu_mul_cast: scale must be a name; got 3"),
        ("fp8_cast", {"saturate": "x"}, "fp8_cast: saturate must be True or False; got 'x'"),
        ("fp8_cast", {"seed": 1.5}, "fp8_cast: seed must be an integer of 64 bits; got 1.5"),
        ("fp8_cast", {"seed": 2**70}, f"fp8_cast: seed must be an integer of 64 bits; got {2**70}"),
        ("rms_norm_cast", {"eps": "a"}, "rms_norm_cast: eps must be a number; got 'a'"),
        ("rms_norm_cast", {"weight": None}, "rms_norm_cast: weight must be a tensor; got NoneType"),
    ],
)
def test_options_of_a_wrong_type_get_one_sentence(op: str, change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(TypeError) as raised:
        call(op, "torch", good(op) | change)
    assert str(raised.value) == sentence


def test_a_scale_whose_strides_count_no_values() -> None:
    """A field of a structured NumPy array: 5 bytes from one float32 to the next."""
    records = np.zeros((4, 2), dtype=[("flag", "u1"), ("scale", "<f4")])
    records["scale"] = np.arange(1, 9).reshape(4, 2)
    codes = np.ones((4, 256), np.float32).astype(ml_dtypes.float8_e4m3fn)
    want = np.repeat(records["scale"], 128, axis=1)
    assert np.array_equal(deepseek_fast.numpy.fp8_dequantize(codes, records["scale"]), want)
    x = want.copy()
    found, _ = deepseek_fast.numpy.fp8_cast(x, scale=records["scale"])
    assert np.array_equal(found.astype(np.float32), np.ones_like(x))
