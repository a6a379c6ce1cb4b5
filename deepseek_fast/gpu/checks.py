"""Checks of a call with CUDA tensors, before any launch: the CPU op's own, compiled ones, in the same sentences.

The CPU op sees shapes, strides and dtypes, and stops where it would allocate its first result. It sees no values, which
would have to be waited for: what depends on them (an index in range, a scale above zero) the kernels treat as their
README says, and never read outside a tensor.
"""

import contextlib
import ctypes
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from deepseek_fast import _load

_CHECKED = "deepseek_fast: checked"  # csrc/torch/adapter.h
_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
MIN_CAPABILITY = (8, 0)  # of tensor cores with bfloat16, and of asynchronous copies
_MOST_SIGNATURES = 16384  # calls of different shapes that are remembered; then they are forgotten all at once
_passed: set[Any] = set()


def check(op: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
    """RuntimeError with the CPU op's sentence where it would refuse; a call like an earlier one passes at once."""
    signature = (op, *map(_signature, args), *((name, _signature(value)) for name, value in named.items()))
    if signature in _passed:
        return
    _check_devices(op, args, named)
    set_only_check = _only_check()
    set_only_check(1)
    try:
        op.redispatch(_CPU, *args, **named)
    except RuntimeError as error:
        if _CHECKED not in str(error):
            raise
    finally:
        set_only_check(0)
    if len(_passed) >= _MOST_SIGNATURES:
        _passed.clear()
    _passed.add(signature)


@contextlib.contextmanager
def on_device_of(args: tuple[Any, ...], named: dict[str, Any]) -> Iterator[None]:
    """The CUDA device of the arguments is the current one."""
    for value in (*args, *named.values()):
        if isinstance(value, Tensor) and value.device.type == "cuda":
            with torch.cuda.device(value.device):
                yield
            return
    yield


def _signature(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    return tuple(value) if isinstance(value, list) else value


def _check_devices(op: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
    name = op._schema.name.split("::")[1]
    arguments = dict(zip((argument.name for argument in op._schema.arguments), args, strict=False)) | named
    tensors = {arg: value for arg, value in arguments.items() if isinstance(value, Tensor)}
    off_cpu = [arg for arg, tensor in tensors.items() if tensor.device.type != "cpu"]
    first = (off_cpu or list(tensors))[0]
    device = tensors[first].device
    for arg, tensor in tensors.items():
        if tensor.device != device:
            raise RuntimeError(f"{name}: {arg} must be on {first}'s device {device}; got {tensor.device}")
    if device.type != "cuda":
        return
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        raise RuntimeError(
            f"{name}: {first} must be on a GPU of compute capability 8.0 or later; got "
            f"{capability[0]}.{capability[1]} ({torch.cuda.get_device_name(device)}), move it to the CPU"
        )


@functools.cache
def _only_check() -> Any:
    switch = ctypes.CDLL(_load.library_path("_C_torch")).dsf_torch_only_check
    switch.argtypes, switch.restype = (ctypes.c_int32,), None
    return switch
