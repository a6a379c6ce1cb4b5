"""The indexer's kernels for CUDA: logits within the bound, selections exact, nothing read that no query sees."""

from typing import Any

import pytest
import torch
from torch import Tensor

import deepseek_fast
from deepseek_fast.gpu import tiles
from deepseek_fast.kernels.lightning_indexer import gpu_bench, ref
from deepseek_fast.kernels.lightning_indexer.cases import (
    CASES,
    PAGED_CASES,
    TOPK_CASES,
    LogitsCase,
    PagedCase,
    TopkCase,
)
from deepseek_fast.kernels.lightning_indexer.test_lightning_indexer import orders
from tests import gpu
from tests.indexer_doors import assert_logits, prepared, prepared_topk, selecting

pytestmark = gpu.gpu

# Every number of heads and depth; a window, a result and a form of columns each a few times.
LOGITS = (*CASES[:20:3], *CASES[20:36:7], *CASES[36:])
PAGED = (PAGED_CASES[1], PAGED_CASES[6], PAGED_CASES[11], PAGED_CASES[12])
TOPK = (*TOPK_CASES[:18:2], *TOPK_CASES[18:-6:7], *TOPK_CASES[-6:])
# Rows of these sizes go through several tiles, guesses that hold and that miss, and counts over the whole row.
SMALL = {"SIZE": 256, "SAMPLE": 128, "TILE": 256, "num_warps": 4}


def name(case: Any) -> str:
    return case.id


def chips_bound(inputs: dict[str, Any], want: Tensor, bound: Tensor) -> Tensor:
    """bound, and on a GPU what its tensor cores may add. A cache's error is taken of its largest scale and codes."""
    if gpu.device() == "cpu":
        return bound
    fp8 = torch.cuda.get_device_capability() >= (8, 9)
    if "cache" not in inputs:
        parts = (inputs[n] for n in ("q", "k", "k_scale", "weights"))
        more = gpu_bench.chip_error(*parts, fp8).amax(1, keepdim=True)
    else:
        q = inputs["q"].flatten(0, 1)
        largest = torch.full((1, q.shape[-1]), 448.0)
        more = gpu_bench.chip_error(q, largest, torch.ones(1), inputs["weights"], fp8)
    return torch.where(want.isneginf(), bound, bound + more)


@pytest.mark.parametrize("case", LOGITS, ids=name)
def test_logits_are_within_the_bound(case: LogitsCase) -> None:
    _, inputs, want, bound = prepared(case)
    got = gpu.call(deepseek_fast.fp8_mqa_logits, **inputs)
    assert got.dtype == inputs.get("dtype", torch.float32)
    assert_logits(got, want, chips_bound(inputs, want, bound), case.id)


@pytest.mark.parametrize("arch", gpu.ARCHS)
@pytest.mark.parametrize("case", [CASES[12], LogitsCase(18, 300, 32, 64, "causal")], ids=name)
def test_the_fused_form_selects_from_the_stored_logits(case: LogitsCase, arch: int, monkeypatch: Any) -> None:
    """In chunks of 16 queries and fewer, too."""
    from deepseek_fast.kernels.lightning_indexer import triton_launch

    monkeypatch.setattr(triton_launch, "SCRATCH_BYTES", dict.fromkeys(triton_launch.SCRATCH_BYTES, 16 * 320 * 4))
    fused, exact = selecting(prepared(case)[1])
    logits = gpu.call(deepseek_fast.fp8_mqa_logits, **exact, arch=arch)
    for sorted_by, k in ((None, 7), ("value", 40)):
        got = gpu.call(getattr(deepseek_fast, fused), **exact, top_k=k, sorted_by=sorted_by, arch=arch)
        assert torch.equal(got, ref.topk_indices_ref(logits, k, sorted_by=sorted_by)), f"{k} by {sorted_by}"


@pytest.mark.parametrize("case", PAGED, ids=name)
def test_a_paged_cache(case: PagedCase, monkeypatch: Any) -> None:
    from deepseek_fast.kernels.lightning_indexer import triton_launch

    _, inputs, want, bound = prepared(case)
    logits = gpu.call(deepseek_fast.fp8_paged_mqa_logits, **inputs)
    assert_logits(logits, want, chips_bound(inputs, want, bound), case.id)
    monkeypatch.setattr(triton_launch, "SCRATCH_BYTES", dict.fromkeys(triton_launch.SCRATCH_BYTES, 4096))
    _, exact = selecting(inputs)
    for sorted_by, k in (("index", 7), ("value", 40)):
        got = gpu.call(deepseek_fast.lightning_indexer_paged, **exact, top_k=k, sorted_by=sorted_by)
        chosen = ref.topk_indices_ref(logits, k, sorted_by=sorted_by).reshape(got.shape)
        assert torch.equal(got, chosen), f"{k} by {sorted_by}"
    slots = gpu.call(deepseek_fast.lightning_indexer_paged, **exact, top_k=9, as_slots=True)
    positions = gpu.call(deepseek_fast.lightning_indexer_paged, **exact, top_k=9)
    assert torch.equal(slots, ref.slots_of(positions, inputs["block_table"], case.page))


@pytest.mark.parametrize("case", TOPK, ids=name)
def test_selections_are_exact(case: TopkCase) -> None:
    inputs, want = prepared_topk(case)
    got = gpu.call(deepseek_fast.topk_indices, **inputs)
    assert got.dtype == torch.int32
    assert torch.equal(got, want)


@pytest.mark.parametrize("parts", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_any_order_of_scores(parts: int, monkeypatch: Any, generator: torch.Generator) -> None:
    from deepseek_fast.kernels.lightning_indexer import triton_launch

    n = 1100
    rows = torch.stack(list(orders(n, generator).values()))
    if parts > 1:
        monkeypatch.setattr(triton_launch, "parts_of", lambda rows, n, k: parts)
    monkeypatch.setattr(triton_launch, "LARGEST_SORTED", 64)  # and torch's sort
    with tiles.forced("lightning_indexer_select", SMALL):
        for k, sorted_by in ((60, "value"), (128, "index"), (500, "value"), (n + 3, None)):
            got = gpu.call(deepseek_fast.topk_indices, rows, k, sorted_by=sorted_by)
            assert torch.equal(got, ref.topk_indices_ref(rows, k, sorted_by=sorted_by)), f"{k} by {sorted_by}"


def test_a_guess_that_misses(generator: torch.Generator) -> None:
    """High scores where the sample is taken, or only elsewhere; NaN and infinity among them."""
    n, runs = 1300, SMALL["SAMPLE"] // 32
    sampled = torch.zeros(n, dtype=torch.bool)
    for run in range(runs):
        sampled[run * (n - 32) // (runs - 1) :][:32] = True
    scores = torch.randn(n, generator=generator)
    rows = [torch.where(sampled, scores + 9, scores), torch.where(sampled, scores - 9, scores)]
    rows += [torch.where(change, special, scores) for change in (sampled, ~sampled) for special in (torch.nan, 0.0)]
    with tiles.forced("lightning_indexer_select", SMALL):
        for k in (5, 128):
            got = gpu.call(deepseek_fast.topk_indices, torch.stack(rows), k, sorted_by="value")
            assert torch.equal(got, ref.topk_indices_ref(torch.stack(rows), k, sorted_by="value"))


def test_lengths_of_any_value_and_strides(generator: torch.Generator) -> None:
    scores = torch.arange(40.0).reshape(2, 2, 10)
    lengths = torch.tensor([[-5, 0], [3, 2**31 - 1]], dtype=torch.int32)
    got = gpu.call(deepseek_fast.topk_indices, scores, 2, lengths=lengths)
    assert got.tolist() == [[[-1, -1], [-1, -1]], [[1, 2], [8, 9]]]
    strided = torch.randn(30, 12, generator=generator)
    for rows in (strided.T, strided[::2], strided[:, 3:9], strided[:, ::2]):
        assert torch.equal(gpu.call(deepseek_fast.topk_indices, rows, 3), ref.topk_indices_ref(rows, 3))


def test_a_nan_code_is_a_nan_logit_and_chosen_first(generator: torch.Generator) -> None:
    inputs = LogitsCase(3, 200, 5, 33, window="none").inputs(generator)
    inputs["k"].view(torch.uint8)[77, 32] = 0xFF
    inputs["q"].view(torch.uint8)[1, 2, 0] = 0x7F
    logits = gpu.call(deepseek_fast.fp8_mqa_logits, **inputs)
    assert logits[1].isnan().all() and logits.isnan()[[0, 2]].sum() == 2 and logits[:, 77].isnan().all()
    chosen = gpu.call(deepseek_fast.lightning_indexer, **inputs, top_k=2, sorted_by="value")
    assert chosen[:, 0].tolist() == [77, 0, 77]


def test_a_query_alone_has_the_bits_it_has_among_others(generator: torch.Generator) -> None:
    inputs = LogitsCase(20, 150, 32, 64, "causal").inputs(generator)
    config = {"BLOCK_KV": 128, "COLUMNS": 64, "PER_SM": 2, "num_warps": 8, "STAGES": 2}
    with tiles.forced("lightning_indexer_logits", config):
        together = gpu.call(deepseek_fast.fp8_mqa_logits, **inputs)
        for i in (0, 7, 19):
            one = inputs | {n: inputs[n][i : i + 1] for n in ("q", "weights", "ks", "ke")}
            assert torch.equal(gpu.call(deepseek_fast.fp8_mqa_logits, **one)[0], together[i])


def test_a_page_out_of_range_is_not_read() -> None:
    """Values are not checked on a GPU: its tokens are not there."""
    inputs = prepared(PAGED_CASES[2])[1]
    table = inputs["block_table"].clone()
    table[0, 0] = 2**31 - 1
    logits = gpu.call(deepseek_fast.fp8_paged_mqa_logits, **inputs | {"block_table": table})
    assert logits[0, : inputs["cache"].shape[1]].isneginf().all()
    longer = inputs | {"context_lens": torch.full_like(inputs["context_lens"], 2**31 - 1)}
    _, exact = selecting(longer)
    chosen = gpu.call(deepseek_fast.lightning_indexer_paged, **exact, top_k=5)
    assert (chosen < table.shape[1] * inputs["cache"].shape[1]).all()


def test_refusals_are_the_cpu_ops_sentences() -> None:
    q = torch.ones(4, 64, 128).to(torch.float8_e4m3fn)
    inputs: dict[str, Any] = {"q": q, "k": q[0], "k_scale": torch.ones(64), "weights": torch.ones(4, 64)}
    with pytest.raises(TypeError, match="fp8_mqa_logits: q must be float8_e4m3fn; got dtype bfloat16"):
        gpu.call(deepseek_fast.fp8_mqa_logits, **inputs | {"q": q.bfloat16()})
    with pytest.raises(ValueError, match=r"weights must have shape \(4, 64\), one a query and head; got shape"):
        gpu.call(deepseek_fast.fp8_mqa_logits, **inputs | {"weights": torch.ones(64, 4)})
    with pytest.raises(ValueError, match="topk_indices: k must be at least 0; got -1"):
        gpu.call(deepseek_fast.topk_indices, torch.ones(3), -1)
    with pytest.raises(ValueError, match="lightning_indexer: sorted_by must be one of None, index, value; got"):
        gpu.call(deepseek_fast.lightning_indexer, **inputs, top_k=3, sorted_by="score")
