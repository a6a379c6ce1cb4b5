"""The references themselves: against torch's attention with the equivalent dense mask, FlexAttention's masks, autograd
and gradcheck in float64; and what the bounds allow."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, create_mask

from deepseek_fast.kernels.block_sparse_attention import ref, ref_bounds, ref_masks
from deepseek_fast.kernels.block_sparse_attention.cases import CASES, Case

BY_ID = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)


def every_third(cases: Sequence[Case]) -> pytest.MarkDecorator:
    """The others are slow."""
    marked = [pytest.param(c, id=c.id, marks=() if i % 3 == 0 else pytest.mark.slow) for i, c in enumerate(cases)]
    return pytest.mark.parametrize("case", marked)


# FlashMLA's criterion for out in bf16: either holds.
FLASH_MLA_ABS, FLASH_MLA_REL = 8e-4, 3.01 / 128


def finite(inputs: dict[str, Any]) -> dict[str, Any]:
    """The call in float64, without the NaN of keys that nobody sees, which torch would read."""
    return inputs | {name: inputs[name].double().nan_to_num(0.0) for name in ("q", "k", "v")}


def dense_bias(inputs: dict[str, Any], seen: Tensor) -> Tensor:
    bias = torch.zeros(seen.shape, dtype=torch.float64)
    if "token_bias" in inputs:
        bias = bias + inputs["token_bias"].double()
    return bias.masked_fill(~seen, -torch.inf)


@BY_ID
def test_out_is_that_of_torch_with_a_dense_mask(case: Case, generator: torch.Generator) -> None:
    inputs = finite(case.inputs(generator))
    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    out, lse = ref.block_sparse_attention_ref(**inputs, return_lse=True)
    seen = ref.seen_of(inputs)
    bias = dense_bias(inputs, seen)
    if "sink_logits" in inputs:  # a key of its own that has the logit for everyone and no value
        k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        sink = inputs["sink_logits"].double().clamp(-1e30, 1e30)
        bias = torch.cat([bias, sink[:, None, None].expand(*bias.shape[:-1], 1)], -1)
    lonely = bias.isneginf().all(-1)
    bias = bias.masked_fill(lonely[..., None], 0.0)
    scale = ref.scale_of(q, inputs.get("scale"))
    if not out.numel() or not k.shape[2]:
        assert out.shape == (*q.shape[:3], v.shape[-1]) and not out.any() and lse.isneginf().all()
        return
    want = F.scaled_dot_product_attention(q, k, v, bias, scale=scale, enable_gqa=True)
    torch.testing.assert_close(out, want.masked_fill(lonely[..., None], 0.0), rtol=1e-10, atol=1e-11)
    nothing = dense_bias(inputs, seen).isneginf().all(-1)
    assert torch.equal(lse.isneginf(), nothing) and lse[~nothing].isfinite().all()
    assert not out[nothing].any()


@every_third([case for case in CASES if case.B])
def test_backward_is_autograd_s(case: Case, generator: torch.Generator) -> None:
    inputs = finite(case.inputs(generator))
    gradients: dict[str, Any] = case.gradients(generator)
    names = ["q", "k", "v"] + ["sink_logits"] * (case.sink_logits == "finite")
    leaves = {name: inputs[name].double().requires_grad_() for name in names}
    out, lse = ref.block_sparse_attention_ref(**(inputs | leaves), return_lse=True)
    total = (out * gradients["dout"].double()).sum()
    if "dlse" in gradients:
        total = total + (lse.masked_fill(lse.isneginf(), 0.0) * gradients["dlse"]).sum()
    want = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    got = ref.block_sparse_attention_backward_ref(**gradients, **inputs)
    for name, g, w in zip(names, got, want, strict=False):
        w = torch.zeros_like(g) if w is None else w
        torch.testing.assert_close(g, w, rtol=1e-8, atol=1e-10, msg=f"d{name}")


@every_third(CASES)
def test_bounds_are_finite_and_small(case: Case, generator: torch.Generator) -> None:
    """A bound that allows everything would pass every kernel."""
    inputs = case.inputs(generator)
    bounds = ref_bounds.bound(**inputs, return_lse=True)
    gradients = case.gradients(generator)
    for value in (*bounds, *ref_bounds.backward_bound(**gradients, **inputs)):
        assert value is None or (value.isfinite().all() and (value >= 0).all())
    if case.size > 1:
        return
    out, lse = ref.block_sparse_attention_ref(**inputs, return_lse=True)
    within = FLASH_MLA_ABS + FLASH_MLA_REL * (1 if case.dtype == "bfloat16" else 2.0**-4)
    assert (bounds[0] <= within * (out.abs() + 1)).all()
    assert (bounds[1] <= 2.0**-14 * (1 + torch.where(lse.isinf(), 0.0, lse.abs()))).all()


@every_third(CASES)
def test_f32_arithmetic_is_within_the_bound_and_not_far_below(case: Case, generator: torch.Generator) -> None:
    """Softmax by its definition in f32, one order of sums of many; the weights rounded as the dtype has it."""
    inputs = case.inputs(generator)
    seen, sink = ref.seen_of(inputs), inputs.get("sink_logits")
    out, lse = ref.block_sparse_attention_ref(**inputs, return_lse=True)
    if not out.numel() or not seen.shape[-1]:
        return
    H = case.H
    q, k, v = (inputs[name].float() for name in ("q", "k", "v"))
    k, v = (x.nan_to_num(0.0).repeat_interleave(H // x.shape[1], 1) for x in (k, v))
    z = torch.tensor(ref.scale_of(q, inputs.get("scale")), dtype=torch.float32) * (q @ k.transpose(-1, -2))
    z = z + inputs["token_bias"].float() if "token_bias" in inputs else z
    z = z.masked_fill(~seen, -torch.inf)
    top = z.amax(-1, keepdim=True)
    if sink is not None:
        top = torch.maximum(top, sink[:, None, None])
    top = torch.where(top.isinf(), 0.0, top)
    p = (z - top).exp()
    total = p.sum(-1, keepdim=True)
    got_lse = (top + total.log())[..., 0]
    if sink is not None:
        total = total + (sink[:, None, None] - top).exp()
    p = p.bfloat16().float() if case.dtype == "bfloat16" else p
    got = torch.where(total > 0, (p @ v) / total, 0.0).to(inputs["q"].dtype)
    bounds = ref_bounds.bound(**inputs, return_lse=True)
    assert ((got.double() - out).abs() <= bounds[0]).all()
    some = lse.isfinite() & (got_lse.isfinite())
    assert ((got_lse.double() - lse).abs()[some] <= bounds[1][some]).all()


@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"is_causal": True, "window": 3, "sinks": 1}, {"q_offset": -2, "is_causal": True}]
)
def test_gradcheck(options: dict[str, Any], sink: bool, generator: torch.Generator) -> None:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)

    q, k, v, logits = normal(1, 4, 6, 3), normal(1, 2, 7, 3), normal(1, 2, 7, 2), normal(4)
    kept = torch.tensor([[True, False, True], [False, False, False], [True, True, False]])

    def call(q: Tensor, k: Tensor, v: Tensor, logits: Tensor) -> Any:
        extra: dict[str, Any] = {"sink_logits": logits} if sink else {}
        out, lse = ref.block_sparse_attention_ref(q, k, v, kept, block_size=(2, 3), return_lse=True, **extra, **options)
        return out, lse.masked_fill(lse.isneginf(), 0.0)

    assert torch.autograd.gradcheck(call, (q, k, v, logits))


@pytest.mark.parametrize("H", [1, 2])
def test_flex_block_masks_are_their_mask_mod(H: int) -> None:
    def mask_mod(b: Any, h: Any, i: Any, j: Any) -> Any:
        return (j <= i + 5 * h) & (i - j < 70 + 10 * b)

    mask = create_block_mask(mask_mod, 2, H, 130, 200, device="cpu", BLOCK_SIZE=(32, 64))
    sizes = ref_masks.Sizes(2, 2, 2, 130, 200)
    want = create_mask(mask_mod, 2, H, 130, 200, "cpu").expand(2, 2, -1, -1)
    assert torch.equal(ref_masks.visible(sizes, mask), want)
    assert torch.equal(
        ref_masks.visible(sizes, mask, window=9), want & ref_masks.position_mask(130, 200, False, 9, None, 0)
    )


def test_flex_full_blocks_have_no_mask_mod_and_lists_end_where_their_counts_say() -> None:
    counts, full_counts = torch.tensor([[[2, 0]]]), torch.tensor([[[1, 1]]])
    indices, full = torch.tensor([[[2, 0, 1], [1, 2, 0]]]), torch.tensor([[[1, 0, 2], [2, 1, 0]]])
    mask = BlockMask.from_kv_blocks(
        counts.int(), indices[None].int(), full_counts.int(), full[None].int(), BLOCK_SIZE=(4, 4),
        mask_mod=lambda b, h, i, j: j % 2 == 0, seq_lengths=(8, 12),
    )  # fmt: skip
    seen = ref_masks.visible(ref_masks.Sizes(1, 1, 1, 8, 12), mask)[0, 0]
    for i in range(4):
        assert seen[i].nonzero().flatten().tolist() == [0, 2, 4, 5, 6, 7, 8, 10]
        assert seen[i + 4].nonzero().flatten().tolist() == [8, 9, 10, 11]


def test_lists_are_the_boolean_mask(generator: torch.Generator) -> None:
    kept = torch.rand(2, 3, 5, 7, generator=generator) < 0.4
    offsets, columns = ref_masks.lists_of(kept)
    assert offsets.shape == (2, 3, 6) and columns.shape == (kept.sum(),)
    assert torch.equal(ref_masks.block_matrix((offsets, columns), 5, 7), kept)
    shared = (offsets[:1, :1], columns)  # all heads read the lists of the first
    assert torch.equal(ref_masks.block_matrix(shared, 5, 7), kept[:1, :1])


def test_window_counts_the_own_key() -> None:
    seen = ref_masks.position_mask(8, 8, True, 3, None, 0)
    assert seen.sum(-1).tolist() == [1, 2, 3, 3, 3, 3, 3, 3]
    assert ref_masks.position_mask(8, 8, False, 3, None, 0)[4].nonzero().flatten().tolist() == [2, 3, 4, 5, 6]
    assert torch.equal(ref_masks.position_mask(8, 8, False, (2, 0), None, 0), seen)
    assert ref_masks.position_mask(8, 8, True, 3, 2, 0)[7].nonzero().flatten().tolist() == [0, 1, 5, 6, 7]
    assert ref_masks.position_mask(2, 8, True, None, None, "end").sum(-1).tolist() == [7, 8]
    assert ref_masks.position_mask(2, 8, True, None, None, 0).sum(-1).tolist() == [1, 2]  # torch's is_causal


def test_a_sequence_is_as_if_alone(generator: torch.Generator) -> None:
    lengths = (5, 0, 66, 31)
    ends = torch.tensor([0, *lengths]).cumsum(0)
    q, k, v = (torch.randn(1, 2, sum(lengths), 8, generator=generator) for _ in range(3))
    kept = torch.rand(1, 2, 5, 3, generator=generator) < 0.6
    options: dict[str, Any] = {"block_size": 32, "is_causal": True, "window": 20}
    whole = ref.block_sparse_attention_ref(q, k, v, kept, cu_seqlens_q=ends, **options)
    row = 0
    for begin, length in zip(ends.tolist(), lengths, strict=False):
        rows, part = -(-length // 32), slice(begin, begin + length)
        mask = kept[:, :, row : row + rows, :rows]
        alone = ref.block_sparse_attention_ref(q[:, :, part], k[:, :, part], v[:, :, part], mask, **options)
        torch.testing.assert_close(whole[:, :, part], alone)
        row += rows
