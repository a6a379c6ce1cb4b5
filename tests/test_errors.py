"""Bad input: the same sentence at every door, the right type of error, and never a crash.

A sentence reads "<op>: <arg> must <rule>; got <value>". torch.ops can raise RuntimeError only; it carries the sentence.
"""

from typing import Any

import numpy as np
import pytest
import torch

import deepseek_fast
from tests.doors import ROOMS, good_call, numpy_op, raw, to_numpy, torch_op
from tests.oracle import SENTENCE

EVERY_ACTIVATION = "none, relu, relu6, gelu, gelu_tanh, silu, hardswish, sigmoid, tanh"


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


# (what changes in the good call, type of error, sentence after "<op>: ")
SHARED = [
    ({"x": zeros(4, 64, dtype=torch.int64)}, TypeError, "x must be float32, bfloat16 or float16; got dtype int64"),
    ({"x": zeros(4, 64, dtype=torch.float64)}, TypeError, "x must be float32, bfloat16 or float16; got dtype float64"),
    ({"x": zeros(4, 64, dtype=torch.bool)}, TypeError, "x must be float32, bfloat16 or float16; got dtype bool"),
    (
        {"x": zeros(4, 64, dtype=torch.complex64)},
        TypeError,
        "x must be float32, bfloat16 or float16; got dtype complex64",
    ),
    ({"x": torch.tensor(1.0)}, ValueError, "x must have at least 1 dimension; got shape ()"),
    ({"bias": zeros(9)}, ValueError, "bias must have shape (8,); got shape (9,)"),
    ({"bias": zeros(1)}, ValueError, "bias must have shape (8,); got shape (1,)"),
    ({"bias": zeros(8, 1)}, ValueError, "bias must have shape (8,); got shape (8, 1)"),
    ({"bias": zeros(8, dtype=torch.bfloat16)}, TypeError, "bias must have x's dtype float32; got dtype bfloat16"),
    (
        {"residual": zeros(4, 9)},
        ValueError,
        "residual must have the output's shape (4, 8) or one element; got shape (4, 9)",
    ),
    (
        {"residual": zeros(8)},
        ValueError,
        "residual must have the output's shape (4, 8) or one element; got shape (8,)",
    ),
    (
        {"x": zeros(2, 3, 64), "residual": zeros(6, 8)},
        ValueError,
        "residual must have the output's shape (2, 3, 8) or one element; got shape (6, 8)",
    ),
    (
        {"residual": zeros(4, 8, dtype=torch.float64)},
        TypeError,
        "residual must have x's dtype float32; got dtype float64",
    ),
    ({"activation": "elu"}, ValueError, f"activation must be one of {EVERY_ACTIVATION}; got 'elu'"),
    ({"activation": ""}, ValueError, f"activation must be one of {EVERY_ACTIVATION}; got ''"),
    ({"activation": "GELU"}, ValueError, f"activation must be one of {EVERY_ACTIVATION}; got 'GELU'"),
]
E4M3, E8M0 = torch.float8_e4m3fn, torch.float8_e8m0fnu
BLOCK_RULE = "block must be two positive numbers, the second a multiple of 32, or -1 for all"
OWN = {
    "fp8_matmul": [
        (
            {"weight": zeros(8, 64, dtype=torch.int8)},
            TypeError,
            "weight must be float8_e4m3fn or float8_e5m2; got dtype int8",
        ),
        ({"weight": zeros(8, 64)}, TypeError, "weight must be float8_e4m3fn or float8_e5m2; got dtype float32"),
        ({"weight": zeros(8, dtype=E4M3)}, ValueError, "weight must have 2 dimensions; got shape (8,)"),
        (
            {"weight": zeros(8, 65, dtype=E4M3), "scale": torch.ones(8, 3)},
            ValueError,
            "weight must have 64 columns, as x's last dimension; got shape (8, 65)",
        ),
        (
            {"scale": zeros(8, 2, dtype=torch.bfloat16)},
            TypeError,
            "scale must be float32 or float8_e8m0fnu; got dtype bfloat16",
        ),
        ({"scale": zeros(8, 1)}, ValueError, "scale must have shape (8, 2), one value a block; got shape (8, 1)"),
        ({"scale": zeros(8)}, ValueError, "scale must have shape (8, 2), one value a block; got shape (8,)"),
        ({"scale": torch.tensor(1.0)}, ValueError, "scale must have shape (8, 2), one value a block; got shape ()"),
        (
            {"scale": torch.ones(2, 1), "block": (128, 128)},
            ValueError,
            "scale must have shape (1, 1), one value a block; got shape (2, 1)",
        ),
        *(
            (
                {"scale": torch.ones(8, 2).index_put((torch.tensor([3]), torch.tensor([1])), torch.tensor(value))},
                ValueError,
                f"scale must be finite and above zero; got {text} at (3, 1)",
            )
            for value, text in ((0.0, "0"), (-0.0, "-0"), (-1.5, "-1.5"), (torch.inf, "inf"), (torch.nan, "nan"))
        ),
        (
            {"scale": torch.full((8, 2), 0xFF, dtype=torch.uint8).view(E8M0)},
            ValueError,
            "scale must be finite and above zero; got nan at (0, 0)",
        ),
        *(
            ({"block": block}, ValueError, f"{BLOCK_RULE}; got {block}")
            for block in ((0, 128), (-2, 128), (128, 0), (128, 48), (128, -32), (1, 31))
        ),
        ({"activations": "int8"}, ValueError, "activations must be one of float, fp8; got 'int8'"),
    ],
    "fused_matmul": [
        ({"weight": zeros(3)}, ValueError, "weight must have 2 dimensions; got shape (3,)"),
        ({"weight": zeros(2, 3, 64)}, ValueError, "weight must have 2 dimensions; got shape (2, 3, 64)"),
        ({"weight": zeros(8, 32)}, ValueError, "weight must have 64 columns, as x's last dimension; got shape (8, 32)"),
        (
            {"weight": zeros(8, 64, dtype=torch.bfloat16)},
            TypeError,
            "weight must have x's dtype float32; got dtype bfloat16",
        ),
        ({"weight": zeros(8, 64, dtype=torch.int8)}, TypeError, "weight must have x's dtype float32; got dtype int8"),
    ],
    "int4_matmul": [
        ({"q": zeros(8, 32, dtype=torch.int8)}, TypeError, "q must be uint8; got dtype int8"),
        ({"q": zeros(8, 64)}, TypeError, "q must be uint8; got dtype float32"),
        ({"q": zeros(8, dtype=torch.uint8)}, ValueError, "q must have 2 dimensions; got shape (8,)"),
        (
            {"q": zeros(8, 33, dtype=torch.uint8), "in_features": 66, "scale": torch.ones(8, 3), "zeros": None},
            ValueError,
            "q must hold 64 values a row, as x's last dimension; got 66",
        ),
        (
            {"q": zeros(8, 33, dtype=torch.uint8), "in_features": -1, "scale": torch.ones(8, 3), "zeros": None},
            ValueError,
            "q must hold 64 values a row, as x's last dimension; got 66",
        ),
        ({"in_features": 63}, ValueError, "q must hold 64 values a row, as x's last dimension; got 63"),
        *(
            ({"in_features": K}, ValueError, f"in_features must be -1, 63 or 64 for 32 columns of q; got {K}")
            for K in (62, 65, 0, 1000)
        ),
        ({"in_features": -2}, ValueError, "in_features must be at least -1; got -2"),
        (
            {"x": zeros(4, 0), "q": zeros(8, 0, dtype=torch.uint8), "in_features": 1},
            ValueError,
            "in_features must be -1 or 0 for 0 columns of q; got 1",
        ),
        *(
            ({"group_size": size}, ValueError, f"group_size must be one of 32, 64, 128, -1; got {size}")
            for size in (0, 1, 16, 48, 256, -2, -32, 2**40)
        ),
        ({"scale": zeros(8, 2, dtype=torch.bfloat16)}, TypeError, "scale must be float32; got dtype bfloat16"),
        ({"scale": zeros(8, 1)}, ValueError, "scale must have shape (8, 2), one value a group; got shape (8, 1)"),
        ({"scale": zeros(2, 8)}, ValueError, "scale must have shape (8, 2), one value a group; got shape (2, 8)"),
        ({"scale": zeros(16)}, ValueError, "scale must have shape (8, 2), one value a group; got shape (16,)"),
        ({"group_size": -1}, ValueError, "scale must have shape (8, 1), one value a group; got shape (8, 2)"),
        *(
            (
                {"scale": torch.ones(8, 2).index_put((torch.tensor([3]), torch.tensor([1])), torch.tensor(value))},
                ValueError,
                f"scale must be finite; got {text} at (3, 1)",
            )
            for value, text in ((torch.inf, "inf"), (-torch.inf, "-inf"), (torch.nan, "nan"))
        ),
        ({"zeros": zeros(8, 2)}, TypeError, "zeros must be uint8; got dtype float32"),
        (
            {"zeros": zeros(8, 1, dtype=torch.uint8)},
            ValueError,
            "zeros must have shape (8, 2), one value a group; got shape (8, 1)",
        ),
        (
            {"zeros": torch.arange(16, dtype=torch.uint8).reshape(8, 2) + 1},
            ValueError,
            "zeros must be at most 15; got 16 at (7, 1)",
        ),
        ({"compute": "bf16"}, ValueError, "compute must be one of int8, float; got 'bf16'"),
    ],
    "int8_matmul": [
        ({"q": zeros(8, 64, dtype=torch.uint8)}, TypeError, "q must be int8; got dtype uint8"),
        ({"q": zeros(8, 64)}, TypeError, "q must be int8; got dtype float32"),
        ({"q": zeros(8, dtype=torch.int8)}, ValueError, "q must have 2 dimensions; got shape (8,)"),
        (
            {"q": zeros(8, 65, dtype=torch.int8)},
            ValueError,
            "q must have 64 columns, as x's last dimension; got shape (8, 65)",
        ),
        ({"scale": zeros(8, dtype=torch.bfloat16)}, TypeError, "scale must be float32; got dtype bfloat16"),
        ({"scale": zeros(7)}, ValueError, "scale must have shape (8,); got shape (7,)"),
        ({"scale": zeros(8, 1)}, ValueError, "scale must have shape (8,); got shape (8, 1)"),
        ({"activations": "fp8"}, ValueError, "activations must be one of int8, float; got 'fp8'"),
        (
            {"x": zeros(1, 140000), "q": zeros(8, 140000, dtype=torch.int8), "residual": None},
            ValueError,
            "q must have at most 131071 columns for activations 'int8'; got shape (8, 140000)",
        ),
    ],
}
BAD = [(room, *row) for room in ROOMS for row in SHARED + OWN[room]]
IDS = [f"{room}-{sentence[:50]}" for room, _, _, sentence in BAD]


@pytest.mark.parametrize(("room", "changes", "error", "sentence"), BAD, ids=IDS)
def test_the_sentence_is_the_same_at_every_door(
    room: str, changes: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    inputs = good_call(room) | changes
    want = f"{room}: {sentence}"
    assert SENTENCE.match(want)
    with pytest.raises(error) as public:
        getattr(deepseek_fast, room)(**inputs)
    assert str(public.value) == want
    with pytest.raises(RuntimeError) as raised:
        torch_op(room)(**raw(inputs))
    assert want in str(raised.value)
    with pytest.raises(error) as through_numpy:
        numpy_op(room)(**{name: to_numpy(value) for name, value in inputs.items()})
    assert str(through_numpy.value) == want
    if " at (" in sentence:  # values, which a Meta tensor has not
        return
    with pytest.raises((error, RuntimeError)) as meta:
        torch_op(room)(**{n: v.to("meta") if isinstance(v, torch.Tensor) else v for n, v in raw(inputs).items()})
    assert want in str(meta.value)


QUANTIZE_BAD = [
    (zeros(4, 4, dtype=torch.int8), TypeError, "w must be float32, bfloat16 or float16; got dtype int8"),
    (zeros(4, 4, dtype=torch.float64), TypeError, "w must be float32, bfloat16 or float16; got dtype float64"),
    (zeros(4), ValueError, "w must have 2 dimensions; got shape (4,)"),
    (zeros(2, 3, 4), ValueError, "w must have 2 dimensions; got shape (2, 3, 4)"),
    (torch.ones(1).expand(2**31, 2**31), ValueError, "w must have fewer than 2^60 elements; got shape "),
]
QUANTIZERS = {
    "int8_quantize_weight": {},
    "int4_quantize_weight": {},
    "fp8_quantize_weight": {"dtype": E4M3},
}  # what torch.ops needs beside w


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize(("w", "error", "sentence"), QUANTIZE_BAD, ids=[row[2][:40] for row in QUANTIZE_BAD])
def test_quantize_refuses_in_the_same_words(w: torch.Tensor, error: type[Exception], sentence: str, name: str) -> None:
    doors = [getattr(deepseek_fast, name)]
    if w.numel() < 2**60:  # NumPy itself refuses a larger array
        doors.append(lambda w: numpy_op(name)(to_numpy(w)))
    for call in doors:
        with pytest.raises(error) as raised:
            call(w)
        assert str(raised.value).startswith(f"{name}: {sentence}")
    with pytest.raises(RuntimeError) as raised:
        torch_op(name)(w, **QUANTIZERS[name])
    assert f"{name}: {sentence}" in str(raised.value)


@pytest.mark.parametrize("room", ROOMS)
def test_arguments_that_are_no_arrays(room: str) -> None:
    inputs = good_call(room)
    for value in ([1.0, 2.0], "x", None, 3.0):
        with pytest.raises(TypeError, match=rf"^{room}: x must be a tensor; got {type(value).__name__}$"):
            getattr(deepseek_fast, room)(**(inputs | {"x": value}))
        with pytest.raises(TypeError, match=rf"^{room}: x must be a NumPy array; got {type(value).__name__}$"):
            numpy_op(room)(**{n: to_numpy(v) for n, v in (inputs | {"x": value}).items()})


@pytest.mark.parametrize("room", ROOMS)
def test_numpy_refuses_other_byte_orders_and_object_arrays(room: str) -> None:
    arrays = {name: to_numpy(value) for name, value in good_call(room).items()}
    no_bytes = np.zeros((4, 64), np.dtype([]))  # items of 0 bytes
    for x in (arrays["x"].astype(">f4"), arrays["x"].astype(object), np.zeros((4, 64), "S4"), no_bytes):
        with pytest.raises(TypeError, match=f"^{room}: x must be float32, bfloat16 or float16; got dtype "):
            numpy_op(room)(**(arrays | {"x": x}))
