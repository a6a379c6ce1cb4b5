"""The safetensors format: headers read and checked, headers made. No tensor's bytes pass here.

A file is the header's length (8 bytes, little endian), the header (JSON: name -> dtype, shape, data_offsets), the
tensors one behind the other without gaps.
Source: https://github.com/huggingface/safetensors, README.md, "Format", and the checks of `Metadata::validate`.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from deepseek_fast.checkpoints._refuse import quoted, refuse, tensor_of

BITS = {
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}
LENGTH_BYTES = 8
MAX_HEADER = 100_000_000  # bytes; safetensors' own limit
ALIGNMENT = 8  # bytes; the tensors begin at a multiple of it
METADATA = "__metadata__"
FIELDS = ("dtype", "shape", "data_offsets")


class Entry(NamedTuple):
    """Where a tensor lies in its file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int  # bytes from the file's start

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * BITS[self.dtype] // 8


@dataclass(frozen=True)
class Header:
    """A safetensors file without its tensors' values."""

    path: Path
    entries: dict[str, Entry]  # in the order of their offsets
    metadata: dict[str, str]
    size: int  # bytes of the file
    raw: bytes  # the file's start, up to the first tensor


def read_header(path: Path) -> Header:
    """The header of a file, checked against the file's size. Raises ValueError for what breaks the format."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        prefix = file.read(LENGTH_BYTES)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < LENGTH_BYTES:
            refuse(path.name, f"be a safetensors file, {LENGTH_BYTES} bytes at least", f"{size} bytes")
        if length > min(size - LENGTH_BYTES, MAX_HEADER):
            refuse(path.name, f"have a header that fits into its {size} bytes", f"a header of {length} bytes")
        text = file.read(length)
    try:
        found = json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        refuse(path.name, "have a header in JSON", f"{quoted(text[:40])} ({' '.join(str(error).split())[:80]})")
    if not isinstance(found, dict):
        refuse(path.name, "have a JSON object as its header", type(found).__name__)
    metadata = found.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        refuse(path.name, f"map names to strings in {METADATA}", quoted(metadata))
    start = LENGTH_BYTES + length
    entries = _in_order(path, [_entry(path, name, value, start, size) for name, value in found.items()], start, size)
    return Header(path, entries, metadata, size, prefix + text)


def make_header(path: Path, tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]) -> Header:
    """The header of a file to write: the tensors in their order, but larger dtypes before smaller ones."""
    ordered = sorted(tensors, key=lambda tensor: -BITS[tensor[1]])  # so each lies at a multiple of its element's size
    header: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    entries, end = [], 0
    for name, dtype, shape in ordered:
        entries.append(Entry(name, dtype, shape, end))
        header[name] = dict(zip(FIELDS, (dtype, shape, (end, end + entries[-1].size)), strict=True))
        end += entries[-1].size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(LENGTH_BYTES + len(text)) % ALIGNMENT)
    if len(text) > MAX_HEADER:
        refuse(path.name, f"have a header of at most {MAX_HEADER} bytes", f"{len(text)} for {len(ordered)} tensors")
    raw = len(text).to_bytes(LENGTH_BYTES, "little") + text
    placed = {entry.name: entry._replace(offset=len(raw) + entry.offset) for entry in entries}
    return Header(path, placed, dict(metadata), len(raw) + end, raw)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands in it twice")
    return found


def _entry(path: Path, name: str, value: Any, start: int, size: int) -> Entry:
    what = tensor_of(path, name)
    if not isinstance(value, dict) or any(field not in value for field in FIELDS):
        refuse(what, f"have {', '.join(FIELDS)}", quoted(value))
    dtype, shape, offsets = (value[field] for field in FIELDS)
    if not isinstance(dtype, str) or dtype not in BITS:
        refuse(what, f"have a dtype of {', '.join(BITS)}", quoted(dtype))
    if not _is_sizes(shape):
        refuse(what, "have a shape of whole numbers, zero or more", quoted(shape))
    if not _is_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        refuse(what, "have data_offsets of a begin and an end, not before it", quoted(offsets))
    begin, end = offsets
    if start + end > size:
        refuse(what, f"end within the file's {size - start} bytes of tensors", end)
    if math.prod(shape) * BITS[dtype] != (end - begin) * 8:
        wanted = math.prod(shape) * BITS[dtype] / 8
        refuse(what, f"have {wanted:.15g} bytes, for {dtype} of shape {quoted(tuple(shape))}", end - begin)
    return Entry(name, dtype, tuple(shape), start + begin)


def _is_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _in_order(path: Path, entries: list[Entry], start: int, size: int) -> dict[str, Entry]:
    """By offset; refuses overlaps and gaps, also behind the last tensor."""
    entries = sorted(entries, key=lambda entry: (entry.offset, entry.size))
    end = start
    for entry in entries:
        if entry.offset != end:
            how = "an overlap" if entry.offset < end else "a gap"
            refuse(
                tensor_of(path, entry.name),
                f"begin at {end - start}, where the one before it ends",
                f"{entry.offset - start}, {how}",
            )
        end += entry.size
    if end != size:
        refuse(path.name, f"end with its last tensor, at {end} bytes", f"{size} bytes")
    return {entry.name: entry for entry in entries}
