"""One step of one network, in a process of its own: `python -m bench.networks.child STEP JOB`, the job as JSON.

What is found out goes to the job's file line by line, so that a process that is killed loses what is missing only.
"""

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

from bench.networks import files as networks_files
from bench.networks import load as networks_load
from bench.networks import remote as networks_remote
from bench.networks import timing as networks_timing
from bench.networks.contestants import BY_NAME, NETWORKS
from deepseek_fast.bench import ceiling
from deepseek_fast.cli import output


def main() -> None:
    step, job = sys.argv[1], json.loads(sys.argv[2])
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: its threads and ORT's would fight
    {"prepare": prepare, "load": load, "time": timing, "serve": networks_remote.serve}[step](job)


def prepare(job: dict[str, Any]) -> None:
    """Makes every contestant's file."""
    folder = Path(job["folder"])
    for contestant, why in networks_files.prepare(NETWORKS[job["network"]], folder, Path(job["cache"])):
        if why is not None:
            tell(job, "failed", contestant=contestant.name, step="prepare", why=networks_timing.short(why))
            continue
        ours, nodes = networks_files.count_nodes(contestant, folder)
        size = networks_files.files_bytes(contestant, folder)
        tell(job, "prepared", contestant=contestant.name, bytes=size, our_nodes=ours, nodes=nodes)
    if NETWORKS[job["network"]].light:
        tell(job, "facts", flops=networks_files.reference(NETWORKS[job["network"]], folder))


def load(job: dict[str, Any]) -> None:
    """Milliseconds until the session is there and until its first answer; the process' peak memory."""
    network, contestant = NETWORKS[job["network"]], BY_NAME[job["contestants"][0]]
    networks_load.import_packages(contestant)
    arrays = network.inputs(network.batch)
    before = peak_bytes()
    start = time.perf_counter()
    call = networks_load.load(contestant, Path(job["folder"]), 1)
    loaded = time.perf_counter()
    call(arrays)
    answered = time.perf_counter()
    after = peak_bytes()
    tell(
        job,
        "loads",
        contestant=contestant.name,
        load_ms=(loaded - start) * 1e3,
        first_ms=(answered - start) * 1e3,
        peak_mb=after / 1e6,
        added_mb=(after - before) / 1e6,
    )


def timing(job: dict[str, Any]) -> None:
    """Rows of every number of threads and every batch."""

    def found(kind: str, **data: Any) -> None:
        tell(job, kind, **data)

    rates = ceiling.measure()["rates"]
    tell(job, "facts", rates={name: rate["per_second"] for name, rate in rates.items()})
    contestants = [BY_NAME[name] for name in job["contestants"]]
    networks_timing.sweep(NETWORKS[job["network"]], Path(job["folder"]), contestants, quick=job["quick"], found=found)


def tell(job: dict[str, Any], kind: str, **data: Any) -> None:
    """Appends a line to the job's file."""
    with open(job["out"], "a") as file:
        file.write(json.dumps(output.finite({"kind": kind, **data})) + "\n")


def peak_bytes() -> float:
    """The largest memory that this process has had so far; NaN where the system does not say."""
    try:
        with open("/proc/self/status") as lines:
            return next((float(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), math.nan)
    except OSError:
        return math.nan


if __name__ == "__main__":
    main()
