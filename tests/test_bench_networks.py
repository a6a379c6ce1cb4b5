"""The benchmark of whole networks: weights that mean something, rows that survive crashes, tables that hide nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.networks import __main__ as networks
from bench.networks import light_table
from bench.networks import reference as networks_reference
from bench.networks import run as networks_run
from bench.networks import table as networks_table
from bench.networks import timing as networks_timing
from bench.networks import weights as networks_weights
from bench.networks.contestants import (
    BY_NAME,
    CONTESTANTS,
    NETWORKS,
    OPENVINO,
    OPENVINO_BF16,
    ORT_INT8,
    OURS_BF16,
    OURS_FP32,
    OURS_INT8,
    OURS_STOCK,
    OURS_TORCH,
    STOCK,
    TORCH,
)
from bench.networks.remote import Remote
from deepseek_fast.bench import run as runs

SMALLEST = "squeezenet"
WIDEST = 110  # columns of a table
Record = dict[str, Any]
Found = Callable[[Record], None]


def _row(contestant: str, ms: float, *, network: str = "minilm", **changes: Any) -> Record:
    where = {"network": network, "contestant": contestant, "threads": 1, "batch": NETWORKS[network].batch}
    answer = {"cosine": 1.0, "max_abs": 0.0, "least_cosine": 0.97, "right": True, "our_nodes": 36, "nodes": 87}
    return {**where, "ms": ms, "ms_min": ms, "spread": 0.01, "ratio_to_stock": ms / 60, **answer, **changes}


def _data(*rows: Record, **changes: Any) -> Record:
    machine = {"cpu": "Some CPU", "cpus": 2, "load": 0.1, "isa": "avx2", "threads": 1, "python": "3.11"}
    machine |= {"versions": {}, "date": "2026-01-01"}
    data = {"schema": runs.SCHEMA, "kind": "networks", "machine": machine, "quick": False, "seconds": 1.0}
    return data | {"interrupted": False, "rows": list(rows), "loads": [], "skipped": [], "failed": []} | changes


def _lines(table: str) -> dict[str, list[str]]:
    """Cells of each row, by the first."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {row[0]: row[1:] for row in rows}


def test_a_row_of_the_table_has_ratios_and_our_nodes() -> None:
    data = _data(_row(STOCK, 60.0), _row(OURS_FP32, 45.0), _row(OURS_INT8, 15.0), _row(TORCH, 120.0))
    found = _lines(networks_table.table(data))
    assert found["minilm"] == ["60.0", "", "45.0 (0.75)", "15.0 (0.25)", "36/87"]
    assert found["minilm, torch"] == ["120.0 (2.00)", "", "", "", ""]


@pytest.mark.parametrize("cosine", [0.95, None])  # None: NaN, which JSON lacks
def test_a_wrong_answer_is_shown_as_wrong_not_as_fast(cosine: float | None) -> None:
    data = _data(_row(STOCK, 60.0), _row(ORT_INT8, 6.0, cosine=cosine, right=False))
    assert _lines(networks_table.table(data))["minilm"][1] == "6.0 WRONG"
    text = networks_table.text(data)
    assert f"WRONG: minilm, ORT int8: cosine {'0.9500' if cosine else 'NaN'} to ORT fp32" in text
    assert networks.right(data)  # it is not ours


def test_what_failed_or_was_skipped_is_said() -> None:
    failed = [
        {"network": "minilm", "contestant": OURS_INT8, "step": "load", "why": "killed by SIGSEGV"},
        {"network": "vgg19", "contestant": None, "step": "prepare", "why": "MemoryError"},
    ]
    skipped = [{"network": "vgg19", "what": "batch 16", "why": "would take 60 s"}]
    data = _data(_row(STOCK, 60.0), failed=failed, skipped=skipped, interrupted=True)
    found, text = _lines(networks_table.table(data)), networks_table.text(data)
    assert found["minilm"][3] == "failed" and found["vgg19"][0] == "failed"
    assert "failed: minilm, ours w8a8, load: killed by SIGSEGV" in text
    assert "failed: vgg19, prepare: MemoryError" in text
    assert "skipped: vgg19, batch 16: would take 60 s" in text and text.endswith("1 s, interrupted")


def test_sweeps_and_loads_have_tables_that_fit() -> None:
    rows, loads = [], []
    for network in NETWORKS.values():
        for contestant in CONTESTANTS:
            sweep = [(threads, network.batch) for threads in (1, 2, 4, 8)] + [(1, batch) for batch in network.batches]
            places = [{"threads": threads, "batch": batch} for threads, batch in dict.fromkeys(sweep)]
            rows += [_row(contestant.name, 234.56, network=network.name, **place) for place in places]
            load = {"load_ms": 1000.0, "first_ms": 1100.0, "peak_mb": None, "added_mb": 1150.0, "bytes": 574_700_000}
            loads.append({"network": network.name, "contestant": contestant.name, **load})
    facts = [{"network": name, "flops": 39 * 10**9, "rates": {"fma_f32": 3e11}} for name in NETWORKS]
    text = networks_table.text(_data(*rows, loads=loads, facts=facts))
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert "threads 1/2/8, ms" in text and "234.6/234.6/234.6" in text
    assert "1000, 1100" in text and "NaN, 1150" in text and "574.7" in text
    assert max(map(len, tables)) <= WIDEST


def test_light_networks_stand_beside_the_faster_runtime_and_the_floor() -> None:
    def row(contestant: str, ms: float, **changes: Any) -> Record:
        return _row(contestant, ms, network=SMALLEST, **changes)

    bf16 = [row(OPENVINO_BF16, 1.5), row(OURS_BF16, 1.2)]
    wrong = row(OURS_STOCK, 1.0, right=False, error=0.5, largest_error=1e-4)
    data = _data(row(STOCK, 4.0), row(OPENVINO, 3.0), row(OURS_FP32, 2.7), row(OURS_FP32, 1.0, threads=2), wrong, *bf16)
    data["facts"] = [
        {"network": SMALLEST, "flops": 600_000_000},
        {"network": SMALLEST, "rates": {"fma_f32": 3e11, "bf16_dot": 6e11}},
    ]
    found, in_bf16 = map(_lines, light_table.table(data).split("\n\n"))
    assert in_bf16[SMALLEST] == ["0.60", "1.00", "1.50", "1.20", "0.80", "83%"]
    assert found[SMALLEST] == ["0.60", "2.00", "4.00", "3.00", "2.70", "0.90", "74%", "WRONG"]
    assert found["geomean"][5:7] == ["0.90", "74%"]
    assert not networks.right(data) and "error 0.500000 to float64, must be <= 0.0001" in networks_table.text(data)
    assert light_table.table(_data(_row(STOCK, 60.0))) == ""  # MiniLM has no convolutions
    assert _lines(light_table.table(data | {"facts": []}))[SMALLEST] == [
        "",
        "",
        "1.50",
        "1.20",
        "0.80",
        "",
    ]  # of the last table


def test_the_reference_is_what_the_network_says(tmp_path: Path) -> None:
    """Against ONNX Runtime in float32; operations counted by hand."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], strides=[2, 2], pads=[0, 1, 1, 0], group=2),
        helper.make_node("MaxPool", ["c"], ["m"], kernel_shape=[2, 2], strides=[1, 1], pads=[0, 0, 1, 1]),
        helper.make_node("AveragePool", ["c"], ["a"], kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1]),
        helper.make_node("LRN", ["a"], ["l"], size=3, alpha=0.1, beta=0.75, bias=2.0),
        helper.make_node("Concat", ["m", "l"], ["j"], axis=1),
        helper.make_node("Flatten", ["j"], ["f"], axis=1),
        helper.make_node("Gemm", ["f", "g", "h"], ["y"], transB=1),
    ]
    shapes = {"w": (4, 1, 3, 3), "b": (4,), "g": (5, 8 * 4 * 4), "h": (5,)}
    weights = {name: generator.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 2, 8, 8))]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 5))]
    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "small", inputs, outputs, initializers)
    opset = [helper.make_opsetid("", networks_weights.OPSET)]
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    x = generator.standard_normal((1, 2, 8, 8), np.float32)
    assert networks_reference.store(path, [x]) == 2 * (4 * 11 * 11 + 5 * 8 * 4 * 4)  # 11 of 4 x 3 taps lie inside
    wanted = networks_reference.load(tmp_path)
    answer = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    assert wanted is not None and wanted[0].dtype == np.float64
    assert 0 < networks_reference.error(answer, wanted) < 1e-5
    assert np.isnan(networks_reference.error([np.full((1, 5), np.nan)], wanted))
    assert networks_reference.error([np.zeros(5)], wanted) == float("inf")
    assert networks_reference.load(tmp_path / "elsewhere") is None


def test_a_batch_that_was_not_measured_leaves_a_gap() -> None:
    text = networks_table.text(_data(_row(STOCK, 60.0), _row(STOCK, 8.0, batch=1)))
    assert "8.0/60.0/-" in text


def test_wrong_or_missing_answers_of_ours_fail_the_run() -> None:
    good = _row(STOCK, 60.0), _row(OURS_INT8, 15.0)
    assert networks.right(_data(*good))
    assert not networks.right(_data(*good, _row(OURS_TORCH, 15.0, right=False)))

    def lost(contestant: str | None, step: str) -> Record:
        return _data(*good, failed=[{"network": "vgg19", "contestant": contestant, "step": step, "why": "it died"}])

    assert not networks.right(lost(OURS_FP32, "load"))
    assert not networks.right(lost(None, "time"))  # perhaps ours was what died
    assert networks.right(lost(OPENVINO, "load")) and networks.right(lost(None, "prepare"))


@pytest.fixture
def collect(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Record]:
    """A run whose steps give made-up records; how: {(network, step, contestant): reason or exception}."""
    monkeypatch.setattr(networks_run, "FILES", tmp_path / "networks")

    def run(names: list[str], how: dict[tuple[str, ...], Any], **options: Any) -> Record:
        def step(what: str, job: Record, found: Found) -> str | None:
            key = job["network"], what, *(job["contestants"] if what == "load" else ())
            result = how.get(key)
            if what == "prepare" and result is None:
                for name in (STOCK, OURS_FP32, OURS_INT8):
                    found({"kind": "prepared", "contestant": name, "bytes": 7, "our_nodes": 1, "nodes": 2})
            if what == "load" and result is None:
                figures = dict.fromkeys(networks_run.LEAST, 3.0)
                found({"kind": "loads", "contestant": key[2], **figures})
            for name in job["contestants"] if what == "time" else ():
                found({"kind": "rows", **_row(name, 1.0, network=job["network"])})
            if isinstance(result, BaseException):
                raise result
            return result

        return networks_run.collect(names, step=step, **options)

    return run


def test_what_kills_its_own_process_is_left_out_of_the_timing(collect: Callable[..., Record]) -> None:
    data = collect([SMALLEST], {(SMALLEST, "load", OURS_FP32): "killed by SIGSEGV"})
    assert [row["contestant"] for row in data["rows"]] == [STOCK, OURS_INT8]
    assert [load["contestant"] for load in data["loads"]] == [STOCK, OURS_INT8]  # one each, of two processes
    (failed,) = data["failed"]
    assert failed == {"network": SMALLEST, "contestant": OURS_FP32, "step": "load", "why": "killed by SIGSEGV"}
    assert data["rows"][1]["our_nodes"] == 1 and data["loads"][0]["bytes"] == 7


def test_a_network_that_cannot_be_made_does_not_end_the_run(collect: Callable[..., Record]) -> None:
    data = collect(["vgg19", SMALLEST], {("vgg19", "prepare"): "MemoryError"})
    assert {row["network"] for row in data["rows"]} == {SMALLEST}
    assert [(one["network"], one["contestant"]) for one in data["failed"]] == [("vgg19", None)]


def test_an_interrupted_run_keeps_its_rows(collect: Callable[..., Record], tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    data = collect([SMALLEST, "vgg19", "resnet50"], {("vgg19", "time"): KeyboardInterrupt()}, keep=kept)
    assert data["interrupted"]
    rows = json.loads(kept.read_text())["rows"]
    assert [row["network"] for row in rows] == [SMALLEST] * 3 + ["vgg19"] * 3  # of vgg19: what was finished
    assert not list((tmp_path / "networks").iterdir())  # nothing of the models is left


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("kill -SEGV $$", "killed by SIGSEGV"),
        ("echo 'ImportError: no demo' >&2; exit 1", "ImportError: no demo"),
        ("exit 3", "exit code 3"),
        ("exec tail -f /dev/null", "ended after 0.5 s without an answer"),
    ],
)
def test_a_dead_process_leaves_its_records_and_a_reason(
    script: str, why: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out, python = tmp_path / "found.jsonl", tmp_path / "python"
    python.write_text(f"""#!/bin/sh\nprintf '{{"kind": "rows"}}\\n{{"kind": "ro' > {out}\n{script}\n""")
    python.chmod(0o700)
    monkeypatch.setattr(networks_run.sys, "executable", str(python))
    monkeypatch.setattr(networks_run, "STEP_SECONDS", 0.5)
    found: list[Record] = []
    assert networks_run.run_step("time", {"out": str(out)}, found.append) == why
    assert found == [{"kind": "rows"}]


def test_wrong_arguments_get_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert networks.main(["lenet"]) == 2
    assert capsys.readouterr().err.startswith("bench: networks must be among minilm, alexnet, ")
    assert networks.main([SMALLEST, "--json", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"bench: output must be a file; got the folder '{tmp_path}'\n"


def test_threads_double_up_to_all() -> None:
    assert [networks_timing.thread_counts(cpus) for cpus in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]


def test_an_answer_that_says_nothing_is_no_reference() -> None:
    fine = np.array([1.0, 2.0])
    assert networks_timing.usable([fine])
    for useless in (None, [], [np.ones(2)], [fine, np.array([1.0, np.nan])], [np.array([1.0, np.inf])]):
        assert not networks_timing.usable(useless)


def test_a_remote_contestant_takes_its_turn(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    shape = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (2,)) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "negative", [shape[0]], [shape[1]])
    opset = [helper.make_opsetid("", networks_weights.OPSET)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / BY_NAME[STOCK].file)
    remote = Remote(BY_NAME[STOCK], tmp_path, 1)
    (y,) = remote.answer([np.array([1, 2], np.float32)])
    remote()
    remote.close()
    assert y.tolist() == [-1, -2] and len(remote.seconds) == 2 and min(remote.seconds) > 0
    remote()
    assert remote.dead and len(remote.seconds) == 2


def test_a_remote_contestant_that_died_says_so(tmp_path: Path) -> None:
    remote = Remote(BY_NAME[STOCK], tmp_path, 1)  # there is no model
    with pytest.raises(RuntimeError, match="its process ended with 1"):
        remote.answer([np.zeros(2, np.float32)])
    remote.close()


def _check_network(light: str) -> None:
    """Weights are the same in every call; answers are finite, depend on the image, and on no other in the batch."""
    import onnxruntime

    model = networks_weights.light_model(light).SerializeToString(deterministic=True)
    assert model == networks_weights.light_model(light).SerializeToString(deterministic=True)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    images = networks_weights.images(np.random.default_rng(3), 2)
    answer = session.run(None, {session.get_inputs()[0].name: images})[0].reshape(2, -1)
    alone = session.run(None, {session.get_inputs()[0].name: images[1:]})[0].reshape(1, -1)
    assert np.isfinite(answer).all() and (answer.std(1) > 1e-4).all()
    assert np.corrcoef(answer)[0, 1] < 0.6
    np.testing.assert_allclose(answer[1:], alone, rtol=1e-3, atol=1e-6)


def test_weights_of_the_smallest_network() -> None:
    _check_network(SMALLEST)


@pytest.mark.slow
@pytest.mark.parametrize("light", [name for name in networks_weights.NAMES if name != SMALLEST])
def test_weights_of_every_network(light: str) -> None:
    _check_network(light)


@pytest.mark.slow
def test_the_smallest_network_end_to_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(networks_run, "FILES", tmp_path / "networks")
    kept = tmp_path / "kept.json"
    assert networks.main([SMALLEST, "shufflenet", "--quick", "--json", str(kept)]) == 0
    data = json.loads(kept.read_text())
    assert data["failed"] == [] and data["skipped"] == [] and data["kind"] == "networks"
    rows = {(row["network"], row["contestant"]): row for row in data["rows"]}
    assert {contestant for _, contestant in rows} >= {STOCK, ORT_INT8, OURS_FP32, OURS_INT8}
    assert all(row["right"] and row["ms_min"] > 0 and row["threads"] == 1 for row in rows.values())
    assert all(rows[name, OURS_FP32]["our_nodes"] > 26 for name in (SMALLEST, "shufflenet")), "of as many convolutions"
    assert all(0 < rows[name, OURS_STOCK]["error"] < 1e-4 for name in (SMALLEST, "shufflenet"))
    loads = {(load["network"], load["contestant"]): load for load in data["loads"]}
    assert loads.keys() == rows.keys()
    assert all(0 < load["load_ms"] <= load["first_ms"] for load in loads.values())
    assert loads["shufflenet", ORT_INT8]["bytes"] < loads["shufflenet", STOCK]["bytes"]
    assert "| shufflenet " in capsys.readouterr().out
