"""Static checks of the kernels' hot loops: the expected instruction in the expected registers, and nothing beside it
that does not belong there. `python -m bench.hot_loops` prints the loops; a room lists its own in hot_loops.py.
"""

import functools
import math
import re
import runpy
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.disassembly import Function, Instruction, disassemble, inner_loops
from deepseek_fast.cli import output

ROOT = Path(__file__).resolve().parent.parent
ALIGNMENT = 8  # bytes: GCC starts a loop at a multiple of 16 where that takes at most 10 bytes, else of 8
TILE = re.compile(r"\b(Tile\w+)<.*?>::run<")  # csrc/gemm/tile*.h
DIVISION = re.compile(r"v?(div|sqrt)[ps][sd]|i?div[bwlq]?")


@dataclass(frozen=True)
class HotLoop:
    """What one loop over K must be; the counts are those of one iteration.

    function: a pattern of its demangled name. The groups of the pattern, where it has some, multiply to the number of
    sums, and every function that matches is checked. A loop that sums nothing has sums=1.
    """

    isa: str
    scheme: str  # what a reader calls it: "bf16"
    function: str
    sums: int  # vectors that hold sums, in the largest of these functions
    registers: str  # "xmm", "ymm", "zmm" or "tmm"
    steps: tuple[tuple[str, int], ...]  # (pattern of an instruction, times a vector of sums); the last one adds
    reads: int  # of memory, at most, in the largest function
    others: int  # at most: instructions that are neither a step nor a read
    why: str  # of reads and others
    rare_calls: bool = False  # a path through a call is rare, and not looked at
    aligned: bool = True
    stack: int = 0  # reads of pointers that wait there, at most


@dataclass(frozen=True)
class Found:
    """A loop as it is."""

    where: str
    sums: int
    body: tuple[Instruction, ...]
    steps: tuple[tuple[Instruction, ...], ...]
    stack: tuple[Instruction, ...]

    @property
    def reads(self) -> int:
        return sum(one.reads for one in self.body)

    @property
    def others(self) -> int:
        steps = {one.address for step in self.steps for one in step}
        return sum(not one.reads and one.address not in steps for one in self.body)

    @property
    def cells(self) -> tuple[str, ...]:
        steps = " + ".join(f"{len(step)} {step[0].name}" for step in self.steps if step)
        return (self.where, *map(str, (self.sums, len(self.body))), steps, *map(str, (self.reads, self.others)))


def register_tile(tile: str) -> str:
    """The functions of csrc/gemm/tile*.h: TILE<Vec>::run<rows, vectors, End>."""
    return rf"\b{tile}<.*?>::run<(\d+), (\d+), "


def amx_tile(tile: str) -> str:
    """The function of csrc/gemm/tile_amx.h with two by two tile registers of sums."""
    return rf"\bamx_run<true, true, .*\b{tile}<"


def room_data(room: str) -> dict[str, Any]:
    """The names in a room's hot_loops.py, read by path, as no wheel holds it; FileNotFoundError where there is none."""
    path = Path("kernels", room, "hot_loops.py")
    if not (ROOT / path).is_file():
        raise FileNotFoundError(f"bench: {room} must say what its hot loops are; got no {path}; see fused_matmul's")
    data = runpy.run_path(str(ROOT / path))
    missing = [name for name in ("HOT_LOOPS", "COUNTED") if name not in data]
    if missing:
        raise ValueError(f"bench: {path} must define HOT_LOOPS and COUNTED; got no {' and no '.join(missing)}")
    return data


def newest_tree() -> Path | None:
    trees = [path.parent.parent for path in ROOT.glob("build/*/CMakeFiles/dsf_core.dir")]
    return max(trees, key=lambda tree: (tree / "CMakeFiles/dsf_core.dir").stat().st_mtime, default=None)


def refusal(cache: str) -> str | None:
    """Why a build with this CMakeCache.txt cannot be judged; None where it can."""
    kind = re.search(r"^CMAKE_BUILD_TYPE:\w+=(.*)$", cache, re.MULTILINE)
    sanitizers = re.search(r"^DSF_SANITIZE:\w+=(.+)$", cache, re.MULTILINE)
    if sanitizers:
        return f"bench: the kernels must be built without sanitizers; got {sanitizers[1]}; run `make clean build`"
    found = kind[1] if kind else "none"
    if found != "Release":
        return f"bench: the kernels must be a Release build; got {found}; run `make clean build`"
    return None


def unfit_build() -> str | None:
    """Why there are no objects to judge; None where there are."""
    if shutil.which("objdump") is None:
        return "bench: objdump must be installed to check the hot loops; got none; install binutils"
    tree = newest_tree()
    if tree is None:
        return "bench: the kernels must be built in this checkout; got no build tree; run `make build`"
    return refusal((tree / "CMakeCache.txt").read_text())


def rooms() -> list[str]:
    return (ROOT / "kernels/rooms.txt").read_text().split()


def levels(room: str) -> list[str]:
    """The instruction set levels of x86-64 that a room has a file for; aarch64's: tests/test_aarch64_loops.py."""
    names = [path.name for path in sorted((ROOT / "kernels" / room).glob("cpu_*.cc")) if "_neon" not in path.name]
    return [name.removeprefix("cpu_").removesuffix(".cc") for name in names]


@functools.cache
def functions(room: str, isa: str) -> tuple[Function, ...]:
    """What the newest build tree has of a room at one level."""
    path = (newest_tree() or ROOT) / "CMakeFiles/dsf_core.dir/kernels" / room / f"cpu_{isa}.cc.o"
    if not path.is_file():
        raise FileNotFoundError(f"bench: {room} must be built at level {isa}; got no {path.name}; run `make build`")
    return disassemble(path)


def check(room: str, isa: str) -> tuple[list[Found], list[str]]:
    """The loops of a room at one level, and a sentence for everything that is wrong with them."""
    wanted = [want for want in room_data(room)["HOT_LOOPS"] if want.isa == isa]
    found = functions(room, isa)
    loops, problems = check_functions(f"{room} {isa}", wanted, found)
    tiles = {match[1] for one in found if (match := TILE.search(one.name))}
    unlisted = sorted(tile for tile in tiles if register_tile(tile) not in {want.function for want in wanted})
    if unlisted or not wanted:
        got = f"none for {', '.join(unlisted)}" if unlisted else "none"
        problems.append(f"bench: kernels/{room}/hot_loops.py must list every loop of {isa}; got {got}")
    return loops, problems


def check_functions(where: str, wanted: Sequence[HotLoop], built: Sequence[Function]) -> tuple[list[Found], list[str]]:
    loops, problems = [], []
    for want in wanted:
        matches = [(match, one) for one in built if (match := re.search(want.function, one.name))]
        sizes = [math.prod(map(int, match.groups())) if match.groups() else want.sums for match, _ in matches]
        name = f"{where} {want.scheme}"
        if max(sizes, default=0) != want.sums:
            got = f"{max(sizes)}" if sizes else f"no function like {want.function}"
            problems.append(f"bench: {name} must have {want.sums} vectors of sums in its largest loop; got {got}")
        for sums, (_, function) in zip(sizes, matches, strict=True):
            found = find(name, want, sums, function)
            if any(found.steps):
                loops.append(found)
            problems += judge(want, found)
    return loops, problems


def find(where: str, want: HotLoop, sums: int, function: Function) -> Found:
    """The innermost loop with most of the last step's instructions."""

    def like(pattern: str, body: Sequence[Instruction]) -> tuple[Instruction, ...]:
        return tuple(one for one in body if re.fullmatch(pattern, one.name))

    body = max(
        inner_loops(function, calls=not want.rare_calls),
        key=lambda loop: len(like(want.steps[-1][0], loop)),
        default=(),
    )
    steps = tuple(like(pattern, body) for pattern, _ in want.steps)
    return Found(where, sums, body, steps, tuple(one for one in body if one.uses(function.stack_registers)))


def judge(want: HotLoop, found: Found) -> list[str]:
    """A sentence for every rule that the loop breaks."""
    last, times = want.steps[-1]
    problems: list[str] = []

    def must(rule: str, got: object) -> None:
        problems.append(f"bench: the loop of {found.where} with {found.sums} sums must {rule}; got {got}")

    if not found.steps[-1]:
        must(f"run {last}", "no loop with it")
        return problems
    unrolled = max(1, len(found.steps[-1]) // (times * found.sums))  # iterations that the compiler made one
    for (pattern, count), step in zip(want.steps, found.steps, strict=True):
        if len(step) < count * found.sums:
            must(f"run {pattern} {count * found.sums} times an iteration", len(step))
        wrong = [one for one in step if one.registers not in (want.registers, None)]
        if wrong:
            must(f"run {pattern} in {want.registers} registers", f"{len(wrong)} in others, first `{wrong[0]}`")
    kept = {one.destination for one in found.steps[-1]}
    if len(kept) < found.sums:
        must(f"keep its sums in {found.sums} registers", len(kept))
    waiting = [one for one in found.stack if one.reads and one.registers is None]
    if len(found.stack) > len(waiting) or len(waiting) > want.stack:
        rule = f"read {want.stack} pointers from the stack at most" if want.stack else "leave the stack alone"
        must(rule, f"{len(found.stack)} accesses, first `{found.stack[0]}`")
    if found.sums == want.sums and found.reads > want.reads * unrolled:
        must(f"read memory {want.reads} times at most", found.reads)
    if found.others > want.others * unrolled:
        must(f"hold {want.others} instructions at most beside steps and reads", found.others)
    for one in found.body:
        if one.name.startswith("call"):
            must("call nothing", f"`{one}`")
        if DIVISION.fullmatch(one.name):
            must("divide nothing", f"`{one}`")
    if want.aligned and found.body[0].address % ALIGNMENT:
        must(f"start at a multiple of {ALIGNMENT} bytes", hex(found.body[0].address))
    return problems


def main() -> int:
    unfit = unfit_build()
    if unfit:
        print(unfit)
        return 0
    lines: list[tuple[str, ...]] = []
    problems: list[str] = []
    for room in rooms():
        for isa in levels(room):
            try:
                loops, sentences = check(room, isa)
            except (OSError, RuntimeError, ValueError) as error:
                loops, sentences = [], [str(error)]
            problems += sentences
            largest = {loop.where: max(one.sums for one in loops if one.where == loop.where) for loop in loops}
            lines += dict.fromkeys(loop.cells for loop in loops if loop.sums == largest[loop.where])
    print(output.table(("largest loop", "sums", "instructions", "steps", "reads", "others"), lines))
    print(*problems, f"{len(problems)} rules broken", sep="\n")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
