"""local_response_norm: every case on every level through every door, its layout, gradients, and as a torch operator."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import deepseek_fast
from deepseek_fast.kernels.fused_conv import op as conv_op
from deepseek_fast.kernels.fused_conv.cases import LAYOUTS, LRN_BETAS, LRN_CASES, laid_out
from deepseek_fast.kernels.fused_conv.ref import lrn_bound, lrn_ref
from tests.conv_doors import assert_close, assert_same, call
from tests.conv_tensors import TORCH_S_OWN_WARNINGS
from tests.oracle import assert_equal

OP = "local_response_norm"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("shape", "size"), LRN_CASES, ids=str)
def test_within_the_bound_on_every_level(shape: tuple[int, ...], size: int, dtype: torch.dtype, isa: str) -> None:
    x = (torch.randn(shape) * 8).to(dtype)
    for i, beta in enumerate(LRN_BETAS):
        options = {"size": size, "alpha": (0.3, 1e-2, 1e-4)[i % 3], "beta": beta, "k": (1.0, 2.0)[i % 2]}
        want, bound = lrn_ref(x, **options), lrn_bound(x, **options)
        for layout in LAYOUTS:
            for door in ("torch", "numpy"):
                got = call(OP, door, {"x": laid_out(x, layout), **options})
                assert got.dtype == dtype
                assert_close(got, want, bound, f"{options} {layout} {door}")


def test_the_bound_is_a_few_roundings() -> None:
    x = torch.randn(2, 40, 9, 9) * 8
    assert (lrn_bound(x, 5) <= 12 * 2**-24 * lrn_ref(x, 5).abs() + 1e-37).all()


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 9, 40])
def test_it_takes_torch_s_place(size: int) -> None:
    """Its windows too, where they are even."""
    for x in (torch.randn(2, 19, 6, 7) * 5, torch.randn(2, 19, 11) * 5):
        for layout in LAYOUTS:
            given = laid_out(x, layout)
            got = deepseek_fast.local_response_norm(given, size, 0.2, 0.75, 1.5)
            torch.testing.assert_close(got, F.local_response_norm(given, size, 0.2, 0.75, 1.5), rtol=1e-5, atol=1e-6)
            assert got.stride() == given.stride()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_neither_layout_nor_threads_nor_the_batch_change_a_bit(dtype: torch.dtype, num_threads: Any) -> None:
    for beta in LRN_BETAS:
        x = (torch.randn(3, 37, 11, 13) * 8).to(dtype)
        num_threads(1)
        want = deepseek_fast.local_response_norm(x, 5, 0.3, beta)
        for threads in (1, 2, 5):
            num_threads(threads)
            for layout in LAYOUTS:
                got = deepseek_fast.local_response_norm(laid_out(x, layout), 5, 0.3, beta)
                assert_same(got, want, f"{threads} threads, {layout}")
        single = torch.cat([deepseek_fast.local_response_norm(image[None], 5, 0.3, beta) for image in x])
        assert_equal(single, want, "image by image")
        assert_equal(deepseek_fast.local_response_norm(x.flatten(2), 5, 0.3, beta), want.flatten(2), "3 dimensions")


def test_every_level_has_the_same_bits(isa: str) -> None:
    x = torch.randn(2, 37, 5, 9, generator=torch.Generator().manual_seed(0)) * 8
    for beta in LRN_BETAS:
        got = deepseek_fast.local_response_norm(x, 5, 0.3, beta)
        deepseek_fast.set_max_isa("scalar")
        assert_equal(got, deepseek_fast.local_response_norm(x, 5, 0.3, beta), f"beta {beta} on {isa}")
        deepseek_fast.set_max_isa(isa)


def test_odd_strides() -> None:
    x = torch.randn(2, 9, 8, 7)
    want = deepseek_fast.local_response_norm(x, 5, 0.3)
    wide = torch.full((2, 11, 10, 9), 7.0)
    wide[:, 1:-1, 1:-1, 1:-1] = x
    views = {
        "a part of planes": wide[:, 1:-1, 1:-1, 1:-1],
        "a part of pixels": laid_out(wide, "NHWC")[:, 1:-1, 1:-1, 1:-1],
        "columns before rows": x.transpose(2, 3).contiguous().transpose(2, 3),
        "images last": x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
        "every other value": torch.stack([x, x], -1).flatten(-2)[..., ::2],
    }
    for what, view in views.items():
        assert torch.equal(view, x)
        for door in ("torch", "numpy"):
            assert_same(call(OP, door, {"x": view, "size": 5, "alpha": 0.3}), want, f"{what}, {door}")
    row = x[:, :, :1, :1].expand(-1, -1, 3, 4)
    same = deepseek_fast.local_response_norm(row.contiguous(), 5)
    assert_same(deepseek_fast.local_response_norm(row, 5), same, "expanded")


def test_nan_and_infinity_reach_the_windows_that_hold_them(isa: str) -> None:
    for layout in LAYOUTS:
        x = torch.randn(1, 20, 3, 4)
        x[0, 4, 1, 1], x[0, 12, 2, 3] = torch.nan, -torch.inf
        for beta in LRN_BETAS[:4]:
            got = deepseek_fast.local_response_norm(laid_out(x, layout), 5, 0.3, beta)
            want = F.local_response_norm(x, 5, 0.3, beta)
            assert torch.equal(got.isnan(), want.isnan())
            assert (got[0, (10, 11, 13, 14), 2, 3] == 0).all()


@pytest.mark.parametrize("beta", LRN_BETAS)
@pytest.mark.parametrize("size", [1, 3, 4, 5, 40])
def test_gradients_are_torch_s(size: int, beta: float) -> None:
    for x in (torch.randn(2, 11, 3, 4), torch.randn(2, 11, 6), laid_out(torch.randn(2, 11, 3, 4), "NHWC")):
        ours, exact = x.clone().requires_grad_(), x.double().requires_grad_()
        y = deepseek_fast.local_response_norm(ours, size, 0.7, beta, 1.5)
        want_y = F.local_response_norm(exact, size, 0.7, beta, 1.5)
        upstream = torch.randn(y.shape)
        (got,) = torch.autograd.grad(y, ours, upstream)
        (want,) = torch.autograd.grad(want_y, exact, upstream.double())
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
    bf16 = torch.randn(1, 8, 3, 3).bfloat16().requires_grad_()
    assert torch.autograd.grad(deepseek_fast.local_response_norm(bf16, size).sum(), bf16)[0].dtype == torch.bfloat16


@TORCH_S_OWN_WARNINGS
def test_as_a_torch_operator() -> None:
    def layer(x: Tensor) -> Tensor:
        return deepseek_fast.local_response_norm(x * 2, 5, 0.3)

    for x in (torch.randn(2, 12, 5, 6), laid_out(torch.randn(2, 12, 5, 6), "NHWC"), torch.randn(2, 12, 9)):
        torch.library.opcheck(conv_op._LRN_OP, (x, 5, 0.3, 0.75, 1.0))
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        assert_same(compiled(x), layer(x), "compiled")
        assert compiled(x).stride() == layer(x).stride()
        ours = x.clone().requires_grad_()
        (want,) = torch.autograd.grad(layer(ours).square().sum(), ours)
        (got,) = torch.autograd.grad(compiled(ours).square().sum(), ours)
        torch.testing.assert_close(got, want)
