"""Every way to call fused_conv and pool2d from Python, behind one signature: torch tensors in and out."""

import functools
from typing import Any

import torch
from torch import Tensor

import deepseek_fast
from deepseek_fast.kernels.fused_conv import ref, ref_int8
from tests import doors
from tests.oracle import assert_equal, assert_within
from tests.plugin import seed_of

CONV_DOORS = ("torch", "packed", "numpy", "numpy packed")


def call(op: str, door: str, inputs: dict[str, Any]) -> Tensor:
    """An operator of the room through one door; those with a weight have the packed doors too."""
    library = deepseek_fast if "numpy" not in door else deepseek_fast.numpy
    given = inputs if "numpy" not in door else {name: to_numpy(value) for name, value in inputs.items()}
    if "packed" not in door:
        return from_door(getattr(library, op)(**given))
    weight = given.pop("weight") if given is not inputs else inputs["weight"]
    given = {name: value for name, value in given.items() if name != "weight"}
    how = {"algorithm": given.pop("algorithm")} if "algorithm" in given else {}
    packed = library.fused_conv_pack(weight, given.get("groups", 1), **how)
    if door == "packed":
        given["channels_last"] = is_channels_last(weight)
    return from_door(getattr(library, f"{op}_packed")(packed=packed, weight_shape=tuple(weight.shape), **given))


def from_door(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else doors.from_numpy(value)


def to_numpy(value: Any) -> Any:
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else doors.to_numpy(value)


def is_channels_last(weight: Tensor) -> bool:
    """As torch takes it."""
    full = weight.unsqueeze(-2) if weight.dim() == 3 else weight
    return torch._prims_common.suggest_memory_format(full) == torch.channels_last


@functools.cache
def prepared(case: Any) -> tuple[dict[str, Any], Tensor, Tensor]:
    """A case's inputs, its reference and its bound, computed once for all ISA levels."""
    inputs = case.inputs(torch.Generator().manual_seed(seed_of(f"fused_conv-{case.id}")))
    return inputs, ref.fused_conv_ref(**inputs), ref.bound(**inputs)


@functools.cache
def prepared_int8(case: Any) -> tuple[dict[str, Any], Tensor, Tensor]:
    inputs = case.inputs(torch.Generator().manual_seed(seed_of(f"fused_conv_int8-{case.id}")))
    return inputs, ref_int8.fused_conv_int8_ref(**inputs), ref_int8.bound_int8(**inputs)


def assert_close(got: Tensor, want: Tensor, bound: Tensor, what: str) -> None:
    """Whatever the strides."""
    assert_within(got.contiguous(), want, bound, what)


def assert_same(got: Tensor, want: Tensor, what: str) -> None:
    """The bits, whatever the strides."""
    assert_equal(got.contiguous(), want.contiguous(), what)
