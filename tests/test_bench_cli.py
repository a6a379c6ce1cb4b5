"""`deepseek-fast bench` for operators: what it prints and keeps, and a sentence for every wrong word."""

import functools
import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deepseek_fast import cli
from deepseek_fast.bench import ceiling, gate, peers, report, rooms, row
from deepseek_fast.bench import run as runs
from deepseek_fast.cli import machine

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], num_threads: Any) -> Iterator[Run]:
    """bench(words...) -> (exit code, stdout, stderr), with rows as short as they get."""
    prepared = rooms.prepared
    prepared.cache_clear()
    monkeypatch.setattr(row, "ROW_SECONDS", 0.01)
    monkeypatch.setattr(ceiling, "SECONDS", 0.001)

    def call(*words: object) -> tuple[int, str, str]:
        try:
            code = cli.main(["bench", *map(str, words)])
        except SystemExit as exit:  # argparse
            code = int(exit.code or 0)
        return code, *capsys.readouterr()

    yield call
    prepared.cache_clear()


@pytest.fixture
def one_row(monkeypatch: pytest.MonkeyPatch) -> rooms.Row:
    """The only row there is."""
    row = rooms.rows(["int8_matmul"], quick=True)[0]
    monkeypatch.setattr(rooms, "rows", lambda *_, **__: [row])
    return row


def test_one_row_is_printed_and_kept(bench: Run, one_row: rooms.Row, tmp_path: Path) -> None:
    code, out, _ = bench("int8_matmul", "--quick", "--peers", "torch_eager", "--json", tmp_path / "run.json")
    run = runs.read(tmp_path / "run.json")
    assert code == 0 and not run["interrupted"]
    (found,) = run["rows"]
    assert found["id"] == one_row.id and list(found["peers"]) == ["torch linear_dynamic"]
    assert found["error_over_bound"] == 0 and found["min_us"] > 0 and 0 < found["share_of_ceiling"] < 2
    for word in (
        one_row.case.id,
        "torch linear_dynamic",
        machine.cpu_name(),
        "ceilings of one thread",
    ):
        assert word in out


def test_json_on_stdout_is_all_there_is(bench: Run, one_row: rooms.Row) -> None:
    code, out, _ = bench("--peers", "none", "--json", "-")
    run = json.loads(out)
    assert code == 0 and run["kind"] == runs.KIND and run["rows"][0]["peers"] == {}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("int9_matmul",),
            f"bench: targets must be an ONNX file or among {', '.join(rooms.names())}, attention; got 'int9_matmul'",
        ),
        (
            ("int8_matmul", "model.onnx"),
            "bench: targets must be operators or one ONNX file; got int8_matmul model.onnx",
        ),
        (("--peers", "mkl"), "bench: peers must be all, none, a .py file or among torch_mkldnn, torch_eager, ort"),
        (("--peers", "none.py"), "bench: peers must be names or existing .py files; got 'none.py'"),
        (("--baseline", "none.json"), "bench: baseline must exist; got 'none.json'"),
        (("--json", "none/run.json"), "bench: output must be in a folder that can be written; got 'none/run.json'"),
        (("--json", "."), "bench: output must be a file; got the folder '.'"),
        (("--html", "none/run.html"), "bench: output must be in a folder that can be written; got 'none/run.html'"),
    ],
)
def test_a_wrong_word_is_a_sentence_before_any_work(
    bench: Run, words: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs, "collect", None)  # measuring would be an internal error
    code, out, err = bench(*words)
    assert (code, out) == (cli.USER_MISTAKE, "") and said in err and err.count("\n") == 1


def test_a_missing_peer_says_how_to_install_it(bench: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers.plugin("ort"), "PACKAGES", ("no_such_package",))
    code, _, err = bench("--peers", "ort")
    assert code == cli.USER_MISTAKE
    assert "peers must be installed; got 'ort': no_such_package is not installed; pip install" in err


@pytest.mark.parametrize(("package", "words"), [("torch", ()), ("plotly", ("--html", "page.html"))])
def test_a_missing_package_says_what_to_do(
    bench: Run, package: str, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == package else real(name, *rest))
    code, _, err = bench(*words)
    assert code == cli.MACHINE_PROBLEM and package in err and err.count("\n") == 1


def test_a_baseline_gates(bench: Run, one_row: rooms.Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = functools.partial(runs.collect, only_reference=True)
    monkeypatch.setattr(gate, "in_a_process", lambda names: lambda rows: here(rows, names))
    kept, cpu = tmp_path / gate.file_name(machine.cpu_name()), machine.cpu_name()
    assert bench("--peers", "torch_eager", "--json", kept)[0] == 0
    run = runs.read(kept)
    peer = run["rows"][0]["peers"]["torch linear_dynamic"]
    for ratio, code, slower in ((100.0, 0, 0), (0.001, 1, 1)):
        peer["time_ratio"] = ratio
        runs.write(run, kept)
        for where in (kept, tmp_path):
            found, out, _ = bench("--peers", "torch_eager", "--baseline", where)
            assert found == code and f"1 rows compared, {slower} slower" in out
            if where is kept and not slower:
                break  # the folder's file is the same one
    run["machine"]["cpu"] = "Another"
    runs.write(run, kept)
    code, _, err = bench("--baseline", kept)
    assert code == cli.USER_MISTAKE and f"must be of this CPU, {cpu}; got" in err


def test_the_gate_measures_in_a_process_of_its_own(num_threads: Any) -> None:
    wanted = rooms.rows(["int8_matmul"], quick=True)[:1]
    found = gate.in_a_process(("torch_eager",))(wanted)
    assert [one["id"] for one in found["rows"]] == [wanted[0].id] and not found["interrupted"]
    with pytest.raises(RuntimeError, match="bench: a run must end well; got exit code 1"):
        gate.in_a_process(("no_such_plugin",))(wanted)


def test_a_folder_without_this_cpu_has_nothing_to_compare(bench: Run, tmp_path: Path) -> None:
    code, out, _ = bench("--baseline", tmp_path)
    assert code == 0 and "nothing to compare with on this CPU" in out


def test_an_interrupted_run_shows_and_keeps_its_rows(
    bench: Run, one_row: rooms.Row, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(rooms, "rows", lambda *_, **__: [one_row, one_row])
    real, calls = row.harness_seconds, []

    def interrupt(*_: Any) -> Any:
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return real_prepared(one_row.room, one_row.case)

    real_prepared = rooms.prepared
    monkeypatch.setattr(rooms, "prepared", interrupt)
    code, out, err = bench("--peers", "none", "--json", tmp_path / "run.json")
    assert code == cli.INTERRUPTED and "interrupted: 1 finished rows" in out and "interrupted" in err
    assert len(runs.read(tmp_path / "run.json")["rows"]) == 1 and real() < 1e-6


def test_a_wrong_answer_of_ours_is_said_and_fails(
    bench: Run, one_row: rooms.Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = rooms.part(one_row.room, "ref")
    real = reference.int8_matmul_ref
    monkeypatch.setattr(reference, "int8_matmul_ref", lambda **inputs: real(**inputs) + 1)
    code, out, _ = bench("--peers", "torch_eager")
    assert code == 1 and f"WRONG: ours, {one_row.id}" in out and "WRONG: torch linear_dynamic" in out
    assert "in no comparison" in out


def test_the_harness_adds_less_than_two_percent_of_the_shortest_case() -> None:
    """20 ns to a call of the shortest case, some 100 us on a fast machine; the bound holds on a loaded one too."""
    assert row.harness_seconds() < 0.02 * 50e-6


def test_remarks_say_equal_things_once() -> None:
    wrong = {"right": False, "relative_error": 0.5, "min_us": 1.0}
    base = {"room": "r", "error_over_bound": 0.0, "failed": {"ort": "no bf16"}, "peers": {"fast but wrong": wrong}}
    run = {"rows": [{**base, "case": f"c{i}", "id": f"r-c{i}"} for i in range(3)]}
    assert report.remarks(run) == [
        "WRONG: fast but wrong in r, and so in no comparison: c0 (0.5) and 2 more",
        "ort: no bf16: c0 and 2 more",
    ]
