"""Benchmark rows of casts: several outputs of which every bit counts, bytes and elements instead of operations."""

import contextlib
import copy
import ctypes
import dataclasses
import importlib
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import deepseek_fast
from bench import readme
from deepseek_fast import _load
from deepseek_fast.bench import answers, ceiling, gate, html, peers, report, rooms, row
from deepseek_fast.bench import run as runs
from tests import cast_room, test_bench_html

COMPILED = ("torch_compile", "torchao_casts")  # seconds for each case
CASTS = {case.op for case in cast_room.CASES}
E4M3 = torch.float8_e4m3fn


@pytest.fixture(autouse=True)
def room(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The room of this test, and rows as short as they get."""
    rooms.prepared.cache_clear()
    monkeypatch.setattr(rooms, "part", cast_room.part)
    monkeypatch.setattr(row, "ROW_SECONDS", 0.01)
    monkeypatch.setattr(ceiling, "SECONDS", 1e-4)
    yield
    rooms.prepared.cache_clear()


def case_of(op: str, **wanted: Any) -> cast_room.Case:
    return next(
        case
        for case in cast_room.CASES
        if case.op == op and all(getattr(case, name) == value for name, value in wanted.items())
    )


def row_of(case: Any) -> rooms.Row:
    return rooms.Row(cast_room.NAME, case, deepseek_fast.isa(), 1, True)


def measured(*cases: Any, peer_names: tuple[str, ...] = ("torch_eager", "ort")) -> dict[str, Any]:
    return runs.collect([row_of(case) for case in cases], peer_names)


def codes(*values: int) -> Any:
    return torch.tensor(values, dtype=torch.uint8).view(E4M3)


# --- answers ---------------------------------------------------------------------------------------------------------
def test_every_bit_counts() -> None:
    wanted = codes(0x7F, 0x80, 0x38), torch.tensor([2.0])
    assert answers.error_over_bound((codes(0x7F, 0x80, 0x38), torch.tensor([2.0])), wanted, (None, None)) == 0
    other_nan, other_zero, other_scale = codes(0xFF, 0x80, 0x38), codes(0x7F, 0, 0x38), torch.tensor([2.0000002])
    for y in ((other_nan, wanted[1]), (other_zero, wanted[1]), (wanted[0], other_scale)):
        assert answers.error_over_bound(y, wanted, (None, None)) == math.inf
    for y in (wanted[:1], wanted[0], (wanted[0].view(torch.uint8), wanted[1]), (wanted[0][:2], wanted[1])):
        assert answers.error_over_bound(y, wanted, (None, None)) == math.inf


def test_where_a_room_has_a_bound_numbers_count() -> None:
    wanted, bound = (codes(0x38, 0x00),), (torch.tensor([0.125, 0.0]),)  # 1 and the next code, 1.125
    assert answers.error_over_bound((codes(0x39, 0x80),), wanted, bound) == 1
    assert answers.error_over_bound((codes(0x3A, 0x00),), wanted, bound) == 2
    assert answers.error_over_bound((codes(0x38, 0x01),), wanted, bound) == math.inf
    assert math.isnan(answers.error_over_bound((codes(0x7F, 0x00),), wanted, bound))


def test_a_peers_answer_may_leave_off_the_end() -> None:
    wanted = codes(0x38, 0x38), torch.tensor([1.0])
    assert answers.relative_error(wanted[0], wanted) == answers.relative_error(wanted, wanted) == 0
    assert answers.relative_error((codes(0x38, 0x39), wanted[1]), wanted) == pytest.approx(0.125 / 2**0.5)
    assert answers.relative_error((), wanted) == answers.relative_error(codes(0x38), wanted) == math.inf
    assert math.isnan(answers.relative_error((codes(0x38, 0x7F), wanted[1]), wanted))
    nan = codes(0x7F)
    assert answers.relative_error(nan, (nan,)) == 0


def test_fp4_codes_are_two_numbers_a_byte() -> None:
    packed = torch.tensor([[0x21, 0xF7]], dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    assert answers.values(packed).tolist() == [[0.5, 1.0, 6.0, -6.0]]


# --- a row -----------------------------------------------------------------------------------------------------------
def test_a_cast_is_measured_in_elements_and_bytes_against_a_copy(
    monkeypatch: pytest.MonkeyPatch, num_threads: Any
) -> None:
    num_threads(1)
    probed = []

    class Roofline(ceiling.Roofline):
        def _probe(self, key: Any, found: float) -> float:
            probed.append(key[1])
            return super()._probe(key, found)

    case = case_of("fp8_cast", block=(1, 128), source="bfloat16")
    found = row.measure(row_of(case), ("torch_eager", "torch_mkldnn", "ort"), Roofline())
    assert probed == [f"copy {case.bytes // 2}"]
    assert (found["flops"], found["gflops"], found["rate"], found["op"]) == (0, 0, None, "fp8_cast")
    assert found["elements"] == cast_room.M * cast_room.K and found["error_over_bound"] == 0
    assert found["gelements"] == pytest.approx(found["elements"] / found["min_us"] / 1e3)
    assert found["gbytes"] == pytest.approx(case.bytes / found["min_us"] / 1e3)
    assert found["share_of_ceiling"] == pytest.approx(found["roofline_us"] / found["min_us"]) and found["roofline_us"]
    assert found["peers"]["torch"]["right"] and list(found["failed"]) == ["ort"], "a linear peer has nothing to say"


def test_a_copy_counts_what_is_read_and_what_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def copy_of(size: int, _: float) -> float:
        sizes.append(size)
        return 2e9

    native = SimpleNamespace(isa=lambda: "avx2", ceiling_copy=copy_of)
    monkeypatch.setattr(ceiling, "native", lambda: native)
    assert ceiling.Roofline().copy_seconds(1 << 20) == pytest.approx((1 << 20) / 2e9)
    assert ceiling.Roofline().copy_seconds(1 << 20, threads=2) == pytest.approx((1 << 19) / 2e9)
    assert sizes == [1 << 19] * 2


# In a process of its own: a thread that was ever refused memory leaves the arena that mallopt speaks of (glibc).
FAULTS = """
import resource, torch
from deepseek_fast.bench.memory import kept

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(64 << 20, dtype=torch.uint8).fill_(1)  # above what glibc ever keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with kept(128 << 20):
    print(min(faults() for _ in range(3)))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="libc has no mallopt")
def test_a_large_output_takes_memory_that_the_process_has(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100, "of pages that the kernel would clear"
    case = cast_room.CASES[0]

    def kept(num_bytes: int) -> contextlib.nullcontext[None]:
        asked.append(num_bytes)
        return contextlib.nullcontext()

    monkeypatch.setattr(row.memory, "kept", kept)
    with row.settings(row_of(case)):
        assert asked == [case.bytes]


def test_a_wrong_bit_of_ours_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of("fp8_dequantize", block=(128, 128))

    def off(_: Any, inputs: dict[str, Any]) -> Any:
        y = cast_room.REFERENCE.fp8_dequantize_ref(**inputs)
        y.view(torch.int16)[3, 5] ^= 1
        return lambda: y

    monkeypatch.setattr(cast_room.Case, "call", off)
    found = measured(case)
    assert found["rows"][0]["error_over_bound"] == math.inf
    assert f"WRONG: ours, {row_of(case).id}" in report.text(found)


def test_a_room_may_bound_an_op(monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of("silu_mul_cast")
    reference = SimpleNamespace(
        silu_mul_cast_ref=cast_room.silu_mul_cast_ref,
        silu_mul_cast_bound=lambda x, **_: (torch.full((x.shape[0], x.shape[1] // 2), 1e-3), None),
    )
    monkeypatch.setattr(rooms, "part", lambda *_: reference)
    _, wanted, bound = rooms.prepared(cast_room.NAME, case)
    assert len(wanted) == len(bound) == 2 and bound[0].shape == wanted[0].shape and bound[1] is None


def test_levels_below_the_highest_have_the_casts_that_fit_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    large = dataclasses.replace(cast_room.CASES[0], M=1 << 14, K=1 << 12)
    small = cast_room.CASES[1]
    monkeypatch.setattr(rooms, "part", lambda *_: SimpleNamespace(BENCH=(large, small)))
    monkeypatch.setattr(deepseek_fast, "isa", lambda: "avx512")
    monkeypatch.setattr(deepseek_fast, "supported_isas", lambda: ["scalar", "avx2", "avx512"])
    native = SimpleNamespace(variants=lambda _: [("avx512", "wide"), ("scalar", "plain")])
    monkeypatch.setattr(_load, "native", lambda: native)
    found = rooms.rows([cast_room.NAME])
    assert {one.isa for one in found if one.case is small} == {"avx512", "scalar"}
    assert {one.isa for one in found if one.case is large} == {"avx512"}
    assert found[0].op == large.op


# --- what is shown ---------------------------------------------------------------------------------------------------
def two_rooms(num_threads: Any) -> dict[str, Any]:
    """A made-up linear room beside measured casts at two levels and two numbers of threads."""
    num_threads(1)
    found = measured(case_of("fp8_cast", block=None), case_of("fp8_dequantize", block=None))
    first = found["rows"][0]
    lower = first | {"isa": "scalar", "best_level": False, "id": first["id"] + "-scalar"}
    found["rows"] += [lower, first | {"threads": 2, "id": first["id"] + "-2t"}]
    linear = test_bench_html.row("fused_matmul", "512x384x384-float32-none", 570.0, isa=found["machine"]["isa"])
    found["rows"].append(linear | {"best_level": True})
    return found


def test_a_terminal_shows_elements_beside_operations(num_threads: Any) -> None:
    found = two_rooms(num_threads)
    text = report.text(found, copy.deepcopy(found))
    lines = text.splitlines()
    headers = [line.replace("|", " ").split() for line in lines if "G elements/s" in line or "GFLOP/s" in line]
    assert len(headers) == 4, "a table of each kind, and of its levels and threads"
    for one in found["rows"]:
        (line,) = (line for line in lines if one["case"] in line and f" {one['min_us']:.1f} " in line)
        assert report.rate_text(one) in line
        assert ("." in report.rate_text(one)) == ("gelements" in one)
    assert report.LEGEND_OF_CASTS in text
    found["rows"] = found["rows"][-1:]
    assert "G elements/s" not in report.text(found) and report.LEGEND_OF_CASTS not in report.text(found)


def test_a_page_has_a_copy_where_a_roofline_would_be(num_threads: Any) -> None:
    go = pytest.importorskip("plotly.graph_objects", reason="plotly is not installed")
    found = two_rooms(num_threads)
    page = html.page(found)
    reader = test_bench_html.Reader(page)
    assert reader.text.count("Roofline") == 1 and reader.text.count("Bytes against a copy") == 1
    assert (
        "float64 or bit for bit" in reader.text and "its ceiling is the speed of copying as many bytes" in reader.text
    )
    figures = test_bench_html.figures(page)
    assert len(figures) == reader.tags.count("figure") and "NaN" not in str(figures)
    for figure in figures.values():
        go.Figure(figure)
    cells = [line for line in reader.rows if line and line[0] == found["rows"][0]["case"]]
    assert any(report.rate_text(found["rows"][0]) in line for line in cells)
    assert any("G elements/s" in line for line in reader.rows) and any("GFLOP/s" in line for line in reader.rows)


def test_a_readme_shows_elements_and_bytes(num_threads: Any) -> None:
    found = two_rooms(num_threads)
    table = readme.room_table(found, cast_room.NAME)
    header = [cell.strip() for cell in table.splitlines()[0].strip("|").split("|")]
    assert header == ["case", "us", "G elements/s", "GB/s", "of copy", "x peer", "fastest peer"]
    first = found["rows"][0]
    line = next(line for line in table.splitlines() if first["case"] in line)
    assert f"{first['gelements']:.1f}" in line and f"{first['gbytes']:.0f}" in line
    assert "G/s" in readme.room_table(found, "fused_matmul").splitlines()[0]


def test_the_gate_compares_casts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_threads: Any) -> None:
    case = case_of("fp8_cast", block=(1, 128))
    found = measured(case, peer_names=("torch_eager",))
    runs.write(found, tmp_path / "run.json")
    baseline = runs.read(tmp_path / "run.json")
    monkeypatch.setattr(gate, "MIN_US", 0)
    slow = copy.deepcopy(found)
    for one in slow["rows"]:
        one["min_us"] *= 2
        one["peers"]["torch"]["time_ratio"] *= 2
    for run, slower in ((found, 0), (slow, 1)):
        verdict = gate.check([row_of(case)], baseline, lambda _, run=run: copy.deepcopy(run))
        assert (verdict.compared, len(verdict.slower)) == (1, slower)
        assert verdict.run["rows"][0]["gelements"] > 0


# --- peers -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "op"),
    [
        pytest.param(name, op, marks=pytest.mark.slow if name in COMPILED else ())
        for name in peers.names()
        for op in sorted(CASTS)
        if hasattr(peers.plugin(name), op)
    ],
)
def test_the_answers_are_right(
    name: str, op: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_threads: Any
) -> None:
    absent = peers.missing(name)
    if absent:
        pytest.skip(absent)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    num_threads(1)
    answered, refused = 0, {}
    for case in (case for case in cast_room.CASES if case.op == op):
        inputs, wanted, _ = rooms.prepared(cast_room.NAME, case)
        with torch.inference_mode():
            found, failed = peers.of(op, inputs, (name,))
            refused |= failed
            for label, peer in found.items():
                for y in (peer.call(), peer.call()):
                    error = answers.relative_error(peer.answer(y), wanted)
                    assert error <= peer.tolerance and peer.why, f"{label} {case.id}: {error}"
                answered += 1
    assert answered and all("Error" not in reason for reason in refused.values())


def test_every_cast_has_the_gates_reference(num_threads: Any) -> None:
    num_threads(1)
    for case in cast_room.CASES:
        inputs, *_ = rooms.prepared(cast_room.NAME, case)
        with torch.inference_mode():
            found, failed = peers.of(case.op, inputs, peers.ALWAYS, only_first=True)
        assert list(found) == ["torch"] and not failed


def test_what_a_formula_does_not_vary_is_refused() -> None:
    inputs = case_of("fp8_cast", block=(1, 128)).inputs(torch.Generator())
    for other in ({"rounding": "stochastic"}, {"out_layout": "column"}, {"mode": "te"}, {"block": (1, 100)}):
        found, failed = peers.of("fp8_cast", inputs | other, ("torch_eager",))
        assert not found and "the formula in plain torch has" in failed["torch_eager"]


# --- the cases that the room will measure ----------------------------------------------------------------------------
def test_the_cases_to_be_measured() -> None:
    bench = importlib.import_module("deepseek_fast.kernels.fp8_cast.bench_cases").BENCH
    assert len({case.id for case in bench}) == len(bench) and all(case.why for case in bench)
    assert sum(case.quick for case in bench) == 7
    assert {case.level for case in bench} == {"L1", "L2", "L3", "memory"}
    for case in bench:
        assert case.bytes >= case.elements and case.flops == 0 and case.rate is None
        assert case.why.split()[-1] not in ("L1", "L2", "L3", "memory") or case.why.endswith(case.level)


@pytest.mark.parametrize("case", cast_room.CASES, ids=lambda case: case.id)
def test_bytes_are_those_of_the_tensors(case: Any, generator: Any) -> None:
    inputs = case.inputs(generator)
    y = case.call(inputs)()
    read = [value for value in inputs.values() if isinstance(value, torch.Tensor)]
    written = (
        [y] if isinstance(y, torch.Tensor) else list(y)[: 1 if case.block is None and case.op == "fp8_cast" else 2]
    )
    assert case.working_set == sum(value.nbytes for value in [*read, *written])
    assert case.bytes == case.working_set * max(case.times, 1)
    for value in read:
        assert answers.values(value).isfinite().all()
