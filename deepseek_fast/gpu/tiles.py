"""Tile sizes by small tables: the first row whose limits hold; or what `deepseek_fast.tune` measured on this device.

    GEMM = Table("fp8_matmul", "M", (
        Row({"BLOCK_M": 16, "BLOCK_N": 128, "num_warps": 4, "num_stages": 4}, M=16, why="derived: ..."),
        Row({"BLOCK_M": 128, "BLOCK_N": 128, "num_warps": 8, "num_stages": 3}, why="derived: ..."),
    ))
    config = GEMM.choose(M=M, N=N)

A row's limits are the largest sizes that it is for; `archs` the compute capabilities, all if not given.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deepseek_fast.gpu import launch

Config = dict[str, Any]  # constants of a kernel, with num_warps and num_stages


class Row:
    def __init__(self, config: Config, *, why: str, archs: tuple[int, ...] | None = None, **limits: int) -> None:
        self.config, self.why, self.archs, self.limits = config, why, archs, limits

    def holds(self, arch: int, sizes: dict[str, int]) -> bool:
        return (self.archs is None or arch in self.archs) and all(
            sizes[name] <= limit for name, limit in self.limits.items()
        )


class Table:
    """rows: the last must hold always. key: the sizes, a word each, whose powers of two a tuned choice is kept by."""

    def __init__(self, name: str, key: str, rows: tuple[Row, ...]) -> None:
        self.name, self.key, self.rows = name, tuple(key.split()), rows
        self.module = str(sys._getframe(1).f_globals["__name__"])  # whose calls must reach every row
        TABLES[name] = self

    def choose(self, **sizes: int) -> Config:
        for asked in _listeners:
            asked[self.cache_key(sizes)] = (self, dict(sizes))
        chosen = _forced.get(self.name) or _tuned().get(self.cache_key(sizes)) or self.row(**sizes).config
        return dict(chosen)

    def row(self, **sizes: int) -> Row:
        arch = launch.arch()
        # A chip between two known ones takes the rows of the one below it.
        known = max((a for a in launch.ARCHS if a <= arch), default=launch.ARCHS[0])
        return next(row for row in self.rows if row.holds(known, sizes))

    def candidates(self, sizes: dict[str, int]) -> list[Config]:
        """What tuning tries: every row for this chip."""
        known = max((a for a in launch.ARCHS if a <= launch.arch()), default=launch.ARCHS[0])
        found: list[Config] = []
        for row in self.rows:
            if (row.archs is None or known in row.archs) and row.config not in found:
                found.append(row.config)
        return found

    def cache_key(self, sizes: dict[str, int]) -> str:
        return " ".join([self.name, *(f"{name}={_power(sizes[name])}" for name in self.key)])


TABLES: dict[str, Table] = {}
_forced: dict[str, Config] = {}
_listeners: list[dict[str, tuple[Table, dict[str, int]]]] = []


@contextlib.contextmanager
def forced(name: str, config: Config) -> Iterator[None]:
    """The table of that name gives config."""
    _forced[name] = config
    try:
        yield
    finally:
        del _forced[name]


@contextlib.contextmanager
def asked() -> Iterator[dict[str, tuple[Table, dict[str, int]]]]:
    """Which tables are asked inside, and for which sizes, by cache key."""
    found: dict[str, tuple[Table, dict[str, int]]] = {}
    _listeners.append(found)
    try:
        yield found
    finally:
        _listeners.remove(found)


def cache_file() -> Path:
    """Where tuned choices of this device, torch and triton are: in DSF_TUNE_DIR or the user's cache folder."""
    import torch
    import triton

    from deepseek_fast._version import __version__

    folder = (
        os.environ.get("DSF_TUNE_DIR")
        or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "deepseek_fast"
    )
    device = torch.cuda.get_device_name().replace(" ", "-").replace("/", "-").lower()
    return Path(folder) / f"tune-{device}-{__version__}-triton-{triton.__version__}.json"


@functools.cache
def _tuned() -> dict[str, Config]:
    import torch

    if not torch.cuda.is_available():
        return {}
    try:
        choices: dict[str, Config] = json.loads(cache_file().read_text())
    except (OSError, ValueError):
        return {}
    return choices


def keep_tuned(choices: dict[str, Config]) -> Path:
    """Adds choices to the cache file and uses them from now on."""
    path = cache_file()
    merged = _tuned() | choices
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(merged, indent=1, sort_keys=True))
    part.replace(path)
    _tuned.cache_clear()
    return path


def _power(size: int) -> int:
    """The power of two at or above size."""
    return 1 << max(0, size - 1).bit_length()
