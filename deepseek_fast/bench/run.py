"""A whole set of rows, kept as JSON after each one: an interrupted run loses the row in progress and nothing else."""

import contextlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from deepseek_fast.bench import ceiling, rooms, row
from deepseek_fast.cli import machine, output

SCHEMA = 2  # of the JSON; a baseline of another schema is refused
KIND = "operators"
PROGRESS_WIDTH = 60  # characters
ROW_KEYS = {"id", "room", "case", "isa", "threads", "min_us", "peers"}  # that a comparison reads


class Keeper:
    """A run in progress: `add` rows, then `done`. Until then it says "interrupted", also in its file."""

    def __init__(self, path: Path | None = None) -> None:
        """path: where the run is written after each row."""
        self._path = path
        self.data: dict[str, Any] = {
            "schema": SCHEMA,
            "kind": KIND,
            "machine": machine.describe(1),
            "ceilings": ceiling.measure(),
            "harness_ns": row.harness_seconds() * 1e9,
            "interrupted": True,
            "rows": [],
        }

    def add(self, data: dict[str, Any]) -> None:
        """Keeps a finished row."""
        self.data["rows"].append(data)
        self._write()

    def done(self) -> None:
        """Every row that was asked for is there."""
        self.data["interrupted"] = False
        self._write()

    def _write(self) -> None:
        if self._path is not None:
            write(self.data, self._path)


def collect(
    rows: Sequence[rooms.Row],
    peer_names: Sequence[str],
    *,
    only_reference: bool = False,
    keep: Path | None = None,
    progress: output.Progress | None = None,
    measure: Callable[..., dict[str, Any]] = row.measure,
) -> dict[str, Any]:
    """Measures every row; returns the run, "interrupted" true where Ctrl-C ended it.

    only_reference: of each row's peers the first alone, as the gate wants it.
    keep: where the run is written after each row.
    """
    import torch

    torch.set_num_threads(1)
    keeper, roofline = Keeper(keep), ceiling.Roofline()
    with contextlib.suppress(KeyboardInterrupt):
        for one in rows:
            if progress:
                progress.step(f"{one.room} {one.case.id} {one.isa}"[:PROGRESS_WIDTH])
            keeper.add(measure(one, peer_names, roofline, only_reference=only_reference))
        keeper.done()
    return keeper.data


def write(run: dict[str, Any], path: Path) -> None:
    """Beside the file, then renamed: a reader never sees half of it."""
    beside = path.with_name(path.name + ".part")
    try:
        beside.write_text(json.dumps(output.finite(run), indent=1) + "\n")
        beside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise


def check_writable(path: Path) -> None:
    """Raises OSError now rather than after minutes of measuring."""
    if path.is_dir():
        raise IsADirectoryError(f"bench: output must be a file; got the folder '{path}'")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise FileNotFoundError(f"bench: output must be in a folder that can be written; got '{path}'")


def read(path: Path) -> dict[str, Any]:
    """A kept run. Raises ValueError where the file is none, FileNotFoundError where there is none."""
    try:
        run = json.loads(path.read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(
            f"bench: baseline must be JSON of `deepseek-fast bench --json`; got '{path}': {error}"
        ) from None
    if not isinstance(run, dict) or run.get("schema") != SCHEMA or run.get("kind") != KIND:
        found = f"schema {run.get('schema')}, kind {run.get('kind')}" if isinstance(run, dict) else type(run).__name__
        raise ValueError(
            f"bench: baseline must have schema {SCHEMA}, kind {KIND}; got {found} in '{path}'; write it again with "
            f"`deepseek-fast bench --json {path}`"
        )
    rows = run.get("rows")
    whole = isinstance(rows, list) and all(isinstance(one, dict) and one.keys() >= ROW_KEYS for one in rows)
    if not whole or not isinstance(run.get("machine"), dict) or "cpu" not in run["machine"]:
        raise ValueError(
            f"bench: baseline must have whole rows and name its CPU; got '{path}'; write it again with "
            f"`deepseek-fast bench --json {path}`"
        )
    return run
