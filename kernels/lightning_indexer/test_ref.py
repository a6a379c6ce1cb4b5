"""The references themselves: DeepGEMM's formula head by head, pages against rows, torch.topk, arithmetic in f32."""

import pytest
import torch

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

BY_ID = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[pytest.mark.slow] * (i % 4 > 0)) for i, case in enumerate(CASES)],
    ids=lambda case: case.id,
)
def test_logits_are_deep_gemm_s(case: LogitsCase, generator: torch.Generator) -> None:
    inputs = case.inputs(generator)
    got = ref.fp8_mqa_logits_ref(**inputs)
    q, k = inputs["q"].float().double(), inputs["k"].float().double() * inputs["k_scale"].double()[:, None]
    for i in range(case.s_q):
        row = torch.full((case.s_kv,), -torch.inf, dtype=torch.float64)
        begin = max(int(inputs["ks"][i]), 0) if "ks" in inputs else 0
        end = min(int(inputs["ke"][i]), case.s_kv) if "ke" in inputs else case.s_kv
        for j in range(begin, end):
            row[j] = sum((q[i, h] @ k[j]).clamp_min(0) * inputs["weights"][i, h].double() for h in range(case.H))
        if case.compressed:
            row = torch.nn.functional.pad(row[begin:], (0, inputs["max_seqlen_k"]), value=-torch.inf)
            row = row[: inputs["max_seqlen_k"]]
        torch.testing.assert_close(got[i], row, rtol=1e-11, atol=1e-9)


@BY_ID
def test_bounds_hold_in_f32_and_are_small(case: LogitsCase, generator: torch.Generator) -> None:
    inputs = case.inputs(generator)
    want, error = ref.fp8_mqa_logits_ref(**inputs), ref.bound(**inputs)
    assert error.shape == want.shape and error.isfinite().all() and not error[want.isneginf()].any()
    dots = (inputs["q"].float().flatten(0, 1) @ inputs["k"].float().T).reshape(case.s_q, case.H, case.s_kv).relu()
    full = (inputs["weights"][..., None] * dots).sum(1) * inputs["k_scale"]
    got = ref._windowed(full.to(inputs.get("dtype", torch.float32)), inputs.get("ks"), inputs.get("ke"), 0)
    exact = {name: value for name, value in inputs.items() if name != "max_seqlen_k"}
    want, error = ref.fp8_mqa_logits_ref(**exact), ref.bound(**exact)
    inside = ~want.isneginf()
    assert torch.equal(inside, ~got.isneginf())
    assert ((got.double() - want).abs()[inside] <= error[inside]).all()
    if inside.any() and case.dtype == "float32":
        assert error[inside].max() <= 2.0**-14 * (1 + case.D) * want[inside].abs().max().clamp_min(1)


@pytest.mark.parametrize("case", PAGED_CASES, ids=lambda case: case.id)
def test_paged_logits_are_those_of_rows(case: PagedCase, generator: torch.Generator) -> None:
    inputs = case.inputs(generator)
    got, error = ref.fp8_paged_mqa_logits_ref(**inputs), ref.paged_bound(**inputs)
    assert got.shape == error.shape == (case.b * case.next_n, inputs["max_context_len"])
    assert not got.isnan().any() and error.isfinite().all()
    k, scales = ref.read_cache(inputs["cache"], case.D)
    lengths = inputs["context_lens"]
    for b in range(case.b):
        for n in range(case.next_n):
            end = int(lengths[b, n]) if case.own_lengths else max(int(lengths[b]) - case.next_n + 1 + n, 0)
            table = inputs["block_table"][b].tolist()
            slots = [table[t // case.page] * case.page + t % case.page for t in range(end)]
            row = b * case.next_n + n
            arguments = (inputs["q"][b, n : n + 1], k[slots], scales[slots], inputs["weights"][row : row + 1])
            torch.testing.assert_close(got[row, :end], ref.fp8_mqa_logits_ref(*arguments)[0], rtol=1e-12, atol=1e-10)
            assert got[row, end:].isneginf().all()


@pytest.mark.parametrize("case", TOPK_CASES, ids=lambda case: case.id)
def test_topk_is_torch_s_with_ties_to_the_lower_index(case: TopkCase, generator: torch.Generator) -> None:
    inputs = case.inputs(generator)
    got = ref.topk_indices_ref(**inputs)
    assert got.shape == (case.rows, case.k) and got.dtype == torch.int32
    for row in range(case.rows):
        length = int(inputs["lengths"][row]) if case.lengths else case.n
        values = inputs["scores"][row, :length].double()
        pairs = [
            (0 if v != v else 1, -v if v == v else 0.0, j)
            for j, v in enumerate(values.tolist())
            if v > -torch.inf or v != v
        ]
        want = [j for *_, j in sorted(pairs)[: case.k]]
        want = want if case.sorted_by == "value" else sorted(want)
        assert got[row].tolist() == want + [-1] * (case.k - len(want))
        finite = min(case.k, len(values))
        if values.isneginf().any():
            continue
        torch_s = values.topk(finite).values
        assert torch.equal(
            values[got[row, :finite].long()].sort().values.nan_to_num(), torch_s.sort().values.nan_to_num()
        )


@BY_ID
def test_indexer_is_the_top_of_the_logits(case: LogitsCase, generator: torch.Generator) -> None:
    inputs = case.inputs(generator)
    exact = {name: value for name, value in inputs.items() if name not in ("max_seqlen_k", "dtype")}
    logits, error = ref.fp8_mqa_logits_ref(**exact), ref.bound(**exact)
    k = 7
    got = ref.lightning_indexer_ref(**exact, top_k=k)
    assert ref.is_top_k(got, logits, error, k)
    rows = (~logits.isneginf()).sum(-1) > k
    if not rows.any():
        return
    row = int(rows.nonzero()[0])
    worst = logits[row].masked_fill(logits[row].isneginf(), torch.inf).argmin()
    for wrong in (worst, -1, got[row, 0], case.s_kv):
        other = got.clone()
        other[row, -1] = wrong
        if int(wrong) == int(got[row, -1]) or float(logits[row].nan_to_num(neginf=0).abs().max()) == 0:
            continue
        spread = logits[row][~logits[row].isneginf()].sort().values
        if int(wrong) == int(worst) and spread[-k] - spread[0] <= 2 * error[row].max():
            continue
        assert not ref.is_top_k(other, logits, error, k)


def test_a_selection_within_the_error_is_right_either_way() -> None:
    logits, error = torch.tensor([[1.0, 2.0, 2.0000001]]).double(), torch.full((1, 3), 1e-6).double()
    for taken in (1, 2):
        assert ref.is_top_k(torch.tensor([[taken]], dtype=torch.int32), logits, error, 1)
    assert not ref.is_top_k(torch.tensor([[0]], dtype=torch.int32), logits, error, 1)


def test_slots_are_places_in_the_cache() -> None:
    table = torch.tensor([[5, 2], [0, 9]])
    indices = torch.tensor([[[0, 65, -1]], [[64, 3, -1]]], dtype=torch.int32)
    assert ref.slots_of(indices, table, 64).tolist() == [[[320, 129, -1]], [[576, 3, -1]]]


def test_nan_code_is_a_nan_logit_and_relu_keeps_it(generator: torch.Generator) -> None:
    q, k = codes(1, 2, 8, generator=generator), codes(3, 8, generator=generator)
    k.view(torch.uint8)[1, 3] = 0x7F
    logits = ref.fp8_mqa_logits_ref(q, k, torch.ones(3), torch.ones(1, 2))
    assert logits.isnan().tolist() == [[False, True, False]]
    assert ref.topk_indices_ref(logits, 1).tolist() == [[1]]
