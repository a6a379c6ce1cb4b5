"""Calls public functions as with CUDA tensors: on a GPU if there is one, else on CPU tensors in Triton's interpreter.

On a GPU each op's first calls also go through torch.library.opcheck, with the arguments that they had.

Tests that use it lie in `kernels/<op>/test_<op>_triton.py` and run under `make test-gpu-kernels`, which sets
TRITON_INTERPRET=1, or on a GPU machine with `pytest -m gpu`.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
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


class _Recorded(TorchDispatchMode):
    """Keeps the calls of deepseek_fast's ops."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "deepseek_fast":
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


OPCHECKS = 2  # calls of an op that are checked
OPCHECK_UTILS = ("test_autograd_registration", "test_faketensor")
_checked: Counter[str] = Counter()


def _opcheck(calls: list[tuple[Any, Any, Any]]) -> None:
    for func, args, kwargs in calls:
        _checked[func.name()] += 1
        if _checked[func.name()] <= OPCHECKS:
            tensors = [value for value in pytree.tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
            # torch's test of a schema multiplies the inputs, but not FP8.
            has_fp8 = any(str(x.dtype).startswith(("torch.float8", "torch.float4")) for x in tensors)
            of_schema = () if has_fp8 else ("test_schema",)
            torch.library.opcheck(func, args, kwargs, test_utils=(*OPCHECK_UTILS, *of_schema))


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
    modules = mock.patch.object(_packed_linear, "on_gpu", lambda tensor: True)  # they do as with a weight on a GPU
    silence = np.errstate(all="ignore")  # a chip says nothing of 0 / 0 either
    with launch.assuming(arch or 90), _AsOnCuda(), modules, silence:
        yield


def moved(value: Tensor) -> Tensor:
    """value on the device, with its strides and its place in its storage."""
    if device() == "cpu":
        return value
    flat = torch.empty(0, dtype=value.dtype).set_(value.untyped_storage()).to(device())
    return flat.as_strided(value.size(), value.stride(), value.storage_offset()).requires_grad_(value.requires_grad)


def call(function: Callable[..., Any], /, *args: Any, arch: int | None = None, **named: Any) -> Any:
    """function(*args, **named) with its tensors on the device; results on the CPU."""
    args, named = pytree.tree_map_only(Tensor, moved, (args, named))
    with on_gpu(arch), _Recorded() if not interpreted() else contextlib.nullcontext() as recorded:
        results = function(*args, **named)
    if recorded is not None:
        _opcheck(recorded.calls)
    return pytree.tree_map_only(Tensor, lambda value: value.to("cpu"), results)
