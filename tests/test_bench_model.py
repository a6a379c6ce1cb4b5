"""`deepseek-fast bench model.onnx`: rows and answers, what is kept of an interrupted run, a sentence for bad input."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from deepseek_fast import cli
from deepseek_fast.bench import model, model_profile, model_sessions
from deepseek_fast.bench import run as runs
from tests.bench_models import save, shorten_probes, tiny_model, unchecked
from tests.onnx_models import Graph, linear

WIDTH = 110  # columns of a terminal
Bench = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _short_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_probes(monkeypatch)


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str]) -> Bench:
    """bench(words...) -> (exit code, stdout, stderr)."""

    def call(*words: object) -> tuple[int, str, str]:
        try:
            code = cli.main(["bench", *map(str, words)])
        except SystemExit as stop:  # argparse
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return save(tiny_model(), tmp_path / "tiny.onnx")


def _options(path: Path, **more: Any) -> model.Options:
    return model.Options(path, **{"batch": 2, "seq": 3, "rounds": 3, **more})


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        (TensorProto.FLOAT, ()),
        (TensorProto.FLOAT, ("batch", -1, 3)),
        (TensorProto.FLOAT, (0, 3)),
        (TensorProto.FLOAT16, ("batch", "seq")),
        (TensorProto.BFLOAT16, ("batch", "seq")),
        (TensorProto.INT64, ("batch", "seq")),
        (TensorProto.BOOL, ("batch", "seq")),
    ],
)
def test_inputs_of_every_kind_run(tmp_path: Path, dtype: int, shape: tuple[Any, ...]) -> None:
    graph = Graph()
    graph.input("x", *shape, dtype=dtype)
    graph.input("attention_mask", "batch", "seq", dtype=TensorProto.INT64)
    graph.output(graph.op("Identity", "x", output="y"), dtype=dtype)
    graph.output(graph.op("Cast", "attention_mask", output="mask", to=dtype), dtype=dtype)
    path = save(unchecked(graph), tmp_path / "inputs.onnx")
    made = model_sessions.contestants(_options(path), tmp_path)
    sizes = [3 if size == "seq" else {"batch": 2, -1: 3}.get(size, size) for size in shape]
    assert made.feeds["x"].shape() == sizes and made.feeds["attention_mask"].numpy().all()
    result = model.measure(_options(path))
    assert model.right(result) and [row["cosine"] for row in result["rows"]] == [1.0] * len(result["rows"])


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("value", "want", "cosine", "max_abs"),
    [
        ([1.0, 2.0], [1.0, 2.0], 1.0, 0.0),
        ([1.0, 0.0], [0.0, 1.0], 0.0, 1.0),
        ([-1.0], [1.0], -1.0, 2.0),
        ([0.0], [0.0], 1.0, 0.0),
        ([], [], 1.0, 0.0),
        ([NAN, INF, 1.0], [NAN, INF, 1.0], 1.0, 0.0),
        ([NAN, 1.0], [1.0, 1.0], 0.0, INF),
        ([INF, 1.0], [-INF, 1.0], 0.0, INF),
        ([1.0], [1.0, 2.0], 0.0, INF),
        (["a"], ["a"], 1.0, 0.0),
        (["a"], ["b"], 0.0, INF),
    ],
)
def test_distance_of_answers(value: list[Any], want: list[Any], cosine: float, max_abs: float) -> None:
    assert model.distance([np.array(value)], [np.array(want)]) == (pytest.approx(cosine), max_abs)


def test_a_wrong_answer_of_ours_is_exit_code_1(bench: Bench, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "MIN_COSINE_INT8", 1.5)
    code, out, _ = bench(tiny, "--rounds", 2)
    assert code == cli.CHECK_FAILED and "DEPARTS" in out


def test_what_our_optimizer_refuses_is_said_and_exit_code_1(bench: Bench, tmp_path: Path) -> None:
    graph = Graph()
    graph.input("x", "batch", 16)
    graph.output(linear(graph, "x", 16, 16), rank=2)
    proto = graph.model()
    proto.opset_import[0].version, proto.ir_version = 26, 11
    code, out, _ = bench(save(proto, tmp_path / "new.onnx"), "--rounds", 2)
    assert code == cli.CHECK_FAILED
    assert any(f"nodes of {name}" in out for name in ("stock ORT", "ORT dynamic int8")), "of whichever was faster"
    assert "ours, w8a8: not possible: optimize: model must import an ai.onnx opset from 13 to 25; got 26" in out


def test_the_figures_are_printed_and_kept(bench: Bench, tiny: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    code, out, err = bench(tiny, "--batch", 2, "--rounds", 3, "--quantize", "w8a16", "--json", kept)
    found = json.loads(kept.read_text(), parse_constant=lambda word: pytest.fail(f"JSON has no {word}"))
    assert (code, err) == (0, "")
    assert (found["schema"], found["kind"], found["rounds"], found["batch"]) == (runs.SCHEMA, "model", 3, 2)
    assert [row["name"] for row in found["rows"]] == ["stock ORT", "ORT dynamic int8", "ours, optimized", "ours, w8a16"]
    assert found["machine"]["threads"] == 1 and set(found["ceilings"]) == {"isa", "rates", "read", "copy"}
    assert all(row["right"] and 0 < row["ms_min"] <= row["ms"] for row in found["rows"])
    for words in ("x stock", "nodes of ours", "gained next", "ours (ai.deepseek_fast): 1 of ", "of the profiler's own"):
        assert words in out
    assert max(map(len, out.splitlines())) <= WIDTH


def test_json_on_stdout_is_all_there_is(bench: Bench, tiny: Path) -> None:
    code, out, err = bench(tiny, "--rounds", 2, "--json", "-")
    assert (code, err) == (0, "") and json.loads(out)["interrupted"] is False


def test_a_page_is_written_and_refused_before_the_work(
    bench: Bench, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli.bench, "_page", lambda path: lambda result: f"<p>{result['kind']}</p>")
    assert bench(tiny, "--rounds", 2, "--html", tmp_path / "page.html")[0] == 0
    assert (tmp_path / "page.html").read_text() == "<p>model</p>"
    monkeypatch.setattr(model, "measure", lambda *_: pytest.fail("nothing may be measured"))
    for option in ("--html", "--json"):
        assert _is_one_sentence(*bench(tiny, option, tmp_path)) and _is_one_sentence(*bench(tiny, option, "none/f"))


def _is_one_sentence(code: int, out: str, err: str) -> bool:
    return code == cli.USER_MISTAKE and out == "" and err.count("\n") == 1 and err.startswith("deepseek-fast bench: ")


@pytest.mark.parametrize("words", [["--quick"], ["--peers", "none"], ["--baseline", "f.json"], ["int8_matmul"]])
def test_what_belongs_to_operators_is_refused(bench: Bench, tiny: Path, words: list[str]) -> None:
    assert _is_one_sentence(*bench(tiny, *words))


def _bad(kind: str, path: Path) -> None:
    graph = Graph()
    graph.input("x", "batch", 8)
    if kind == "text input":
        graph.inputs[0] = helper.make_tensor_value_info("x", TensorProto.STRING, ("batch",))
        graph.output(graph.op("Identity", "x"), dtype=TensorProto.STRING)
    elif kind == "sequence input":
        graph.inputs[0] = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, None)
        graph.output(graph.op("SequenceLength", "x"), dtype=TensorProto.INT64)
    elif kind == "unknown operator":
        graph.output(graph.op("NoSuchOp", "x"))
    elif kind == "foreign domain":
        graph.output(graph.op("Magic", "x", domain="acme"))
    elif kind == "sizes that do not fit":
        graph.output(graph.op("Reshape", "x", graph.constant("shape", [7, 13], np.int64)))
    elif kind == "external data that is gone":
        graph.output(graph.op("MatMul", "x", graph.random("w", 8, 8)))
        proto = unchecked(graph)
        onnx.save(proto, path, save_as_external_data=True, location="gone", size_threshold=0)
        (path.parent / "gone").unlink()
        return
    elif kind == "no model":
        path.write_text("this is no model")
        return
    elif kind == "missing":
        return
    onnx.save(unchecked(graph), path)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("text input", "model must have tensors of numbers as inputs; got text for 'x'"),
        ("sequence input", "model must have tensors of numbers as inputs; got a sequence for 'x'"),
        ("unknown operator", "model must load in ONNX Runtime"),
        ("foreign domain", "model must load in ONNX Runtime"),
        ("sizes that do not fit", "model must run on made-up inputs of --batch 8 and --seq 64"),
        ("external data that is gone", "model must come with its external data"),
        ("no model", "model must be a complete ONNX file"),
        ("missing", "model must be an existing file"),
    ],
)
def test_bad_input_is_one_sentence(bench: Bench, tmp_path: Path, kind: str, words: str) -> None:
    _bad(kind, tmp_path / "bad.onnx")
    code, out, err = bench(tmp_path / "bad.onnx", "--rounds", 2)
    assert _is_one_sentence(code, out, err) and words in err


@pytest.mark.parametrize(
    ("name", "value"), [("quantize", "w4a4"), ("batch", 0), ("seq", 0), ("threads", 0), ("rounds", 1)]
)
def test_options_are_checked(tmp_path: Path, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^bench: {name} must .*; got"):
        model.Options(tmp_path, **{name: value})


@pytest.mark.parametrize(("calls", "rounds"), [(4 * 2 + 4 * 2 + 1, 2), (4 * 2 + 4 * 3 + 2, 3)])
def test_an_interrupted_timing_keeps_its_rounds(
    bench: Bench, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int, rounds: int
) -> None:
    monkeypatch.setattr(model, "timed", _interrupting(model.timed, calls))
    code, out, err = bench(tiny, "--json", tmp_path / "kept.json")
    found = json.loads((tmp_path / "kept.json").read_text())
    assert (code, err) == (cli.INTERRUPTED, "deepseek-fast bench: interrupted\n")
    assert (found["interrupted"], found["rounds"], len(found["rows"]), found["profiles"]) == (True, rounds, 4, {})
    assert f"interrupted: {rounds} rounds, 0 profiles" in out


def test_an_interrupted_profile_keeps_the_rows_and_those_before(
    bench: Bench, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_profile, "profile", _interrupting(model_profile.profile, 1))
    code, _, _ = bench(tiny, "--rounds", 2, "--json", tmp_path / "kept.json")
    found = json.loads((tmp_path / "kept.json").read_text())
    assert code == cli.INTERRUPTED and len(found["rows"]) == 4 and list(found["profiles"]) == ["stock ORT"]


def test_an_interruption_before_the_first_row_keeps_nothing(
    bench: Bench, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "timed", _interrupting(model.timed, 3))
    code, out, err = bench(tiny, "--json", tmp_path / "kept.json")
    assert (code, out, err) == (cli.INTERRUPTED, "", "deepseek-fast bench: interrupted\n")
    assert not (tmp_path / "kept.json").exists()


def _interrupting(function: Callable[..., Any], calls: int) -> Callable[..., Any]:
    left = iter(range(calls))

    def call(*arguments: Any) -> Any:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return function(*arguments)

    return call


def test_a_profile_that_fails_costs_no_row(bench: Bench, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model_profile, "profile", broken)
    code, out, _ = bench(tiny, "--rounds", 2)
    assert code == 0 and "x stock" in out
    assert "profile of stock ORT: not possible: [Errno 28] No space left on device" in out
