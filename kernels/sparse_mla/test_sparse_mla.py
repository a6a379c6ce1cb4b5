"""sparse_mla and sparse_mla_decode through every door, at every level, against the reference's bounds."""

from typing import Any

import pytest
import torch
from torch import Tensor

import deepseek_fast
from deepseek_fast.kernels.sparse_mla import ref
from deepseek_fast.kernels.sparse_mla.cases import CASES, DECODE_CASES, Case, DecodeCase
from tests.mla_doors import MLA_DOORS, arguments, backward, call, prepared, prepared_backward, prepared_decode
from tests.oracle import assert_equal, assert_within

NAMES = ("out", "max_logits", "lse")
BY_ID = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
DECODE_BY_ID = pytest.mark.parametrize("case", DECODE_CASES, ids=lambda case: case.id)


def assert_all(got: Any, want: Any, bound: Any, names: tuple[str, ...], what: str) -> None:
    for name, g, w, e in zip(names, got, want, bound, strict=True):
        assert_within(g, w, e, f"{name}, {what}")


@BY_ID
def test_prefill_is_within_its_bounds(case: Case, isa: str) -> None:
    inputs, want, bound = prepared(case)
    results = {door: call("sparse_mla", door, inputs) for door in MLA_DOORS}
    for door, got in results.items():
        assert (got[0].dtype, got[1].dtype, got[2].dtype) == (inputs["q"].dtype, torch.float32, torch.float32)
        assert_all(got, want, bound, NAMES, f"{door} on {isa}")
        for name, g, w in zip(NAMES, got, results["torch"], strict=True):
            assert_equal(g, w, f"{name}, {door} against torch on {isa}")


@DECODE_BY_ID
def test_decode_is_within_its_bounds(case: DecodeCase, isa: str) -> None:
    inputs, want, bound = prepared_decode(case)
    results = {door: call("sparse_mla_decode", door, inputs) for door in MLA_DOORS}
    for door, got in results.items():
        assert_all(got, want, bound, ("out", "lse"), f"{door} on {isa}")
        for name, g, w in zip(("out", "lse"), got, results["torch"], strict=True):
            assert_equal(g, w, f"{name}, {door} against torch on {isa}")


@BY_ID
def test_backward_is_within_its_bounds(case: Case, isa: str) -> None:
    inputs = prepared(case)[0]
    dout, want, bound = prepared_backward(case)
    results = {door: backward(door, dout, inputs) for door in MLA_DOORS}
    for door, got in results.items():
        for name, g, w, e in zip(("dq", "dkv", "dattn_sink"), got, want, bound, strict=True):
            if w is None:
                assert g.numel() == 0
            else:
                assert_within(g, w, e, f"{name}, {door} on {isa}")
            assert_equal(g, results["torch"][("dq", "dkv", "dattn_sink").index(name)], f"{name}, {door} on {isa}")


def flash_mla_passes(got: Tensor, want: Tensor, absolute: float, relative: float, cosine: float) -> None:
    """FlashMLA's three parts (tests/lib.py): infinities at the same places, values close, directions alike."""
    got, want = got.double(), want.double()
    assert torch.equal(got.isposinf(), want.isposinf()) and torch.equal(got.isneginf(), want.isneginf())
    got, want = (torch.where(want.isinf(), 0.0, x) for x in (got, want))
    error = (got - want).abs()
    assert ((error < absolute) | (error < relative * want.abs())).all()
    size = (got.square() + want.square()).sum()
    assert size == 0 or 1 - 2 * (got * want).sum() / size < cosine


@pytest.mark.parametrize("case", [case for case in CASES if case.d_qk >= 512], ids=lambda case: case.id)
def test_prefill_passes_flash_mla_s_criterion(case: Case, isa: str) -> None:
    inputs, want, _ = prepared(case)
    out, top, lse = call("sparse_mla", "torch", inputs)
    flash_mla_passes(out, want[0], 8e-4, 3.01 / 128, 7e-6)
    flash_mla_passes(top, want[1], 1e-6, 2.01 / 65536, 1e-9)
    flash_mla_passes(lse, want[2], 1e-6, 2.01 / 65536, 1e-9)


# Of fewer tokens weights of bfloat16, FlashMLA's too, may be further off than that: 2^-9 of a value of size 3.
@pytest.mark.parametrize("case", [case for case in DECODE_CASES if case.topk >= 512], ids=lambda case: case.id)
def test_decode_passes_flash_mla_s_criterion(case: DecodeCase, isa: str) -> None:
    inputs, want, _ = prepared_decode(case)
    out, lse = call("sparse_mla_decode", "torch", inputs)
    flash_mla_passes(out, want[0], 1e-3, 2.01 / 128, 5e-6)
    flash_mla_passes(lse, want[1], 1e-6, 8.01 / 65536, 1e-9)


@pytest.mark.parametrize("case", CASES[::3], ids=lambda case: case.id)
def test_threads_change_no_bit_of_a_prefill(case: Case, num_threads: Any) -> None:
    inputs, dout = prepared(case)[0], prepared_backward(case)[0]
    results = []
    for threads in (1, 2, 3, 5):
        num_threads(threads)
        results.append((*call("sparse_mla", "torch", inputs), *backward("torch", dout, inputs)))
    for other in results[1:]:
        for first, again in zip(results[0], other, strict=True):
            assert_equal(again, first, "threads")


@DECODE_BY_ID
def test_threads_change_no_bit_of_a_decode(case: DecodeCase, num_threads: Any) -> None:
    inputs = prepared_decode(case)[0]
    results = []
    for threads in (1, 2, 3, 8):
        num_threads(threads)
        results.append(call("sparse_mla_decode", "torch", inputs))
    for other in results[1:]:
        for first, again in zip(results[0], other, strict=True):
            assert_equal(again, first, "threads")


@pytest.mark.parametrize("case", [case for case in DECODE_CASES if case.b > 1], ids=lambda case: case.id)
def test_a_request_does_not_see_the_others(case: DecodeCase, isa: str) -> None:
    inputs = arguments(prepared_decode(case)[0])
    whole = call("sparse_mla_decode", "torch", inputs)
    of_requests = ("q", "indices", "topk_length", "extra_indices", "extra_topk_length", "block_table", "cache_seqlens")
    for b in range(case.b):
        alone = {name: x[b : b + 1] if name in of_requests else x for name, x in inputs.items()}
        for one, all_of_them in zip(call("sparse_mla_decode", "torch", alone), whole, strict=True):
            assert_equal(one[0], all_of_them[b], f"request {b}")


def test_many_splits_are_merged_in_order(generator: torch.Generator, isa: str) -> None:
    case = DecodeCase(2, 1, 20, 3000, 2100, layout="v32", extra_topk=600, attn_sink="finite")
    inputs = case.inputs(generator)
    want, bound = ref.sparse_mla_decode_ref(**inputs), ref.decode_bound(**inputs)
    assert_all(call("sparse_mla_decode", "torch", inputs), want, bound, ("out", "lse"), isa)


def test_strides_are_read_in_place_or_copied(generator: torch.Generator) -> None:
    case = Case(5, 12, 80, 70, 48, 32, h_kv=2, dtype="float32", attn_sink="finite", topk_length=True)
    inputs = case.inputs(generator)
    want = call("sparse_mla", "torch", inputs)
    spread = {name: torch.stack([x, x], 0)[1] if isinstance(x, Tensor) else x for name, x in inputs.items()}
    wide = dict(spread)
    for name in ("q", "kv", "indices"):
        wide[name] = torch.cat([inputs[name]] * 2, -1)[..., : inputs[name].shape[-1]]
    turned = dict(spread)
    for name in ("q", "kv", "indices", "attn_sink", "topk_length"):
        turned[name] = torch.stack([inputs[name]] * 3, -1)[..., 1]
    swapped = dict(spread) | {name: inputs[name].transpose(0, 1).contiguous().transpose(0, 1) for name in ("q", "kv")}
    for given in (spread, wide, turned, swapped):
        for door in MLA_DOORS:
            for one, other in zip(call("sparse_mla", door, given), want, strict=True):
                assert_equal(one, other, door)


def test_nan_and_infinity_go_where_they_are_seen(isa: str) -> None:
    q, kv = torch.randn(3, 4, 32), torch.randn(6, 1, 32)
    kv[1], kv[2, 0, 3], kv[3, 0, 20] = torch.nan, torch.inf, torch.nan
    indices = torch.tensor([[[0, 4, 5]], [[0, 1, 4]], [[4, 5, -7]]], dtype=torch.int32)
    out, top, lse = deepseek_fast.sparse_mla(q, kv, indices, d_v=16)
    assert out[1].isnan().all() and lse[1].isnan().all()
    for i in (0, 2):
        assert out[i].isfinite().all() and top[i].isfinite().all() and lse[i].isfinite().all()


def test_a_row_of_duplicates_is_read_as_often(isa: str) -> None:
    q, kv = torch.randn(2, 3, 24).requires_grad_(), torch.randn(5, 1, 24).requires_grad_()
    indices = torch.tensor([[[2] * 70], [[2, 3] * 35]], dtype=torch.int32)
    out = deepseek_fast.sparse_mla(q, kv, indices, d_v=24)[0]
    dq, dkv = torch.autograd.grad(out.square().sum(), (q, kv))
    exact = [x.detach().double().requires_grad_() for x in (q, kv)]
    want = torch.autograd.grad(ref.sparse_mla_ref(*exact, indices, d_v=24)[0].square().sum(), exact)
    torch.testing.assert_close(dq.double(), want[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(dkv.double(), want[1], rtol=1e-4, atol=1e-4)
    assert not dkv[[0, 1, 4]].any()
