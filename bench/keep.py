"""Prints a run beside this CPU's committed baseline, or keeps it as one.

`python -m bench.keep RUN [RUN ...] [--demo F] [--networks F] [--attention F] [--write]`
Several runs are pooled: the rows that the gate compares are run more often than the others.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from deepseek_fast.bench import gate, report
from deepseek_fast.bench import run as runs

BASELINES = Path(__file__).resolve().parent / "baseline"
PARTS = ("demo", "networks", "attention")  # other measurements of the same machine, kept in the same file


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="JSON of `deepseek-fast bench --json`")
    for part in PARTS:
        parser.add_argument(f"--{part}", type=Path, metavar="F", help=f"JSON of the {part}, kept with the baseline")
    parser.add_argument("--write", action="store_true", help="keep the run as this CPU's baseline")
    parser.add_argument("--suffix", default="", help="of the baseline's name, for runs with other peers: -peers")
    arguments = parser.parse_args()
    run = gate.pooled([runs.read(path) for path in arguments.runs])
    path = BASELINES / gate.file_name(run["machine"]["cpu"])
    path = path.with_stem(path.stem + arguments.suffix)
    print(report.text(run, _before(path)))
    if not arguments.write:
        return 0
    if run["interrupted"] or not all(map(report.right, run["rows"])):
        sys.exit("bench.keep: a baseline must be a whole run with right answers; got an interrupted or a wrong one")
    for part in PARTS:
        if found := getattr(arguments, part):
            run[part] = json.loads(found.read_text())
    path.parent.mkdir(exist_ok=True)
    runs.write(run, path)
    print(f"kept as {path.relative_to(BASELINES.parent.parent)}")
    return 0


def _before(path: Path) -> dict[str, Any] | None:
    """The baseline so far; one of an older schema counts as none."""
    try:
        return runs.read(path)
    except FileNotFoundError:
        return None
    except ValueError as error:
        print(error)
        return None


if __name__ == "__main__":
    sys.exit(main())
