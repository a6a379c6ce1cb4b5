"""Bad input: the same sentence at every door, the right type of error, and never a crash.

A sentence reads "<op>: <arg> must <rule>; got <value>". torch.ops can raise RuntimeError only; it carries the sentence.
"""

from typing import Any

import numpy as np
import pytest
import torch

import deepseek_fast
from tests.doors import ROOMS, good_call, numpy_op, to_numpy, torch_op
from tests.oracle import SENTENCE

EVERY_ACTIVATION = "none, relu, gelu, gelu_tanh, silu"


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


# (what changes in the good call, type of error, sentence after "<op>: ")
SHARED = [
    ({"x": zeros(4, 64, dtype=torch.int64)}, TypeError, "x must be float32 or bfloat16; got dtype int64"),
    ({"x": zeros(4, 64, dtype=torch.float64)}, TypeError, "x must be float32 or bfloat16; got dtype float64"),
    ({"x": zeros(4, 64, dtype=torch.float16)}, TypeError, "x must be float32 or bfloat16; got dtype float16"),
    ({"x": zeros(4, 64, dtype=torch.bool)}, TypeError, "x must be float32 or bfloat16; got dtype bool"),
    ({"x": zeros(4, 64, dtype=torch.complex64)}, TypeError, "x must be float32 or bfloat16; got dtype complex64"),
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
    ({"activation": "tanh"}, ValueError, f"activation must be one of {EVERY_ACTIVATION}; got 'tanh'"),
    ({"activation": ""}, ValueError, f"activation must be one of {EVERY_ACTIVATION}; got ''"),
    ({"activation": "GELU"}, ValueError, f"activation must be one of {EVERY_ACTIVATION}; got 'GELU'"),
]
OWN = {
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
    with pytest.raises(RuntimeError) as raw:
        torch_op(room)(**inputs)
    assert want in str(raw.value)
    with pytest.raises(error) as through_numpy:
        numpy_op(room)(**{name: to_numpy(value) for name, value in inputs.items()})
    assert str(through_numpy.value) == want
    with pytest.raises((error, RuntimeError)) as meta:
        torch_op(room)(**{n: v.to("meta") if isinstance(v, torch.Tensor) else v for n, v in inputs.items()})
    assert want in str(meta.value)


QUANTIZE_BAD = [
    (zeros(4, 4, dtype=torch.int8), TypeError, "w must be float32 or bfloat16; got dtype int8"),
    (zeros(4, 4, dtype=torch.float64), TypeError, "w must be float32 or bfloat16; got dtype float64"),
    (zeros(4), ValueError, "w must have 2 dimensions; got shape (4,)"),
    (zeros(2, 3, 4), ValueError, "w must have 2 dimensions; got shape (2, 3, 4)"),
    (torch.ones(1).expand(2**31, 2**31), ValueError, "w must have fewer than 2^60 elements; got shape "),
]


@pytest.mark.parametrize(("w", "error", "sentence"), QUANTIZE_BAD, ids=[row[2][:40] for row in QUANTIZE_BAD])
def test_quantize_refuses_in_the_same_words(w: torch.Tensor, error: type[Exception], sentence: str) -> None:
    doors = [deepseek_fast.int8_quantize_weight]
    if w.numel() < 2**60:  # NumPy itself refuses a larger array
        doors.append(lambda w: numpy_op("int8_quantize_weight")(to_numpy(w)))
    for call in doors:
        with pytest.raises(error) as raised:
            call(w)
        assert str(raised.value).startswith(f"int8_quantize_weight: {sentence}")
    with pytest.raises(RuntimeError) as raw:
        torch_op("int8_quantize_weight")(w)
    assert f"int8_quantize_weight: {sentence}" in str(raw.value)


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
        with pytest.raises(TypeError, match=f"^{room}: x must be float32 or bfloat16; got dtype "):
            numpy_op(room)(**(arrays | {"x": x}))
