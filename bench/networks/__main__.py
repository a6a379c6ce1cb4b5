"""MiniLM and nine convolutional networks, end to end: `python -m bench.networks [NAME ...] [--quick] [--json F]`.

Stock ONNX Runtime, its own int8, ours, torch and, where it is installed, OpenVINO: times in turn, on one to all threads
and for several batches, answers against stock ONNX Runtime's, time to load and memory in fresh processes.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from bench.networks import run as networks_run
from bench.networks import table as networks_table
from bench.networks.contestants import BY_NAME, NETWORKS, QUICK
from deepseek_fast.bench import run as runs
from deepseek_fast.cli import CHECK_FAILED, INTERRUPTED, OK, USER_MISTAKE, output


def main(argv: list[str] | None = None) -> int:
    """0 where all of ours are right, 1 where one is wrong or missing, 2 for a wrong argument, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="bench.networks", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all; {', '.join(NETWORKS)}")
    parser.add_argument("--quick", action="store_true", help=f"one thread, one batch; without NAME {', '.join(QUICK)}")
    parser.add_argument("--json", type=Path, metavar="F", help="write the figures to F, a network at a time")
    arguments = parser.parse_args(argv)
    names = list(dict.fromkeys(arguments.names)) or list(QUICK if arguments.quick else NETWORKS)
    try:
        for name in names:
            if name not in NETWORKS:
                raise ValueError(f"bench: networks must be among {', '.join(NETWORKS)}; got '{name}'")
        if arguments.json:
            runs.check_writable(arguments.json)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return USER_MISTAKE
    with output.Progress(len(names) * networks_run.STEPS) as progress:
        data = networks_run.collect(names, quick=arguments.quick, keep=arguments.json, progress=progress)
    print(networks_table.text(data))
    if data["interrupted"]:
        return INTERRUPTED
    return OK if right(data) else CHECK_FAILED


def right(data: dict[str, Any]) -> bool:
    """Whether every answer of ours is there and right; a network that could not be made is nobody's answer."""
    wrong = [row for row in data["rows"] if BY_NAME[row["contestant"]].ours and not row["right"]]
    missing = [
        one
        for one in data["failed"]
        if (BY_NAME[one["contestant"]].ours if one["contestant"] else one["step"] == "time")
    ]
    return not wrong and not missing


if __name__ == "__main__":
    sys.exit(main())
