"""A run over networks: each step in a process of its own, whose crash is a remark; what is finished is kept."""

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.networks import openvino_folder
from bench.networks.contestants import NETWORKS, STOCK
from deepseek_fast.bench import run as runs
from deepseek_fast.cli import machine, output

FILES = openvino_folder.ROOT / "build" / "networks"  # of one network at a time, 1.6 GB at most; MiniLM's export stays
STEPS = 3  # of a network, for a progress bar
LOADS = 2  # processes for each contestant's load; one in a quick run
LEAST = ("load_ms", "first_ms", "peak_mb", "added_mb")
STEP_SECONDS = 300  # a process that takes longer hangs
Step = Callable[[str, dict[str, Any], Callable[[dict[str, Any]], None]], "str | None"]


def collect(
    names: list[str],
    *,
    quick: bool = False,
    keep: Path | None = None,
    progress: output.Progress | None = None,
    step: Step | None = None,
) -> dict[str, Any]:
    """Measures networks; "interrupted" is true where Ctrl-C ended it.

    keep: where the run is written after each network. step: `run_step`, or a test's.
    """
    described = machine.describe(1)
    if openvino := openvino_folder.version():
        described["versions"]["openvino"] = openvino
    data: dict[str, Any] = {
        "schema": runs.SCHEMA,
        "kind": "networks",
        "machine": described,
        "date": described["date"],
        "quick": quick,
        "seconds": 0.0,
        "interrupted": False,
        "rows": [],
        "loads": [],
        "facts": [],  # of a network: its operations, and what the machine did of each kind in a second beside it
        "skipped": [],
        "failed": [],
    }
    start = time.monotonic()
    FILES.mkdir(parents=True, exist_ok=True)
    for name in names:
        try:
            with tempfile.TemporaryDirectory(dir=FILES, prefix=f"{name}-") as folder:
                _network(data, name, Path(folder), progress, step or run_step)
        except KeyboardInterrupt:
            data["interrupted"] = True
        data["loads"] = _fastest(data["loads"])
        data["seconds"] = time.monotonic() - start
        if keep:
            runs.write(data, keep)
        if data["interrupted"]:
            break
    return data


def _network(data: dict[str, Any], name: str, folder: Path, progress: output.Progress | None, step: Step) -> None:
    """Adds what one network gives to the run."""
    job: dict[str, Any] = {"network": name, "folder": str(folder), "cache": str(FILES), "quick": data["quick"]}
    job["out"] = str(folder / "found.jsonl")
    made: dict[str, dict[str, Any]] = {}

    def found(record: dict[str, Any]) -> None:
        kind = record.pop("kind")
        if kind == "prepared":
            made[record.pop("contestant")] = record
            return
        more = {"loads": ("bytes",), "rows": ("our_nodes", "nodes")}.get(kind, ())
        data[kind].append({"network": name, **record, **{key: made[record["contestant"]][key] for key in more}})

    def run(what: str, contestants: list[str]) -> str | None:
        return step(what, job | {"contestants": contestants}, found)

    def failed(contestant: str | None, what: str, why: str) -> None:
        data["failed"].append({"network": name, "contestant": contestant, "step": what, "why": why})

    def says(what: str) -> None:
        if progress:
            progress.step(f"{name}: {what}")

    says("files and weights")
    if why := run("prepare", []):
        there = made.keys() | {one["contestant"] for one in data["failed"] if one["network"] == name}
        known = [one.name for one in NETWORKS[name].contestants()] if STOCK in made else [None]
        for missing in known:
            if missing not in there:
                failed(missing, "prepare", why)
    says("loading, a process each")
    candidates = [one for one in NETWORKS[name].contestants() if one.name in made]
    loads = 1 if data["quick"] else LOADS
    alive = []  # what kills its own process would take the others with it
    for contestant in candidates:
        if data["quick"] and contestant.runtime == "torch":
            what, why = f"load of {contestant.name}", "its processes import for 4 s each, too long for a quick run"
            data["skipped"].append({"network": name, "what": what, "why": why})
            alive.append(contestant.name)
        elif why := next(filter(None, (run("load", [contestant.name]) for _ in range(loads))), None):
            failed(contestant.name, "load", why)
        else:
            alive.append(contestant.name)
    says("timing, all in turn")
    if alive and (why := run("time", alive)):
        failed(None, "time", why)


def _fastest(loads: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One of each contestant and network, with the least of each figure."""
    merged: dict[tuple[str, str], dict[str, Any]] = {}
    for load in loads:
        best = merged.setdefault((load["network"], load["contestant"]), dict(load))
        best |= {key: min(best[key], load[key]) for key in LEAST if load[key] is not None}
    return list(merged.values())


def run_step(name: str, job: dict[str, Any], found: Callable[[dict[str, Any]], None]) -> str | None:
    """Runs a step in a process of its own and hands over every record, even of one that died; returns how it died."""
    out = Path(job["out"])
    out.unlink(missing_ok=True)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "bench.networks.child", name, json.dumps(job)],
            cwd=openvino_folder.ROOT,
            env=openvino_folder.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            timeout=STEP_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"ended after {STEP_SECONDS} s without an answer"
    finally:
        for record in _records(out):
            found(record)
    if done.returncode < 0:
        return f"killed by {signal.Signals(-done.returncode).name}"
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return last[:200] if done.returncode else None


def _records(path: Path) -> list[dict[str, Any]]:
    """Its lines; the last one of a killed process may be cut off."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records
