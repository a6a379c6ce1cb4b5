"""The references themselves: against dense attention, FlashMLA's formulas, autograd; caches against torch's FP8."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from deepseek_fast.kernels.sparse_mla import caches, ref
from deepseek_fast.kernels.sparse_mla.cases import CASES, DECODE_CASES, Case, DecodeCase

BY_ID = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
DECODE_BY_ID = pytest.mark.parametrize("case", DECODE_CASES, ids=lambda case: case.id)


@BY_ID
def test_prefill_is_torch_s_attention_of_repeated_keys(case: Case, generator: torch.Generator) -> None:
    """An index that is there n times is a key with log n more in its score."""
    inputs = case.inputs(generator)
    out, top, lse = ref.sparse_mla_ref(**inputs)
    assert out.shape == (case.s_q, case.h_q, case.d_v) and top.shape == lse.shape == (case.s_q, case.h_q)
    if not out.numel():
        return
    index = inputs["indices"].long()
    if "topk_length" in inputs:
        index = torch.where(torch.arange(case.topk) < inputs["topk_length"][:, None, None], index, -1)
    counts = torch.stack([(index == j).sum(-1) for j in range(case.s_kv)], -1) if case.s_kv else index[..., :0]
    bias = counts.double().log().repeat_interleave(case.h_q // case.h_kv, 1)  # (s_q, h_q, s_kv)
    lonely = ~(counts > 0).any(-1).repeat_interleave(case.h_q // case.h_kv, 1)
    assert torch.equal(lse.isposinf(), lonely) and torch.equal(top.isneginf(), lonely) and not out[lonely].any()
    if not case.s_kv:
        return
    kv = inputs["kv"].double().nan_to_num(0.0).transpose(0, 1)[None]
    values, sink = kv[..., : case.d_v], inputs.get("attn_sink")
    if sink is not None:
        kv, values = F.pad(kv, (0, 0, 0, 1)), F.pad(values, (0, 0, 0, 1))
        bias = torch.cat([bias, sink.double().clamp(-1e30, 1e30)[None, :, None].expand(case.s_q, -1, 1)], -1)
    bias = bias.masked_fill(lonely[..., None], 0.0).transpose(0, 1)[None]
    scale = torch.tensor(inputs["scale"], dtype=torch.float32).double().item()
    q = inputs["q"].double().transpose(0, 1)[None]
    want = F.scaled_dot_product_attention(q, kv, values, bias, scale=scale, enable_gqa=True)[0].transpose(0, 1)
    torch.testing.assert_close(out, want.masked_fill(lonely[..., None], 0.0), rtol=1e-9, atol=1e-10)


@BY_ID
def test_backward_is_autograd_s_and_within_its_own_bound(case: Case, generator: torch.Generator) -> None:
    inputs = case.inputs(generator)
    dout = case.dout(generator)
    exact = inputs | {name: inputs[name].double().nan_to_num(0.0).requires_grad_() for name in ("q", "kv")}
    if case.attn_sink == "finite":
        exact["attn_sink"] = inputs["attn_sink"].double().requires_grad_()
    out = ref.sparse_mla_ref(**exact)[0]
    leaves = [x for x in (exact["q"], exact["kv"], exact.get("attn_sink")) if x is not None and x.requires_grad]
    want = torch.autograd.grad((out * dout.double()).sum(), leaves, allow_unused=True)
    got: Any = ref.sparse_mla_backward_ref(dout, **inputs)
    for g, w in zip(got, want, strict=False):
        torch.testing.assert_close(g, torch.zeros_like(g) if w is None else w, rtol=1e-8, atol=1e-10)
    for g, e in zip(got, ref.backward_bound(dout, **inputs), strict=True):
        assert (g is None) == (e is None)
        assert e is None or (e.shape == g.shape and e.isfinite().all() and (e >= 0).all())


def test_gradcheck(generator: torch.Generator) -> None:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)

    indices = torch.tensor([[[0, 3, 3, -1]], [[9, -5, 5, 2**31 - 1]], [[1, 2, 4, 0]]], dtype=torch.int32)

    def call(q: Tensor, kv: Tensor, sink: Tensor) -> Tensor:
        return ref.sparse_mla_ref(q, kv, indices, d_v=3, attn_sink=sink)[0]

    assert torch.autograd.gradcheck(call, (normal(3, 2, 5), normal(5, 1, 5), normal(2)))


@BY_ID
def test_bounds_are_within_flash_mla_s_criterion(case: Case, generator: torch.Generator) -> None:
    inputs = case.inputs(generator)
    e_out, e_top, e_lse = ref.bound(**inputs)
    out, top, lse = ref.sparse_mla_ref(**inputs)
    for e in (e_out, e_top, e_lse):
        assert e.isfinite().all() and (e >= 0).all()
    if case.size > 1:
        return
    assert (e_out <= 8e-4 + 3.01 / 128 * (out.abs() + 1)).all()
    assert (e_top <= 1e-6 + 2.0**-12 * (1 + top.abs())).all() and (e_lse <= 2.0**-12 * (1 + lse.abs())).all()


@DECODE_BY_ID
def test_decode_is_flash_mla_s(case: DecodeCase, generator: torch.Generator) -> None:
    """tests/ref.py of FlashMLA in float64: gather, softmax, then the sink's factor."""
    inputs = case.inputs(generator)
    out, lse = ref.sparse_mla_decode_ref(**inputs)
    assert out.shape == (case.b, case.s_q, case.h_q, case.d_v) and lse.shape == (case.b, case.h_q, case.s_q)
    assert not out.isnan().any() and not lse.isnan().any()
    for e in ref.decode_bound(**inputs):
        assert e.isfinite().all()
    scale = torch.tensor(inputs["q"].shape[-1] ** -0.5, dtype=torch.float32).double()
    for b in range(case.b):
        for i in range(case.s_q):
            keys = torch.cat([*tokens_of(case, inputs, b, i)]).double()
            z = scale * inputs["q"][b, i].double() @ keys.T
            total = z.logsumexp(-1) if len(keys) else torch.full((case.h_q,), -torch.inf, dtype=torch.float64)
            want = z.softmax(-1) @ keys[:, : case.d_v] if len(keys) else torch.zeros(case.h_q, case.d_v).double()
            if "attn_sink" in inputs:
                want = want * torch.where(total.isneginf(), 0.0, 1 / (1 + (inputs["attn_sink"] - total).exp()))[:, None]
            torch.testing.assert_close(out[b, i], want, rtol=1e-9, atol=1e-11)
            lonely = torch.where(total.isneginf(), torch.inf, total)
            torch.testing.assert_close(lse[b, :, i], lonely, rtol=1e-9, atol=1e-11)


def tokens_of(case: DecodeCase, inputs: dict[str, Any], b: int, i: int) -> Any:
    """The rows that one query reads, of one cache after the other."""
    for name in ("", "extra_"):
        if f"{name}k_cache" not in inputs:
            continue
        cache = inputs[f"{name}k_cache"]
        rows = ref.read_cache(cache, case.layout, inputs["q"].dtype)
        if case.topk:
            length = inputs[f"{name}topk_length"][b] if case.topk_length else None
            listed = inputs[f"{name}indices"][b, i][:length].tolist()
            yield rows[[j for j in listed if 0 <= j < len(rows)]]
        else:
            length = int(inputs["cache_seqlens"][b])
            last = length - case.s_q + i if case.is_causal else length - 1
            table = inputs["block_table"][b].tolist()
            yield rows[[table[t // case.page] * case.page + t % case.page for t in range(last + 1)]]


@pytest.mark.parametrize("layout", ["v32", "v4"])
@pytest.mark.parametrize("page", [2, 53, 64])
def test_caches_have_flash_mla_s_bytes(layout: str, page: int) -> None:
    form = caches.LAYOUTS[layout]
    kv = torch.randn(page + page // 2, form.d_qk) * torch.exp2(torch.randint(-20, 9, (page + page // 2, 1)))
    kv[0, :64] = 0
    kv = kv.bfloat16()
    cache = caches.write_cache(kv.float().numpy(), layout, page)
    assert cache.pages.shape == (2, page * form.token_bytes)
    if layout == "v4":
        assert cache.pages.strides[0] % 576 == 0 and cache.pages.strides[0] - cache.pages.shape[1] < 576
    tiles = kv[:, : form.coded].float().unflatten(1, (-1, form.tile))
    least = (tiles.abs().amax(-1) / 448).clamp_min(1e-4).double()
    scale = least.log2().ceil().exp2().float()
    codes = (tiles / scale[..., None]).to(torch.float8_e4m3fn).flatten(1).view(torch.uint8).numpy()
    front = form.coded + 2 * form.kept
    for token in range(len(kv)):
        bytes_, t = cache.pages[token // page], token % page
        begin = t * (form.token_bytes if layout == "v32" else front)
        assert np.array_equal(bytes_[begin : begin + form.coded], codes[token])
        rope = bytes_[begin + form.coded + (16 if layout == "v32" else 0) :][:128]
        assert np.array_equal(rope, kv[token, form.coded :].view(torch.uint8).numpy())
        if layout == "v32":
            got = bytes_[begin + 512 : begin + 528].copy().view(np.float32)
        else:
            got = np.exp2(bytes_[page * front + t * 8 :][:7].astype(np.float64) - 127)
        assert np.array_equal(got, scale[token].numpy())
    numbers = caches.read_cache(cache, layout).reshape(-1, form.d_qk)[: len(kv)].astype(np.float32)
    exact = torch.from_numpy(codes).view(torch.float8_e4m3fn).float().unflatten(1, (-1, form.tile)) * scale[..., None]
    assert np.array_equal(numbers[:, : form.coded], exact.flatten(1).numpy())
    assert np.array_equal(numbers[:, form.coded :], kv[:, form.coded :].float().numpy())


def test_caches_keep_nan_and_zero_and_round_an_odd_scale_once() -> None:
    kv = np.zeros((2, 576), np.float32)
    kv[1, 5], kv[1, 130], kv[1, 575] = np.nan, np.inf, np.nan
    cache = caches.write_cache(kv, "v32", 1)
    numbers = caches.read_cache(cache, "v32")[:, 0].astype(np.float32)
    assert not numbers[0].any()
    assert np.isnan(numbers[1, :256]).all() and not numbers[1, 256:575].any() and np.isnan(numbers[1, 575])
    cache.pages[0, :512] = np.arange(512) % 0x7F
    cache.pages[0, 512:528] = np.full(4, 0.3, np.float32).view(np.uint8)
    codes = (np.arange(512) % 0x7F).astype(np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    want = (codes * np.float32(0.3)).astype(ml_dtypes.bfloat16).astype(np.float32)
    assert np.array_equal(caches.read_cache(cache, "v32")[0, 0, :512].astype(np.float32), want)


def test_scale_just_above_a_power_of_two_is_the_next() -> None:
    power = np.float32(448 * 2.0**-3)
    x = np.stack([np.full(128, power), np.full(128, np.nextafter(power, np.float32(1e9)))]).astype(np.float32)
    assert caches.quantize(x, 128)[1].flatten().tolist() == [2.0**-3, 2.0**-2]
