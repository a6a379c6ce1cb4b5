"""A packed weight that is none, or another than its call says, is refused; so is what cannot be packed."""

from typing import Any

import pytest
import torch

import deepseek_fast.numpy
from tests.conv_doors import to_numpy
from tests.conv_errors import BIG, GOOD, WEIGHT, X
from tests.oracle import SENTENCE


def packed_call(packed: torch.Tensor, **changes: Any) -> torch.Tensor:
    given = {"x": X, "packed": packed, "groups": 2, "weight_shape": (8, 3, 3, 3)} | changes
    return deepseek_fast.fused_conv_packed(**given)


PACKED = deepseek_fast.fused_conv_pack(WEIGHT, 2)


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"packed": PACKED.float()}, TypeError, "packed must be uint8; got dtype float32"),
        ({"packed": PACKED[None]}, ValueError, "packed must have 1 dimension; got shape (1, "),
        ({"packed": PACKED[::2]}, ValueError, "packed must be contiguous; got a strided tensor"),
        ({"packed": PACKED[:63]}, ValueError, "packed must be a packed weight; got shape (63,)"),
        ({"packed": PACKED[:0]}, ValueError, "packed must be a packed weight; got shape (0,)"),
        ({"packed": PACKED[:-1]}, ValueError, "packed must be whole; got shape ("),
        ({"packed": PACKED[1:]}, ValueError, "packed must be a packed weight of version 1; got other bytes"),
        ({"packed": torch.cat([PACKED, PACKED[:1]])}, ValueError, "packed must be whole; got shape ("),
        ({"x": X.bfloat16()}, TypeError, "packed must be packed from bfloat16; got dtype float32"),
        ({"weight_shape": (8, 3, 3, 5)}, ValueError, "packed must hold weight_shape = (8, 3, 3, 5); got (8, 3, 3, 3)"),
        ({"weight_shape": (8, 3)}, ValueError, "weight_shape must have 3 or 4 dimensions; got shape (8, 3)"),
        ({"weight_shape": (8, 6, 3, 3)}, ValueError, "weight_shape must have 3 channels in its second dimension"),
        ({"groups": 1, "x": X[:, :3]}, ValueError, "groups must be 2, as the weight was packed; got 1"),
    ],
    ids=str,
)
def test_a_packed_weight_that_is_none(changes: dict[str, Any], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error) as raised:
        packed_call(**{"packed": PACKED} | changes)
    assert str(raised.value).startswith(f"fused_conv_packed: {sentence}")


INT8_PACKED = deepseek_fast.fused_conv_pack(WEIGHT.to(torch.int8), 2)


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"packed": INT8_PACKED[:-1]}, ValueError, "packed must be whole; got shape ("),
        ({"packed": PACKED}, TypeError, "packed must be packed from int8; got dtype float32"),
        ({"weight_shape": (8, 3, 3, 5)}, ValueError, "packed must hold weight_shape = (8, 3, 3, 5); got (8, 3, 3, 3)"),
        ({"weight_scale": torch.ones(7)}, ValueError, "weight_scale must have shape (8,) or one value; got shape (7,)"),
        ({"x": X}, TypeError, "x must be uint8 or int8; got dtype float32"),
        ({"x_scale": "1"}, TypeError, "x_scale must be a number; got '1'"),
        ({"y_zero_point": 256}, ValueError, "y_zero_point must be from 0 to 255, as uint8; got 256"),
        ({"stride": 0}, ValueError, "stride must be from 1 to 2^24; got (0, 0)"),
    ],
    ids=str,
)
def test_a_packed_int8_weight_that_is_none(changes: dict[str, Any], error: type[Exception], sentence: str) -> None:
    good = {name: value for name, value in GOOD["fused_conv_int8"].items() if name != "weight"}
    inputs = good | {"packed": INT8_PACKED, "weight_shape": (8, 3, 3, 3)} | changes
    for door in ("torch", "numpy"):
        given = inputs if door == "torch" else {name: to_numpy(value) for name, value in inputs.items()}
        library = deepseek_fast if door == "torch" else deepseek_fast.numpy
        with pytest.raises(error) as raised:
            library.fused_conv_int8_packed(**given)
        assert str(raised.value).startswith(f"fused_conv_int8_packed: {sentence}"), door


@pytest.mark.parametrize(("F", "C", "groups"), [(8, 3, 2), (8, 1, 8), (40, 3, 2), (40, 3, 1), (33, 9, 1)])
def test_a_header_that_lies_is_refused(F: int, C: int, groups: int) -> None:
    """Each byte of it, changed, is refused or of no consequence: nothing outside the tensor is read."""
    weight = torch.randn(F, C, 3, 3)
    x = torch.randn(1, groups * weight.shape[1], 5, 5)
    packed = deepseek_fast.fused_conv_pack(weight, groups)
    shape = tuple(weight.shape)
    want = packed_call(packed, x=x, groups=groups, weight_shape=shape)
    for place in range(64):
        for flip in (1, 2, 4, 8, 128, 255):
            changed = packed.clone()
            changed[place] ^= flip
            try:
                got = packed_call(changed, x=x, groups=groups, weight_shape=shape)
            except (ValueError, TypeError) as error:
                assert SENTENCE.match(str(error)), str(error)
            else:
                assert torch.equal(got, want), (place, flip)


@pytest.mark.parametrize(
    ("weight", "groups", "error", "sentence"),
    [
        (WEIGHT.half(), 2, TypeError, "weight must be float32, bfloat16 or int8; got dtype float16"),
        (WEIGHT[0, 0], 1, ValueError, "weight must have 3 or 4 dimensions; got shape (3, 3)"),
        (WEIGHT[:0], 1, ValueError, "weight must have no empty dimension; got shape (0, 3, 3, 3)"),
        (WEIGHT[:7], 2, ValueError, "weight must have a first dimension that groups = 2 divides; got shape (7"),
        (WEIGHT, 0, ValueError, "groups must be positive; got 0"),
        (BIG(2**20, 2**20, 2**10, 3), 1, ValueError, "weight must fit into memory in its packed form; got shape"),
        (BIG(2**20, 2**20, 2**19, 3), 1, ValueError, "weight must have at most 2^58 elements; got shape"),
    ],
    ids=str,
)
def test_pack_refuses(weight: torch.Tensor, groups: int, error: type[Exception], sentence: str) -> None:
    for pack in (deepseek_fast.fused_conv_pack, lambda w, g: deepseek_fast.numpy.fused_conv_pack(to_numpy(w), g)):
        with pytest.raises(error) as raised:
            pack(weight, groups)
        assert str(raised.value).startswith(f"fused_conv_pack: {sentence}")
