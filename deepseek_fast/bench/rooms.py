"""Which rows a benchmark has: every room's bench cases, at every instruction set level, on one thread and on all."""

import functools
import hashlib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import deepseek_fast
from deepseek_fast.cli import machine

# Of a case at the levels below the highest: a larger one takes seconds there and shows nothing that this one does not.
LADDER_FLOPS = 1 << 30
LADDER_BYTES = 8 << 20  # of a cast: in memory every level waits for the same bytes


@dataclass(frozen=True)
class Row:
    """What one row measures."""

    room: str
    case: Any  # of the room's cases.BENCH
    isa: str
    threads: int
    best: bool  # at the highest level: every peer takes part; at lower ones only the reference peer

    @property
    def op(self) -> str:
        """The function that the case calls, which peers are asked for."""
        return op(self.room, self.case)

    @property
    def id(self) -> str:
        return f"{self.room}-{self.case.id}-{self.isa}" + (f"-{self.threads}t" if self.threads > 1 else "")


def names() -> list[str]:
    """Every room, from kernels/rooms.txt."""
    kernels = importlib.import_module("deepseek_fast.kernels")
    return next(Path(folder, "rooms.txt") for folder in kernels.__path__).read_text().split()


def part(room: str, name: str) -> ModuleType:
    """A Python file of a room: part("fused_matmul", "cases")."""
    return importlib.import_module(f"deepseek_fast.kernels.{room}.{name}")


def op(room: str, case: Any) -> str:
    """The function that a case calls; a room of one op has its name."""
    return str(getattr(case, "op", room))


def working_set(case: Any) -> int:
    """Bytes that a call touches, however often it does."""
    return int(getattr(case, "working_set", case.bytes))


def is_cast(case: Any) -> bool:
    """Whether it is bound by bytes alone: it has no rate of arithmetic, and its answers are compared bit for bit."""
    return getattr(case, "rate", "") is None


def rows(rooms: Sequence[str], *, quick: bool = False) -> list[Row]:
    """Rows of some rooms, those of a case together; quick: the main cases at the highest level on one thread.

    Lower levels are those that a room has kernels of its own for. A case with `sweep` False has one row in any run.
    """
    from deepseek_fast._load import native

    best = deepseek_fast.isa()
    supported = deepseek_fast.supported_isas()
    lower = supported[: supported.index(best)]
    own = {room: {level for level, _ in native().variants(room)} for room in rooms}
    cases = [(room, case) for room in rooms for case in part(room, "cases").BENCH if case.quick or not quick]
    threads = machine.usable_cpus()
    found = []
    for room, case in cases:
        found.append(Row(room, case, best, 1, True))
        if quick or not getattr(case, "sweep", True):
            continue
        if threads > 1:
            found.append(Row(room, case, best, threads, True))
        if case.flops <= LADDER_FLOPS and not (is_cast(case) and working_set(case) > LADDER_BYTES):
            found += [Row(room, case, level, 1, False) for level in reversed(lower) if level in own[room]]
    return found


@functools.lru_cache(maxsize=1)  # rows of a case follow one another
def prepared(room: str, case: Any) -> tuple[dict[str, Any], Any, Any]:
    """(keyword arguments of the op, its reference, the bound); a case has the same inputs in every run.

    A linear case or a convolution has a reference and a bound of one tensor each, integers none. A cast's are tuples of
    ref.<op>_ref, and of ref.<op>_bound where the room has one, None for tensors whose every bit must agree. A case may
    name another file of the room than ref, or have `wanted`: inputs -> (reference, bound), tensors or tuples of them.
    """
    import torch

    seed = int.from_bytes(hashlib.sha256(f"{room}-{case.id}".encode()).digest()[:4], "little")
    inputs: dict[str, Any] = case.inputs(torch.Generator().manual_seed(seed))
    if hasattr(case, "wanted"):
        return inputs, *case.wanted(inputs)
    reference, name = part(room, getattr(case, "reference", "ref")), op(room, case)
    wanted = getattr(reference, f"{name}_ref")(**inputs)
    if not is_cast(case):
        return inputs, wanted, reference.bound(**inputs) if wanted.dtype == torch.float64 else None
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    bound = getattr(reference, f"{name}_bound", lambda **_: (None,) * len(wanted))(**inputs)
    return inputs, tuple(wanted), tuple(bound) if isinstance(bound, tuple) else (bound,)


class isa_cap:
    """Holds the kernels to a level inside a `with`; RuntimeError where the level cannot be in force."""

    def __init__(self, level: str) -> None:
        self.level = level

    def __enter__(self) -> None:
        self.before = deepseek_fast.isa()
        deepseek_fast.set_max_isa(self.level)
        if deepseek_fast.isa() != self.level:
            raise RuntimeError(f"isa_cap: level must be in force; got {deepseek_fast.isa()} for {self.level}")

    def __exit__(self, *_: object) -> None:
        deepseek_fast.set_max_isa(self.before)
