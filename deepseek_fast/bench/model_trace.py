"""ONNX Runtime's profile file, read into nodes: one event a line, the nodes of a run before its `model_run`."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepseek_fast.bench.model_cost import Tensor

KERNEL = "_kernel_time"  # behind the node's name
RUN = "model_run"

Key = tuple[str, str, str]  # (names of the nodes around it, node index, operator)


@dataclass
class Seen:
    """One node over the runs."""

    name: str
    op_type: str
    inside: str  # names of the Loop, If or Scan around it, "" in the main graph
    calls: int = 0  # in a run
    inner: int = 0  # nodes that ran in it, in a run, all calls together
    samples: list[float] = field(default_factory=list)  # us of a run, all calls together
    shapes: set[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]] = field(default_factory=set)


@dataclass
class _Event:
    name: str
    inside: str
    us: float  # without the nodes inside it
    start: int
    args: dict[str, Any]
    inner: int = 0


def read(path: Path, dropped: int = 0) -> list[Seen]:
    """The nodes of ONNX Runtime's profile file, in the order of the first kept run.

    A node inside a Loop is one node with many calls; the time of the Loop is without those of the nodes in it.
    """
    seen: dict[Key, Seen] = {}
    number = -1
    for number, run in enumerate(_runs(path)):
        if number < dropped:
            continue
        total: dict[Key, list[_Event]] = {}
        for event in sorted(run, key=lambda event: event.start):
            key = (event.inside, str(event.args.get("node_index")), str(event.args.get("op_name", "?")))
            node = seen.setdefault(key, Seen(event.name, key[2], event.inside))
            total.setdefault(key, []).append(event)
            node.shapes.add((_tensors(event.args, "input_type_shape"), _tensors(event.args, "output_type_shape")))
        for key, events in total.items():
            seen[key].samples.append(sum(event.us for event in events))
            seen[key].calls, seen[key].inner = len(events), sum(event.inner for event in events)
    if number < dropped:
        raise RuntimeError(f"bench: profile must hold more than {dropped} complete runs; got {number + 1}")
    return list(seen.values())


def _runs(path: Path) -> Iterator[list[_Event]]:
    """The nodes of each complete run; nodes end in the order of the file, so a Loop comes after what is in it."""
    run: list[_Event] = []
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if f'"{RUN}"' not in line and KERNEL not in line:
                continue
            try:
                raw = json.loads(line.strip().rstrip(","))
            except ValueError:  # cut off, where the disk is full
                continue
            if raw.get("name") == RUN:
                yield run
                run = []
            elif raw.get("cat") == "Node":
                name = str(raw.get("name")).removesuffix(KERNEL)
                event = _Event(name, "", float(raw.get("dur", 0)), int(raw.get("ts", 0)), raw.get("args") or {})
                for other in reversed(run):
                    if other.start < event.start:
                        break
                    event.us -= other.us
                    event.inner += not other.inside
                    other.inside = f"{name}/{other.inside}"
                run.append(event)


def _tensors(args: dict[str, Any], key: str) -> tuple[Tensor, ...]:
    """[{"float": [8, 64]}, ...]; what has no such form is left out."""
    found = args.get(key)
    pairs = [pair for one in found if isinstance(one, dict) for pair in one.items()] if isinstance(found, list) else []
    return tuple(Tensor(dtype, tuple(shape)) for dtype, shape in pairs if isinstance(shape, list))
