"""Benchmark rows of the attention rooms: the cases count what they say, every peer that is there is right."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import deepseek_fast
from bench import readme
from deepseek_fast.bench import answers, ceiling, gate, peers, report, rooms, row
from deepseek_fast.bench import run as runs
from deepseek_fast.kernels.block_sparse_attention import bench_cases as attention
from deepseek_fast.kernels.block_sparse_attention import ref as attention_ref
from deepseek_fast.kernels.lightning_indexer import bench_cases as indexer
from deepseek_fast.kernels.sparse_mla import bench_cases as mla

PEERS = ("torch_eager", "zendnn", "vllm_cpu")
ROOMS = {"block_sparse_attention": attention, "sparse_mla": mla, "lightning_indexer": indexer}
# Of the measured sizes' fields, what is smaller here.
SMALL_SIZES = {
    "block_sparse_attention": {"S_q": 256, "S_k": 256, "D": 32, "window": 70, "top_tokens": 48},
    "sparse_mla": {"h_q": 5, "topk": 40, "s_q": 3, "extra_topk": 24, "tokens": 128},
    "lightning_indexer": {"s_q": 3, "s_kv": 1024, "H": 8},
}


def small(room: str, case: Any) -> Any:
    """The case with few tokens; what it has not stays away, a decoder has one query."""
    sizes = {name: size for name, size in SMALL_SIZES[room].items() if getattr(case, name)}
    if getattr(case, "top_tokens", 0) or case.op == "sparse_mla_decode":
        sizes = {name: size for name, size in sizes.items() if name not in ("S_q", "s_q")}
    if case.op == indexer.PAGED:
        sizes |= {"s_q": 1}
    if getattr(case, "top_k", 0):
        sizes |= {"top_k": 512}  # all that vLLM selects
    return dataclasses.replace(case, **sizes, quick=False)


EVERY = [(room, small(room, case)) for room, module in ROOMS.items() for case in module.BENCH]
SMALL = tuple({(room, case.id): (room, case) for room, case in EVERY}.values())
OF_MASKS = (*attention.BENCH[:1], *attention.BENCH[2:4], *attention.BENCH[10:11])  # window, densities, causality


def case_of(room: str, op: str, **fields: Any) -> Any:
    """The first small case of an op with these fields."""
    every = (c for r, c in SMALL if r == room and c.op == op)
    return next(c for c in every if all(getattr(c, name) == value for name, value in fields.items()))


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch, num_threads: Any) -> Iterator[None]:
    """Rows as short as they get, on one thread."""
    num_threads(1)
    rooms.prepared.cache_clear()
    monkeypatch.setattr(row, "ROW_SECONDS", 0.01)
    monkeypatch.setattr(ceiling, "SECONDS", 1e-4)
    yield
    rooms.prepared.cache_clear()


@pytest.mark.parametrize(("room", "case"), SMALL, ids=[f"{room}-{case.id}" for room, case in SMALL])
def test_the_answers_are_right(room: str, case: Any) -> None:
    there = [name for name in PEERS if peers.missing(name) is None]
    with torch.inference_mode():
        inputs, wanted, bound = rooms.prepared(room, case)
        found, failed = peers.of(case.op, inputs, there)
        errors = {label: answers.relative_error(peer.answer(peer.call()), wanted) for label, peer in found.items()}
    assert all(errors[label] <= peer.tolerance for label, peer in found.items()), errors
    assert next(iter(found)).startswith("torch") and "torch_eager" not in failed
    if bound is not None:
        parts = zip(*(part if isinstance(part, tuple) else (part,) for part in (wanted, bound)), strict=True)
        assert all(one.shape == other.shape and (other >= 0).all() for one, other in parts)


@pytest.mark.parametrize("case", OF_MASKS, ids=lambda case: case.id)
def test_tiles_are_those_with_a_pair_that_counts(case: attention.Bench) -> None:
    case = dataclasses.replace(case, H=2, H_kv=2, D=4)
    inputs = case.inputs(torch.Generator().manual_seed(0))
    seen = attention_ref.seen_of(inputs)
    tiles = seen.unflatten(-1, (-1, attention.TILE)).any(-1).unflatten(-2, (-1, attention.TILE)).any(-2)
    assert case.pairs == int(tiles.sum()) * attention.TILE**2 and case.flops == 4 * case.D * case.pairs
    assert tiles.any(-1).all(), "no query sees nothing: some peers have NaN there"
    if case.density:
        rows = tiles.sum(-1)
        assert abs(float(tiles.double().mean()) - case.density) < 1e-3 and int(rows.max() - rows.min()) <= 1


def test_bytes_are_what_a_call_touches() -> None:
    decode = next(case for case in attention.BENCH if case.top_tokens)
    assert decode.bytes == 2 * 128 * (2 * 32 + 2 * 8 * 512) + 4 * 32 and decode.pairs == 32 * 512
    v4 = mla.BENCH[0]
    assert v4.bytes == 640 * 584 + 2 * 64 * (512 + 512) and v4.flops == 2 * 64 * 640 * (512 + 512)
    prefill = next(case for case in mla.BENCH if case.op == "sparse_mla")
    assert prefill.bytes == 8192 * 1152 + 2 * 64 * 64 * (576 + 512), "64 lists of 512 name no more than all rows"
    paged, top = indexer.BENCH[0], next(case for case in indexer.BENCH if case.op == "topk_indices")
    assert paged.bytes == 64 * 128 + 2048 * 132 + 4 * 2048 and paged.flops == 2 * 64 * 128 * 2048
    assert (top.flops, top.bytes, top.rate) == (3 * 65536, 3 * 4 * 65536, "fma_f32")


def test_the_table_has_every_row_and_the_gate_few() -> None:
    for room, module in ROOMS.items():
        assert rooms.part(room, "cases").BENCH is module.BENCH
        ids = [case.id for case in module.BENCH]
        assert len(ids) == len(set(ids)) and all(case.group or case.why for case in module.BENCH)
    quick = [case for module in ROOMS.values() for case in module.BENCH if case.quick]
    assert len(quick) == 8 and all(case.flops < 1 << 29 for case in quick)
    masks = {(case.dtype, case.density) for case in attention.BENCH if case.S_q == 2048 and not case.backward}
    assert {(dtype, d) for dtype in ("float32", "bfloat16") for d in (None, 0.1, 0.25, 0.5)} <= masks


def test_a_list_of_tokens_is_what_gathering_gives() -> None:
    case = next(case for room, case in SMALL if getattr(case, "top_tokens", 0))
    inputs = case.inputs(torch.Generator().manual_seed(0))
    whole = attention_ref.block_sparse_attention_ref(**inputs)
    assert torch.equal(case.wanted(inputs)[0], attention_ref.block_sparse_attention_ref(**attention.gathered(inputs)))
    torch.testing.assert_close(case.wanted(inputs)[0], whole, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="gathered: block_mask must be a list a head; got offsets of shape"):
        attention.gathered(inputs | {"block_size": 2})


def test_a_selection_is_compared_by_what_it_is_worth() -> None:
    case = case_of("lightning_indexer", "lightning_indexer")
    case = dataclasses.replace(case, top_k=16)
    inputs = case.inputs(torch.Generator().manual_seed(0))
    best, bound = case.wanted(inputs)
    indices = indexer._logits(*(inputs[name] for name in ("q", "k", "k_scale", "weights")))[0].topk(17).indices

    def error(found: torch.Tensor) -> float:
        return answers.error_over_bound(case.answer(found, inputs), best, bound)

    assert error(indices[:, :16].flip(-1)) == 0
    assert error(torch.cat([indices[:, :15], indices[:, 16:]], -1)) > 1, "the next one instead of the last"
    assert math.isnan(error(torch.cat([indices[:, :15], indices[:, :1]], -1))), "one twice"
    assert math.isnan(error(torch.cat([indices[:, :15], torch.full((len(indices), 1), -1)], -1)))
    top = case_of("lightning_indexer", "topk_indices", s_q=3)
    scores = top.inputs(torch.Generator().manual_seed(0))
    wanted, none = top.wanted(scores)
    right = scores["scores"].topk(top.top_k).indices
    assert none is None and answers.error_over_bound(top.answer(right, scores), wanted, none) == 0
    assert answers.error_over_bound(top.answer(right + 1, scores), wanted, none) == math.inf


def test_no_difference_is_no_error_where_none_is_allowed() -> None:
    wanted, bound = torch.tensor([0.0, 1.0], dtype=torch.float64), torch.tensor([0.0, 0.5], dtype=torch.float64)
    assert answers.error_over_bound(torch.tensor([0.0, 1.25]), wanted, bound) == 0.5
    assert answers.error_over_bound(torch.tensor([1e-9, 1.0]), wanted, bound) == math.inf
    assert math.isnan(answers.error_over_bound(torch.tensor([math.nan, 1.0]), wanted, bound))


class Reference(attention.Bench):
    """A measured case whose call is the reference."""

    def call(self, inputs: dict[str, Any]) -> Callable[[], Any]:
        wanted, _ = self.wanted(inputs)
        dtype = inputs["q"].dtype
        return lambda: tuple(x.to(dtype) for x in wanted) if isinstance(wanted, tuple) else wanted.to(dtype)


def reference_case(**fields: Any) -> Reference:
    small_fields = {"S_q": 128, "S_k": 128, "H": 1, "H_kv": 1, "D": 16, "dtype": "float32", "group": "masks"}
    return Reference(**small_fields | fields)


def test_rows_are_measured_reported_and_kept() -> None:
    cases = [
        reference_case(window=32, is_causal=True),
        reference_case(density=0.5),
        reference_case(density=0.5, backward=True),
    ]
    made = [rooms.Row("block_sparse_attention", case, deepseek_fast.isa(), 1, True) for case in cases]
    run = runs.collect(made, ("torch_eager",))
    assert all(one["error_over_bound"] <= 1 for one in run["rows"])
    labels = [label for one in run["rows"] for label in one["peers"]]
    assert labels == ["torch SDPA, dense mask"] * 2 + ["torch SDPA backward, dense mask"]
    assert all(peer["right"] for one in run["rows"] for peer in one["peers"].values())
    table = readme.room_table(run, "block_sparse_attention")
    assert table.startswith("| heads x kv heads x queries x keys x D, dtype, mask")
    assert "1x1x128x128x16-float32-window_32" in report.text(run)
    assert readme.room_table(run, "sparse_mla") == readme.NOT_YET


def test_a_quick_run_does_not_lose_the_peers_of_a_full_one() -> None:
    peer = {"min_us": 3.0, "time_ratio": 2.0, "right": True}
    common = {"id": "a", "error_over_bound": 0.5, "rounds": 3}
    full = {"rows": [common | {"min_us": 6.0, "peers": {"first": peer, "compiled": peer}}], "interrupted": False}
    quick = {"rows": [common | {"min_us": 4.0, "peers": {"first": peer}}], "interrupted": False}
    (found,) = gate.pooled([full, quick])["rows"]
    assert list(found["peers"]) == ["first", "compiled"]
    assert found["peers"]["compiled"]["time_ratio"] == pytest.approx(4 / 3)


def test_peers_refuse_what_they_are_not_asked_for() -> None:
    case = case_of("block_sparse_attention", "block_sparse_attention", window=70)
    inputs = case.inputs(torch.Generator().manual_seed(0))
    for changed in ({"token_bias": torch.zeros(1, 1, 1, 256)}, {"sinks": 4}):
        found, failed = peers.of(case.op, inputs | changed, ("torch_eager", "torch_flex"))
        assert found == {} and all(text.startswith("peers are asked for masks, windows") for text in failed.values())
    dense = {name: inputs[name] for name in ("q", "k", "v")}
    assert peers.of(case.op, dense, ("torch_flex",)) == ({}, {"torch_flex": FLEX_REFUSES})


FLEX_REFUSES = "flex_attention is asked for sliding windows: it compiles for seconds for each other mask"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_flex_attention_is_right(dtype: str) -> None:
    case = case_of("block_sparse_attention", "block_sparse_attention", window=70, dtype=dtype)
    with torch.inference_mode():
        inputs, wanted, _ = rooms.prepared("block_sparse_attention", case)
        found, failed = peers.of(case.op, inputs, ("torch_flex",))
        (peer,) = found.values()
        assert not failed and answers.relative_error(peer.call(), wanted) <= peer.tolerance
