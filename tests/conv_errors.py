"""Good calls of fused_conv's family, what its operators refuse in them, and that every door says the same."""

import math
from typing import Any

import pytest
import torch

from tests.conv_doors import call
from tests.oracle import SENTENCE

LRN = "local_response_norm"
X, WEIGHT = torch.randn(2, 6, 9, 8), torch.randn(8, 3, 3, 3)  # of two groups
GOOD: dict[str, dict[str, Any]] = {
    "fused_conv": {"x": X, "weight": WEIGHT, "bias": torch.randn(8), "groups": 2},
    "fused_conv_int8": {
        "x": torch.zeros(2, 6, 9, 8, dtype=torch.uint8),
        "weight": torch.ones(8, 3, 3, 3, dtype=torch.int8),
        "x_scale": 0.1,
        "x_zero_point": 128,
        "weight_scale": torch.ones(8),
        "y_scale": 0.2,
        "y_zero_point": 3,
        "groups": 2,
    },
    "pool2d": {"x": X, "kernel": 3},
    LRN: {"x": X, "size": 5},
}
BIG = torch.ones(1).expand
STEPS = "be an integer or two of them; got "
# (op, what changes in a good call, type of error, the sentence's beginning after "<op>: ")
Row = tuple[str, dict[str, Any], type[Exception], str]
# Of values, which a meta tensor has not, and of sizes beyond memory.
COMPILED_ALONE = ("fits into memory", "at most 2^58", "2^58 rows", "NaN", "finite", "zero_point", "out_dtype", "65793")


def each_of(rows: list[Row]) -> pytest.MarkDecorator:
    """One test a row."""
    return pytest.mark.parametrize("row", rows, ids=[f"{i}-{row[0]}-{row[3][:40]}" for i, row in enumerate(rows)])


def assert_refused_at_every_door(row: Row) -> None:
    name, changes, error, sentence = row
    inputs = GOOD[name] | changes
    want = f"{name}: {sentence}"
    for door in ("torch", "numpy"):
        if door == "numpy" and not all(numpy_has(value) for value in inputs.values()):
            continue
        with pytest.raises(error) as raised:
            call(name, door, inputs)
        got = str(raised.value)
        assert got.startswith(want), f"{door}: {got}"
        assert SENTENCE.match(got), got


def assert_refused_of_meta_tensors(row: Row) -> None:
    """In the same words."""
    name, changes, error, sentence = row
    if any(words in sentence for words in COMPILED_ALONE):
        return
    inputs = {n: v.to("meta") if isinstance(v, torch.Tensor) else v for n, v in (GOOD[name] | changes).items()}
    with pytest.raises((error, RuntimeError)) as raised:
        call(name, "torch", inputs)
    assert f"{name}: {sentence}" in str(raised.value)


def numpy_has(value: Any) -> bool:
    """Whether NumPy itself takes an array of such a size."""
    return not isinstance(value, torch.Tensor) or math.prod(max(1, size) for size in value.shape) * 8 < 2**63
