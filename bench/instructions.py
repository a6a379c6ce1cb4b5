"""Instruction counts of the kernels, by callgrind, against committed budgets: `python -m bench.instructions [--write]`.

Exact where times are noise: a count depends on the sources, the flags and the compiler, not on the machine's load.
Valgrind knows instructions up to AVX2, hence two levels. Only instructions of _C_core count: not Python's, nor libm's,
which has a variant for every machine.
"""

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench import hot_loops
from deepseek_fast import _load
from deepseek_fast.cli import output

ROOT = hot_loops.ROOT
BUDGETS = ROOT / "bench/instructions.json"  # of every compiler, its major version in its name
LEVELS = ("scalar", "avx2")
# Of a budget. One more instruction in a loop of 24 is 4 %; the only thing seen to vary, GCC's test whether two buffers
# of W8A16 overlap, takes 0.14 % more where another Python's heap has them the other way round.
TOLERANCE = 0.01
TIMEOUT = 300  # seconds for valgrind, which takes about 5
# A function of libc that nothing else here calls: it ends a call's file. --dump-after the kernel itself would be the
# second option for one function, and valgrind 3.19 forgets either where functions' names begin alike.
MARK = "getppid"
COMPILER = re.compile(rb"(GCC): \([^)]*\) (\d+)\.|(clang) version (\d+)\.")  # as .comment sections have it
COST = re.compile(r"\d+ (\d+)$")  # in callgrind's file: source line, instructions
WRITE = "`python -m bench.instructions --write`, and say why in the commit"

Counts = dict[str, int]  # "room case level": instructions


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.instructions", description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help="keep what was counted as this compiler's budgets")
    write = parser.parse_args(arguments).write
    tree = hot_loops.newest_tree()
    refusal = hot_loops.refusal((tree / "CMakeCache.txt").read_text()) if tree else None
    if shutil.which("valgrind") is None:
        refusal = "bench: valgrind must be installed to count instructions; got none; run `apt-get install valgrind`"
    if refusal:
        print(refusal)
        return 0
    try:
        with tempfile.TemporaryDirectory() as folder:
            counts = measure(Path(folder))
    except RuntimeError as error:
        print(error)
        return 1
    budgets: dict[str, Counts] = json.loads(BUDGETS.read_text()) if BUDGETS.exists() else {}
    name = compiler(Path(_load.library_path("_C_core")).read_bytes())
    print(table(counts, budgets.get(name, {})))
    absent = absent_levels(counts)
    if write and absent:
        print(f"bench: budgets must be written on a CPU with every level; got none of {', '.join(absent)}")
        return 1
    if write:
        BUDGETS.write_text(json.dumps(budgets | {name: counts}, indent=1, sort_keys=True) + "\n")
        print(f"bench/{BUDGETS.name}: budgets of {name} written")
        return 0
    failures, notes = compare(counts, budgets, name)
    print(*failures, *notes, f"{len(failures)} instruction budgets exceeded or missing", sep="\n")
    return int(bool(failures))


def compare(counts: Counts, budgets: dict[str, Counts], name: str) -> tuple[list[str], list[str]]:
    """What fails, and what is only said, a sentence each; name: the compiler."""
    if name not in budgets:
        known = ", ".join(sorted(budgets)) or "none"
        return [], [f"bench: the compiler must have budgets to be compared; got {name}, budgets of {known}; {WRITE}"]
    failures, notes = [], []
    for call, counted in counts.items():
        budget = budgets[name].get(call)
        if budget is None:
            failures.append(f"bench: {call} must have a budget for {name}; got none; {WRITE}")
        elif counted > budget * (1 + TOLERANCE):
            more = f"{counted}, {counted / budget - 1:.1%} more"
            failures.append(f"bench: {call} must run {budget} instructions at most; got {more}; if meant, {WRITE}")
        elif counted < budget * (1 - TOLERANCE):
            fewer = f"{counted}, {1 - counted / budget:.1%} fewer"
            notes.append(f"bench: {call} has a budget of {budget} instructions; got {fewer}; tighten it, {WRITE}")
    absent = absent_levels(counts)
    notes += [f"bench: level {level} is not counted: this CPU lacks it" for level in absent]
    stale = [call for call in budgets[name] if call not in counts and not call.endswith(absent)]
    notes += [f"bench: {call} has a budget and is no longer counted; {WRITE}" for call in stale]
    return failures, notes


def absent_levels(counts: Counts) -> tuple[str, ...]:
    return tuple(level for level in LEVELS if not any(call.endswith(f" {level}") for call in counts))


def table(counts: Counts, budgets: Counts) -> str:
    lines = [
        (call, f"{counted}", f"{counted / budgets[call] - 1:+.2%}" if call in budgets else "")
        for call, counted in counts.items()
    ]
    return output.table(("call", "instructions", "to the budget"), lines)


def compiler(library: bytes) -> str:
    """Name and major version, "GCC 12"; " + " between several."""
    names = {b" ".join(part for part in match if part).decode() for match in COMPILER.findall(library)}
    return " + ".join(sorted(names)) or "an unknown compiler"


def measure(folder: Path, *, more_rows: float = 0.0) -> Counts:
    """Runs every room's counted calls under callgrind, its files in an empty folder; RuntimeError where that fails.

    more_rows: a share of rows on top, 0.25 for a quarter: the gate's own test plants a slowdown with it.
    """
    command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder / 'calls'}", f"--dump-after={MARK}"]
    command += ["--compress-strings=no", "--compress-pos=no"]
    command += [f"--toggle-collect=dsf_{room}" for room in hot_loops.rooms()]  # functions of the C ABI
    command += [sys.executable, "-c", f"from bench import instructions; instructions.drive({more_rows})"]
    # The same heap in every run, and no thread pool of NumPy's beside the kernels.
    environment = {**os.environ, "PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("DSF_MAX_ISA", None)
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    calls = done.stdout.splitlines()
    files = [folder / f"calls.{number}" for number in range(1, len(calls) + 1)]
    if done.returncode or not calls or not all(path.exists() for path in files):
        said = [line for line in done.stderr.splitlines() if not line.startswith("==")]  # valgrind's own begin so
        raise RuntimeError(f"bench: valgrind must run the kernels; got '{said[-1] if said else done.returncode}'")
    counts = {call: own_instructions(path.read_text()) for call, path in zip(calls, files, strict=True)}
    for call, counted in counts.items():
        if not counted:
            room = call.split()[0]
            raise RuntimeError(f"bench: {room} must run its kernel in dsf_{room} of _C_core; got no instruction there")
    return counts


def own_instructions(profile: str) -> int:
    """Instructions of _C_core in a file of callgrind, without those of the functions it calls elsewhere."""
    total, ours, callee = 0, False, False
    for line in profile.splitlines():
        if line.startswith("ob="):
            ours = "/_C_core." in line
        elif (match := COST.match(line)) and ours and not callee:
            total += int(match[1])
        callee = line.startswith("calls=")  # the line after it is the called function's
    return total


def drive(more_rows: float) -> None:
    """Every counted call once, and a line for each; runs under valgrind."""
    import deepseek_fast.numpy as numpy_door

    native = _load.native()
    for level in LEVELS:
        if native.set_max_isa(level) != level:
            continue
        for room in hot_loops.rooms():
            for case in hot_loops.room_data(room)["COUNTED"]:
                getattr(numpy_door, room)(**case.arrays(more_rows))
                os.getppid()  # MARK
                print(room, case.id, level)


def values(*shape: int, dtype: str = "float32") -> Any:
    """A NumPy array of small numbers of both signs, the same everywhere."""
    import numpy as np

    found = (np.arange(math.prod(shape)).reshape(shape) * 37 % 61 - 30).astype(np.float32)
    if dtype == "bfloat16":
        import ml_dtypes

        return (found / 16).astype(ml_dtypes.bfloat16)
    return found.astype(np.int8) if dtype == "int8" else (found / 16).astype(dtype)


if __name__ == "__main__":
    sys.exit(main())
