"""A run against a baseline of the same CPU: which rows are slower, with a memory between two thresholds.

What is compared is our least time over the least time of the row's reference peer, both over three runs in processes
of their own: a busy moment has to last through all three, and one process may lay out its memory badly. A row above
SUSPECT is run three times more; it counts as slower where all its runs together stay above CLEAR.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepseek_fast.bench import rooms, run
from deepseek_fast.cli import output

RUNS = 3
# Times the baseline's ratio. Between the two a row keeps the state it has.
SUSPECT = 1.15
CLEAR = 1.10
MIN_US = 20  # shorter calls jitter with the call's overhead, not with the kernel


@dataclass(frozen=True)
class Verdict:
    """What the gate found: compared rows, one sentence per slower row, and the runs pooled."""

    compared: int
    slower: tuple[str, ...]
    run: dict[str, Any]

    @property
    def text(self) -> str:
        found = f"bench gate: {self.compared} rows compared, {len(self.slower)} slower by more than {CLEAR - 1:.0%}"
        return "\n".join([*self.slower, found])


def find(where: Path, cpu: str) -> Path | None:
    """The baseline for this CPU: `where` itself, or in the folder `where` the file of this CPU, None without one."""
    if where.is_dir():
        found = where / file_name(cpu)
        return found if found.exists() else None
    if not where.exists():
        raise FileNotFoundError(
            f"bench: baseline must exist; got '{where}'; `deepseek-fast bench --json {where}` writes one"
        )
    return where


def file_name(cpu: str) -> str:
    """<cpu>.json"""
    return re.sub(r"[^a-z0-9]+", "-", cpu.lower()).strip("-") + ".json"


def load(path: Path, cpu: str) -> dict[str, Any]:
    """A baseline; ValueError where it is none or of another CPU."""
    baseline = run.read(path)
    found = baseline["machine"]["cpu"]
    if found != cpu:
        raise ValueError(
            f"bench: baseline must be of this CPU, {cpu}; got '{path}' of {found}; times of two CPUs say nothing about "
            f"a change: write one here with `deepseek-fast bench --json F`"
        )
    return baseline


def check(
    rows: Sequence[rooms.Row],
    baseline: dict[str, Any],
    measure: Callable[[Sequence[rooms.Row]], dict[str, Any]],
    *,
    keep: Path | None = None,
    progress: output.Progress | None = None,
) -> Verdict:
    """Runs `rows` three times, those above SUSPECT three times more, and judges. measure(rows) -> a run.

    keep: where the runs so far are written, pooled, after each.
    """
    runs: list[dict[str, Any]] = []

    def measure_more(wanted: Sequence[rooms.Row], why: str) -> dict[str, tuple[float, str]]:
        for i in range(RUNS):
            if progress:
                progress.step(f"{why} {i + 1} of {RUNS}")
            runs.append(measure(wanted))
            if keep:
                run.write(pooled(runs), keep)
        return factors(pooled(runs), baseline)

    found = measure_more(rows, "run")
    suspects = {row_id for row_id, (factor, _) in found.items() if factor > SUSPECT}
    again = [row for row in rows if row.id in suspects]
    if again:
        found = measure_more(again, f"{len(again)} suspects, run")
    slower = tuple(
        f"{row_id}: {factor:.2f} x the time of the baseline, measured against {label}"
        for row_id, (factor, label) in found.items()
        if row_id in suspects and factor > CLEAR
    )
    return Verdict(len(found), slower, pooled(runs))


def factors(now: dict[str, Any], baseline: dict[str, Any]) -> dict[str, tuple[float, str]]:
    """Row id -> (our ratio to the reference peer over the baseline's, the peer), for rows that both have."""
    before = {row["id"]: row for row in baseline["rows"]}
    found = {}
    for row in now["rows"]:
        known = before.get(row["id"])
        if known is None or known["min_us"] < MIN_US:
            continue
        for label, peer in known["peers"].items():
            if label in row["peers"] and peer["right"] and row["peers"][label]["right"]:
                found[row["id"]] = row["peers"][label]["time_ratio"] / peer["time_ratio"], label
                break
    return found


def pooled(runs: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Several runs as one: of each row the run where we were fastest, its peers' least times over all runs."""
    first, *others = runs
    by_id: dict[str, dict[str, Any]] = {}
    for row in (row for one in (first, *others) for row in one["rows"]):
        by_id[row["id"]] = _merge(by_id[row["id"]], row) if row["id"] in by_id else row
    return {**first, "rows": list(by_id.values()), "interrupted": any(one["interrupted"] for one in (first, *others))}


def _merge(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    row = min(a, b, key=lambda one: one["min_us"])
    peers = {}
    for label in dict.fromkeys((*row["peers"], *a["peers"], *b["peers"])):  # a quick run has not every peer
        have = [one["peers"][label] for one in (a, b) if label in one["peers"]]
        best = min(have, key=lambda peer: peer["min_us"])
        wrong = [peer for peer in have if not peer["right"]]
        peers[label] = {**(wrong[0] if wrong else best), "min_us": best["min_us"]}
        peers[label]["time_ratio"] = row["min_us"] / best["min_us"]
    # The largest error of all runs; null (NaN) is larger than any.
    error = max((one["error_over_bound"] for one in (a, b)), key=lambda value: (value is None, value or 0.0))
    return {**row, "peers": peers, "error_over_bound": error, "rounds": a["rounds"] + b["rounds"]}


def in_a_process(peer_names: Sequence[str]) -> Callable[[Sequence[rooms.Row]], dict[str, Any]]:
    """measure(rows) for `check`: every call in a fresh process."""

    def measure(rows: Sequence[rooms.Row]) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            wanted, found = Path(folder, "rows"), Path(folder, "run.json")
            wanted.write_text("\n".join(row.id for row in rows))
            command = [sys.executable, "-m", "deepseek_fast.bench.gate", str(wanted), str(found), *peer_names]
            child = subprocess.run(command, capture_output=True, text=True)
            if child.returncode:
                raise RuntimeError(
                    f"bench: a run must end well; got exit code {child.returncode}: {child.stderr[-400:]}"
                )
            result: dict[str, Any] = json.loads(found.read_text())
            return result

    return measure


def _child(wanted: str, found: str, *peer_names: str) -> None:
    ids = set(Path(wanted).read_text().split())
    rows = [row for row in rooms.rows(rooms.names()) if row.id in ids]
    run.write(run.collect(rows, peer_names, only_reference=True), Path(found))


if __name__ == "__main__":
    _child(*sys.argv[1:])
