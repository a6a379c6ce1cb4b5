"""One kernel launch, for the current device; for another chip, compiling in place of launching.

`make gpu-aot` runs the rooms' launchers with tensors of device "meta" inside `compiling(...)`: what it compiles is what
a call with such tensors would launch, Triton's specialization included (what 16 divides, a size of 1).
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from deepseek_fast.gpu.register import interpreted

ARCHS = (80, 86, 89, 90, 100, 120)  # compute capabilities that every kernel is compiled for
FP8_ARCH = 89  # the first with e4m3
# Streaming multiprocessors: of the largest product of each, for grids that are as large as the chip.
MULTIPROCESSORS = {80: 108, 86: 84, 89: 142, 90: 132, 100: 148, 120: 188}
# Bytes of shared memory a block may have: CUDA C++ Programming Guide, technical specifications per compute capability.
SHARED_BYTES = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}


@dataclass
class Launch:
    """A launch that was or is to be compiled: its kernel's name, grid and options, Triton's compiled kernel."""

    kernel: str
    arch: int
    constants: dict[str, Any]
    dtype: Any  # of the first tensor
    grid: tuple[int, ...]
    compiled: Any = None


@dataclass
class _Compiling:
    arch: int
    wanted: Callable[[Launch], bool]
    launches: list[Launch] = field(default_factory=list)


_compiling: _Compiling | None = None
_assumed: int | None = None


def arch() -> int:
    """The chip's compute capability, 90 for 9.0: of the current device, or the one that is compiled for or assumed."""
    if _compiling is not None:
        return _compiling.arch
    if _assumed is not None:
        return _assumed
    return _device_arch(torch.cuda.current_device()) if _has_cuda() else 90


def multiprocessors() -> int:
    if _compiling is not None or _assumed is not None or not _has_cuda():
        return MULTIPROCESSORS.get(arch(), 132)
    return _device_multiprocessors(torch.cuda.current_device())


def has_fp8() -> bool:
    """Whether the chip converts and multiplies e4m3 itself, from 8.9 on; the interpreter does it wrongly."""
    return arch() >= FP8_ARCH and not interpreted()


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """kernel[grid](*args, **options); a grid without blocks launches nothing."""
    if _compiling is not None:
        dtype = next((arg.dtype for arg in args if hasattr(arg, "dtype")), None)
        planned = Launch(kernel.fn.__name__, _compiling.arch, options, dtype, grid)
        if _compiling.wanted(planned):
            planned.compiled = kernel.warmup(*args, grid=(1,), **options)
            _compiling.launches.append(planned)
        return
    if 0 in grid:
        return
    kernel[grid](*args, **options)


@contextlib.contextmanager
def compiling(arch: int, wanted: Callable[[Launch], bool] = lambda launch: True) -> Iterator[list[Launch]]:
    """Launches inside are compiled for arch where they are wanted, and not run; the list fills with them."""
    global _compiling
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    outer, before = _compiling, _active_driver(driver)
    _compiling = _Compiling(arch, wanted)
    driver.set_active(_NoGpu(GPUTarget("cuda", arch, 32)))
    try:
        yield _compiling.launches
    finally:
        _compiling = outer
        if before is not None:
            driver.set_active(before)


@contextlib.contextmanager
def assuming(arch: int) -> Iterator[None]:
    """Tile tables and kernels' forms are chosen as for arch: so the interpreter reaches those of every chip."""
    global _assumed
    before, _assumed = _assumed, arch
    try:
        yield
    finally:
        _assumed = before


class _NoGpu:
    """What Triton asks a driver when it only compiles; a device's number is its arch, which keeps caches apart."""

    def __init__(self, target: Any) -> None:
        self.target = target

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return int(self.target.arch)

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")


def _active_driver(driver: Any) -> Any:
    try:
        return driver.active if torch.cuda.is_available() else None
    except RuntimeError:
        return None


@functools.cache
def _has_cuda() -> bool:
    """Asked at every launch, and not cheap to ask torch."""
    return torch.cuda.is_available()


@functools.cache
def _device_arch(device: int) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return major * 10 + minor


@functools.cache
def _device_multiprocessors(device: int) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
