"""What lies in a checkpoint: its shards' headers, its index and config.json, every other file."""

import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepseek_fast.checkpoints._refuse import OP, quoted, refuse, tensor_of
from deepseek_fast.checkpoints._safetensors import Entry, Header, read_header

SUFFIX = ".safetensors"
WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
STATE = ".fp8_convert.json"  # in what we write: what was asked for, and each file that was read, its bytes and time
NOT_COPIED = (".git", ".cache")  # folders that tools keep beside a checkpoint


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is there."""

    folder: Path
    shards: dict[str, Header]  # by file name
    home: dict[str, str]  # tensor -> the shard that holds it
    index: dict[str, Any] | None
    config: dict[str, Any] | None
    others: tuple[str, ...]  # every other file, by path within the folder

    def entry(self, name: str) -> Entry:
        """The tensor of that name."""
        return self.shards[self.home[name]].entries[name]

    def path_of(self, name: str) -> Path:
        """The file that holds the tensor of that name."""
        return self.shards[self.home[name]].path

    def fingerprint(self) -> dict[str, list[int]]:
        """File -> bytes and time of its last change (ns), for every file that is read."""
        given = {INDEX: self.index, CONFIG: self.config}
        names = [*self.shards, *(name for name, found in given.items() if found is not None), *self.others]
        found = {name: (self.folder / name).stat() for name in sorted(names)}
        return {name: [one.st_size, one.st_mtime_ns] for name, one in found.items()}


def read_checkpoint(source: Path) -> Checkpoint:
    """The checkpoint in a folder, or the one file. Raises FileNotFoundError and ValueError for what is not whole."""
    if source.is_file():
        if source.suffix != SUFFIX:
            refuse("source", f"be a folder or a file *{SUFFIX}", quoted(str(source)))
        shards = {source.name: read_header(source)}
        return Checkpoint(source.parent, shards, _homes(shards), None, None, ())
    if not source.is_dir():
        raise FileNotFoundError(f"{OP}: source must exist; got {quoted(str(source))}")
    index, config = _read_json(source / INDEX), _read_json(source / CONFIG)
    names = [WHOLE] if index is None else _shards_of(index)
    for name in names:
        if not (source / name).is_file():
            where = f"with the shard that {INDEX} names" if index is not None else f"with {INDEX} or one file"
            raise FileNotFoundError(f"{OP}: source must be a folder {where}; got no {quoted(name)} in {str(source)!r}")
    shards = {name: read_header(source / name) for name in names}
    home = _homes(shards)
    for tensor, name in {} if index is None else index["weight_map"].items():
        if home.get(tensor) != name:
            refuse(f"{name}", f"hold the tensor {quoted(tensor)} that {INDEX} says it does", "none of that name")
    others = tuple(name for name in _files(source) if name not in {*names, INDEX, CONFIG, STATE})
    return Checkpoint(source, shards, home, index, config, others)


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        refuse(path.name, "be JSON", " ".join(str(error).split())[:80])
    if not isinstance(found, dict):
        refuse(path.name, "be a JSON object", type(found).__name__)
    return found


def _shards_of(index: dict[str, Any]) -> list[str]:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        refuse(INDEX, "have a weight_map of tensor -> shard", quoted(weight_map))
    if not isinstance(index.get("metadata", {}), dict):
        refuse(INDEX, "have an object as its metadata", quoted(index["metadata"]))
    for name in weight_map.values():
        if not isinstance(name, str) or Path(name).name != name or "\0" in name or not name.endswith(SUFFIX):
            refuse(INDEX, f"name shards *{SUFFIX} of its own folder", quoted(name))
    return sorted(set(weight_map.values()))


def _homes(shards: dict[str, Header]) -> dict[str, str]:
    home: dict[str, str] = {}
    for shard, header in shards.items():
        for name in header.entries:
            if name in home:
                refuse(tensor_of(header.path, name), "lie in one shard", f"another in {home[name]}")
            home[name] = shard
    return home


def _files(folder: Path) -> list[str]:
    """Every regular file below a folder, sorted; links to files are followed, links to folders are not."""
    found = []
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in NOT_COPIED]
        paths = [os.path.join(where, name) for name in names]
        found += [os.path.relpath(path, folder) for path in paths if stat.S_ISREG(os.stat(path).st_mode)]
    return sorted(found)
