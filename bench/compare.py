"""Prints a run's rows beside this CPU's committed baseline, keeps a run as baseline, or gates CI on it.

`python -m bench.compare ROWS [--demo FILE] [--write]`, `python -m bench.compare --gate ROWS ROWS ROWS`
Ratios of minima, ours over a peer timed in turn, are compared; times of different hours or machines never are.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from bench import ceiling
from deepseek_fast.cli import machine, output

BASELINES = Path(__file__).resolve().parent / "baseline"
SLOWER = 1.25  # gate: best ratio of the runs over the baseline's
# Shorter calls jitter with the call overhead, not with the kernel.
GATE_MIN_US = 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("rows", type=Path, nargs="+", help="JSON of `pytest -c bench/pytest.ini bench --rows`")
    parser.add_argument("--demo", type=Path, help="demo.json of `deepseek-fast demo`, kept with the baseline")
    parser.add_argument("--write", action="store_true", help="keep the run as this CPU's baseline")
    parser.add_argument(
        "--gate", action="store_true", help="fail where the best of the runs is slower than the baseline"
    )
    arguments = parser.parse_args()
    runs = [json.loads(path.read_text()) for path in arguments.rows]
    path = baseline_path(runs[0]["machine"]["cpu"])
    baseline = json.loads(path.read_text()) if path.exists() else None
    if arguments.gate:
        return gate(runs, baseline, path)
    print(text(runs[0], baseline))
    if arguments.write:
        if arguments.demo:
            runs[0]["demo"] = json.loads(arguments.demo.read_text())
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(runs[0], indent=1) + "\n")
        print(f"kept as {path.relative_to(BASELINES.parent.parent)}")
    return 0


def baseline_path(cpu: str) -> Path:
    """bench/baseline/<cpu>.json"""
    return BASELINES / (re.sub(r"[^a-z0-9]+", "-", cpu.lower()).strip("-") + ".json")


def fairest(row: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """The fastest peer whose answer is right."""
    right = {name: peer for name, peer in row["peers"].items() if peer["right"]}
    return min(right.items(), key=lambda item: item[1]["min_us"]) if right else None


def text(run: dict[str, Any], baseline: dict[str, Any] | None) -> str:
    """One line a row of the highest level, then all levels' rates side by side."""
    before = {row["id"]: row for row in (baseline or {"rows": []})["rows"]}
    header = (
        "room and case",
        "isa",
        "us",
        "spread",
        "GFLOP/s",
        "GB/s",
        "of ceiling",
        "err/bound",
        "x fastest",
        "was",
        "peer",
    )
    lines = []
    for row in run["rows"]:
        if row["isa"] != run["machine"]["isa"]:
            continue
        best = fairest(row)
        wrong = [name for name, peer in row["peers"].items() if not peer["right"]]
        peer = f"{best[0]} {best[1]['min_us']:.1f} us" if best else "none"
        was = best and before.get(row["id"], {"peers": {}})["peers"].get(best[0])
        lines.append(
            (
                f"{row['room']} {row['case']}",
                row["isa"],
                f"{row['min_us']:.1f}",
                f"{row['spread']:.0%}",
                f"{row['gflops']:.0f}",
                f"{row['gbytes']:.1f}",
                f"{row['share_of_ceiling']:.0%}",
                f"{row['error_over_bound']:.2g}",
                f"{best[1]['time_ratio']:.2f}" if best else "",
                f"{was['time_ratio']:.2f}" if was else "",
                peer + "".join(f"; WRONG: {name}" for name in wrong),
            )
        )
    legend = (
        "us, rates: best round; x fastest: our time over the fastest right peer's in the same run, below 1 is faster"
    )
    table = output.table(header, lines)
    return "\n".join([table, legend, *_levels(run), ceiling.text(run["ceilings"]), machine.line(run["machine"])])


def _levels(run: dict[str, Any]) -> list[str]:
    """GFLOP/s of every case at every level that was run; nothing where that is one level."""
    levels = list(dict.fromkeys(row["isa"] for row in run["rows"]))
    if len(levels) < 2:
        return []
    cases: dict[str, dict[str, str]] = {}
    for row in run["rows"]:
        cases.setdefault(f"{row['room']} {row['case']}", {})[row["isa"]] = f"{row['gflops']:.0f}"
    return [
        "",
        output.table(
            ("GFLOP/s", *levels), [(case, *(of.get(isa, "") for isa in levels)) for case, of in cases.items()]
        ),
    ]


def gate(runs: list[dict[str, Any]], baseline: dict[str, Any] | None, path: Path) -> int:
    """0 where no row's best ratio to its reference peer is SLOWER times the baseline's."""
    if baseline is None:
        print(f"bench gate: no baseline {path.name} for this CPU: nothing to compare; `make bench-baseline` makes one")
        return 0
    before = {row["id"]: row for row in baseline["rows"]}
    slow, compared = [], 0
    for row in runs[0]["rows"]:
        known = before.get(row["id"])
        reference = next(iter(row["peers"]), None)
        if known is None or reference not in known["peers"] or known["min_us"] < GATE_MIN_US:
            continue
        compared += 1
        found = [
            other["peers"][reference]["time_ratio"] for run in runs for other in run["rows"] if other["id"] == row["id"]
        ]
        factor = min(found) / known["peers"][reference]["time_ratio"]
        if factor > SLOWER:
            slow.append(f"{row['id']}: {factor:.2f} x slower against {reference} than in {path.name}")
    print("\n".join([*slow, f"bench gate: {compared} rows compared, {len(slow)} slower by {SLOWER - 1:.0%} or more"]))
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
