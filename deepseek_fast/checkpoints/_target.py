"""The folder that is written: empty, or begun by the same conversion, whose whole files stay."""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deepseek_fast.checkpoints._output import part_of, write_file
from deepseek_fast.checkpoints._plan import Plan
from deepseek_fast.checkpoints._refuse import OP, quoted, refuse
from deepseek_fast.checkpoints._safetensors import Header
from deepseek_fast.checkpoints._source import STATE, Checkpoint

VERSION = 1  # of that file
SPARE = 1 << 20  # bytes for what is small: folders, index, config.json


@contextlib.contextmanager
def begun(folder: Path, plan: Plan) -> Iterator[None]:
    """Makes the folder or goes on with it; while the context lasts no other run writes there."""
    if not folder.parent.is_dir():
        raise FileNotFoundError(f"{OP}: target must lie in a folder that exists; got {quoted(str(folder))}")
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{OP}: target must be a folder, new or empty; got a file {quoted(str(folder))}")
    made = not folder.exists()
    folder.mkdir(exist_ok=True)
    lock = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _lock(lock, folder)
        wanted = {"version": VERSION, "arguments": plan.options.as_json(), "source": plan.checkpoint.fingerprint()}
        if (folder / STATE).is_file():
            _check_state(folder, wanted)
        else:
            _check_empty(folder)
        try:
            check_space(folder, plan)
        except OSError:
            if made:
                folder.rmdir()
            raise
        if not (folder / STATE).is_file():
            write_file(folder / STATE, json.dumps(wanted, indent=1).encode())
        yield
    finally:
        os.close(lock)


def check_space(folder: Path, plan: Plan) -> None:
    """Raises OSError where the disk has less room than what is still to be written."""
    others = [(plan.checkpoint.folder / name, folder / name) for name in plan.checkpoint.others]
    needed = sum(header.size for shard, header in plan.outputs.items() if not is_whole(folder / shard, header))
    needed += sum(one.stat().st_size for one, other in others if not is_copied(one, other)) + SPARE
    leftovers = [part_of(folder / name) for name in (*plan.outputs, *plan.checkpoint.others)]
    free = shutil.disk_usage(folder).free + sum(part.stat().st_size for part in leftovers if part.is_file())
    if free < needed:
        raise OSError(f"{OP}: target must lie on a disk with {needed} bytes free; got {free} in {str(folder)!r}")


def check_unchanged(checkpoint: Checkpoint, folder: Path) -> None:
    """Raises ValueError where a file of the source has changed since the folder was begun."""
    _check_state(folder, {"source": checkpoint.fingerprint()})


def is_whole(path: Path, header: Header) -> bool:
    """Whether the file is there: it got its name when it was whole, so its size and header say enough."""
    if not path.is_file() or path.stat().st_size != header.size:
        return False
    with path.open("rb") as file:
        return file.read(len(header.raw)) == header.raw


def is_copied(source: Path, target: Path) -> bool:
    """Whether a copy is there."""
    return target.is_file() and target.stat().st_size == source.stat().st_size


def _lock(fd: int, folder: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        refuse("target", "be written by one run at a time", f"another one in {str(folder)!r}")
    except OSError:  # a file system without locks
        pass


def _check_state(folder: Path, wanted: dict[str, Any]) -> None:
    try:
        found = json.loads((folder / STATE).read_bytes())
        parts = {name: found[name] for name in wanted}
    except (ValueError, RecursionError, KeyError, TypeError):
        refuse("target", f"hold a {STATE} that can be read", quoted(str(folder / STATE)))
    if parts.get("version") != wanted.get("version") or parts.get("arguments") != wanted.get("arguments"):
        rule = f"be empty or begun with the same arguments, {json.dumps(wanted['arguments'])}"
        refuse("target", rule, json.dumps(parts["arguments"])[:200])
    if parts["source"] != wanted["source"]:
        refuse(
            "source", "be as it was when target was begun: remove target and start again", "files of other size or time"
        )


def _check_empty(folder: Path) -> None:
    found = sorted(path.name for path in folder.iterdir() if path.name != part_of(folder / STATE).name)
    if found:
        raise FileExistsError(f"{OP}: target must be empty or begun by {OP}; got {quoted(found[0])} in {str(folder)!r}")
