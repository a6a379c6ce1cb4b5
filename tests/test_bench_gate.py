"""The CI gate: it fails on a slowdown, planted for real too, and on nothing else."""

import copy
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import keep
from deepseek_fast.bench import ceiling, gate, report, rooms, row
from deepseek_fast.bench import run as runs

PEER = "reference peer"
BASELINE_RATIO = 0.8
CPU = "Some CPU (model 1)"
PLANTED = 0.25  # of the work, done again


def _run(*ratios: float, us: float = 500.0) -> dict[str, Any]:
    """A run whose i-th row has the i-th ratio to its reference peer."""
    rows = []
    for i, ratio in enumerate(ratios):
        peer = {"time_ratio": ratio, "min_us": us / ratio, "right": True, "relative_error": 0.0}
        one = {"id": f"row-{i}", "room": "r", "case": f"c{i}", "isa": "avx2", "threads": 1, "min_us": us, "rounds": 3}
        rows.append({**one, "peers": {PEER: peer}, "error_over_bound": 0.0, "failed": {}})
    machine = {"cpu": CPU, "isa": "avx2"}
    return {"schema": runs.SCHEMA, "kind": runs.KIND, "machine": machine, "interrupted": False, "rows": rows}


BASELINE = _run(BASELINE_RATIO, BASELINE_RATIO)
ROWS = [rooms.Row("r", type("Case", (), {"id": f"c{i}"}), "avx2", 1, True) for i in range(2)]


def _replay(*found: dict[str, Any]) -> Callable[[Sequence[rooms.Row]], dict[str, Any]]:
    """measure() that gives these runs one after another, the rows that are asked for."""
    turn = iter(found)

    def measure(rows: Sequence[rooms.Row]) -> dict[str, Any]:
        one = copy.deepcopy(next(turn))
        one["rows"] = [
            row for row in one["rows"] if row["id"] in {wanted.case.id.replace("c", "row-") for wanted in rows}
        ]
        return one

    return measure


@pytest.fixture(autouse=True)
def _row_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """The made-up rows' ids are those of `_run`."""
    real = rooms.Row.id
    made = property(lambda self: self.case.id.replace("c", "row-") if self.room == "r" else real.__get__(self))
    monkeypatch.setattr(rooms.Row, "id", made)


def _check(*found: dict[str, Any], baseline: dict[str, Any] = BASELINE) -> gate.Verdict:
    return gate.check(ROWS, baseline, _replay(*found))


def test_equal_speed_passes_after_three_runs() -> None:
    verdict = _check(*[BASELINE] * gate.RUNS)
    assert (verdict.compared, verdict.slower) == (2, ())
    assert "2 rows compared, 0 slower" in verdict.text


def test_a_slow_row_is_run_again_and_then_fails() -> None:
    slow = _run(BASELINE_RATIO, 1.25 * BASELINE_RATIO)
    verdict = _check(*[slow] * 2 * gate.RUNS)
    assert verdict.slower == (f"row-1: 1.25 x the time of the baseline, measured against {PEER}",)


def test_one_quiet_run_of_six_is_enough() -> None:
    noisy = _run(2.0, 2.0, us=1250.0)  # our time is inflated, the peer's is what it is in a quiet run
    assert not _check(noisy, BASELINE, noisy).slower
    assert not _check(noisy, noisy, noisy, noisy, noisy, BASELINE).slower


def test_a_noisy_peer_hides_nothing() -> None:
    slow = _run(1.25 * BASELINE_RATIO, BASELINE_RATIO)
    hidden = copy.deepcopy(slow)
    hidden["rows"][0]["peers"][PEER] |= {"min_us": 2000.0, "time_ratio": 0.25}
    assert _check(hidden, slow, hidden, hidden, hidden, hidden).slower


def test_between_the_thresholds_the_state_stays() -> None:
    between = (gate.SUSPECT + gate.CLEAR) / 2
    assert not _check(*[_run(between * BASELINE_RATIO, BASELINE_RATIO)] * gate.RUNS).slower  # never a suspect
    above, then = _run(1.2 * BASELINE_RATIO, BASELINE_RATIO, us=600.0), _run(between * BASELINE_RATIO, 0.8, us=500.0)
    above["rows"][0]["peers"][PEER]["min_us"] = then["rows"][0]["peers"][PEER]["min_us"]
    assert len(_check(*[above] * gate.RUNS, *[then] * gate.RUNS).slower) == 1  # a suspect stays one


def test_what_cannot_be_compared_is_left_out() -> None:
    short = _run(BASELINE_RATIO, BASELINE_RATIO, us=gate.MIN_US / 2)
    assert _check(*[_run(9.0, 9.0)] * gate.RUNS, baseline=short).compared == 0
    assert _check(*[_run(9.0, 9.0)] * gate.RUNS, baseline=_run()).compared == 0
    wrong = copy.deepcopy(BASELINE)
    wrong["rows"][0]["peers"][PEER]["right"] = False
    assert _check(*[wrong] * gate.RUNS).compared == 1


def test_an_answer_that_was_wrong_once_stays_wrong_in_the_pool() -> None:
    wrong = copy.deepcopy(BASELINE)
    wrong["rows"][0]["peers"][PEER] |= {"right": False, "relative_error": None}
    wrong["rows"][1]["error_over_bound"] = None
    for order in ([BASELINE, wrong], [wrong, BASELINE]):
        first, second = gate.pooled(copy.deepcopy(order))["rows"]
        assert not first["peers"][PEER]["right"] and report.fairest(first) is None
        assert not report.right(second)


def test_a_wrong_peer_is_never_the_fairest() -> None:
    one = {"peers": {"wrong": {"min_us": 1.0, "right": False}, "right": {"min_us": 5.0, "right": True}}}
    best = report.fairest(one)
    assert best is not None and best[0] == "right"
    assert report.fairest({"peers": {}}) is None


def _main_row() -> rooms.Row:
    found = rooms.rows(["int8_matmul"], quick=True)
    return next(row for row in found if row.case.activation == "none" and row.case.activations == "int8")


def _extra_work(call: Callable[[], Any], inputs: dict[str, Any]) -> Callable[[], Any]:
    """The call, and PLANTED of its rows once more."""
    bound: Any = call  # a functools.partial of the packed op
    rows = int(inputs["x"].shape[0] * PLANTED)
    again = functools.partial(bound.func, *bound.args, **bound.keywords | {"x": inputs["x"][:rows]})

    def slower() -> Any:
        again()
        return call()

    return slower


def _measure(slowdown: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[rooms.Row]], dict[str, Any]]:
    monkeypatch.setattr(row, "ROW_SECONDS", 0.2)
    monkeypatch.setattr(ceiling, "SECONDS", 0.002)
    measure = functools.partial(row.measure, slowdown=slowdown)
    return lambda rows: runs.collect(rows, ("torch_eager",), only_reference=True, measure=measure)


def test_a_planted_slowdown_of_a_quarter_is_found_by_measuring(
    monkeypatch: pytest.MonkeyPatch, num_threads: Any
) -> None:
    rows = [_main_row()]
    baseline = gate.pooled([_measure(None, monkeypatch)(rows) for _ in range(gate.RUNS)])
    unchanged = gate.check(rows, baseline, _measure(None, monkeypatch))
    assert (unchanged.compared, unchanged.slower) == (1, ())
    assert len(gate.check(rows, baseline, _measure(_extra_work, monkeypatch)).slower) == 1


def test_every_answer_is_right_at_a_level_below_the_highest(num_threads: Any) -> None:
    rows = [one for one in rooms.rows(rooms.names()) if one.isa == "avx2" and one.case.quick][:1]
    (found,) = runs.collect(rows, ("torch_eager",), only_reference=True)["rows"] if rows else (None,)
    assert found is None or (report.right(found) and found["isa"] == "avx2" and len(found["peers"]) == 1)


def test_baselines_are_found_by_cpu(tmp_path: Path) -> None:
    assert gate.file_name("AMD EPYC (family 26, model 2)") == "amd-epyc-family-26-model-2.json"
    assert gate.find(tmp_path, CPU) is None
    file = tmp_path / gate.file_name(CPU)
    file.write_text(json.dumps(BASELINE))
    assert gate.find(tmp_path, CPU) == gate.find(file, CPU) == file
    assert gate.load(file, CPU) == BASELINE


def test_a_baseline_of_another_cpu_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.json"
    file.write_text(json.dumps(BASELINE))
    with pytest.raises(ValueError, match=r"bench: baseline must be of this CPU, Another; got '.*' of Some CPU"):
        gate.load(file, "Another")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no json", "be JSON"),
        ("[]", "got list"),
        ("{}", "got schema None"),
        (json.dumps(BASELINE | {"schema": 1}), "got schema 1"),
        (json.dumps(BASELINE | {"kind": "model"}), "kind model"),
        (json.dumps(BASELINE | {"rows": [{"id": "x"}]}), "whole rows"),
        (json.dumps(BASELINE | {"machine": 3}), "name its CPU"),
    ],
)
def test_an_unreadable_baseline_is_a_sentence(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "baseline.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=f"bench: baseline must .*{said}"):
        gate.load(file, CPU)
    with pytest.raises(FileNotFoundError, match="bench: baseline must exist"):
        gate.find(tmp_path / "none.json", CPU)


def test_an_interrupted_run_keeps_its_rows(tmp_path: Path, num_threads: Any) -> None:
    kept, rows = tmp_path / "run.json", [_main_row(), _main_row()]
    finished: list[Any] = []

    def measure(*_: Any, **__: Any) -> dict[str, Any]:
        if finished:
            raise KeyboardInterrupt
        finished.append(1)
        return {"id": "first"}

    run = runs.collect(rows, (), keep=kept, measure=measure)
    assert run["interrupted"] and run["rows"] == [{"id": "first"}]
    assert json.loads(kept.read_text())["interrupted"] and list(tmp_path.iterdir()) == [kept]
    assert torch.get_num_threads() == 1


def test_committed_baselines_are_complete() -> None:
    for path in keep.BASELINES.glob("*.json"):
        baseline = runs.read(path)
        assert path.stem.startswith(gate.file_name(baseline["machine"]["cpu"]).removesuffix(".json"))
        assert baseline["rows"] and all(report.right(one) for one in baseline["rows"])
        alone = ("-cold", "-kernel")  # which have none
        assert all(one["peers"] for one in baseline["rows"] if not one["case"].endswith(alone))
