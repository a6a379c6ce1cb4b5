"""Every way to call an op of a linear room from Python, behind one signature, and every room from rooms.txt."""

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
EVERY_ROOM = tuple((ROOT / "kernels" / "rooms.txt").read_text().split())
DOORS = ("torch", "packed", "numpy")
# The weight; it follows x in every signature.
WEIGHT = {"fp8_matmul": "weight", "fused_matmul": "weight", "int4_matmul": "q", "int8_matmul": "q"}
ROOMS = tuple(room for room in EVERY_ROOM if room in WEIGHT)  # the linear ones; fp8_cast has tests/cast_doors.py
# The arguments that the packed door packs, and so leaves out: the weight alone where a room has no entry.
PACKED = {
    "fp8_matmul": ("weight", "scale", "block"),
    "int4_matmul": ("q", "scale", "zeros", "group_size", "in_features"),
}
MODE = {"int4_matmul": "compute"}  # the argument that says what x becomes, where it is not "activations"
NUMPY_DTYPES = {  # those that NumPy itself has not; torch's of the same size, to change the view
    torch.bfloat16: (ml_dtypes.bfloat16, torch.int16),
    torch.float8_e4m3fn: (ml_dtypes.float8_e4m3fn, torch.uint8),
    torch.float8_e5m2: (ml_dtypes.float8_e5m2, torch.uint8),
    torch.float8_e8m0fnu: (ml_dtypes.float8_e8m0fnu, torch.uint8),
}


def mode_of(room: str) -> str:
    """The name of the argument that says what x becomes."""
    return MODE.get(room, "activations")


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
    return torch_op(f"{room}_pack")(**pack_arguments(room, inputs))


def call_packed(room: str, packed: Tensor, inputs: dict[str, Any]) -> Tensor:
    out_features = inputs[WEIGHT[room]].shape[0] // (1 + inputs.get("gated", False))
    return torch_op(f"{room}_packed")(packed=packed, out_features=out_features, **unpacked(room, inputs))


def pack_arguments(room: str, inputs: dict[str, Any]) -> dict[str, Any]:
    """What <room>_pack takes."""
    return raw({name: inputs[name] for name in (*PACKED.get(room, (WEIGHT[room],)), "gated") if name in inputs})


def unpacked(room: str, inputs: dict[str, Any]) -> dict[str, Any]:
    """What <room>_packed takes beside the packed weight."""
    return {name: value for name, value in inputs.items() if name not in PACKED.get(room, (WEIGHT[room],))}


def raw(inputs: dict[str, Any]) -> dict[str, Any]:
    """Arguments as torch.ops takes them: a block in two numbers."""
    if "block" not in inputs:
        return inputs
    block_n, block_k = inputs["block"]
    return {n: v for n, v in inputs.items() if n != "block"} | {"block_n": block_n, "block_k": block_k}


def torch_op(name: str) -> Any:
    """torch.ops.deepseek_fast.<name>, with the rooms' Meta kernels registered."""
    for room in EVERY_ROOM:
        part(room, "op")
    return getattr(torch.ops.deepseek_fast, name)


def numpy_op(room: str) -> Any:
    import deepseek_fast.numpy

    return getattr(deepseek_fast.numpy, room)


def to_numpy(value: Any) -> Any:
    """A tensor as an array over the same memory with the same strides; bf16 and float8 as of ml_dtypes."""
    if not isinstance(value, Tensor):
        return value
    if value.dtype in NUMPY_DTYPES:
        dtype, bits = NUMPY_DTYPES[value.dtype]
        return value.view(bits).numpy().view(dtype)
    return value.numpy()


def from_numpy(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    for dtype, (numpy_dtype, bits) in NUMPY_DTYPES.items():
        if value.dtype == numpy_dtype:
            return torch.from_numpy(value.view(str(bits).removeprefix("torch."))).view(dtype)
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
    if room == "fp8_matmul":
        weight, scale = deepseek_fast.fp8_quantize_weight(inputs["weight"], block=(1, 32))
        inputs |= {"weight": weight, "scale": scale, "block": (1, 32), "activations": "fp8"}
    if room == "int4_matmul":
        q, scale, zeros = deepseek_fast.int4_quantize_weight(inputs["q"], symmetric=False)
        inputs |= {"q": q, "scale": scale, "zeros": zeros, "group_size": 32, "in_features": 64, "compute": "int8"}
    return inputs
