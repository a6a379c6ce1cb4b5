"""The indexer through every door and on every level: logits within the bound, selections exact, nothing unseen read."""

from typing import Any

import pytest
import torch
from torch import Tensor

import deepseek_fast
from deepseek_fast.kernels.lightning_indexer import ref
from deepseek_fast.kernels.lightning_indexer.cases import (
    CASES,
    PAGED_CASES,
    TOPK_CASES,
    LogitsCase,
    PagedCase,
    TopkCase,
    codes,
)
from tests.indexer_doors import (
    INDEXER_DOORS,
    SELECTED,
    assert_logits,
    call,
    paged,
    prepared,
    prepared_topk,
    selecting,
)
from tests.plugin import isa_cap, supported_isas

BY_ID = pytest.mark.parametrize("case", (*CASES, *PAGED_CASES), ids=lambda case: case.id)


@BY_ID
def test_logits_of_every_case(case: LogitsCase | PagedCase) -> None:
    op, inputs, want, bound = prepared(case)
    for level in supported_isas():
        with isa_cap(level):
            results = [call(op, door, inputs) for door in INDEXER_DOORS]
        for door, got in zip(INDEXER_DOORS, results, strict=True):
            assert got.dtype == inputs.get("dtype", torch.float32)
            assert_logits(got, want, bound, f"{door} on {level}")
            assert torch.equal(got, results[0]), f"{door} against {INDEXER_DOORS[0]} on {level}"


@BY_ID
def test_the_fused_form_selects_from_the_stored_logits(case: LogitsCase | PagedCase) -> None:
    op, inputs, *_ = prepared(case)
    fused, exact = selecting(inputs)
    columns = {"max_context_len": inputs["max_context_len"]} if "cache" in inputs else {}
    for level in supported_isas():
        with isa_cap(level):
            logits = call(op, "torch", exact | columns)
            for sorted_by, k in zip(ref.SORTED_BY, (SELECTED, 40, 1), strict=True):
                want = ref.topk_indices_ref(logits, k, sorted_by=sorted_by)
                arguments = exact | {"top_k": k} | ({"sorted_by": sorted_by} if sorted_by else {})
                for door in INDEXER_DOORS:
                    got = call(fused, door, arguments)
                    assert got.dtype == torch.int32
                    assert torch.equal(got.reshape(want.shape), want), f"{k} by {sorted_by}, {door} on {level}"


@pytest.mark.parametrize("case", TOPK_CASES, ids=lambda case: case.id)
def test_topk_of_every_case(case: TopkCase) -> None:
    inputs, want = prepared_topk(case)
    for level in supported_isas():
        with isa_cap(level):
            for door in INDEXER_DOORS:
                got = call("topk_indices", door, inputs)
                assert got.dtype == torch.int32
                assert torch.equal(got, want), f"{door} on {level}"


@pytest.mark.parametrize("case", PAGED_CASES, ids=lambda case: case.id)
def test_slots_are_places_in_the_cache(case: PagedCase, isa: str) -> None:
    op, inputs = selecting(prepared(case)[1])
    positions = call(op, "torch", inputs | {"top_k": 9})
    want = ref.slots_of(positions, inputs["block_table"], case.page)
    for door in INDEXER_DOORS:
        assert torch.equal(call(op, door, inputs | {"top_k": 9, "as_slots": True}), want)


# --- selections ------------------------------------------------------------------------------------------------------


def orders(n: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Rows that make a selection work: every score above the threshold, none, many as large as the last one taken."""
    up = torch.arange(n, dtype=torch.float32) - n / 2
    few = torch.randint(0, 3, (n,), generator=generator).float()
    nan = torch.where(torch.rand(n, generator=generator) < 0.3, torch.nan, up)
    late = torch.zeros(n)
    late[-5:] = 1.0
    tiny = torch.randint(-9, 10, (n,), generator=generator).float() * 2.0**-149
    return {
        "ascending": up,
        "descending": -up,
        "zigzag": torch.stack([up, -up], 1).flatten()[:n],
        "few": few,
        "zeros of both signs": torch.where(few == 0, -0.0, 0.0),
        "NaN": nan,
        "NaN of both signs": torch.where(few == 0, -torch.tensor(torch.nan), torch.tensor(torch.nan)),
        "the last ones": late,
        "infinities": torch.where(few == 0, torch.inf, torch.where(few == 1, -torch.inf, up)),
        "subnormal": tiny,
        "below all": torch.full((n,), -torch.inf),
    }


@pytest.mark.parametrize("n", [1, 1039, 4100, 20_000])
def test_any_order_of_scores(n: int, isa: str, generator: torch.Generator) -> None:
    for name, row in orders(n, generator).items():
        for k in (1, 2, 15, 16, 17, 512, 1100, n - 1, n, n + 3):
            for sorted_by in ref.SORTED_BY:
                want = ref.topk_indices_ref(row, k, sorted_by=sorted_by)
                got = deepseek_fast.topk_indices(row, k, sorted_by=sorted_by)
                assert torch.equal(got, want), f"{k} of {n}, {name}, by {sorted_by}"


@pytest.mark.parametrize("k", [1, 512, 2048])
def test_a_guess_that_misses(k: int, isa: str, generator: torch.Generator) -> None:
    """A long row's first threshold comes from a sample (select.h): high scores where it looks, or only elsewhere."""
    n, size = 40_000, min(2 * k + 1024, 2048)
    sampled = torch.zeros(n, dtype=torch.bool)
    for i in range(0, size, 16):
        sampled[(n - 16) * i // size :][:16] = True
    scores = torch.randn(n, generator=generator)
    for row in (torch.where(sampled, scores + 9, scores), torch.where(sampled, scores - 9, scores)):
        for special in (torch.inf, -torch.inf, torch.nan, 0.0, -0.0):
            for change in (sampled, ~sampled, torch.rand(n, generator=generator) < 0.9):
                changed = torch.where(change, special, row)
                got = deepseek_fast.topk_indices(changed, k, sorted_by="value")
                assert torch.equal(got, ref.topk_indices_ref(changed, k, sorted_by="value"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_16_bit_score(dtype: torch.dtype, isa: str, generator: torch.Generator) -> None:
    scores = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    scores = scores[torch.randperm(2**16, generator=generator)].view(dtype)
    for k in (1, 3000, 40_000):
        want = ref.topk_indices_ref(scores, k, sorted_by="value")
        assert torch.equal(deepseek_fast.topk_indices(scores, k, sorted_by="value"), want)


def test_the_default_order_is_by_index(isa: str, generator: torch.Generator) -> None:
    scores = torch.randn(3, 5000, generator=generator)
    assert torch.equal(
        deepseek_fast.topk_indices(scores, 99), deepseek_fast.topk_indices(scores, 99, sorted_by="index")
    )


def test_lengths_of_any_value(isa: str) -> None:
    scores = torch.arange(40.0).reshape(2, 2, 10)
    lengths = torch.tensor([[-5, 0], [3, 2**31 - 1]], dtype=torch.int32)
    want = [[[-1, -1], [-1, -1]], [[1, 2], [8, 9]]]
    for door in INDEXER_DOORS:
        assert call("topk_indices", door, {"scores": scores, "k": 2, "lengths": lengths}).tolist() == want
    scalar = {"scores": scores[0, 0], "k": 2, "lengths": torch.tensor(4, dtype=torch.int32)}
    for door in INDEXER_DOORS:
        assert call("topk_indices", door, scalar).tolist() == [2, 3]


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_a_nan_code_is_a_nan_logit_and_chosen_first(isa: str, generator: torch.Generator) -> None:
    case = LogitsCase(3, 200, 5, 33, window="none")
    inputs = case.inputs(generator)
    inputs["k"].view(torch.uint8)[77, 32] = 0xFF
    inputs["q"].view(torch.uint8)[1, 2, 0] = 0x7F
    for door in INDEXER_DOORS:
        logits = call("fp8_mqa_logits", door, inputs)
        assert logits[1].isnan().all() and logits.isnan()[[0, 2]].sum() == 2 and logits[:, 77].isnan().all()
        chosen = call("lightning_indexer", door, inputs | {"top_k": 2, "sorted_by": "value"})
        assert chosen[:, 0].tolist() == [77, 0, 77]


def test_weights_and_scales_of_any_size(isa: str, generator: torch.Generator) -> None:
    """Subnormal, huge and infinite ones go through as float32 has them, whatever the caller's thread flushes."""
    inputs = LogitsCase(2, 70, 4, 16, window="none").inputs(generator)
    want = deepseek_fast.fp8_mqa_logits(**inputs)
    small = inputs | {"weights": inputs["weights"] * 2.0**-140, "k_scale": torch.ones(70)}
    for flush in (False, True):
        torch.set_flush_denormal(flush)
        try:
            got = deepseek_fast.fp8_mqa_logits(**small)
            order = deepseek_fast.topk_indices(got, 9, sorted_by="value")
        finally:
            torch.set_flush_denormal(False)
        assert_logits(got, ref.fp8_mqa_logits_ref(**small), ref.bound(**small), f"{flush}")
        assert torch.equal(order, ref.topk_indices_ref(got, 9, sorted_by="value"))
    inputs["k_scale"][3] = torch.inf
    got = deepseek_fast.fp8_mqa_logits(**inputs)
    assert not got[:, 3].isfinite().any()
    others = torch.arange(70) != 3
    assert torch.equal(got[:, others], want[:, others])


def test_integers_are_exact(isa: str, generator: torch.Generator) -> None:
    q = torch.randint(-8, 9, (4, 9, 40), generator=generator).to(torch.float8_e4m3fn)
    k = torch.randint(-8, 9, (90, 40), generator=generator).to(torch.float8_e4m3fn)
    weights = torch.randint(-8, 9, (4, 9), generator=generator).float()
    want = (weights[..., None] * (q.float() @ k.float().T).relu()).sum(1)
    assert torch.equal(deepseek_fast.fp8_mqa_logits(q, k, torch.ones(90), weights), want)


# --- independence ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("s_q", [1, 3, 40])
def test_the_number_of_threads_changes_nothing(s_q: int, num_threads: Any, generator: torch.Generator) -> None:
    inputs = LogitsCase(s_q, 5000, 8, 64).inputs(generator)
    scores = torch.randn(s_q, 70_000, generator=generator)
    results = []
    for threads in (1, 2, 3):
        num_threads(threads)
        logits = deepseek_fast.fp8_mqa_logits(**inputs)
        indices = deepseek_fast.lightning_indexer(**inputs, top_k=300)
        results.append((logits, indices, deepseek_fast.topk_indices(scores, 300)))
        assert torch.equal(indices, ref.topk_indices_ref(logits, 300))
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


def test_requests_share_nothing(num_threads: Any, generator: torch.Generator) -> None:
    """A request among others has the bits of one alone, and of dense rows."""
    case = PagedCase(3, 2, 3000, 16, 64)
    inputs = paged(case.inputs(generator), case.page)
    for threads in (1, 2):
        num_threads(threads)
        whole = deepseek_fast.fp8_paged_mqa_logits(**inputs)
        for b in range(2):
            alone = {name: inputs[name][b : b + 1] for name in ("q", "context_lens", "block_table")}
            alone["weights"] = inputs["weights"][2 * b : 2 * b + 2]
            got = deepseek_fast.fp8_paged_mqa_logits(**inputs | alone)
            assert torch.equal(got, whole[2 * b : 2 * b + 2])
            slots = ref.slots_of(torch.arange(3000).int()[None], inputs["block_table"][b : b + 1], case.page)[0].long()
            length = int(inputs["context_lens"][b])
            rows, scales = ref.read_cache(inputs["cache"].reshape(len(inputs["cache"]), -1).numpy(), case.D)
            rows = rows.view(torch.uint8)[slots[:length]].view(torch.float8_e4m3fn)
            scales = scales[slots[:length]]
            dense = deepseek_fast.fp8_mqa_logits(alone["q"][0, 1:], rows, scales, alone["weights"][1:])
            assert torch.equal(dense, whole[2 * b + 1 : 2 * b + 2, :length])


# --- how tensors lie -------------------------------------------------------------------------------------------------


def strided(value: Tensor) -> Tensor:
    """The same values, no two neighbors in memory."""
    if value.element_size() == 1:
        return strided_bytes(value.view(torch.uint8)).view(value.dtype)
    wide = torch.zeros(*(2 * size for size in value.shape), dtype=value.dtype)
    view = wide[tuple(slice(None, None, 2) for _ in value.shape)]
    return view.copy_(value)


def strided_bytes(value: Tensor) -> Tensor:
    wide = torch.zeros(*value.shape[:-1], value.shape[-1] + 3, dtype=value.dtype)
    return wide[..., 1 : 1 + value.shape[-1]].copy_(value)


@pytest.mark.parametrize("door", ["torch", "numpy"])
def test_tensors_of_any_strides(door: str, isa: str, generator: torch.Generator) -> None:
    inputs = LogitsCase(6, 90, 5, 33, "causal").inputs(generator)
    want = deepseek_fast.fp8_mqa_logits(**inputs)
    for name, value in inputs.items():
        assert torch.equal(call("fp8_mqa_logits", door, inputs | {name: strided(value)}), want), name
    scores, lengths = torch.randn(4, 3, 50, generator=generator), torch.randint(0, 51, (4, 3), dtype=torch.int32)
    want = deepseek_fast.topk_indices(scores, 6, lengths=lengths)
    for s, n in ((strided(scores), strided(lengths)), (scores.transpose(0, 1).contiguous().transpose(0, 1), lengths)):
        assert torch.equal(call("topk_indices", door, {"scores": s, "k": 6, "lengths": n}), want)


@pytest.mark.parametrize("door", ["torch", "numpy"])
def test_pages_at_any_distance(door: str, isa: str, generator: torch.Generator) -> None:
    case = PagedCase(2, 2, 100, 4, 16, 16, own_lengths=True)
    inputs = paged(case.inputs(generator), case.page)
    want = deepseek_fast.fp8_paged_mqa_logits(**inputs)
    cache = inputs["cache"]
    wide = torch.full((2 * len(cache), *cache.shape[1:]), 0x7F, dtype=torch.uint8)
    apart = wide[::2].copy_(cache)
    changed = {name: strided(inputs[name]) for name in ("context_lens", "block_table", "weights", "q")}
    for other in ({"cache": apart}, changed):
        assert torch.equal(call("fp8_paged_mqa_logits", door, inputs | other), want)
    assert torch.equal(call("fp8_paged_mqa_logits", door, inputs | {"max_context_len": 20}), want[:, :20])


@pytest.mark.parametrize("door", INDEXER_DOORS)
def test_nothing_of_nothing(door: str) -> None:
    q, k = codes(0, 4, 8, generator=torch.Generator()), codes(0, 8, generator=torch.Generator())
    some = codes(3, 4, 8, generator=torch.Generator())
    for queries in (q, some):
        arguments = {"q": queries, "k": k, "k_scale": torch.ones(0), "weights": torch.ones(len(queries), 4)}
        assert call("fp8_mqa_logits", door, arguments).shape == (len(queries), 0)
        assert call("fp8_mqa_logits", door, arguments | {"max_seqlen_k": 3}).isneginf().all()
        assert call("lightning_indexer", door, arguments | {"top_k": 2}).tolist() == [[-1, -1]] * len(queries)
    for shape, k_wanted in (((0,), 3), ((2, 0), 1), ((0, 4), 2), ((2, 4), 0)):
        got = call("topk_indices", door, {"scores": torch.ones(shape), "k": k_wanted})
        assert got.shape == (*shape[:-1], k_wanted) and (got == -1).all()
