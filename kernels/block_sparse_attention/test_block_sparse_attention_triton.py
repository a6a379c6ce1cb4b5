"""block_sparse_attention's kernels for CUDA: ref.py within ref_bounds.py, forward and backward, in every form."""

from typing import Any

import pytest
import torch
from torch import Tensor

import deepseek_fast
from deepseek_fast.gpu.register import interpreted
from deepseek_fast.kernels.block_sparse_attention import nsa_blocks, ref, ref_bounds, ref_builders, ref_masks, ref_nsa
from deepseek_fast.kernels.block_sparse_attention.cases import Case
from deepseek_fast.kernels.block_sparse_attention.test_block_builders import TOP_K
from deepseek_fast.kernels.block_sparse_attention.test_native_sparse_attention import Case as NsaCase
from tests import gpu
from tests.attention_doors import gradients, without_flex
from tests.oracle import assert_equal, assert_within
from tests.plugin import seed_of

pytestmark = gpu.gpu
# A product of float32 is three of TF32 on a chip: each is within 2^-21, 8 u, where the bound has (n + 2) u, n >= 1.
ALLOWED = 1.0 if interpreted() else 4.0
DTYPES = ("float32", "bfloat16", "float16")
A_GROUP: dict[str, Any] = {"H": 4, "H_kv": 2, "mask": "random", "mask_shape": ("B", "H_kv"), "form": "lists"}
CASES = (
    *(Case(65, 100, 16, dtype=dtype) for dtype in DTYPES),
    Case(1, 1, 16),
    # Heads: no power of two, wider than a tile
    Case(20, 40, 33, 8, mask="random", block_size=(16, 16), dtype="bfloat16"),
    Case(20, 40, 300, 20, H=1, H_kv=1, is_causal=True),
    Case(20, 40, 20, 280, H=1, H_kv=1, dtype="bfloat16", mask="random", block_size=(16, 64)),
    # Blocks: whole tiles, several tiles, gathered ones; each form of a mask
    Case(130, 140, 16, H=1, H_kv=1, mask="random", dtype="bfloat16", density=0.6),
    Case(130, 260, 16, H=1, H_kv=1, mask="random", block_size=(128, 128), form="lists", is_causal=True,
         dtype="bfloat16"),
    Case(40, 50, 16, mask="random", block_size=(3, 7), form="lists_int64", is_causal=True),
    Case(40, 260, 16, H=1, H_kv=1, mask="full", block_size=(32, 200), form="flex", dtype="float16"),
    Case(70, 130, 16, H=1, H_kv=1, mask="random", form="flex", is_causal=True, density=0.7),
    Case(30, 50, 16, mask="empty_rows", block_size=(16, 16), dtype="bfloat16"),
    Case(9, 300, 32, block_size=(1, 64), is_causal=True, q_offset="end", dtype="bfloat16", **A_GROUP),
    Case(1, 100, 64, block_size=(1, 1), **A_GROUP),
    *(
        Case(40, 70, 16, B=2, H=4, H_kv=2, mask="random", form=form, block_size=(32, 32), mask_shape=shape)
        for form, shape in (("bool", ("B", "H")), ("lists", ("1", "H_kv")), ("bool", ("1", "1")))
    ),
    Case(20, 77, 16, H=6, H_kv=2, is_causal=True, q_offset=57, dtype="bfloat16"),
    # Positions
    Case(90, 90, 16, H=1, H_kv=1, window=20, sinks=4, is_causal=True, dtype="bfloat16"),
    Case(40, 170, 16, H=1, H_kv=1, window=(10, None), sinks=70, q_offset="end"),
    Case(40, 90, 16, H=1, H_kv=1, window=(0, 0), q_offset=-30, dtype="float16"),
    Case(60, 150, 16, is_causal=True, q_offset=500),
    # Sequences
    Case(135, 135, 16, H=1, H_kv=1, lengths_q=(5, 0, 64, 65, 1), lengths_k=(1, 65, 64, 0, 5), is_causal=True),
    Case(200, 200, 16, H=2, H_kv=1, lengths_q=(63, 66, 2, 69), lengths_k=(69, 2, 66, 63), mask="random",
         mask_shape=("B", "1"), q_offset="end", is_causal=True, dtype="bfloat16"),
    Case(60, 60, 16, H=1, H_kv=1, lengths_q=(30, 30), lengths_k=(30, 30), mask="random", form="lists",
         block_size=(16, 16)),
    # Bias, sink logits, large scores, strange scales, strides
    Case(40, 70, 16, B=2, token_bias="key", dtype="float16"),
    Case(40, 70, 16, B=2, token_bias="all", mask="random", is_causal=True, dtype="bfloat16"),
    Case(40, 70, 16, B=2, token_bias="padding"),
    Case(40, 70, 16, H=4, sink_logits="infinite", mask="empty_rows", block_size=(16, 16), dlse=True),
    Case(40, 70, 16, H=2, sink_logits="finite", dtype="float16"),
    Case(40, 70, 16, size=1000.0, dlse=True),
    Case(40, 50, 16, scale=-0.3, dlse=True),
    Case(40, 50, 16, scale=0.0, dtype="bfloat16"),
    Case(40, 70, 20, B=2, mask="random", rows="apart", is_causal=True, q_offset="end", dtype="bfloat16"),
    Case(0, 5, 8),
    Case(5, 0, 8, B=2, mask="full"),
    Case(3, 4, 8, B=0),
)  # fmt: skip
FOR_EVERY_CHIP = (
    Case(130, 140, 128, H=1, H_kv=1, mask="random", dtype="bfloat16", density=0.6, is_causal=True),
    Case(40, 50, 64, H=1, H_kv=1, is_causal=True),
)


def inputs_of(case: Case) -> dict[str, Any]:
    return case.inputs(torch.Generator().manual_seed(seed_of(case.id)))


def check(case: Case, arch: int = 90) -> None:
    inputs = inputs_of(case)
    want = ref.block_sparse_attention_ref(**inputs, return_lse=True)
    upstream = case.gradients(torch.Generator().manual_seed(1))
    want_back = ref.block_sparse_attention_backward_ref(**upstream, **inputs)
    with ref_bounds.of_tensor_cores():
        bounds = ref_bounds.bound(**inputs, return_lse=True)
        bounds_back = ref_bounds.backward_bound(**upstream, **inputs)
    given = without_flex(inputs)
    got = gpu.call(deepseek_fast.block_sparse_attention, **given, return_lse=True, arch=arch)
    got_back = gpu.call(gradients, "torch", upstream["dout"], upstream.get("dlse"), given, arch=arch)
    assert got[0].dtype == inputs["q"].dtype and got[1].dtype == torch.float32
    for name, value, expected, bound in zip(("out", "lse"), got, want, bounds, strict=True):
        assert_within(value, expected, ALLOWED * bound, name)
    names = ("dq", "dk", "dv", "dsink_logits")
    for name, value, expected, bound in zip(names, got_back, want_back, bounds_back, strict=False):
        assert_within(value, expected, ALLOWED * bound, name)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_within_the_bounds(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("arch", gpu.ARCHS)
@pytest.mark.parametrize("case", FOR_EVERY_CHIP, ids=lambda case: case.id)
def test_every_chip_s_tiles(case: Case, arch: int) -> None:
    check(case, arch)


def all_of(inputs: dict[str, Any]) -> list[Tensor]:
    """out, lse, dq, dk, dv."""
    dout = torch.randn(*inputs["q"].shape[:3], inputs["v"].shape[3], generator=torch.Generator().manual_seed(1))
    forward = gpu.call(deepseek_fast.block_sparse_attention, **inputs, return_lse=True)
    return [*forward, *gpu.call(gradients, "torch", dout.to(inputs["q"].dtype), None, inputs)]


def test_every_form_of_a_mask_has_the_same_bits() -> None:
    case = Case(70, 130, 16, mask="random", block_size=(32, 64), is_causal=True, dtype="bfloat16")
    inputs = inputs_of(case)
    offsets, columns = ref_masks.lists_of(inputs["block_mask"])
    want = all_of(inputs)
    room = torch.full((16,), 3, dtype=torch.int32)  # unused, at the end
    for mask in ((offsets, columns), (offsets.long(), torch.cat([columns, room]).long())):
        for got, expected in zip(all_of(inputs | {"block_mask": mask}), want, strict=True):
            assert_equal(got, expected)


def test_a_batch_s_bits_are_those_of_its_parts() -> None:
    inputs = inputs_of(Case(40, 70, 16, B=2, mask="random", block_size=(16, 64), dtype="bfloat16"))
    alone = {name: inputs[name][1:] for name in ("q", "k", "v", "block_mask")} | {"block_size": (16, 64)}
    whole = gpu.call(deepseek_fast.block_sparse_attention, **inputs, return_lse=True)
    for got, expected in zip(
        gpu.call(deepseek_fast.block_sparse_attention, **alone, return_lse=True), whole, strict=True
    ):
        assert_equal(got, expected[1:].contiguous())


def test_columns_behind_the_last_count_for_nothing() -> None:
    """As native_sparse_attention's lists have them, whose sizes do not wait for values."""
    indices = torch.tensor([2, 0, 9, 0]).expand(1, 1, 12, 4).clone()
    indices[..., 6:, 0] = 1
    indices = torch.where(indices < 3, indices, 3).sort(-1).values
    offsets, columns = nsa_blocks._padded_lists(indices, 3)
    kept = torch.zeros(1, 1, 12, 4, dtype=torch.bool).scatter(-1, indices, True)[..., :3]
    q, k = torch.randn(1, 2, 12, 16), torch.randn(1, 1, 40, 16)
    common: dict[str, Any] = {"q": q, "k": k, "v": k, "block_size": (1, 16), "is_causal": True, "q_offset": "end"}
    want = all_of(common | {"block_mask": kept})
    for got, expected in zip(all_of(common | {"block_mask": (offsets, columns)}), want, strict=True):
        assert_equal(got, expected)


@pytest.mark.parametrize("bad", ["columns", "offsets", "cu_seqlens", "tables"])
def test_no_value_leads_out_of_a_tensor(bad: str) -> None:
    q = torch.randn(1, 1, 40, 16)
    offsets, columns = torch.tensor([0, 2, 3, 6], dtype=torch.int32), torch.tensor([0, 1, 1, 0, 1, 2])
    far = 2**31 - 1
    inputs: dict[str, Any] = {"q": q, "k": q, "v": q, "block_size": 16, "block_mask": (offsets, columns)}
    if bad == "columns":
        columns[1], columns[4] = 2**40, -7
    elif bad == "offsets":
        offsets[1], offsets[2] = far, -far
    elif bad == "tables":
        tables = torch.tensor([-1, far, 1, -far, 0, -1], dtype=torch.int32)
        inputs["block_mask"] = (offsets[None, None], columns, tables, torch.zeros(1, 16, 1, dtype=torch.int64))
    else:
        inputs = {"q": q, "k": q, "v": q, "cu_seqlens_q": torch.tensor([-5, 60, 3, far])}
    for got, like in zip(all_of(inputs), (q, q[..., 0], q, q, q), strict=True):
        assert got.shape == like.shape


NSA = (
    NsaCase(T=34),
    NsaCase(T=34, counts="tensor", dtype=torch.bfloat16, group=4, H=1),
    NsaCase(T=40, lengths=(20, 0, 7, 13), dtype=torch.float16),
)


@pytest.mark.parametrize("case", NSA, ids=str)
def test_native_sparse_attention(case: NsaCase) -> None:
    inputs = case.inputs(1)
    with ref_bounds.of_tensor_cores():
        bound = ref_nsa.native_sparse_attention_bound(**inputs)
    got = gpu.call(deepseek_fast.native_sparse_attention, **inputs)
    assert_within(got, ref_nsa.native_sparse_attention_ref(**inputs), ALLOWED * bound)


def test_native_sparse_attention_chooses_its_blocks() -> None:
    inputs = NsaCase(T=50).inputs(6) | {"block_counts": 3, "block_indices": None}
    got = gpu.call(deepseek_fast.native_sparse_attention, **inputs)
    torch.testing.assert_close(got, deepseek_fast.native_sparse_attention(**inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("sizes", "num_blocks", "options"), TOP_K[2:])
def test_top_k_blocks(sizes: tuple[int, ...], num_blocks: int, options: dict[str, Any]) -> None:
    B, H, H_kv, S_q, S_k, D = sizes
    generator = torch.Generator().manual_seed(1)
    q, k = (
        torch.randn(B, S, h, D, generator=generator).to(torch.bfloat16).transpose(1, 2)
        for h, S in ((H, S_q), (H_kv, S_k))
    )
    kept = gpu.call(deepseek_fast.top_k_blocks, q, k, num_blocks, **options)
    scoring = {name: options[name] for name in ("block_size", "scale") if name in options}
    scores, error = ref_builders.pooled_scores_ref(q, k, **scoring), ref_builders.pooled_scores_bound(q, k, **scoring)
    place = (options.get("first", 1), options.get("local", 1), options.get("is_causal", False))
    given = ref_builders.forced_and_candidates(S_q, S_k, options["block_size"], *place, options.get("q_offset", 0))
    assert ref_builders.is_top_k(kept, scores, ALLOWED * error, num_blocks, *given)


def test_top_k_blocks_takes_the_lower_of_equal_ones_and_no_nan() -> None:
    q, k = torch.ones(1, 1, 16, 8), torch.ones(1, 1, 80, 8)
    k[:, :, 40:48] = 2
    k[:, :, 8:16] = torch.nan
    options: dict[str, Any] = {"block_size": 8, "first": 0, "local": 0}
    for number in (1, 3, 9, 10):
        want = deepseek_fast.top_k_blocks(q, k, number, **options)
        assert torch.equal(gpu.call(deepseek_fast.top_k_blocks, q, k, number, **options), want)


def test_refusals_have_the_cpu_s_sentences() -> None:
    q, k = torch.zeros(1, 6, 128, 64), torch.zeros(1, 4, 128, 64)
    with pytest.raises(ValueError, match=r"k must have heads that divide q's 6; got shape \(1, 4, 128, 64\)"):
        gpu.call(deepseek_fast.block_sparse_attention, q, k, k)
    mask = torch.ones(3, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match="block_mask must have 1 rows and 1 columns of blocks of 128 x 128"):
        gpu.call(deepseek_fast.block_sparse_attention, q, q, q, mask)
    with pytest.raises(TypeError, match="k must have q's dtype float32; got dtype bfloat16"):
        gpu.call(deepseek_fast.block_sparse_attention, q, q.bfloat16(), q)
