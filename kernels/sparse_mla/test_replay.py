"""The bounds hold for the order of arithmetic of cpu.h: steps of 64 entries, splits of 512, merged in order."""

from typing import Any

import pytest
import torch
from torch import Tensor

from deepseek_fast.kernels.block_sparse_attention import ref as attention
from deepseek_fast.kernels.block_sparse_attention import replay
from deepseek_fast.kernels.block_sparse_attention.ref_masks import KEY_STEP
from deepseek_fast.kernels.block_sparse_attention.test_replay import share
from deepseek_fast.kernels.sparse_mla import ref
from deepseek_fast.kernels.sparse_mla.cases import CASES, DECODE_CASES, Case, DecodeCase


def forward(arguments: dict[str, Any], split: int) -> tuple[Tensor, Tensor]:
    """(out, lse) in the shapes of sparse_mla's."""
    options = {"d_v": arguments["d_v"], "attn_sink": None, "topk_length": None} | arguments
    scale = torch.tensor(attention.scale_of(options["q"], options.pop("scale")), dtype=torch.float32)
    g = ref.gather(**options)
    z = (scale * replay.products(g.q.float(), g.k.float())).masked_fill(~g.seen, -torch.inf)
    values, topk = attention.values(g.v, g.seen).float()[..., None, :, :], z.shape[-1]
    sums = None
    for begin in range(0, max(topk, 1), split):
        end = min(begin + split, topk)
        steps = [slice(j, min(j + KEY_STEP, end)) for j in range(begin, end, KEY_STEP)]
        part = replay.accumulated(z, values, steps, g.q.dtype)
        sums = part if sums is None else replay.merged(sums, part)
    assert sums is not None
    out, lse = replay.finished(sums, g.sink, g.q.dtype)
    shape = arguments["q"].shape[:2]
    return out.reshape(*shape, out.shape[-1]), torch.where(lse.isneginf(), torch.inf, lse).reshape(shape)


@pytest.mark.parametrize("case", [case for case in CASES if case.d_qk < 200], ids=lambda case: case.id)
def test_prefill_is_within_the_bounds(case: Case, generator: torch.Generator) -> None:
    inputs = case.inputs(generator)
    want, _, want_lse = ref.sparse_mla_ref(**inputs)
    bound, _, lse_bound = ref.bound(**inputs)
    out, lse = forward(inputs, 2**31)
    assert share(out, want, bound) <= 1 and share(lse, want_lse, lse_bound) <= 1


@pytest.mark.parametrize("case", [DECODE_CASES[i] for i in (1, 9, 17, 22, 24, 27, 30, 42)], ids=lambda case: case.id)
def test_decode_in_splits_is_within_the_bounds(case: DecodeCase, generator: torch.Generator) -> None:
    inputs = case.inputs(generator)
    arguments, shape = ref.decode_arguments(**inputs)
    want, want_lse = ref.sparse_mla_decode_ref(**inputs)
    bound, lse_bound = ref.decode_bound(**inputs)
    out, lse = forward(arguments, ref.SPLIT)
    assert share(out.reshape(want.shape), want, bound) <= 1
    assert share(lse.reshape(shape).transpose(1, 2), want_lse, lse_bound) <= 1
