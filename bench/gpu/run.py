"""On a GPU machine: numerics of every room against the CPU's references, then the table of times; one command.

    python -m bench.gpu.run [--rooms fp8_cast ...] [--seconds 480] [--no-tests] [--tune] [--out bench/gpu/results]

Writes <out>/<date>-<gpu>.json after every row, and a table beside it. Rows that the time was too short for are named.
"""

import argparse
import datetime
import importlib
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.gpu import timing

ROOT = Path(__file__).resolve().parent.parent.parent
ROOMS = (ROOT / "kernels" / "rooms.txt").read_text().split()
TESTS_SECONDS = 240  # of the numerics, at most


def facts() -> dict[str, Any]:
    """What the numbers were taken on and with."""
    import torch
    import triton

    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
        "date": datetime.date.today().isoformat(),
    }


def numerics(rooms: list[str], seconds: float) -> dict[str, Any]:
    """The rooms' GPU tests: how many passed, and the ids and last lines of those that did not."""
    files = [str(path) for room in rooms for path in sorted((ROOT / "kernels" / room).glob("test_*triton*.py"))]
    files += [str(path) for path in sorted((ROOT / "tests").glob("test_gpu_*.py"))]
    # Most of the time is Triton's compiler: as many processes as pytest-xdist gives, where it is there.
    spread = ["-n", str(os.cpu_count() or 1)] if importlib.util.find_spec("xdist") else []
    command = [sys.executable, "-m", "pytest", "-m", "gpu and not slow", "-q", "--tb=line", "-rf", *spread, *files]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
        text = done.stdout
    except subprocess.TimeoutExpired as error:
        text = (error.stdout or b"").decode() + f"\nstopped after {seconds:.0f} s"
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|error|skipped|deselected)", text)}
    failed = [line for line in text.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return {"counts": counts, "failed": failed, "end": text.splitlines()[-40:] if failed or not counts else []}


def row_of(room: str, bench: Any, ceilings: dict[str, float]) -> dict[str, Any]:
    """One Bench measured: ours and its peers in one run, the answer checked on the inputs that are timed."""
    inputs = bench.inputs()
    result = bench.ours(**inputs)
    row: dict[str, Any] = {"room": room, "case": bench.name, "error": bench.error(inputs, result)}
    del result
    calls: dict[str, Callable[[], Any]] = {"ours": lambda: bench.ours(**inputs)}
    missing: dict[str, str] = {}
    for peer in bench.peers:
        try:
            calls[peer.name] = peer.prepare(inputs)
            calls[peer.name]()
        except (ImportError, RuntimeError, ValueError, NotImplementedError, AttributeError) as error:
            calls.pop(peer.name, None)
            missing[peer.name] = f"{type(error).__name__}: {error}"[:300]
    row["host_us"] = timing.eager_us(calls["ours"])
    graphs = {name: timing.captured(call) for name, call in calls.items()}
    times = timing.side_by_side({name: call for name, (call, _) in graphs.items()})
    us = {name: statistics.median(values) for name, values in times.items()}
    low, _, high = statistics.quantiles(times["ours"], n=4)
    row |= {"us": us["ours"], "spread": (high - low) / us["ours"], "graph": graphs["ours"][1]}
    row |= {"of_copy": bench.bytes / (us["ours"] * 1e-6) / ceilings["copy"]}
    row |= {"of_product": bench.flops / (us["ours"] * 1e-6) / ceilings["product"]}
    row |= {"peers_us": {name: value for name, value in us.items() if name != "ours"}, "missing_peers": missing}
    if bench.goal is not None:
        row |= {"goal": bench.goal.ratio, "goal_of": bench.goal.of, "reached": _reached(bench.goal.of, row)}
    return row


def _reached(of: str, row: dict[str, Any]) -> float | None:
    if of in ("copy", "product"):
        return float(row[f"of_{of}"])
    peer = row["peers_us"].get(of)
    return None if peer is None else float(peer / row["us"])


def tuned(bench: Any) -> dict[str, Any]:
    """What `deepseek_fast.tune` finds better than the table's choice."""
    import deepseek_fast

    inputs = bench.inputs()
    try:
        return deepseek_fast.tune(bench.ours, **inputs)
    except RuntimeError as error:
        return {"none": str(error)}


def table(results: dict[str, Any]) -> str:
    """The rows as Markdown."""
    head = (
        "| room | case | us | of copy | of bf16 product | fastest peer | x its speed | goal | reached | error |\n"
        "|---|---|--:|--:|--:|---|--:|---|--:|--:|\n"
    )
    lines = []
    for row in results["rows"]:
        if "fault" in row:
            lines.append(f"| {row['room']} | {row['case']} | {row['fault']} |||||||")
            continue
        peer = min(row["peers_us"], key=row["peers_us"].get, default="")
        times = f"{row['peers_us'][peer] / row['us']:.2f}" if peer else ""
        goal = f"{row['goal']:.2f} of {row['goal_of']}" if "goal" in row else ""
        reached = row.get("reached")
        lines.append(
            f"| {row['room']} | {row['case']} | {row['us']:.1f} | {row['of_copy']:.0%} | {row['of_product']:.0%} | "
            f"{peer} | {times} | {goal} | {'' if reached is None else f'{reached:.2f}'} | {row['error']:.2g} |"
        )
    return head + "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rooms", nargs="+", choices=ROOMS, default=ROOMS)
    parser.add_argument("--cases", default="", help="a pattern that a row's name must match")
    parser.add_argument("--seconds", type=float, default=480.0, help="for everything")
    parser.add_argument("--no-tests", action="store_true")
    parser.add_argument("--tune", action="store_true", help="also report the choices that tuning finds better")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "gpu" / "results")
    options = parser.parse_args()
    begin = time.monotonic()

    import torch

    if not torch.cuda.is_available():
        print("bench.gpu.run: a CUDA GPU must be there; got none")
        return 2
    results: dict[str, Any] = {"facts": facts(), "ceilings": timing.ceilings(), "rows": [], "left_out": []}
    ceilings = results["ceilings"]
    print(f"{results['facts']['gpu']}: copy {ceilings['copy'] / 1e12:.2f} TB/s, "
          f"bf16 product {ceilings['product'] / 1e12:.0f} TFLOP/s")  # fmt: skip
    name = f"{results['facts']['date']}-{re.sub('[^a-z0-9]+', '-', results['facts']['gpu'].lower())}"
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{name}.json"
    if not options.no_tests:
        results["numerics"] = numerics(options.rooms, min(TESTS_SECONDS, options.seconds))
        print("numerics:", results["numerics"]["counts"], *results["numerics"]["failed"], sep="\n")
    for room in options.rooms:
        for bench in importlib.import_module(f"deepseek_fast.kernels.{room}.gpu_cases").BENCH:
            if not re.search(options.cases, bench.name):
                continue
            if time.monotonic() - begin > options.seconds:
                results["left_out"].append(f"{room} {bench.name}")
                continue
            try:
                with torch.device("cuda"):
                    row = row_of(room, bench, ceilings)
                    if options.tune:
                        row["tuned"] = tuned(bench)
            except Exception as error:  # of any kind: one row's fault leaves the others to be measured
                row = {"room": room, "case": bench.name, "fault": f"{type(error).__name__}: {error}"[:500]}
            torch.cuda.empty_cache()
            results["rows"].append(row)
            print(table({"rows": [row]}).splitlines()[-1], flush=True)
            path.write_text(json.dumps(results, indent=1) + "\n")
    path.write_text(json.dumps(results, indent=1) + "\n")
    path.with_suffix(".md").write_text(table(results))
    wrong = [row["case"] for row in results["rows"] if "fault" in row or not row["error"] <= 1]
    print("\n".join([f"left out: {one}" for one in results["left_out"]] + [f"wrong: {one}" for one in wrong]))
    failed = not options.no_tests and bool(results["numerics"]["failed"])
    return 1 if wrong or failed else 0


if __name__ == "__main__":
    sys.exit(main())
