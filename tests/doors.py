"""Every way to call an op of a room from Python, behind one signature, and every room from rooms.txt."""

import functools
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

import deepseek_fast
from tests.plugin import seed_of

ROOT = Path(__file__).resolve().parent.parent
ROOMS = tuple((ROOT / "kernels" / "rooms.txt").read_text().split())
DOORS = ("torch", "packed", "numpy")
# The argument that the packed door packs; it follows x in every signature.
WEIGHT = {"fused_matmul": "weight", "int8_matmul": "q"}


def part(room: str, name: str) -> ModuleType:
    """A Python file of a room: part("fused_matmul", "cases")."""
    return importlib.import_module(f"deepseek_fast.kernels.{room}.{name}")


def reference(room: str, inputs: dict[str, Any]) -> Tensor:
    return getattr(part(room, "ref"), f"{room}_ref")(**inputs)


@functools.cache
def prepared(room: str, case: Any) -> tuple[dict[str, Any], Tensor, Tensor]:
    """A case's inputs, its reference and its bound, computed once for all ISA levels."""
    inputs = case.inputs(torch.Generator().manual_seed(seed_of(f"{room}-{case.id}")))
    return inputs, reference(room, inputs), part(room, "ref").bound(**inputs)


def call(room: str, door: str, inputs: dict[str, Any]) -> Tensor:
    """The op through one door, torch tensors in and out."""
    if door == "torch":
        return getattr(deepseek_fast, room)(**inputs)
    if door == "packed":
        return call_packed(room, pack(room, inputs), inputs)
    if door == "numpy":
        return from_numpy(numpy_op(room)(**{name: to_numpy(value) for name, value in inputs.items()}))
    raise ValueError(f"call: door must be one of {', '.join(DOORS)}; got {door!r}")


def pack(room: str, inputs: dict[str, Any]) -> Tensor:
    torch_op(room)  # loads the library
    return getattr(torch.ops.deepseek_fast, f"{room}_pack")(inputs[WEIGHT[room]])


def call_packed(room: str, packed: Tensor, inputs: dict[str, Any]) -> Tensor:
    rest = {name: value for name, value in inputs.items() if name != WEIGHT[room]}
    out_features = inputs[WEIGHT[room]].shape[0]
    return torch_op(f"{room}_packed")(packed=packed, out_features=out_features, **rest)


def torch_op(name: str) -> Any:
    """torch.ops.deepseek_fast.<name>, with the rooms' Meta kernels registered."""
    for room in ROOMS:
        part(room, "op")
    return getattr(torch.ops.deepseek_fast, name)


def numpy_op(room: str) -> Any:
    import deepseek_fast.numpy

    return getattr(deepseek_fast.numpy, room)


def to_numpy(value: Any) -> Any:
    """A tensor as an array over the same memory with the same strides; bf16 as ml_dtypes.bfloat16."""
    if not isinstance(value, Tensor):
        return value
    if value.dtype == torch.bfloat16:
        return value.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return value.numpy()


def from_numpy(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(value.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(value)


def good_call(room: str) -> dict[str, Any]:
    """A call with nothing wrong: M = 4, N = 8, K = 64."""
    inputs = {
        "x": torch.randn(4, 64),
        WEIGHT[room]: torch.randn(8, 64),
        "bias": torch.randn(8),
        "activation": "none",
        "residual": torch.randn(4, 8),
    }
    if room == "int8_matmul":
        q, scale = deepseek_fast.int8_quantize_weight(inputs["q"])
        inputs |= {"q": q, "scale": scale, "activations": "int8"}
    return inputs
