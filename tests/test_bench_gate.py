"""The CI gate: it fails on a slowdown in every run, and on nothing else."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from bench import compare

PEER = "reference peer"
BASELINE_RATIO = 0.8


def _run(*ratios: float, min_us: float = 500.0) -> dict[str, Any]:
    """A run whose i-th row has the i-th ratio to its reference peer."""
    peer = {"time_ratio": 0.0, "min_us": min_us, "right": True}
    rows = [
        {"id": f"row-{i}", "min_us": min_us, "peers": {PEER: peer | {"time_ratio": ratio}}}
        for i, ratio in enumerate(ratios)
    ]
    return {"machine": {"cpu": "Some CPU (model 1)", "isa": "avx2"}, "rows": rows}


BASELINE = _run(BASELINE_RATIO, BASELINE_RATIO)
PATH = Path("some-cpu.json")


def test_equal_speed_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.gate([copy.deepcopy(BASELINE)] * 3, BASELINE, PATH) == 0
    assert "2 rows compared, 0 slower" in capsys.readouterr().out


def test_a_planted_slowdown_fails(capsys: pytest.CaptureFixture[str]) -> None:
    slow = _run(BASELINE_RATIO, 1.3 * BASELINE_RATIO)
    assert compare.gate([slow] * 3, BASELINE, PATH) == 1
    out = capsys.readouterr().out
    assert "row-1: 1.30 x slower against reference peer" in out and "row-0" not in out


def test_one_quiet_run_of_three_is_enough() -> None:
    noisy, quiet = _run(2.0, 2.0), _run(BASELINE_RATIO, 1.1 * BASELINE_RATIO)
    assert compare.gate([noisy, quiet, noisy], BASELINE, PATH) == 0


def test_what_cannot_be_compared_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.gate([_run(9.0)], None, PATH) == 0
    assert "no baseline some-cpu.json" in capsys.readouterr().out
    short = _run(BASELINE_RATIO, min_us=compare.GATE_MIN_US / 2)
    assert compare.gate([_run(9.0)], short, PATH) == 0
    assert compare.gate([_run(9.0)], {"rows": []}, PATH) == 0


def test_a_wrong_peer_is_never_the_fairest() -> None:
    row = {"peers": {"wrong": {"min_us": 1.0, "right": False}, "right": {"min_us": 5.0, "right": True}}}
    best = compare.fairest(row)
    assert best is not None and best[0] == "right"
    assert compare.fairest({"peers": {}}) is None


def test_baselines_are_named_by_cpu() -> None:
    assert compare.baseline_path("AMD EPYC (family 26, model 2)").name == "amd-epyc-family-26-model-2.json"


def test_committed_baselines_are_complete() -> None:
    for path in compare.BASELINES.glob("*.json"):
        baseline = json.loads(path.read_text())
        assert compare.baseline_path(baseline["machine"]["cpu"]) == path
        assert baseline["rows"] and all(row["error_over_bound"] <= 1 and row["peers"] for row in baseline["rows"])
