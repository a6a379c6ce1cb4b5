"""Calls public functions as with CUDA tensors: on a GPU if there is one, else on CPU tensors in Triton's interpreter.

Tests that use it lie in `kernels/<op>/test_<op>_triton.py` and run under `make test-gpu-kernels`, which sets
TRITON_INTERPRET=1, or on a GPU machine with `pytest -m gpu`.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from deepseek_fast.gpu.register import interpreted

gpu = pytest.mark.gpu
ARCHS = (80, 90, 100)  # forms that differ: no FP8 and no TMA; wgmma; tcgen05. The interpreter takes each one's tables
_CUDA = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)


class _AsOnCuda(TorchDispatchMode):
    """Every deepseek_fast op goes to the kernel of its CUDA key, whatever device its tensors are on."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != "deepseek_fast":
            return func(*args, **(kwargs or {}))
        return func.redispatch(_CUDA, *args, **(kwargs or {}))


def device() -> str:
    return "cpu" if interpreted() else "cuda"


@contextlib.contextmanager
def on_gpu(arch: int | None = None) -> Iterator[None]:
    """Ops of deepseek_fast run their CUDA kernels; interpreted ones take the tables and forms of arch."""
    from deepseek_fast import _packed_linear
    from deepseek_fast.gpu import launch

    if not interpreted():
        yield
        return
    # Modules do as with a weight on a GPU.
    with launch.assuming(arch or 90), _AsOnCuda(), mock.patch.object(_packed_linear, "on_gpu", lambda tensor: True):
        yield


def call(function: Callable[..., Any], /, *args: Any, arch: int | None = None, **named: Any) -> Any:
    """function(*args, **named) with its tensors on the device; results on the CPU."""
    args, named = pytree.tree_map_only(Tensor, lambda value: value.to(device()), (args, named))
    with on_gpu(arch):
        results = function(*args, **named)
    return pytree.tree_map_only(Tensor, lambda value: value.to("cpu"), results)
