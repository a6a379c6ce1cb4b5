"""Instruction budgets: what passes, what fails, and that a planted slowdown is seen."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bench import hot_loops, instructions

BUDGETS = {"GCC 12": {"room 8x8x8 avx2": 1000, "room 8x8x8 scalar": 4000}}
PROFILE = """# callgrind format
version: 1
part: 1

desc: Timerange: Basic block 0 - 87133586

positions: line
events: Ir
summary: 1234

ob=/usr/lib/python3/_native.cpython-311-x86_64-linux-gnu.so
fl=???
fn=0x000000000001bca0
3 100
cob=/usr/lib/python3/_C_core.abi3.so
cfn=dsf_room
calls=1 0
0 1134

ob=/usr/lib/python3/_C_core.abi3.so
fn=dsf_room
0 21
0 4
cob=/usr/lib/x86_64-linux-gnu/libm.so.6
cfn=fmaf
calls=9 0
0 1000
0 100

fn=0x000000000001b5e0
0 9

ob=/usr/lib/x86_64-linux-gnu/libm.so.6
fn=fmaf
0 1000
"""


def counts(avx2: int, scalar: int) -> dict[str, int]:
    return {"room 8x8x8 avx2": avx2, "room 8x8x8 scalar": scalar}


def test_what_is_counted() -> None:
    assert instructions.own_instructions(PROFILE) == 21 + 4 + 100 + 9
    assert instructions.own_instructions("") == 0


@pytest.mark.parametrize("counted", [counts(1000, 4000), counts(1010, 3960), counts(990, 4040)])
def test_within_the_tolerance_nothing_is_said(counted: dict[str, int]) -> None:
    assert instructions.compare(counted, BUDGETS, "GCC 12") == ([], [])


def test_more_instructions_fail() -> None:
    failures, notes = instructions.compare(counts(1250, 4000), BUDGETS, "GCC 12")
    assert notes == [] and len(failures) == 1
    start = "bench: room 8x8x8 avx2 must run 1000 instructions at most; got 1250, 25.0% more; if meant, "
    assert failures[0].startswith(start) and "--write" in failures[0]


def test_fewer_instructions_ask_to_be_kept() -> None:
    failures, notes = instructions.compare(counts(1000, 3000), BUDGETS, "GCC 12")
    assert failures == [] and len(notes) == 1
    start = "bench: room 8x8x8 scalar has a budget of 4000 instructions; got 3000, 25.0% fewer; tighten it, "
    assert notes[0].startswith(start) and "--write" in notes[0]


def test_another_compiler_passes_with_a_sentence() -> None:
    failures, notes = instructions.compare(counts(9999, 9999), BUDGETS, "GCC 14")
    assert failures == []
    assert notes[0].startswith("bench: the compiler must have budgets to be compared; got GCC 14, budgets of GCC 12; ")


def test_a_call_without_a_budget_fails() -> None:
    failures, notes = instructions.compare(counts(1000, 4000) | {"room 9x9x9 avx2": 5}, BUDGETS, "GCC 12")
    assert notes == [] and len(failures) == 1
    assert failures[0].startswith("bench: room 9x9x9 avx2 must have a budget for GCC 12; got none; ")


def test_budgets_without_a_call_are_named() -> None:
    failures, notes = instructions.compare({"room 8x8x8 scalar": 4000}, BUDGETS, "GCC 12")
    assert failures == [] and notes == ["bench: level avx2 is not counted: this CPU lacks it"]
    fewer = {"room 1x1x1 scalar": 1, "room 8x8x8 avx2": 1000}
    _, notes = instructions.compare(fewer, {"GCC 12": BUDGETS["GCC 12"] | fewer}, "GCC 12")
    assert len(notes) == 1 and "room 8x8x8 scalar has a budget and is no longer counted" in notes[0]


def test_compilers_are_known_by_name_and_major_version() -> None:
    gcc, clang = b"..GCC: (Debian 12.2.0-14+deb12u1) 12.2.0\0", b"clang version 14.0.6 (x)\0"
    assert instructions.compiler(gcc) == "GCC 12"
    assert instructions.compiler(clang) == "clang 14"
    assert instructions.compiler(gcc + clang + gcc) == "GCC 12 + clang 14"
    assert instructions.compiler(b"ELF") == "an unknown compiler"


def test_committed_budgets_cover_every_counted_call() -> None:
    calls = {
        f"{room} {case.id} {level}"
        for room in hot_loops.rooms()
        for case in hot_loops.room_data(room)["COUNTED"]
        for level in instructions.LEVELS
    }
    committed = json.loads(instructions.BUDGETS.read_text())
    assert committed
    for budgets in committed.values():
        assert set(budgets) == calls
        assert all(count > 0 for count in budgets.values())


def test_counted_calls_run_on_every_level(isa: str) -> None:
    """The inputs are the op's, and give numbers."""
    import numpy as np

    import deepseek_fast.numpy

    for room in hot_loops.rooms():
        for case in hot_loops.room_data(room)["COUNTED"]:
            y, more = (getattr(deepseek_fast.numpy, room)(**case.arrays(share)) for share in (0.0, 0.25))
            y, more = (found[0] if isinstance(found, tuple) else found for found in (y, more))  # a cast's codes
            assert np.isfinite(y.astype(np.float32)).all() and np.ptp(y.astype(np.float32)) > 0
            assert more.size >= 1.25 * y.size


def test_without_valgrind_a_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert instructions.main([]) == 0
    assert capsys.readouterr().out.startswith("bench: valgrind must be installed to count instructions; got none; ")


def fake_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, measured: Any) -> Path:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(hot_loops, "newest_tree", lambda: None)
    monkeypatch.setattr(instructions, "measure", measured)
    monkeypatch.setattr(instructions, "compiler", lambda library: "GCC 12")
    monkeypatch.setattr(instructions, "BUDGETS", tmp_path / "budgets.json")
    instructions.BUDGETS.write_text(json.dumps(BUDGETS | {"clang 14": {}}))
    return instructions.BUDGETS


def test_the_command_fails_and_writes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = fake_run(monkeypatch, tmp_path, lambda folder: counts(1250, 4000))
    assert instructions.main([]) == 1
    out = capsys.readouterr().out
    assert "+25.00%" in out and "25.0% more" in out and "1 instruction budgets exceeded or missing" in out
    assert instructions.main(["--write"]) == 0
    assert json.loads(path.read_text()) == {"GCC 12": counts(1250, 4000), "clang 14": {}}
    assert instructions.main([]) == 0


def test_the_command_writes_no_partial_budgets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = fake_run(monkeypatch, tmp_path, lambda folder: {"room 8x8x8 scalar": 4000})
    before = path.read_text()
    assert instructions.main(["--write"]) == 1
    assert "every level; got none of avx2" in capsys.readouterr().out
    assert path.read_text() == before


def test_valgrind_s_failure_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = tmp_path / "valgrind"
    command.write_text("#!/bin/sh\necho '==1== Memcheck' >&2\necho 'unhandled instruction' >&2\nexit 4\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(hot_loops, "newest_tree", lambda: None)
    assert instructions.main([]) == 1
    assert capsys.readouterr().out == "bench: valgrind must run the kernels; got 'unhandled instruction'\n"


@pytest.mark.slow
def test_a_planted_slowdown_fails_and_a_second_run_does_not(tmp_path: Path) -> None:
    """A quarter more rows of work is a kernel that is a quarter slower."""
    if shutil.which("valgrind") is None:
        pytest.skip("valgrind is not installed")
    runs = []
    for name, more_rows in (("first", 0.0), ("second", 0.0), ("slower", 0.25)):
        (tmp_path / name).mkdir()
        runs.append(instructions.measure(tmp_path / name, more_rows=more_rows))
    first, second, slower = runs
    assert first == second
    failures, notes = instructions.compare(slower, {"this": first}, "this")
    assert notes == [] and len(failures) == len(first)
    assert all("more; if meant" in failure for failure in failures)
