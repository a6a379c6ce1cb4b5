"""Gradients of fused_conv and pool2d, alone, compiled and under autocast."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import deepseek_fast
from deepseek_fast import _conv
from deepseek_fast.kernels.fused_conv.cases import CASES, Case
from deepseek_fast.kernels.fused_conv.ref import fused_conv_ref
from tests.conv_tensors import BIAS, PIXELS, RESIDUAL, TORCH_S_OWN_WARNINGS, WEIGHT, X
from tests.oracle import assert_equal, assert_within


def check_gradients(inputs: dict[str, Any], function: Any, reference: Any) -> None:
    """Float64 autograd of ref.py is the truth; f32 gradients agree to a few times K u of their size."""
    names = [name for name, value in inputs.items() if isinstance(value, Tensor)]
    ours = {n: v.clone().requires_grad_() if n in names else v for n, v in inputs.items()}
    exact = {n: v.double().requires_grad_() if n in names else v for n, v in inputs.items()}
    y, want_y = function(**ours), reference(**exact)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    got = torch.autograd.grad(y, [ours[n] for n in names], upstream)
    want = torch.autograd.grad(want_y, [exact[n] for n in names], upstream.double())
    for name, g, w in zip(names, got, want, strict=True):
        assert g.dtype == torch.float32
        assert_within(g.contiguous(), w, torch.full_like(w, 2e-5 * max(1.0, w.abs().max().item())), f"d {name}")


@pytest.mark.parametrize("residual", ["none", "before", "after"])
@pytest.mark.parametrize("activation", _conv.ACTIVATIONS)
def test_gradients_are_those_of_the_reference(activation: str, residual: str) -> None:
    for pool in (None, (3, 2, 1, True)):
        case = Case((2, 6, 9, 8), 8, (3, 3), 2, (1, 0, 2, 1), 1, 2, activation=activation, residual=residual)
        case = Case(**{**vars(case), "max_pool": pool, "x_layout": "NHWC" if pool else "NCHW"})
        check_gradients(case.inputs(torch.Generator().manual_seed(4)), deepseek_fast.fused_conv, fused_conv_ref)


GRADIENT_CASES = [
    case
    for case in CASES[::4]
    if case.dtype == "float32" and case.x[0] != 0 and case.activation in ("none", "silu", "tanh", "sigmoid")
]


@pytest.mark.parametrize("case", GRADIENT_CASES, ids=lambda case: case.id)
def test_gradients_on_every_path(case: Case) -> None:
    check_gradients(case.inputs(torch.Generator().manual_seed(4)), deepseek_fast.fused_conv, fused_conv_ref)


def average(x: Tensor, kernel: Any, stride: Any, padding: Any, ceil_mode: bool, count_include_pad: bool) -> Tensor:
    return F.avg_pool2d(x, kernel, stride, padding, ceil_mode, count_include_pad)


@pytest.mark.parametrize("count_include_pad", [True, False])
@pytest.mark.parametrize(
    "window", [(3, 2, 1, True), (3, 2, 1, False), ((2, 3), (3, 2), (1, 0), True), (5, 5, 0, False)]
)
def test_gradients_of_pool2d_are_torch_s(window: Any, count_include_pad: bool) -> None:
    kernel, stride, padding, ceil_mode = window
    for x in (X, PIXELS, X[0]):
        ours, torch_s = x.clone().requires_grad_(), x.clone().requires_grad_()
        options = {"ceil_mode": ceil_mode, "count_include_pad": count_include_pad}
        for kind in ("max", "average"):
            y = deepseek_fast.pool2d(ours, kernel, stride, padding, kind=kind, **options)
            want_y = (
                F.max_pool2d(torch_s, kernel, stride, padding, 1, ceil_mode)
                if kind == "max"
                else average(torch_s, kernel, stride, padding, ceil_mode, count_include_pad)
            )
            upstream = torch.randn(y.shape)
            (got,), (want,) = torch.autograd.grad(y, ours, upstream), torch.autograd.grad(want_y, torch_s, upstream)
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_gradients_flow_only_where_asked() -> None:
    weight = WEIGHT.clone().requires_grad_()
    y = deepseek_fast.fused_conv(X, weight, BIAS, 2, 1, groups=2, activation="relu", residual=RESIDUAL)
    y.sum().backward()
    assert weight.grad is not None
    with torch.no_grad():
        assert not deepseek_fast.fused_conv(X, weight, groups=2).requires_grad
    y = deepseek_fast.fused_conv(X, weight, groups=2)
    (grad,) = torch.autograd.grad(y.sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
        torch.autograd.grad(grad.square().sum(), weight)


@TORCH_S_OWN_WARNINGS
def test_gradients_through_compile() -> None:
    weight, x = WEIGHT.clone().requires_grad_(), X.clone().requires_grad_()

    def layer(x: Tensor) -> Tensor:
        y = deepseek_fast.fused_conv(x, weight, BIAS, 1, (1, 0, 0, 2), 1, 2, activation="gelu", max_pool=(3, 2, 1))
        return deepseek_fast.pool2d(y, 2, kind="average")

    want = torch.autograd.grad(layer(x).square().sum(), [x, weight])
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(x).square().sum(), [x, weight])
    torch._dynamo.reset()
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w)


def test_autocast() -> None:
    """To bfloat16; under float16, which no kernel has, the convolution stays in float32."""
    for dtype, computed in ((torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)):
        want = deepseek_fast.fused_conv(X.to(computed), WEIGHT.to(computed), BIAS.to(computed), groups=2)
        for x in (X, X.to(dtype).to(X.dtype)):
            with torch.autocast("cpu", dtype):
                got = deepseek_fast.fused_conv(x, WEIGHT, BIAS, groups=2)
            assert got.dtype == computed
            if x is X:
                assert_equal(got, want, f"{dtype}")
        weight = WEIGHT.clone().requires_grad_()
        with torch.autocast("cpu", dtype):
            y = deepseek_fast.fused_conv(X, weight, BIAS, groups=2)
        assert_equal(y.detach(), want, f"{dtype}")
        assert torch.autograd.grad(y.sum(), weight)[0].dtype == torch.float32
