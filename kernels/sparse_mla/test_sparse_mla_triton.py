"""sparse_mla's kernels for CUDA: within the bounds of ref.py, caches with the reference's bits.

A chip's products and exponentials differ from those that the bounds are derived of: tensor cores add 16 products at
once and cut bits below the largest, at most twice a rounding each (gamma of 2 D); ex2.approx is within 2^-22, 4 u for
3 u. CHIP covers both. Weights of float16 are rounded to it, where a CPU keeps float32: WEIGHT_ROUNDING.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import deepseek_fast
from deepseek_fast.gpu import tiles
from deepseek_fast.gpu.register import interpreted
from deepseek_fast.kernels.block_sparse_attention import ref_bounds
from deepseek_fast.kernels.sparse_mla import caches, ref
from deepseek_fast.kernels.sparse_mla.cases import CASES, DECODE_CASES, Case, DecodeCase
from deepseek_fast.kernels.sparse_mla.test_sparse_mla_caches import tokens
from tests import gpu
from tests.mla_doors import arguments, tensor_of
from tests.oracle import assert_equal, assert_within

pytestmark = gpu.gpu
CHIP = 1 if interpreted() else 2
LAYOUTS = ("v32", "v4")
SMALL = [case for case in CASES if case.h_q <= 17 and (case.d_qk < 512 or case.h_q in (1, 16))]
SMALL_BACKWARD = [case for case in SMALL if case.topk <= 129 and case.d_qk < 512]


@pytest.fixture(autouse=True)
def weights_of_float16(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(ref_bounds.WEIGHT_ROUNDING, torch.float16, 2.0**-11)
    yield


def assert_all_within(got: Any, want: Any, bound: Any, what: str) -> None:
    for i, (g, w, e) in enumerate(zip(got, want, bound, strict=True)):
        if w is None:
            assert g.numel() == 0
        else:
            assert_within(g, w, CHIP * e, f"{what}, result {i}")


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.id)
def test_prefill(case: Case, generator: torch.Generator) -> None:
    inputs = case.inputs(generator)
    got = gpu.call(deepseek_fast.sparse_mla, **inputs)
    assert_all_within(got, ref.sparse_mla_ref(**inputs), ref.bound(**inputs), case.id)


# One of each form: wgmma's 64 heads, heads apart or not, columns in chunks, the merge of splits.
FORMS = {
    "64-heads": ({"BLOCK_H": 64, "BLOCK_T": 64, "STAGES": 2, "APART": True, "CHUNKED": False}, 1),
    "not-apart": ({"BLOCK_H": 32, "BLOCK_T": 32, "STAGES": 2, "APART": False, "CHUNKED": False}, 1),
    "chunked": ({"BLOCK_H": 16, "BLOCK_T": 16, "STAGES": 2, "APART": False, "CHUNKED": True}, 1),
    "splits": ({"BLOCK_H": 16, "BLOCK_T": 16, "STAGES": 2, "APART": True, "CHUNKED": False}, 5),
    "many-splits": ({"BLOCK_H": 16, "BLOCK_T": 16, "STAGES": 2, "APART": True, "CHUNKED": False}, 17),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layout", ("plain", *LAYOUTS))
def test_every_form(form: str, layout: str, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    from deepseek_fast.kernels.sparse_mla import triton_kernel

    config, splits = FORMS[form]
    if config["CHUNKED"] and layout != "plain":
        pytest.skip("rows of FP8 caches are never taken in chunks")
    monkeypatch.setattr(triton_kernel, "splits_of", lambda *_: splits)
    case = DecodeCase(1, 1, 20, 120, 70, 16, layout, topk_length=True, attn_sink="infinite", extra_topk=40)
    inputs = case.inputs(generator)
    table = "sparse_mla" if layout == "plain" else "sparse_mla_fp8"
    with tiles.forced(table, config | {"num_warps": 8}):
        got = gpu.call(deepseek_fast.sparse_mla_decode, **arguments(inputs))
    assert_all_within(got, ref.sparse_mla_decode_ref(**inputs), ref.decode_bound(**inputs), form)


def _decodes() -> Iterator[Any]:
    kept = {2, 53}
    for case in DECODE_CASES:
        if case.h_q <= 9 and case.tokens <= 300 and (case.tokens < 300 or case.page in kept):
            yield pytest.param(case, id=case.id)


@pytest.mark.parametrize("case", list(_decodes()))
def test_decode(case: DecodeCase, generator: torch.Generator) -> None:
    """One of each layout with its own tiles on 8.0, the others with large ones: fewer steps in the interpreter."""
    inputs = case.inputs(generator)
    with contextlib.ExitStack() as stack:
        if case.page != 53:
            for table in ("sparse_mla", "sparse_mla_fp8") if case.dtype == "bfloat16" else ():
                stack.enter_context(tiles.forced(table, FORMS["64-heads"][0] | {"BLOCK_H": 16, "num_warps": 8}))
        got = gpu.call(deepseek_fast.sparse_mla_decode, **arguments(inputs), arch=80 if case.page == 53 else 90)
    assert_all_within(got, ref.sparse_mla_decode_ref(**inputs), ref.decode_bound(**inputs), case.id)


@pytest.mark.parametrize("arch", gpu.ARCHS)
def test_every_chip_s_tables(arch: int, generator: torch.Generator) -> None:
    inputs = Case(9, 40, 50, 40, 40, 24, attn_sink="finite").inputs(generator)
    got = gpu.call(deepseek_fast.sparse_mla, **inputs, arch=arch)
    assert_all_within(got, ref.sparse_mla_ref(**inputs), ref.bound(**inputs), str(arch))


def gradients(inputs: dict[str, Any], dout: torch.Tensor) -> Any:
    out, _, lse = deepseek_fast.sparse_mla(**inputs)
    options = (inputs["scale"], inputs["d_v"], inputs.get("attn_sink"), inputs.get("topk_length"))
    return gpu.call(
        torch.ops.deepseek_fast.sparse_mla_backward,
        dout,
        inputs["q"],
        inputs["kv"],
        inputs["indices"],
        out,
        lse,
        *options,
    )


@pytest.mark.parametrize("case", SMALL_BACKWARD, ids=lambda case: case.id)
def test_backward(case: Case, generator: torch.Generator) -> None:
    inputs, dout = case.inputs(generator), case.dout(generator)
    want, bound = ref.sparse_mla_backward_ref(dout, **inputs), ref.backward_bound(dout, **inputs)
    assert_all_within(gradients(inputs, dout), want, bound, case.id)


def test_backward_of_many_chunks_and_64_heads(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    from deepseek_fast.kernels.sparse_mla import triton_kernel

    case = Case(5, 70, 30, 40, 40, 24, attn_sink="finite", topk_length=True, duplicates=True)
    inputs, dout = case.inputs(generator), case.dout(generator)
    want, bound = ref.sparse_mla_backward_ref(dout, **inputs), ref.backward_bound(dout, **inputs)
    monkeypatch.setattr(triton_kernel, "CHUNK_BYTES", 1)
    config = {"BLOCK_H": 64, "BLOCK_T": 32, "STAGES": 2, "APART": True, "CHUNKED": False, "num_warps": 8}
    with tiles.forced("sparse_mla_query_gradient", config):
        assert_all_within(gradients(inputs, dout), want, bound, case.id)


def test_autograd_runs_the_kernels(generator: torch.Generator) -> None:
    case = Case(3, 4, 20, 20, 24, 16, dtype="float32", attn_sink="finite", invalid=0.0)
    inputs = case.inputs(generator)
    kv = torch.nan_to_num(inputs["kv"])
    leaves = [x.to(gpu.device()).requires_grad_() for x in (inputs["q"], kv, inputs["attn_sink"])]
    with gpu.on_gpu():
        out = deepseek_fast.sparse_mla(
            leaves[0], leaves[1], inputs["indices"].to(gpu.device()), d_v=16, attn_sink=leaves[2]
        )[0]
        got = torch.autograd.grad(out.square().sum(), leaves)
    exact = [x.detach().cpu().double().requires_grad_() for x in leaves]
    wanted = ref.sparse_mla_ref(*exact[:2], inputs["indices"], d_v=16, attn_sink=exact[2])[0].square().sum()
    for g, w in zip(got, torch.autograd.grad(wanted, exact), strict=True):
        torch.testing.assert_close(g.cpu().double(), w, rtol=1e-4, atol=1e-4)


def test_strides_and_repeats_change_no_bit(generator: torch.Generator) -> None:
    case = Case(3, 12, 40, 30, 48, 32, h_kv=2, dtype="float32", attn_sink="finite", topk_length=True)
    inputs = case.inputs(generator)
    want = gpu.call(deepseek_fast.sparse_mla, **inputs)
    wide = dict(inputs)
    for name in ("q", "kv", "indices"):
        wide[name] = torch.cat([inputs[name]] * 2, -1)[..., : inputs[name].shape[-1]]
    turned = dict(inputs)
    for name in ("q", "kv", "indices", "attn_sink", "topk_length"):
        turned[name] = torch.stack([inputs[name]] * 3, -1)[..., 1]
    for given in (inputs, wide, turned):
        for one, other in zip(gpu.call(deepseek_fast.sparse_mla, **given), want, strict=True):
            assert_equal(one, other, "strides")


def test_nan_and_infinity_go_where_they_are_seen(generator: torch.Generator) -> None:
    q, kv = torch.randn(3, 4, 32, generator=generator), torch.randn(6, 1, 32, generator=generator)
    kv[1], kv[2, 0, 3], kv[3, 0, 20] = torch.nan, torch.inf, torch.nan
    indices = torch.tensor([[[0, 4, 5]], [[0, 1, 4]], [[4, 5, -7]]], dtype=torch.int32)
    out, top, lse = gpu.call(deepseek_fast.sparse_mla, q, kv, indices, d_v=16)
    assert out[1].isnan().all() and lse[1].isnan().all() and top[1].isnan().all()
    for i in (0, 2):
        assert out[i].isfinite().all() and top[i].isfinite().all() and lse[i].isfinite().all()


def test_pages_and_lengths_out_of_range_are_not_read(generator: torch.Generator) -> None:
    """The CPU op refuses them; a GPU's are not looked at ahead: such a page does not count, lengths are cut off."""
    inputs = arguments(DecodeCase(1, 2, 4, 60, 0, page=8).inputs(generator))
    table = inputs["block_table"].clone()
    table[0, 3] = 2**31 - 1
    inputs |= {"block_table": table, "cache_seqlens": torch.tensor([2**31 - 1], dtype=torch.int32)}
    out, lse = gpu.call(deepseek_fast.sparse_mla_decode, **inputs)
    table, page = table[0].long(), 8
    listed = (table[:, None] * page + torch.arange(page)).flatten()
    listed = torch.where(listed < inputs["k_cache"].shape[0] * page, listed, -1).int().expand(1, 2, -1).contiguous()
    rest = {name: inputs[name] for name in ("q", "k_cache", "layout", "d_v")}
    for one, other in zip((out, lse), deepseek_fast.sparse_mla_decode(indices=listed, **rest), strict=True):
        torch.testing.assert_close(one.nan_to_num(7), other.nan_to_num(7), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("page", [1, 53])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_caches_have_the_cpu_s_bits(layout: str, page: int, dtype: torch.dtype, generator: torch.Generator) -> None:
    kv = tokens(60, layout, generator).to(dtype)
    kv[5, 70], kv[6, 3], kv[7, 200], kv[8, -1] = torch.nan, -torch.nan, -torch.inf, torch.nan
    want = deepseek_fast.mla_cache_empty(-(-60 // page), page, layout=layout)
    cache = deepseek_fast.mla_cache_empty(-(-60 // page), page, layout=layout).to(gpu.device())
    deepseek_fast.mla_cache_write(want, kv, layout=layout)
    with gpu.on_gpu():
        deepseek_fast.mla_cache_write(cache, kv.to(gpu.device()), layout=layout)
    assert torch.equal(cache.cpu(), want)
    assert_same_numbers(gpu.call(deepseek_fast.mla_cache_read, want, layout=layout), want, layout)


def assert_same_numbers(got: torch.Tensor, cache: torch.Tensor, layout: str) -> None:
    want = deepseek_fast.mla_cache_read(cache, layout=layout)
    assert ((got.view(torch.int16) == want.view(torch.int16)) | (got.isnan() & want.isnan())).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_bytes_are_read_as_on_the_cpu(layout: str, generator: torch.Generator) -> None:
    token = 656 if layout == "v32" else 584
    data = torch.randint(0, 256, (2, 32, 1, token), generator=generator).byte()
    assert_same_numbers(gpu.call(deepseek_fast.mla_cache_read, data, layout=layout), data, layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_slots_out_of_range_leave_their_tokens_out(layout: str, dtype: torch.dtype, generator: torch.Generator) -> None:
    kv = tokens(20, layout, generator)
    slots = torch.randperm(40, generator=generator)[:20].to(dtype)
    slots[[3, 11]] = -1
    want = deepseek_fast.mla_cache_empty(5, 8, layout=layout)
    deepseek_fast.mla_cache_write(want, kv, slots, layout=layout)
    slots[3], slots[11] = 40, 2**31 - 1
    token = want.shape[-1]
    unaligned = torch.zeros(5 * 8 * token + 1, dtype=torch.uint8, device=gpu.device())[1:].reshape(5, 8, 1, token)
    with gpu.on_gpu():
        deepseek_fast.mla_cache_write(unaligned, kv.to(gpu.device()), slots.to(gpu.device()), layout=layout)
    assert torch.equal(unaligned.cpu(), want)
    assert_same_numbers(gpu.call(deepseek_fast.mla_cache_read, unaligned.cpu(), layout=layout), want, layout)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_float8_caches_are_the_same_bytes(layout: str, generator: torch.Generator) -> None:
    kv = tokens(20, layout, generator)
    cache = tensor_of(caches.write_cache(kv.bfloat16().float().numpy(), layout, 8), layout).contiguous()
    call: dict[str, Any] = {"q": torch.randn(1, 1, 4, kv.shape[1], generator=generator).bfloat16(), "layout": layout}
    call["indices"] = torch.arange(20, dtype=torch.int32).reshape(1, 1, 20)
    one, other = (
        gpu.call(deepseek_fast.sparse_mla_decode, k_cache=c, **call)[0]
        for c in (cache, cache.view(torch.float8_e4m3fn))
    )
    assert torch.equal(one, other)


def test_refusals_are_the_cpu_s() -> None:
    q, kv = torch.zeros(2, 4, 24), torch.zeros(9, 1, 24)
    indices = torch.zeros(2, 1, 3, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"^sparse_mla: d_v must be from 1 to 24, kv's last dimension; got 25"):
        gpu.call(deepseek_fast.sparse_mla, q, kv, indices, d_v=25)
    with pytest.raises(TypeError, match=r"^sparse_mla: indices must be int32; got dtype int64"):
        gpu.call(deepseek_fast.sparse_mla, q, kv, indices.long(), d_v=8)
    cache = deepseek_fast.mla_cache_empty(2, 8, layout="v4")
    with pytest.raises(ValueError, match=r"^mla_cache_write: kv must have at most the cache's 16 tokens"):
        gpu.call(deepseek_fast.mla_cache_write, cache, torch.zeros(17, 512), layout="v4")
