"""Benchmark rows of convolutions: the cases count what they say, every peer that is always there is right."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import deepseek_fast
from bench import readme
from deepseek_fast.bench import answers, ceiling, means, peers, report, rooms, row
from deepseek_fast.bench import run as runs
from deepseek_fast.kernels.fused_conv import bench_cases, ref, ref_int8
from deepseek_fast.kernels.fused_conv.bench_cases import Bench

NAME = "convolutions_of_a_test"
PEERS = ("torch_mkldnn", "torch_eager", "ort")
SIDE = 13  # pixels


class Case(Bench):
    """A measured case whose call is the reference."""

    def call(self, inputs: dict[str, Any]) -> Callable[[], Any]:
        y = REFERENCES[self.op](**inputs)
        return lambda: y if self.dtype == "uint8" else y.to(inputs["x"].dtype)


REFERENCES = {"fused_conv": ref.fused_conv_ref, "fused_conv_int8": ref_int8.fused_conv_int8_ref}


def small(case: Bench) -> Case:
    """The case with few channels and pixels; 20 where all are one group: no whole blocks of 8 or 16."""
    C = case.C if case.C == 3 else 3 * case.groups if 1 < case.groups < case.C else 20
    F = C if case.F == case.C else 48
    groups = C if case.groups == case.C else case.groups
    fields = {field.name: getattr(case, field.name) for field in dataclasses.fields(case)}
    return Case(**fields | {"C": C, "F": F, "H": SIDE, "groups": groups, "quick": False})


SMALL = tuple({case.id: case for case in map(small, bench_cases.BENCH)}.values())


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch, num_threads: Any) -> Iterator[None]:
    """Rows as short as they get, on one thread, of this test's room."""
    num_threads(1)
    rooms.prepared.cache_clear()
    modules = {"cases": SimpleNamespace(BENCH=SMALL), "ref": ref, "ref_int8": ref_int8}
    monkeypatch.setattr(rooms, "part", lambda _, name: modules[name])
    monkeypatch.setattr(row, "ROW_SECONDS", 0.01)
    monkeypatch.setattr(ceiling, "SECONDS", 1e-4)
    yield
    rooms.prepared.cache_clear()


def row_of(case: Any) -> rooms.Row:
    return rooms.Row(NAME, case, deepseek_fast.isa(), 1, True)


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.id)
def test_the_answers_are_right(case: Case) -> None:
    inputs, wanted, _ = rooms.prepared(NAME, case)
    with torch.inference_mode():
        found, failed = peers.of(case.op, inputs, PEERS)
        errors = {label: answers.relative_error(peer.answer(peer.call()), wanted) for label, peer in found.items()}
    assert all(errors[label] <= peer.tolerance for label, peer in found.items()), errors
    assert next(iter(found)) == ("onednn qconv" if case.dtype == "uint8" else "mkldnn prepacked conv")
    assert list(failed) == (["ort"] if case.dtype == "bfloat16" else [])
    blocked = case.groups in (1, case.C) and case.dtype == "float32"
    assert ("ORT Conv, blocked" in found) == blocked


def test_a_layer_counts_its_operations_and_bytes() -> None:
    stem = bench_cases.BENCH[0]
    assert (stem.P, stem.out, stem.taps, stem.rate) == (112, 56, 147, "fma_f32")
    assert stem.flops == 2 * 64 * 3 * (112 * 7 - 3 - 1 - 2) ** 2
    assert stem.bytes == 4 * (3 * 224 * 224 + 64 * 147 + 64 + 64 * 56 * 56)
    inputs, wanted, _ = rooms.prepared(NAME, small(stem))
    assert wanted.shape == (1, 48, small(stem).out, small(stem).out) and inputs["x"].is_contiguous()
    depthwise = Bench(144, 56, 144, 3, 2, 144)
    assert (depthwise.P, depthwise.taps, depthwise.flops) == (28, 9, 2 * 144 * (28 * 3 - 1) ** 2)
    residual = Bench(64, 14, 256, 1, dtype="uint8", residual=True)
    assert residual.bytes == 196 * (64 + 256 + 256) + 64 * 256 + 8 * 256 and residual.rate == "int8_dot"


def test_few_rows_are_swept_and_fewer_gate() -> None:
    swept = [case for case in bench_cases.BENCH if case.sweep]
    assert 5 < len(swept) < 15 and len({case.id for case in bench_cases.BENCH}) == len(bench_cases.BENCH)
    assert [case.groups for case in bench_cases.BENCH if case.quick] == [1, 1, 144]


def test_integers_are_compared_as_they_are() -> None:
    case = next(case for case in SMALL if case.dtype == "uint8" and case.residual)
    _, wanted, bound = rooms.prepared(NAME, case)
    assert wanted.dtype == torch.uint8 and bound is None
    assert answers.error_over_bound(wanted.clone(), wanted, bound) == 0
    assert answers.error_over_bound(wanted ^ 1, wanted, bound) > 1
    codes = wanted.double()
    assert 0.1 < (codes == 0).double().mean() < 0.6 and (codes == 255).double().mean() < 0.02, "not saturated"


def test_a_peer_refuses_what_it_is_not_asked_for() -> None:
    inputs, _, _ = rooms.prepared(NAME, SMALL[0])
    for changed in ({"residual_at": "after"}, {"padding": (0, 1, 1, 0)}, {"activation_params": (0.1,)}):
        found, failed = peers.of("fused_conv", inputs | changed, PEERS)
        assert found == {} and failed.keys() == set(PEERS)
        assert all(reason.startswith("peers are asked for ") for reason in failed.values())


def test_lists_have_geometric_means() -> None:
    cases = [case for case in SMALL if case.group in ("first layer, f32", "depthwise, f32")][:3]
    run = runs.collect([row_of(case) for case in cases], PEERS)
    assert all(found["error_over_bound"] <= 1 for found in run["rows"])
    table = means.table(run["rows"])
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert lines[0][:4] == ["geometric mean", "rows", "of ceiling", "mkldnn"]
    assert lines[2][:2] == ["first layer, f32", "3"]
    assert table in report.text(run)
    filled = readme.room_table(run, NAME)
    assert filled.startswith("| x, filters, dtype, activation") and table in filled
    both = ("ORT Conv", "ORT Conv, blocked")
    ratios = [max(found["peers"][label]["time_ratio"] for label in both) for found in run["rows"]]
    column = lines[0].index("ORT")
    assert lines[2][column] == f"{math.prod(ratios) ** (1 / 3):.2f}"
    assert means.table([{"share_of_ceiling": 0.5, "peers": {}}]) == ""


def test_a_convolution_may_have_any_window() -> None:
    """What no measured case has: a dilation, sizes and steps that differ."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in ((2, 6, 9, 11), (4, 3, 2, 3), (4,)))
    window = {"stride": (1, 2), "padding": (2, 1), "dilation": (2, 1), "groups": 2}
    wanted = F.conv2d(x.double(), weight.double(), bias.double(), **window).relu()
    inputs = {"x": x, "weight": weight, "bias": bias, "activation": "relu", **window}
    found, failed = peers.of("fused_conv", inputs, PEERS)
    assert not failed and len(found) >= 4
    for peer in found.values():
        assert answers.relative_error(peer.answer(peer.call()), wanted) <= peer.tolerance
