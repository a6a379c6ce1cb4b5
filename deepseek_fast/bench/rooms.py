"""Which rows a benchmark has: every room's bench cases, at every instruction set level, on one thread and on all."""

import hashlib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import deepseek_fast
from deepseek_fast.cli import machine


@dataclass(frozen=True)
class Row:
    """What one row measures."""

    room: str
    case: Any  # of the room's cases.BENCH
    isa: str
    threads: int
    best: bool  # at the highest level: every peer takes part; at lower ones only the reference peer

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


def rows(rooms: Sequence[str], *, quick: bool = False) -> list[Row]:
    """Rows of some rooms; quick: the main cases at the highest level on one thread."""
    best = deepseek_fast.isa()
    supported = deepseek_fast.supported_isas()
    levels = supported[: supported.index(best) + 1]
    cases = [(room, case) for room in rooms for case in part(room, "cases").BENCH if case.quick or not quick]
    found = [Row(room, case, best, 1, True) for room, case in cases]
    if quick:
        return found
    found += [Row(room, case, level, 1, False) for level in reversed(levels[:-1]) for room, case in cases]
    threads = machine.usable_cpus()
    return found + [Row(room, case, best, threads, True) for room, case in cases if threads > 1]


def inputs(row: Row) -> dict[str, Any]:
    """Keyword arguments of the op, the same for the same case in every run."""
    import torch

    seed = int.from_bytes(hashlib.sha256(f"{row.room}-{row.case.id}".encode()).digest()[:4], "little")
    made: dict[str, Any] = row.case.inputs(torch.Generator().manual_seed(seed))
    return made


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
