"""pool2d and local_response_norm refuse bad input in one sentence, the same at every door, with the right type of
error."""

import pytest
import torch

from deepseek_fast._load import native
from tests.conv_errors import (
    BIG,
    LRN,
    STEPS,
    Row,
    X,
    assert_refused_at_every_door,
    assert_refused_of_meta_tensors,
    each_of,
)

BAD: list[Row] = [
    ("pool2d", {"x": X.half()}, TypeError, "x must be float32, bfloat16, uint8 or int8; got dtype float16"),
    (
        "pool2d",
        {"x": X.to(torch.uint8), "kind": "average"},
        TypeError,
        "x must be float32 or bfloat16; got dtype uint8",
    ),
    ("pool2d", {"x": X[0, 0]}, ValueError, "x must have 3 or 4 dimensions; got shape (9, 8)"),
    ("pool2d", {"x": X[:, :, :0]}, ValueError, "x must be empty in no dimension but the batch's; got shape (2, 6, 0"),
    ("pool2d", {"kind": "mean"}, ValueError, "kind must be one of max, average; got 'mean'"),
    ("pool2d", {"kind": None}, TypeError, "kind must be a name; got None"),
    ("pool2d", {"kernel": 0}, ValueError, "kernel must be from 1 to 2^24; got (0, 0)"),
    ("pool2d", {"stride": (1, -1)}, ValueError, "stride must be from 1 to 2^24; got (1, -1)"),
    ("pool2d", {"padding": -1}, ValueError, "padding must be from 0 to 2^24; got (-1, -1, -1, -1)"),
    ("pool2d", {"padding": 2}, ValueError, "padding must be at most half the kernel (3, 3); got (2, 2, 2, 2)"),
    ("pool2d", {"kernel": (2, 9)}, ValueError, "kernel must be at most (9, 8), as what is pooled has with its padding"),
    ("pool2d", {"kernel": "3"}, ValueError, f"kernel must {STEPS}'3'"),
    ("pool2d", {"ceil_mode": 1}, ValueError, "ceil_mode must be True or False; got 1"),
    ("pool2d", {"x": BIG(2**58, 2, 3, 3)}, ValueError, "x must have at most 2^58 elements; got shape"),
    ("pool2d", {"x": BIG(2**50, 2, 3, 3)}, ValueError, "x must give an output that fits into memory; got shape"),
    *(
        (
            LRN,
            {"x": X.to(dtype)},
            TypeError,
            f"x must be float32 or bfloat16; got dtype {str(dtype)[6:]}",
        )
        for dtype in (torch.float64, torch.float16, torch.uint8)
    ),
    (LRN, {"x": X[0, 0]}, ValueError, "x must have 3 or 4 dimensions; got shape (9, 8)"),
    (LRN, {"x": X[None]}, ValueError, "x must have 3 or 4 dimensions; got shape (1, 2, 6, 9, 8)"),
    (
        LRN,
        {"x": X[:, :0]},
        ValueError,
        "x must be empty in no dimension but the batch's; got shape (2",
    ),
    (LRN, {"size": 0}, ValueError, "size must be from 1 to 2^24; got 0"),
    (LRN, {"size": -5}, ValueError, "size must be from 1 to 2^24; got -5"),
    (LRN, {"size": 2**24 + 1}, ValueError, "size must be from 1 to 2^24; got 16777217"),
    (LRN, {"size": 5.0}, TypeError, "size must be an integer; got 5.0"),
    (LRN, {"alpha": "a"}, TypeError, "alpha must be a number; got 'a'"),
    (LRN, {"beta": None}, TypeError, "beta must be a number; got None"),
    (LRN, {"k": True}, TypeError, "k must be a number; got True"),
    (LRN, {"x": BIG(2**58, 2, 3, 3)}, ValueError, "x must have at most 2^58 elements; got shape"),
    (
        LRN,
        {"x": BIG(2**50, 2, 3, 3)},
        ValueError,
        "x must give an output that fits into memory; got shape",
    ),
]


@each_of(BAD)
def test_one_sentence_at_every_door(row: Row) -> None:
    assert_refused_at_every_door(row)


@each_of(BAD)
def test_a_meta_tensor_is_refused_in_the_same_words(row: Row) -> None:
    assert_refused_of_meta_tensors(row)


def test_a_window_of_another_length() -> None:
    """The front ends make nine numbers of it; the compiled doors check them too."""
    for pool, x in ((torch.ops.deepseek_fast.pool2d, X), (native().pool2d, X.numpy())):
        with pytest.raises((RuntimeError, ValueError), match=r"^pool2d: window must be 9 numbers; got 8 of them"):
            pool(x, [3] * 8, "max", True)
