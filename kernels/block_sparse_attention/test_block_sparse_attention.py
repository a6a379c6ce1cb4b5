"""Every case through every door at every level, against ref.py within ref_bounds.py, with the same bits everywhere."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

import deepseek_fast
from deepseek_fast.kernels.block_sparse_attention import ref
from deepseek_fast.kernels.block_sparse_attention.cases import CASES, Case
from tests.attention_doors import call, prepared, run, session_of, without_flex
from tests.oracle import assert_equal, assert_within
from tests.plugin import isa_cap, supported_isas

BY_ID = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
OF_ALL_KINDS = tuple(CASES[::9])


@BY_ID
def test_every_door_agrees_with_the_reference(case: Case, isa: str) -> None:
    inputs, want, bounds = prepared(case)
    results = {door: call(door, inputs) for door in ("torch", "numpy")}
    results["onnxruntime"] = run(session_of(case), without_flex(inputs))
    for door, got in results.items():
        assert got[0].dtype == inputs["q"].dtype and got[1].dtype == torch.float32
        for name, value, expected, bound, first in zip(
            ("out", "lse"), got, want, bounds, results["torch"], strict=True
        ):
            assert_within(value, expected, bound, f"{name}, {door} on {isa}")
            assert_equal(value, first, f"{name}, {door} against torch on {isa}")


@pytest.mark.parametrize("case", [case for case in OF_ALL_KINDS if case.dtype != "bfloat16"], ids=lambda case: case.id)
def test_bits_are_equal_on_every_level_that_fuses(case: Case) -> None:
    inputs = prepared(case)[0]
    want = call("torch", inputs)
    for level in supported_isas()[1:]:
        with isa_cap(level):
            for got, expected in zip(call("torch", inputs), want, strict=True):
                assert_equal(got, expected, level)


@pytest.mark.parametrize("case", OF_ALL_KINDS, ids=lambda case: case.id)
def test_the_number_of_threads_changes_nothing(case: Case, num_threads: Any) -> None:
    inputs = prepared(case)[0]
    results = []
    for threads in (1, 2, 3):
        num_threads(threads)
        results.append(call("torch", inputs))
    for got in results[1:]:
        for value, expected in zip(got, results[0], strict=True):
            assert_equal(value, expected, "threads")


def test_a_row_s_bits_do_not_depend_on_other_rows(isa: str) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        q, k, v = (torch.randn(2, 3, 100, 40).to(dtype) for _ in range(3))
        kept = torch.rand(2, 3, 4, 2) < 0.7
        options: dict[str, Any] = {"window": 50, "sinks": 3, "block_size": (32, 64)}
        whole = call("torch", {"q": q, "k": k, "v": v, "block_mask": kept} | options)
        for b, h, i in ((0, 0, 0), (1, 2, 99), (0, 1, 37), (1, 0, 64)):
            alone = {
                "q": q[b : b + 1, h : h + 1, i : i + 1],
                "k": k[b : b + 1, h : h + 1],
                "v": v[b : b + 1, h : h + 1],
            }
            mask = kept[b : b + 1, h : h + 1, i // 32 : i // 32 + 1]
            got = call("torch", alone | options | {"block_mask": mask, "q_offset": i})
            for value, expected in zip(got, whole, strict=True):
                assert_equal(value, expected[b : b + 1, h : h + 1, i : i + 1].contiguous(), f"{dtype} {b} {h} {i}")


def test_a_query_that_sees_nothing_has_zero_and_minus_infinity(isa: str) -> None:
    q, k = torch.randn(1, 2, 40, 8), torch.randn(1, 2, 40, 8)
    kept = torch.tensor([[True], [False]])
    for door in ("torch", "numpy", "onnxruntime"):
        out, lse = call(door, {"q": q, "k": k, "v": k, "block_mask": kept, "block_size": (20, 40)})
        assert not out[:, :, 20:].any() and lse[:, :, 20:].isneginf().all()
        assert out[:, :, :20].all() and lse[:, :, :20].isfinite().all()


def test_columns_beyond_a_sequence_are_no_keys_of_the_next() -> None:
    """Rows of a shorter sequence may list columns that only the longest has."""
    ends = torch.tensor([0, 10, 50])
    q = torch.randn(1, 2, 50, 8)
    kept = torch.ones(1, 1, 7, 5, dtype=torch.bool)  # 2 rows of the first sequence, 5 of the second
    offsets, columns = torch.arange(8)[None, None] * 5, torch.arange(5).repeat(7)
    common: dict[str, Any] = {"q": q, "k": q, "v": q, "block_size": 8, "cu_seqlens_q": ends}
    want = ref.block_sparse_attention_ref(**common, block_mask=kept)
    for mask in (kept, (offsets, columns)):
        got = call("torch", common | {"block_mask": mask})[0]
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


def test_flex_block_lists_once_for_many_calls() -> None:
    asked = []

    def mask_mod(b: Any, h: Any, i: Any, j: Any) -> Any:
        asked.append(1)
        return (j <= i) & (i - j < 100 + 30 * h)

    mask = create_block_mask(mask_mod, 1, 2, 300, 300, device="cpu", BLOCK_SIZE=(64, 32))
    asked.clear()
    lists = deepseek_fast.flex_block_lists(mask)
    assert len(asked) == 1
    q = torch.randn(2, 4, 300, 16)[:, :2]
    got = deepseek_fast.block_sparse_attention(q, q, q, lists, block_size=mask.BLOCK_SIZE)
    assert len(asked) == 1
    assert_equal(got, deepseek_fast.block_sparse_attention(q, q, q, mask))
    torch.testing.assert_close(got.double(), ref.block_sparse_attention_ref(q, q, q, mask), rtol=1e-5, atol=1e-5)


def test_mask_mod_is_asked_for_no_position_beyond_the_lengths() -> None:
    document = torch.arange(100) // 37

    def mask_mod(b: Any, h: Any, i: Any, j: Any) -> Any:
        return document[i] == document[j]

    mask = create_block_mask(mask_mod, None, None, 100, 100, device="cpu", BLOCK_SIZE=64)
    q = torch.randn(1, 2, 100, 8)
    got = deepseek_fast.block_sparse_attention(q, q, q, mask)
    torch.testing.assert_close(got.double(), ref.block_sparse_attention_ref(q, q, q, mask), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sinks", [0, 3])
def test_windows_as_wide_as_int64_are_no_limit(sinks: int) -> None:
    q = torch.randn(1, 1, 30, 8)
    for window, same in (((2**63 - 1, 0), (None, 0)), ((5, 2**62), (5, None)), (2**61, None)):
        want = deepseek_fast.block_sparse_attention(q, q, q, window=same, sinks=sinks if same else None)
        assert_equal(deepseek_fast.block_sparse_attention(q, q, q, window=window, sinks=sinks), want, str(window))


def test_strides_are_read_as_they_are_and_inputs_left_alone() -> None:
    """Expanded, reversed, transposed: what NumPy and torch may give."""
    base = torch.randn(1, 2, 30, 8)
    q, k = base.expand(3, -1, -1, -1), torch.randn(3, 30, 2, 8).transpose(1, 2)
    kept = torch.rand(2, 2).lt(0.8).T
    kept[0, 0] = True
    want = ref.block_sparse_attention_ref(q, k, k, kept, block_size=16)
    for last in (q, q.transpose(2, 3).contiguous().transpose(2, 3)):
        got = deepseek_fast.block_sparse_attention(last, k, k, kept, block_size=16)
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
    reversed_k = np.ascontiguousarray(k.numpy()[:, :, ::-1])[:, :, ::-1]
    got = deepseek_fast.numpy.block_sparse_attention(q.numpy(), reversed_k, reversed_k, kept.numpy(), block_size=16)
    assert_equal(torch.from_numpy(got), deepseek_fast.block_sparse_attention(q, k, k, kept, block_size=16))
    unaligned = np.frombuffer(bytearray(k.numel() * 4 + 1), np.uint8)[1:].view(np.float32).reshape(3, 2, 30, 8)
    unaligned[...] = k.numpy()
    got = deepseek_fast.numpy.block_sparse_attention(q.numpy(), unaligned, unaligned, kept.numpy(), block_size=16)
    torch.testing.assert_close(torch.from_numpy(got).double(), want, rtol=1e-5, atol=1e-5)
