"""The rooms on CPUs that are not here: _C_core under qemu-user, its plain C ABI called by tests/native/runner.cc.

An aarch64 library is cross-compiled; the x86-64 one is the one that this Python loads. qemu-user knows no AMX: level
amx runs here, in a library with a model of its instructions (csrc/core/amx_model.h).
"""

import inspect
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.doors import ROOT, WEIGHT, raw

BUILD = ROOT / "build" / "emulated"
RUNNER = ROOT / "tests" / "native" / "runner.cc"
COMPILER = {"x86_64": "g++", "aarch64": "aarch64-linux-gnu-g++", "amx_model": "g++", "native": "g++"}
PACKAGES = "g++-aarch64-linux-gnu and qemu-user"  # Debian's
# Kinds of an argument, as runner.cc numbers them.
NOTHING, INTEGER, TEXT, TENSOR = range(4)


class Unavailable(Exception):
    """What is missing on this machine, in one sentence."""


@dataclass(frozen=True)
class Cpu:
    """A CPU of qemu-user and the level that the library must choose on it."""

    architecture: str
    model: str
    level: str

    @property
    def id(self) -> str:
        return f"{self.model}-{self.level}"


CPUS = (
    Cpu("x86_64", "Nehalem", "scalar"),  # x86-64-v2
    Cpu("x86_64", "Haswell", "avx2"),  # x86-64-v3
    Cpu("aarch64", "cortex-a53", "neon"),  # ARMv8.0
    Cpu("aarch64", "neoverse-n1", "neon_dotprod"),  # ARMv8.2, DotProd, without I8MM
    Cpu("amx_model", "this", "amx"),
    Cpu("aarch64", "max", "neon_i8mm"),
)
THIS = Cpu("native", "this", "")  # this machine and the library that this Python loads, at any of its levels
LEVELS = {
    "x86_64": ("scalar", "avx2"),
    "amx_model": ("amx",),
    "aarch64": ("scalar", "neon", "neon_dotprod", "neon_i8mm"),
}


@dataclass(frozen=True)
class AsItLies:
    """A tensor whose strides a room's functions take as they are."""

    tensor: Tensor


class Emulated:
    """One process at one level, which answers one call after another; place: of tensors, as runner.cc has it; threads:
    that work is cut for, one thread does it.
    """

    def __init__(self, cpu: Cpu, level: str, place: str = "end", threads: int = 1) -> None:
        if cpu.architecture == "x86_64":
            place = "near"  # see runner.cc
        command = [*emulator(cpu), str(runner(cpu.architecture)), str(library(cpu.architecture)), place]
        self.cpu = cpu
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed by __exit__)
        self.process = subprocess.Popen(
            command,
            env={"DSF_MAX_ISA": level, "THREADS": str(threads)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
        )
        self.level = self._text().decode()

    def __enter__(self) -> "Emulated":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()  # type: ignore[union-attr]
        self.process.wait()
        self.process.stdout.close()  # type: ignore[union-attr]
        self.errors.close()

    def call(self, room: str, inputs: dict[str, Any]) -> Tensor:
        """The op; RuntimeError with the sentence where it refuses its arguments."""
        import deepseek_fast

        defaults = {n: p.default for n, p in inspect.signature(getattr(deepseek_fast, room)).parameters.items()}
        (values,) = self.run(room, {n: v for n, v in defaults.items() if v is not inspect.Parameter.empty} | inputs)
        x = inputs["x"]
        rows = inputs[WEIGHT[room]].shape[0]
        return as_tensor(values, x.dtype).reshape(*x.shape[:-1], rows // 2 if inputs.get("gated") else rows)

    def run(self, function: str, arguments: dict[str, Any]) -> list[bytes]:
        """The bytes of the results of a function of runner.cc."""
        words = raw(arguments)
        message = [text(function), number(len(words))]
        for name, value in words.items():
            message += [text(name), argument(value)]
        try:
            self.process.stdin.write(b"".join(message))  # type: ignore[union-attr]
            self.process.stdin.flush()  # type: ignore[union-attr]
        except BrokenPipeError:
            self._stopped()
        fault = self._number()
        if fault:
            raise RuntimeError(self._text().decode())
        return [self._text() for _ in range(self._number())]

    def _bytes(self, count: int) -> bytes:
        found = self.process.stdout.read(count)  # type: ignore[union-attr]
        if len(found) < count:
            self._stopped()
        return found

    def _number(self) -> int:
        return int(struct.unpack("<q", self._bytes(8))[0])

    def _text(self) -> bytes:
        return self._bytes(self._number())

    def _stopped(self) -> None:
        code = self.process.wait()
        self.errors.seek(0)
        raise AssertionError(f"the emulated process ended with {code}: {self.errors.read().decode()[-400:]}")


def number(value: int) -> bytes:
    return struct.pack("<q", value)


def text(value: str) -> bytes:
    return number(len(value)) + value.encode()


def argument(value: Any) -> bytes:
    if value is None:
        return number(NOTHING)
    if isinstance(value, str):
        return number(TEXT) + text(value)
    if isinstance(value, torch.dtype):
        return number(TEXT) + text(dtype_name(value))
    if isinstance(value, AsItLies):
        return placed(value.tensor)
    if not isinstance(value, Tensor):
        return number(INTEGER) + number(int(value))
    return placed(value if is_rows(value) else value.contiguous())


def placed(value: Tensor) -> bytes:
    memory = value.as_strided((span(value.shape, value.stride()),), (1,))
    values = memory.view(torch.uint8).numpy().tobytes()
    shape = b"".join(number(size) for size in (*value.shape, *value.stride()))
    return number(TENSOR) + text(dtype_name(value.dtype)) + number(value.dim()) + shape + number(len(values)) + values


def is_rows(value: Tensor) -> bool:
    """Rows of contiguous values at one distance, which a door hands on as they are."""
    return value.dim() == 2 and value.stride(1) == 1 and value.stride(0) >= value.shape[1]


def span(sizes: Sequence[int], strides: Sequence[int]) -> int:
    """Values from the first to the last."""
    return 1 + sum((n - 1) * stride for n, stride in zip(sizes, strides, strict=True)) if 0 not in sizes else 0


def as_tensor(values: bytes, dtype: torch.dtype) -> Tensor:
    if not values:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(bytearray(values), dtype=torch.uint8).view(dtype)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def tool(name: str) -> str:
    """The path of a program, also of one installed beside this Python."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise Unavailable(f"{name} is not installed (Debian's packages: {PACKAGES})")
    return found


def emulator(cpu: Cpu) -> list[str]:
    if cpu == THIS:
        return []
    if cpu.architecture == "amx_model":
        import deepseek_fast

        if "avx512bf16" not in deepseek_fast.supported_isas():
            raise Unavailable("the model of AMX runs where avx512bf16 does")
        return []
    command = [tool(f"qemu-{cpu.architecture}"), "-cpu", cpu.model]
    if cpu.architecture == "aarch64":
        command += ["-L", "/usr/aarch64-linux-gnu"]  # where the cross compiler's libc lies
    return command


def library(architecture: str) -> Path:
    """_C_core, brought up to date where it is built for other machines."""
    if architecture in ("x86_64", "native"):
        from deepseek_fast import _load

        return Path(_load.native().__file__).parent / "_C_core.abi3.so"
    if architecture == "amx_model":  # a target of the build of this package
        trees, target = [*ROOT.glob("build/py3-*/CMakeCache.txt")], "dsf_core_amx_model"
    else:
        trees, target = [*(BUILD / architecture).glob("CMakeCache.txt")], "all"
    if not trees:
        raise Unavailable(f"_C_core is not built for {architecture}: make test-emulated")
    folder = max(trees, key=lambda cache: cache.stat().st_mtime).parent
    run(tool("cmake"), "--build", str(folder), "--target", target)
    return folder / ("amx_model" if architecture == "amx_model" else ".") / "_C_core.abi3.so"


def runner(architecture: str) -> Path:
    target = BUILD / f"runner-{architecture}"
    sources = [*RUNNER.parent.iterdir(), *ROOT.glob("kernels/*/*.h"), *ROOT.glob("csrc/*/*.h")]  # structs it fills
    newest = max(path.stat().st_mtime for path in sources)
    if not target.is_file() or target.stat().st_mtime < newest:
        target.parent.mkdir(parents=True, exist_ok=True)
        warnings = ("-Wall", "-Wextra", "-Werror")
        run(tool(COMPILER[architecture]), "-std=c++20", "-O1", *warnings, f"-I{ROOT}", str(RUNNER), "-o", str(target))
    return target


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise AssertionError(f"{' '.join(command)}: {(done.stdout + done.stderr)[-2000:]}")
