"""A model's profile: ONNX Runtime's events as nodes, the profiler's cost taken off, each node against a ceiling."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from onnx import helper

from deepseek_fast.bench import model, model_nodes, model_profile, model_text, model_trace
from deepseek_fast.bench.model_cost import DOMAIN, Cost
from deepseek_fast.bench.model_facts import Facts
from deepseek_fast.cli import output
from tests.bench_models import loop_model, save, shorten_probes, tiny_model, unchecked
from tests.onnx_models import Graph


@pytest.fixture(autouse=True)
def _short_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_probes(monkeypatch)


def _event(name: str, ts: int, dur: int, op_type: str, index: int = 0, **args: Any) -> str:
    shapes = {"input_type_shape": [{"float": [4, 8]}], "output_type_shape": [{"float": [4, 8]}]}
    args = {"op_name": op_type, "node_index": str(index), **shapes, **args}
    event = {"cat": "Node", "ts": ts, "dur": dur, "name": f"{name}_kernel_time", "args": args}
    return json.dumps(event) + ","


RUN = '{"cat" : "Session","dur" :99,"ts" :0,"name" :"model_run","args" : {}},'


def _file(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "profile.json"
    path.write_text("\n".join(["[", *lines, "]"]))
    return path


def test_runs_are_told_apart_and_the_first_dropped(tmp_path: Path) -> None:
    lines = [line for dur in (90, 3, 5) for line in (_event("a", 10, dur, "Relu"), _event("b", 200, 7, "Neg", 1), RUN)]
    seen = model_trace.read(_file(tmp_path, *lines, _event("a", 10, 1000, "Relu")), dropped=1)
    assert [(node.name, node.samples, node.calls) for node in seen] == [("a", [3, 5], 1), ("b", [7, 7], 1)]


def test_nodes_in_a_loop_are_theirs_and_not_the_loops(tmp_path: Path) -> None:
    inner = [_event("inner", 20, 4, "Tanh", 0), _event("inner", 30, 6, "Tanh", 0), _event("if", 19, 21, "If", 1)]
    lines = [_event("first", 1, 2, "Tanh", 0), *inner, _event("loop", 10, 50, "Loop", 2), RUN]
    seen = {node.name: node for node in model_trace.read(_file(tmp_path, *lines))}
    assert list(seen) == ["first", "loop", "if", "inner"]  # as they start
    assert [(seen[name].samples, seen[name].calls, seen[name].inner) for name in seen] == [
        ([2], 1, 0),
        ([50 - 21], 1, 1),
        ([21 - 10], 1, 2),
        ([10], 2, 0),
    ]
    assert (seen["inner"].inside, seen["if"].inside, seen["first"].inside) == ("loop/if/", "loop/", "")


def test_a_profile_may_lack_shapes_or_lines(tmp_path: Path) -> None:
    broken = ['{"cat" : "Node","name" :"c_kernel_time","du', _event("a", 1, 2, "Relu", input_type_shape=None), RUN]
    (node,) = model_trace.read(_file(tmp_path, *broken))
    (shapes,) = node.shapes
    assert shapes[0] == () and shapes[1][0].shape == (4, 8)


def test_a_profile_without_a_complete_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"more than 1 complete runs; got 1"):
        model_trace.read(_file(tmp_path, _event("a", 1, 2, "Relu"), RUN, _event("a", 1, 2, "Relu")), dropped=1)


class _Bounds:
    """Every node could take `us`."""

    def __init__(self, us: float, *, only_ours: bool = False) -> None:
        self._us, self.only_ours = us, only_ours

    def us(self, needs: Cost) -> float:
        return self._us


def _nodes(
    tmp_path: Path, *lines: str, inside: float = 0.0, outside: float = 0.0, roofline: float = 1.0
) -> list[dict[str, Any]]:
    seen = model_trace.read(_file(tmp_path, *lines, RUN))
    own = model_nodes.ProfilerCost(inside, outside)
    return model_nodes.nodes(seen, own, Facts(unchecked(Graph())), _Bounds(roofline))


@pytest.mark.parametrize("roofline", [0.0, 0.1, 3.0, 1e6])
@pytest.mark.parametrize("inside", [0.0, 2.0, 50.0, 1e9])
def test_no_share_is_above_one_whatever_the_profiler_adds(tmp_path: Path, inside: float, roofline: float) -> None:
    lines = [_event(f"n{i}", 100 * i, dur, "Relu", i) for i, dur in enumerate((0, 1, 2, 3, 40, 99))]
    found = _nodes(tmp_path, *lines, inside=inside, roofline=roofline)
    assert sum(node["share"] for node in found) == pytest.approx(1)
    for node in found:
        assert node["us"] > 0 and 0 < node["share"] <= 1 and node["gain_us"] >= 0
        assert node["share_of_ceiling"] is None or 0 < node["share_of_ceiling"] <= 1
        assert node["us"] > model_nodes.RESOLUTION_US or node["share_of_ceiling"] is None  # it has no time of its own


def test_the_profilers_cost_is_taken_off_each_call_and_each_node_inside(tmp_path: Path) -> None:
    lines = [_event("t", 20, 10, "Tanh", 0), _event("t", 40, 10, "Tanh", 0), _event("loop", 10, 60, "Loop", 1)]
    loop, tanh = _nodes(tmp_path, *lines, inside=2.0, outside=3.0)
    assert tanh["us"] == 20 - 2 * 2 and loop["us"] == 60 - 20 - 2 - 2 * 3
    assert tanh["roofline_us"] == 2 and tanh["share_of_ceiling"] == 2 / 16 and tanh["gain_us"] == 14  # two calls
    assert loop["roofline_us"] is None and loop["gain_us"] is None and loop["share_of_ceiling"] is None


def test_a_lowered_level_judges_only_ours(tmp_path: Path) -> None:
    seen = model_trace.read(_file(tmp_path, _event("m", 1, 20, "FusedMatmul"), _event("t", 40, 10, "Tanh", 1), RUN))
    graph = Graph()
    graph.nodes.append(helper.make_node("FusedMatmul", ["x", "w", "b", "r"], ["y"], domain=DOMAIN, name="m"))
    facts = Facts(unchecked(graph))
    ours, tanh = model_nodes.nodes(seen, model_nodes.ProfilerCost(0, 0), facts, _Bounds(1.0, only_ours=True))
    assert ours["ours"] and ours["roofline_us"] == 1.0 and tanh["roofline_us"] is None


def test_calls_of_several_shapes_have_no_ceiling(tmp_path: Path) -> None:
    longer = _event("t", 40, 10, "Tanh", 0, output_type_shape=[{"float": [5, 8]}])
    (node,) = _nodes(tmp_path, _event("t", 20, 10, "Tanh", 0), longer)
    assert node["roofline_us"] is None and node["calls"] == 2


def _profiles(path: Path) -> dict[str, Any]:
    result = model.measure(model.Options(path, batch=2, seq=3, rounds=3))
    assert result["failed"] == {} and set(result["profiles"]) == {row["name"] for row in result["rows"]}
    return result


def test_every_node_is_there_once_and_ours_are_known(tmp_path: Path) -> None:
    result = _profiles(save(tiny_model(), tmp_path / "tiny.onnx"))
    assert json.loads(json.dumps(output.finite(result), allow_nan=False))["kind"] == "model"
    for name, wanted, ours in (
        ("stock ORT", ["Add", "MatMul", "MatMul", "Relu"], set()),
        ("ours, optimized", ["FusedMatmul", "MatMul"], {"FusedMatmul"}),
        ("ours, w8a8", ["Int8Matmul", "MatMul"], {"Int8Matmul"}),
    ):
        profile = result["profiles"][name]
        nodes = profile["nodes"]
        assert sorted(node["op_type"] for node in nodes) == wanted
        assert len({node["name"] for node in nodes}) == len(nodes) and all(node["calls"] == 1 for node in nodes)
        assert {node["op_type"] for node in nodes if node["ours"]} == ours
        assert all((node["domain"] == "ai.deepseek_fast") == node["ours"] for node in nodes)
        assert sum(node["share"] for node in nodes) == pytest.approx(1)
        assert profile["ms"] == pytest.approx(sum(node["us"] for node in nodes) / 1e3) and profile["unprofiled_ms"] > 0
        assert profile["runs"] >= model_profile.MIN_RUNS and 0 < profile["profiler_us"] < 1000
    nodes = {node["op_type"]: node for node in result["profiles"]["ours, w8a8"]["nodes"]}
    assert (nodes["Int8Matmul"]["shape"], nodes["Int8Matmul"]["rate"]) == ("32x16x16", "int8_dot")
    assert nodes["Int8Matmul"]["flops"] == 2 * 32 * 16 * 16
    assert nodes["MatMul"]["shape"] == "2*16x16x16" and "second factor" in nodes["MatMul"]["left_alone"]


def test_a_loop_is_one_node_and_its_nodes_have_calls(tmp_path: Path) -> None:
    nodes = {
        node["name"]: node
        for node in _profiles(save(loop_model(), tmp_path / "loop.onnx"))["profiles"]["ours, w8a8"]["nodes"]
    }
    assert {name: node["calls"] for name, node in nodes.items()} == {
        "loop": 1,
        **dict.fromkeys(("loop/product", "loop/tanh", "loop/go_on"), 4),
    }
    assert nodes["loop/product"]["flops"] == 4 * 2 * 2 * 64 * 64
    assert nodes["loop/product"]["left_alone"] == "it is inside loop, and only the main graph is rewritten"
    assert nodes["loop"]["roofline_us"] is None


def test_a_model_without_nodes_has_an_empty_profile(tmp_path: Path) -> None:
    graph = Graph()
    graph.output(graph.op("Neg", graph.random("c", 3), output="y"), rank=1)
    result = _profiles(save(graph.model(), tmp_path / "constant.onnx"))
    assert all(profile["nodes"] == [] and profile["ms"] == 0 for profile in result["profiles"].values())
    assert "none" in model_text.text(result)


def _node(op_type: str, us: float, roofline: float | None, *, ours: bool, why: str | None = None) -> dict[str, Any]:
    share = None if roofline is None else min(roofline / us, 1.0)
    gain = None if roofline is None else max(us - roofline, 0.0)
    node = {"op_type": op_type, "shape": "512x1536x384", "ours": ours, "us": us, "roofline_us": roofline}
    return node | {"share_of_ceiling": share, "gain_us": gain, "left_alone": why}


def test_nodes_alike_are_one_line() -> None:
    nodes = [_node("Int8Matmul", 250.0, 200.0, ours=True)] * 12 + [
        _node("Gemm", 9e3, None, ours=False, why="it is odd")
    ]
    gemm, ours = model_text.groups(nodes)
    assert model_text.gained(ours) == "  12 x Int8Matmul 512x1536x384: 3.00 ms, 80 % of its ceiling, 0.60 ms to gain"
    assert model_text.gained(gemm).endswith("9.00 ms, 0.000 ms to gain; left alone: it is odd")
    assert math.isclose(ours.us, 3000) and ours.count == 12 and gemm.share_of_ceiling is None


def test_a_busy_machine_is_named(tmp_path: Path) -> None:
    result = _profiles(save(tiny_model(), tmp_path / "tiny.onnx"))
    assert "busy" not in model_text.text(result)
    for profile in result["profiles"].values():
        profile["unprofiled_ms"] = 2 * profile["ms"] + 1
    assert "the machine was busy" in model_text.text(result)
