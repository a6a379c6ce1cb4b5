"""Finds and loads the compiled libraries: a door's library when the door is first used, only from this package."""

import functools
import importlib
import importlib.util
import os
from types import ModuleType

from deepseek_fast._version import __version__

# Lowest first; a machine has those of its architecture.
X86_LEVELS = ("avx2", "avxvnni", "avx512", "avx512vnni", "avx512bf16", "amx")
ISA_LEVELS = ("scalar", *X86_LEVELS, "neon", "neon_dotprod", "neon_i8mm")
_HOW_TO_BUILD = "reinstall it with `pip install --no-build-isolation .` (torch installed first for the torch door)"


def library_path(name: str) -> str:
    """The file of a compiled library of this package, "_C_ort"; RuntimeError where it was not built."""
    spec = importlib.util.find_spec(f"deepseek_fast.{name}")
    if spec is None or spec.origin is None:
        raise RuntimeError(f"deepseek_fast: {name} must be part of the installation; got none, {_HOW_TO_BUILD}")
    return spec.origin


@functools.cache
def native() -> ModuleType:
    """The module behind the NumPy door."""
    try:
        module = importlib.import_module("deepseek_fast._native")
    except ImportError as error:
        raise RuntimeError(f"deepseek_fast: _native must load; got '{error}', {_HOW_TO_BUILD}") from error
    if module.version() != __version__:
        raise RuntimeError(
            f"deepseek_fast: the libraries must be of version {__version__}; got {module.version()}, {_HOW_TO_BUILD}"
        )
    cap = os.environ.get("DSF_MAX_ISA")
    if cap is not None and cap not in ISA_LEVELS:
        raise RuntimeError(f"deepseek_fast: DSF_MAX_ISA must be one of {', '.join(ISA_LEVELS)}; got {cap!r}")
    return module


@functools.cache
def load_torch() -> None:
    """Registers torch.ops.deepseek_fast."""
    try:
        import torch
    except ImportError as error:
        raise RuntimeError(f"deepseek_fast: torch must be installed for the torch door; got '{error}'") from error
    path = library_path("_C_torch")
    try:
        torch.ops.load_library(path)
    except OSError as error:
        raise RuntimeError(
            f"deepseek_fast: _C_torch must load into torch {torch.__version__}; got '{error}'"
        ) from error


@functools.cache
def load_torch_cuda() -> bool:
    """Registers the CUDA C++ kernels; False where they were not built (DSF_CUDA=ON) or torch has no CUDA."""
    import torch

    load_torch()
    if torch.version.cuda is None or importlib.util.find_spec("deepseek_fast._C_torch_cuda") is None:
        return False
    torch.ops.load_library(library_path("_C_torch_cuda"))
    return True


def isa() -> str:
    """The highest instruction set level that kernels use now: "avx512bf16", ..., "scalar"."""
    level: str = native().isa()
    return level


def set_max_isa(isa: str) -> str:
    """Lowers the instruction set level, or raises it again, at most to the CPU's level and to the variable DSF_MAX_ISA.

    isa: one of scalar, avx2, avxvnni, avx512, avx512vnni, avx512bf16, amx; on aarch64 scalar, neon,
    neon_dotprod, neon_i8mm. Returns the level then in force.
    Raises ValueError for another name.

    >>> deepseek_fast.set_max_isa("avx2")
    'avx2'
    """
    level: str = native().set_max_isa(isa)
    return level


def supported_isas() -> list[str]:
    """The levels that this CPU runs, lowest first."""
    levels: list[str] = native().supported_isas()
    return levels
