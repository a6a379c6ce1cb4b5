"""Gives an op its kernels for CUDA tensors; the room's file is imported when the first such tensor comes."""

import functools
import importlib
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

_LIBRARY = torch.library.Library("deepseek_fast", "IMPL")


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on CPU tensors: TRITON_INTERPRET=1 before triton is imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def register(room: str, *ops: str, on_host: tuple[str, ...] = (), refused: dict[str, str] | None = None) -> None:
    """For the CUDA key: ops from OPS of the room's triton_kernel.py; on_host: the CPU's kernel, with copies.

    refused: ops that CUDA tensors may not reach, with what to do instead. A torch without CUDA registers nothing.
    """
    if torch.version.cuda is None and not interpreted():
        return
    for name in ops:
        _LIBRARY.impl(name, functools.partial(_launch, room, name), "CUDA")
    for name in on_host:
        _LIBRARY.impl(name, functools.partial(_on_host, name), "CUDA")
    for name, instead in (refused or {}).items():
        _LIBRARY.impl(name, functools.partial(_refuse, name, instead), "CUDA")


def kernels(room: str, op: str) -> dict[str, Callable[..., Any]]:
    """OPS of a room: the launcher of each op. RuntimeError, for op's caller, where triton is not there."""
    try:
        import triton  # noqa: F401
    except ImportError as error:
        raise RuntimeError(
            f"{op}: triton must be installed for CUDA tensors; got '{error}', install it with `pip install triton`"
        ) from None
    module = importlib.import_module(f"deepseek_fast.kernels.{room}.triton_kernel")
    launchers: dict[str, Callable[..., Any]] = module.OPS
    return launchers


@functools.cache
def _resolved(room: str, name: str) -> tuple[Callable[..., Any], Any]:
    return kernels(room, name)[name], getattr(torch.ops.deepseek_fast, name).default


def _launch(room: str, name: str, *args: Any, **named: Any) -> Any:
    from deepseek_fast.gpu import checks

    launcher, overload = _resolved(room, name)
    checks.check(overload, args, named)
    with checks.on_device_of(args, named):
        return launcher(*args, **named)


def _on_host(name: str, *args: Any, **named: Any) -> Any:
    """The CPU's kernel with copies of the tensors: for what is computed once a model or a mask, not once a step."""
    tensors = [value for value in pytree.tree_leaves((args, named)) if isinstance(value, Tensor)]
    overload = getattr(torch.ops.deepseek_fast, name).default
    if all(tensor.device.type == "cpu" for tensor in tensors):  # interpreted
        return overload.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), *args, **named)
    device = next(tensor.device for tensor in tensors if tensor.device.type != "cpu")
    args, named = pytree.tree_map_only(Tensor, Tensor.cpu, (args, named))
    return pytree.tree_map_only(Tensor, lambda result: result.to(device), overload(*args, **named))


def _refuse(name: str, instead: str, *_: Any, **__: Any) -> Any:
    args = [arg.name for arg in getattr(torch.ops.deepseek_fast, name).default._schema.arguments]
    arg = "packed" if "packed" in args else args[0]
    raise RuntimeError(f"{name}: {arg} must be a CPU tensor; got one on a GPU, {instead}")
