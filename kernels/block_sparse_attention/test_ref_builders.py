"""Builders of masks against their words, and native_sparse_attention against loops over tokens and gradcheck."""

from typing import Any

import pytest
import torch
from torch import Tensor

from deepseek_fast.kernels.block_sparse_attention import ref_builders as builders
from deepseek_fast.kernels.block_sparse_attention import ref_nsa
from deepseek_fast.kernels.block_sparse_attention.ref_masks import position_mask


def test_window_blocks_hold_what_the_window_sees() -> None:
    for window, is_causal, block in ((1, True, 16), (17, True, (16, 8)), (5, False, (3, 7)), ((2, 40), False, 16)):
        kept = builders.sliding_window_blocks_ref(50, 70, window, block_size=block, is_causal=is_causal, sinks=1)
        size_q, size_k = block if isinstance(block, tuple) else (block, block)
        seen = position_mask(50, 70, is_causal, window, 1, 0)
        for (row, column), value in zip(
            torch.cartesian_prod(*map(torch.arange, kept.shape)), kept.flatten(), strict=True
        ):
            part = seen[row * size_q : (row + 1) * size_q, column * size_k : (column + 1) * size_k]
            assert value == part.any()


def test_local_log_pattern() -> None:
    kept = builders.local_log_blocks_ref(32 * 16, 32 * 16, block_size=16, local=2, first=1)
    assert kept[31].nonzero().flatten().tolist() == [0, 14, 22, 26, 28, 29, 30, 31]
    assert not kept.triu(1).any() and kept.diagonal().all()
    assert torch.equal(kept, builders.local_log_blocks_ref(512, 512, block_size=16, is_causal=False).tril())
    both = builders.local_log_blocks_ref(512, 512, block_size=16, first=0, is_causal=False)
    assert torch.equal(both, both.T)


@pytest.mark.parametrize("blocks", [64, 256, 1024])
def test_local_log_pattern_keeps_n_log_n_blocks(blocks: int) -> None:
    kept = builders.local_log_blocks_ref(blocks, blocks, block_size=1)
    assert kept.sum() <= blocks * (2 + 1 + blocks.bit_length())
    reach = kept.double()
    for _ in range(blocks.bit_length()):
        reach = (reach @ kept.double()).clamp_max(1)
    assert torch.equal(reach > 0, torch.ones(blocks, blocks).tril() > 0)  # every position reaches every one before it


def test_a_decoder_s_row_is_the_prefill_s_last() -> None:
    whole = builders.local_log_blocks_ref(640, 640, block_size=(1, 64))
    assert torch.equal(builders.local_log_blocks_ref(1, 640, block_size=(1, 64), q_offset="end")[0], whole[-1])


def test_pooled_scores_are_means() -> None:
    q, k = torch.randn(2, 4, 50, 8), torch.randn(2, 2, 70, 8)
    got = builders.pooled_scores_ref(q, k, block_size=(16, 32))
    want = q[1, 3, 48:50].double().mean(0) @ k[1, 1, 64:70].double().mean(0) * 8**-0.5
    torch.testing.assert_close(got[1, 3, 3, 2], want, rtol=1e-6, atol=1e-7)  # the scale is an f32
    bound = builders.pooled_scores_bound(q, k, block_size=(16, 32))
    assert (bound < 1e-4).all() and (bound > 0).all()


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("num_blocks", [1, 3, 100])
def test_top_k_blocks(num_blocks: int, is_causal: bool) -> None:
    q, k = torch.randn(2, 4, 150, 8), torch.randn(2, 2, 150, 8)
    options: dict[str, Any] = {"block_size": 16, "is_causal": is_causal, "first": 1, "local": 1}
    kept = builders.top_k_blocks_ref(q, k, num_blocks, **options)
    forced, candidates = builders.forced_and_candidates(150, 150, 16, 1, 1, is_causal, 0)
    scores = builders.pooled_scores_ref(q, k, block_size=16)
    error = builders.pooled_scores_bound(q, k, block_size=16)
    assert builders.is_top_k(kept, scores, error, num_blocks, forced, candidates)
    assert kept[..., 0].all() and kept.diagonal(dim1=-2, dim2=-1).all()
    assert (kept.sum(-1) == torch.maximum(candidates.sum(-1).clamp_max(num_blocks), forced.sum(-1))).all()
    if num_blocks == 3:
        row = kept[1, 2, 8]
        left, chosen = scores[1, 2, 8][candidates[8] & ~row], scores[1, 2, 8][row & ~forced[8]]
        assert chosen.min() > left.max()
        wrong = kept.clone()
        wrong[1, 2, 8, chosen_column(row, forced[8])] = False
        assert not builders.is_top_k(wrong, scores, error, num_blocks, forced, candidates)
        wrong[1, 2, 8, (scores[1, 2, 8].masked_fill(row | ~candidates[8], torch.inf)).argmin()] = True
        assert not builders.is_top_k(wrong, scores, error, num_blocks, forced, candidates)


def chosen_column(row: Tensor, forced: Tensor) -> int:
    return int((row & ~forced).nonzero()[0])


def nsa_inputs(T: int, HQ: int, H: int, D: int, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    gates = {name: torch.rand(1, T, HQ).to(dtype) for name in ("g_cmp", "g_slc", "g_swa")}
    q, k, v = torch.randn(1, T, HQ, D), torch.randn(1, T, H, D), torch.randn(1, T, H, D + 1)
    return {"q": q.to(dtype), "k": k.to(dtype), "v": v.to(dtype)} | gates


def nsa_by_tokens(inputs: dict[str, Tensor], counts: int, size: int, window: int) -> Tensor:
    """The paper's formulas, one token and head at a time."""
    q, k, v = (inputs[name][0].double() for name in "qkv")
    T, HQ, D = q.shape
    group, scale = HQ // k.shape[1], torch.tensor(D**-0.5, dtype=torch.float32).double()
    out = torch.zeros(T, HQ, v.shape[-1], dtype=torch.float64)
    for t in range(T):
        whole = (t + 1) // size
        for h_kv in range(k.shape[1]):
            keys, values = k[:, h_kv], v[:, h_kv]
            means = [x[: whole * size].reshape(whole, size, x.shape[-1]).mean(1) for x in (keys, values)]
            importance = torch.zeros(t // size + 1, dtype=torch.float64)
            for h in range(h_kv * group, (h_kv + 1) * group):
                if whole:
                    p = (scale * means[0] @ q[t, h]).softmax(0)
                    importance[:whole] += p[: len(importance)]
                    out[t, h] += inputs["g_cmp"][0, t, h] * (p @ means[1])
            importance[t // size] = group
            chosen = importance.argsort(descending=True, stable=True)[:counts]
            tokens = [j for j in range(t + 1) if j // size in chosen]
            for h in range(h_kv * group, (h_kv + 1) * group):
                for gate, listed in (("g_slc", tokens), ("g_swa", range(max(0, t - window + 1), t + 1))):
                    p = (scale * keys[list(listed)] @ q[t, h]).softmax(0)
                    out[t, h] += inputs[gate][0, t, h] * (p @ values[list(listed)])
    return out[None]


@pytest.mark.parametrize(("T", "HQ", "H", "counts"), [(70, 4, 2, 3), (33, 6, 1, 1), (5, 2, 2, 2), (64, 1, 1, 16)])
def test_native_sparse_attention_is_the_paper_s(T: int, HQ: int, H: int, counts: int) -> None:
    inputs = nsa_inputs(T, HQ, H, 6)
    options: dict[str, Any] = {"block_size": 8, "window_size": 12}
    got = ref_nsa.native_sparse_attention_ref(**inputs, block_counts=counts, **options)
    torch.testing.assert_close(got, nsa_by_tokens(inputs, counts, 8, 12), rtol=1e-9, atol=1e-10)
    indices = ref_nsa.select_blocks_ref(inputs["q"], inputs["k"], counts, 8)
    assert indices.shape == (1, T, H, counts)
    junk = torch.full((1, T, H, 3), T)
    junk[..., 1], junk[..., 2] = -7, indices[..., 0]  # outside, and one that is there already
    more = torch.cat([indices, junk], -1)
    again = ref_nsa.native_sparse_attention_ref(**inputs, block_indices=more, block_counts=counts + 3, **options)
    assert torch.equal(got, again)


def test_native_sparse_attention_gradcheck() -> None:
    inputs = nsa_inputs(14, 4, 2, 3)
    indices = ref_nsa.select_blocks_ref(inputs["q"], inputs["k"], 2, 4)
    names = list(inputs)

    def call(*tensors: Tensor) -> Tensor:
        arguments: dict[str, Any] = dict(zip(names, tensors, strict=True))
        return ref_nsa.native_sparse_attention_ref(
            **arguments, block_indices=indices, block_counts=2, block_size=4, window_size=5
        )

    assert torch.autograd.gradcheck(call, tuple(x.requires_grad_() for x in inputs.values()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_native_sparse_attention_of_sequences_and_its_bound(dtype: torch.dtype) -> None:
    inputs = nsa_inputs(100, 4, 2, 16, dtype)
    ends = torch.tensor([0, 37, 37, 38, 100])
    options: dict[str, Any] = {"block_size": 16, "window_size": 20, "block_counts": 2}
    whole = ref_nsa.native_sparse_attention_ref(**inputs, cu_seqlens=ends, **options)
    part = {name: x[:, 38:] for name, x in inputs.items()}
    torch.testing.assert_close(whole[:, 38:], ref_nsa.native_sparse_attention_ref(**part, **options))
    bound = ref_nsa.native_sparse_attention_bound(**inputs, cu_seqlens=ends, **options)
    assert bound.shape == whole.shape and (bound > 0).all()
    assert (bound < (2.0**-3 if dtype == torch.bfloat16 else 2.0**-14)).all()
