"""native_sparse_attention: within ref_nsa.py's bound, with autograd's gradients of it, and its selection."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import deepseek_fast
from deepseek_fast.kernels.block_sparse_attention import nsa_blocks, ref_nsa

# Sums of a few hundred products in float32, and in the gradients of three such sums; relative to the largest.
GRADIENT_CLOSE = 5e-6


@dataclass(frozen=True)
class Case:
    T: int = 130
    B: int = 1
    H: int = 2
    group: int = 2
    K: int = 24
    V: int = 16
    dtype: torch.dtype = torch.float32
    block_size: int = 16
    window_size: int = 20
    gates: tuple[bool, bool, bool] = (True, True, True)
    counts: Any = 16  # or "tensor"
    lengths: tuple[int, ...] = ()

    def inputs(self, seed: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        B, T, H = self.B, self.T, self.H
        result: dict[str, Any] = {
            "q": random(B, T, H * self.group, self.K).to(self.dtype),
            "k": random(B, T, H, self.K).to(self.dtype),
            "v": random(B, T, H, self.V).to(self.dtype),
        }
        for name, there in zip(("g_cmp", "g_slc", "g_swa"), self.gates, strict=True):
            result[name] = random(B, T, H * self.group) if there else None
        # Some are no blocks, some come twice, some lie behind the query.
        blocks = -(-T // self.block_size)
        result["block_indices"] = torch.randint(-1, blocks + 2, (B, T, H, 5), generator=generator)
        counts = torch.randint(0, 6, (B, T, H), generator=generator)
        result["block_counts"] = counts if self.counts == "tensor" else self.counts
        result |= {"block_size": self.block_size, "window_size": self.window_size}
        if self.lengths:
            result["cu_seqlens"] = torch.tensor([0, *self.lengths]).cumsum(0).int()
        return result


ONE_GATE = ((True, False, False), (False, True, False), (False, False, True), (False, False, False))
CASES = (
    *(Case(dtype=dtype, B=2) for dtype in (torch.float32, torch.bfloat16, torch.float16)),
    *(Case(gates=gates, T=70) for gates in ONE_GATE),
    *(Case(T=T, block_size=block) for T in (1, 15, 16, 17, 65) for block in (1, 16, 64)),
    Case(window_size=0),
    Case(counts="tensor", dtype=torch.bfloat16),
    Case(counts=2, H=1, group=16),
    Case(counts=0),
    Case(T=100, lengths=(30, 0, 7, 63)),
    Case(T=100, lengths=(100,), dtype=torch.bfloat16, counts="tensor"),
    Case(T=0),
    Case(T=0, lengths=(0,)),
)
IDS = [f"{i}-{case.dtype}" for i, case in enumerate(CASES)]


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_within_the_bound(case: Case) -> None:
    inputs = case.inputs(1)
    out = deepseek_fast.native_sparse_attention(**inputs)
    want = ref_nsa.native_sparse_attention_ref(**inputs)
    assert out.dtype == case.dtype and out.shape == want.shape
    error = (out.double() - want).abs()
    assert (error <= ref_nsa.native_sparse_attention_bound(**inputs)).all()


@pytest.mark.parametrize("case", [case for case in CASES if case.dtype == torch.float32 and any(case.gates)])
def test_gradients(case: Case) -> None:
    inputs = case.inputs(2)
    wanted = [name for name in ("q", "k", "v", "g_cmp", "g_slc", "g_swa") if inputs[name] is not None]
    leaves = {name: inputs[name].requires_grad_() for name in wanted}
    out = deepseek_fast.native_sparse_attention(**(inputs | leaves))
    dout = torch.randn(out.shape, generator=torch.Generator().manual_seed(3))
    got = torch.autograd.grad(out, list(leaves.values()), dout, allow_unused=True)
    exact = {name: leaf.detach().double().requires_grad_() for name, leaf in leaves.items()}
    out = ref_nsa.native_sparse_attention_ref(**(inputs | exact))
    want = torch.autograd.grad(out, list(exact.values()), dout.double(), allow_unused=True)
    for name, ours, theirs in zip(wanted, got, want, strict=True):
        ours = torch.zeros_like(leaves[name]) if ours is None else ours
        theirs = torch.zeros_like(exact[name]) if theirs is None else theirs
        scale = 1 + theirs.abs().max() if theirs.numel() else 1.0
        assert ((ours - theirs).abs() <= GRADIENT_CLOSE * scale).all(), name


@pytest.mark.parametrize("lengths", [(), (100, 0, 30, 170)])
def test_selects_what_the_reference_selects(lengths: tuple[int, ...]) -> None:
    q, k = Case(T=300, group=4).inputs(4)["q"], Case(T=300, group=4).inputs(4)["k"]
    ends = [0, *torch.tensor(lengths).cumsum(0).tolist()] if lengths else [0, 300]
    cu_seqlens = torch.tensor(ends) if lengths else None
    got = nsa_blocks.select(q.transpose(1, 2), k.transpose(1, 2), 4, 16, None, cu_seqlens)
    assert got.shape == (1, 300, 2, 4)
    for begin, end in pairwise(ends):
        importance = ref_nsa.importance_ref(q[:, begin:end], k[:, begin:end], 16).transpose(1, 2)
        chosen = got[:, begin:end]
        blocks = importance.shape[-1]
        real = chosen < blocks
        own = torch.arange(end - begin)[None, :, None, None] // 16
        assert (chosen == own).any(-1).all()
        assert (real.sum(-1) == (importance >= 0).sum(-1).clamp_max(4)).all()
        padded = torch.nn.functional.pad(importance, (0, 1), value=2.0**30)
        least = padded.gather(-1, torch.where(real, chosen, blocks)).amin(-1)
        left = torch.ones_like(padded, dtype=torch.bool).scatter(-1, torch.where(real, chosen, blocks), False)
        best_left = torch.where(left[..., :blocks], importance, -torch.inf).amax(-1) if blocks else least
        assert (least >= best_left - 1e-5).all()  # weights of float32 scores


def test_selection_in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = Case(T=200).inputs(5)
    q, k = inputs["q"].transpose(1, 2), inputs["k"].transpose(1, 2)
    whole = nsa_blocks.select(q, k, 3, 16, None, None)
    monkeypatch.setattr(nsa_blocks, "_SCORES_AT_ONCE", 4 * 13 * 7)
    assert torch.equal(nsa_blocks.select(q, k, 3, 16, None, None), whole)


def test_chosen_blocks_are_the_default() -> None:
    inputs = Case(T=200).inputs(6) | {"block_counts": 3}
    given = nsa_blocks.select(inputs["q"].transpose(1, 2), inputs["k"].transpose(1, 2), 3, 16, None, None)
    want = deepseek_fast.native_sparse_attention(**(inputs | {"block_indices": given}))
    assert torch.equal(deepseek_fast.native_sparse_attention(**(inputs | {"block_indices": None})), want)


X, KV, GATE = torch.zeros(1, 8, 4, 16), torch.zeros(1, 8, 2, 16), torch.zeros(1, 8, 4)
GOOD: dict[str, Any] = {"q": X, "k": KV, "v": KV, "g_cmp": GATE, "g_slc": GATE, "g_swa": GATE}
BAD: tuple[tuple[dict[str, Any], type[Exception], str], ...] = (
    ({"q": X[0]}, ValueError, "q must have 4 dimensions; got shape (8, 4, 16)"),
    ({"q": X.numpy()}, TypeError, "q must be a tensor; got ndarray"),
    ({"v": KV[:, :7]}, ValueError, "v must have q's batch and tokens (1, 8); got shape (1, 7, 2, 16)"),
    ({"k": X[:, :, :3]}, ValueError, "k must have heads that divide q's 4; got shape (1, 8, 3, 16)"),
    ({"g_slc": GATE[..., :2]}, ValueError, "g_slc must have shape (1, 8, 4); got shape (1, 8, 2)"),
    ({"block_size": 0}, ValueError, "block_size must be at least 1; got 0"),
    ({"window_size": -1}, ValueError, "window_size must be at least 0; got -1"),
    ({"block_counts": -1}, ValueError, "block_counts must be at least 0; got -1"),
    ({"block_indices": torch.zeros(1, 8, 2, 3)}, TypeError, "block_indices must be int32 or int64; got dtype float32"),
    (
        {"block_indices": torch.zeros(1, 8, 4, 3).int()},
        ValueError,
        "block_indices must have shape (1, 8, 2, S); got shape (1, 8, 4, 3)",
    ),
    ({"cu_seqlens": torch.tensor([0, 7])}, ValueError, "cu_seqlens must ascend from 0 to 8; got 7 at its end"),
    ({"cu_seqlens": torch.tensor([0, 9, 8])}, ValueError, "cu_seqlens must ascend from 0 to 8; got 8 after 9"),
)


@pytest.mark.parametrize(("change", "kind", "sentence"), BAD)
def test_bad_input_is_one_sentence(change: dict[str, Any], kind: type[Exception], sentence: str) -> None:
    with pytest.raises(kind) as raised:
        deepseek_fast.native_sparse_attention(**(GOOD | change))
    assert str(raised.value) == f"native_sparse_attention: {sentence}"
