"""Compiles every kernel for CUDA tensors to machine code, without a GPU, and holds it to what it must be.

    python -m bench.gpu.aot [--rooms fp8_cast ...] [--archs 90 ...] [--full] [--all] [--json build/gpu-aot.json]

Every call of the rooms' gpu_cases.py goes through the room's launcher with tensors of device "meta", for each compute
capability. A kernel fails with spilled registers, without the instructions that its room expects, with more shared
memory than the chip has for a block, or with a cubin of unexpected size; a call whose results are not of the sizes,
strides and dtypes that its Meta kernel says; a table with a row that no call reaches. For sm_90 every call is
compiled, for other chips each kernel once with each tile and dtype; --full: every one for every chip.
"""

import argparse
import importlib
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
EVERY = 90  # the chip that every call is compiled for
JOBS = 2  # a process holds torch and triton: 1 GiB
TENSOR_CORES = ("mma.sync", "wgmma.mma_async", "tcgen05.mma")
ASYNC_COPIES = ("cp.async",)  # cp.async.bulk.tensor, TMA, begins with it
WARPGROUP = {90: "wgmma.mma_async", 100: "tcgen05.mma"}


@dataclass
class Result:
    """One cubin and what is wrong with it."""

    room: str
    call: str
    kernel: str
    arch: int
    registers: int
    stack: int  # bytes a thread: spills
    shared: int  # bytes a block
    bytes: int
    products: str
    async_copies: bool
    constants: dict[str, Any]
    faults: list[str] = field(default_factory=list)


@dataclass
class Part:
    """What one process compiled: a room for one chip."""

    room: str
    arch: int
    seconds: float
    results: list[Result]
    reached: dict[str, list[int]]  # table: rows
    fault: str = ""


def compile_room(work: tuple[str, int, bool]) -> Part:
    """The calls of a room for one chip."""
    room, arch, full = work
    start = time.perf_counter()
    results: list[Result] = []
    reached: dict[str, set[int]] = {}
    try:
        _compile_calls(room, arch, full, results, reached)
    except Exception as error:  # of Triton's compiler, of any type: reported, and fails the gate
        return Part(room, arch, time.perf_counter() - start, results, {}, f"{type(error).__name__}: {error}"[-2000:])
    return Part(
        room, arch, time.perf_counter() - start, results, {name: sorted(rows) for name, rows in reached.items()}
    )


def _compile_calls(room: str, arch: int, full: bool, results: list[Result], reached: dict[str, set[int]]) -> None:
    import torch

    import deepseek_fast
    from deepseek_fast.gpu import launch, tiles

    for home in deepseek_fast._HOMES.values():  # each registers what its ops' Meta kernels say
        if f".{room}." in home:
            importlib.import_module(home)
    launchers = importlib.import_module(f"deepseek_fast.kernels.{room}.triton_kernel").OPS
    cases = importlib.import_module(f"deepseek_fast.kernels.{room}.gpu_cases")
    seen: set[tuple[str, str]] = set()
    covered: set[Any] = set()

    def wanted(planned: launch.Launch) -> bool:
        of_rows = {name for table in tiles.TABLES.values() for row in table.rows for name in row.config}
        tile = tuple(sorted(item for item in planned.constants.items() if item[0] in of_rows))
        new = (planned.kernel, planned.dtype, tile) not in covered
        covered.add((planned.kernel, planned.dtype, tile))
        return full or new

    for call in cases.COMPILED:
        if call.archs is not None and arch not in call.archs:
            continue
        with torch.device("meta"):
            args, named = call.arguments(), call.named()
        with torch.device("meta"), launch.compiling(arch, wanted) as launches, tiles.asked() as asked:
            try:
                made = launchers[call.op](*args, **named)
                _check_layout(made, getattr(torch.ops.deepseek_fast, call.op).default(*args, **named))
            except Exception as error:
                raise RuntimeError(f"{call.op} {call.name}: {error}") from error
            for table, sizes in asked.values():
                reached.setdefault(table.name, set()).add(table.rows.index(table.row(**sizes)))
        for one in launches:
            if (one.kernel, one.compiled.hash) not in seen:
                seen.add((one.kernel, one.compiled.hash))
                results.append(_held_to(room, call.name, one, cases.EXPECTS[one.kernel]))


def _check_layout(made: Any, promised: Any) -> None:
    """Results must be of the sizes, strides and dtypes that the Meta kernel promises torch.compile."""
    from torch import Tensor
    from torch.utils import _pytree as pytree

    def layouts(results: Any) -> list[Any]:
        tensors = [value for value in pytree.tree_leaves(results) if isinstance(value, Tensor)]
        return [(tuple(value.shape), value.dtype, value.stride() if value.numel() else ()) for value in tensors]

    if layouts(made) != layouts(promised):
        raise ValueError(f"results must be {layouts(promised)}, as the Meta kernel says; got {layouts(made)}")


def _held_to(room: str, call: str, launch: Any, expect: Any) -> Result:
    from deepseek_fast.gpu.launch import SHARED_BYTES

    compiled, arch = launch.compiled, launch.arch
    ptx, cubin = compiled.asm["ptx"], compiled.asm["cubin"]
    registers, stack = _resources(cubin)
    constants = {name: value for name, value in launch.constants.items() if isinstance(value, (int, str, bool))}
    products = next((name for name in reversed(TENSOR_CORES) if name in ptx), "")
    result = Result(
        room, call, launch.kernel, arch, registers, stack, compiled.metadata.shared, len(cubin), products,
        any(name in ptx for name in ASYNC_COPIES), constants,
    )  # fmt: skip
    if stack:
        result.faults.append(f"spills {stack} bytes")
    if result.shared > SHARED_BYTES[arch]:
        result.faults.append(f"takes {result.shared} bytes of shared memory, of {SHARED_BYTES[arch]}")
    if len(cubin) > expect.max_bytes:
        result.faults.append(f"has {len(cubin)} bytes, of {expect.max_bytes}")
    if expect.tensor_cores and not products:
        result.faults.append("has no tensor-core product")
    if expect.async_copies and not result.async_copies:
        result.faults.append("has no asynchronous copy")
    if arch in WARPGROUP and expect.warpgroups(launch.constants) and products != WARPGROUP[arch]:
        result.faults.append(f"has {products or 'no product'}, not {WARPGROUP[arch]}")
    return result


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack a thread."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    usage = dict(word.split(":") for word in text.split() if word.count(":") == 1 and word.split(":")[1].isdigit())
    return int(usage["REG"]), int(usage["STACK"])


def unreached(parts: list[Part]) -> list[str]:
    """Rows of tables that no call led to, though they are for a chip that was compiled for."""
    from deepseek_fast.gpu.tiles import TABLES

    archs = {part.arch for part in parts}
    reached: dict[str, set[int]] = {}
    for part in parts:
        for name, rows in part.reached.items():
            reached.setdefault(name, set()).update(rows)
    for room in sorted({part.room for part in parts}):
        importlib.import_module(f"deepseek_fast.kernels.{room}.triton_kernel")
    return [
        f"{name}: row {i} {row.config} is reached by no call of gpu_cases.py"
        for name, table in TABLES.items()
        if any(f".{part.room}." in table.module for part in parts)
        for i, row in enumerate(table.rows)
        if i not in reached.get(name, set()) and (row.archs is None or archs & set(row.archs))
    ]


def line(result: Result) -> str:
    what = ", ".join(result.faults) or "ok"
    return (
        f"{result.room:24} sm_{result.arch:<4} {result.kernel:28} {result.call:32} {result.registers:4} registers "
        f"{result.shared:7} B shared {result.bytes:7} B {result.products:16} {what}"
    )


def main() -> int:
    from deepseek_fast.gpu.launch import ARCHS

    rooms = (ROOT / "kernels" / "rooms.txt").read_text().split()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rooms", nargs="+", choices=rooms, default=rooms)
    parser.add_argument("--archs", nargs="+", type=int, choices=ARCHS, default=ARCHS)
    parser.add_argument("--full", action="store_true", help="every call for every chip")
    parser.add_argument("--all", action="store_true", help="print every kernel, not only those with faults")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    work = [(room, arch, options.full or arch == EVERY) for room in options.rooms for arch in options.archs]
    with multiprocessing.get_context("spawn").Pool(JOBS) as pool:
        parts = pool.map(compile_room, work, chunksize=1)
    results = [result for part in parts for result in part.results]
    faults = [f"{part.room} sm_{part.arch}: {part.fault}" for part in parts if part.fault]
    if set(options.archs) == set(ARCHS):
        faults += unreached([part for part in parts if not part.fault])
    for result in results:
        if options.all or result.faults:
            print(line(result))
    for fault in faults:
        print(fault)
    for room in options.rooms:
        own = [result for result in results if result.room == room]
        seconds = sum(part.seconds for part in parts if part.room == room)
        most = max((result.registers for result in own), default=0)
        print(f"{room:24} {len(own):4} cubins, at most {most} registers, {seconds:.0f} s")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=1))
    wrong = len(faults) + sum(bool(result.faults) for result in results)
    print(
        f"{len(results)} cubins for sm_{', sm_'.join(map(str, options.archs))}: "
        + ("ok" if not wrong else f"{wrong} wrong")
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
