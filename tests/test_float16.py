"""float16: every value in and out, one rounding at the end, and the bits of float32 before it, in every room."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import deepseek_fast
from tests import ort_nodes
from tests.doors import DOORS, call, part, reference
from tests.oracle import assert_equal

SCHEMES = [
    ("fp8_matmul", {"block": (1, 32)}),
    ("fp8_matmul", {"activations": "fp8"}),
    ("fused_matmul", {}),
    ("int4_matmul", {"compute": "int8", "zeros": True}),
    ("int4_matmul", {"compute": "float", "group_size": -1}),
    ("int8_matmul", {"activations": "int8"}),
    ("int8_matmul", {"activations": "float"}),
]
# One row, fewer rows than a tile, whole tiles with and without an activation, tails, many steps of 128 values of k.
# (M, N, K, activation, residual)
CALLS = (
    (1, 65, 4099, "none", "none"),
    (3, 64, 128, "silu", "full"),
    (14, 130, 259, "none", "full"),
    (65, 33, 64, "gelu", "one"),
)
F16_MAX, OVERFLOWS = 65504.0, 65520.0  # the largest number, and the smallest that rounds to inf


def every_f16() -> Tensor:
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)


@pytest.fixture
def flushing() -> Iterator[None]:
    """The thread flushes subnormal f32 to zero, as some programs ask for."""
    if not torch.set_flush_denormal(True):
        pytest.skip("torch cannot flush on this machine")
    yield
    torch.set_flush_denormal(False)


@pytest.mark.parametrize(("room", "scheme"), SCHEMES, ids=str)
def test_a_result_is_that_of_float32_rounded_once(room: str, scheme: dict[str, Any], isa: str) -> None:
    for *sizes, activation, residual in CALLS:
        case = part(room, "cases").Case(*sizes, "float16", activation, residual != "none", residual, **scheme)
        inputs = case.inputs(torch.Generator().manual_seed(7))
        wide = {n: v.float() if getattr(v, "dtype", None) == torch.float16 else v for n, v in inputs.items()}
        want = call(room, "torch", wide).half()
        for door in DOORS:
            assert_equal(call(room, door, inputs), want, f"{case.id} through {door} on {isa}")


@pytest.mark.parametrize(("room", "scheme"), SCHEMES, ids=str)
def test_memory_of_any_kind_gives_the_same_bits(room: str, scheme: dict[str, Any]) -> None:
    inputs = part(room, "cases").Case(14, 67, 65, "float16", "relu", True, "full", **scheme).inputs(torch.Generator())
    want = call(room, "torch", inputs)
    for name in ("x", "weight", "bias", "residual"):
        if name in inputs and inputs[name].dtype == torch.float16:
            value = inputs[name]
            wide = torch.full([size + 3 for size in value.shape], math.nan).half()
            view = wide[tuple(slice(1, 1 + size) for size in value.shape)].copy_(value)
            for moved in (view, value.mT.contiguous().mT if value.ndim == 2 else view):
                for door in DOORS:
                    assert_equal(call(room, door, inputs | {name: moved}), want, f"{name} through {door}")


@pytest.mark.parametrize(("room", "scheme"), SCHEMES, ids=str)
def test_onnx_runtime_gives_the_same_bits(room: str, scheme: dict[str, Any]) -> None:
    inputs = part(room, "cases").Case(5, 67, 65, "float16", "relu", True, "full", **scheme).inputs(torch.Generator())
    want = call(room, "numpy", inputs)
    assert want.dtype == torch.float16
    assert_equal(ort_nodes.call(room, inputs), want, "constant weight")
    assert_equal(ort_nodes.call(room, inputs, constant=()), want, "weight of each run")


@pytest.mark.parametrize("argument", ["x", "weight", "bias", "residual"])
def test_every_value_passes_through(argument: str, isa: str) -> None:
    """The other arguments are one and zero: the result is the value itself, but +0 for -0, and a NaN for a NaN."""
    check_every_value(argument, isa)


@pytest.mark.parametrize("argument", ["x", "weight", "bias", "residual"])
def test_every_value_passes_through_a_thread_that_flushes(argument: str, isa: str, flushing: None) -> None:
    check_every_value(argument, isa)


def check_every_value(argument: str, isa: str) -> None:
    values = every_f16()
    one = torch.ones(1, 1, dtype=torch.float16)
    inputs = {
        "x": {"x": values.reshape(-1, 1), "weight": one},
        "weight": {"x": one, "weight": values.reshape(-1, 1)},
        "bias": {"x": 0 * one, "weight": torch.zeros(2**16, 1).half(), "bias": values},
        "residual": {"x": torch.zeros(2**8, 1).half(), "weight": torch.zeros(2**8, 1).half()},
    }[argument]
    if argument == "residual":
        inputs["residual"] = values.reshape(2**8, 2**8)
    got = call("fused_matmul", "torch", inputs).reshape(-1)
    assert_equal(got, torch.where(values == 0, values.abs(), values), f"{argument} on {isa}")
    assert (got[values.isnan()].view(torch.int16) & 0x200 != 0).all(), "a NaN is quiet"


def test_ties_round_to_even_and_only_a_little_more_rounds_up(isa: str) -> None:
    low = every_f16()
    low = low[low.isfinite() & (low >= 0)][:-1]
    high = (low.view(torch.int16) + 1).view(torch.float16)
    half = (high.float() - low.float()) / 2  # of subnormals 2^-25: no f16, so x is scaled up and the weight down
    x = torch.stack([low.float(), half * 2**14], 1)
    for nudge in (-1, 0, 1):
        # The product of the third column is below half an ULP of the tie's f32: 2^-11 of it, or 2^-48.
        terms = torch.stack([x[:, 0], x[:, 1], nudge * x[:, 1] / 2**10], 1).half()
        exact = terms.double() @ torch.tensor([1.0, 2.0**-14, 2.0**-14], dtype=torch.float64)
        weight = torch.tensor([[1.0, 2.0**-14, 2.0**-14]]).half()
        got = call("fused_matmul", "torch", {"x": terms, "weight": weight}).reshape(-1)
        sums = call("fused_matmul", "torch", {"x": terms.float(), "weight": weight.float()}).reshape(-1)
        assert_equal(got, sums.half(), f"{nudge} on {isa}")
        small = low < 2.0**4  # where f32 holds the sum exactly and x does not overflow
        assert_equal(got[small], exact.half()[small], f"{nudge} on {isa}, from float64")


def test_overflow_becomes_infinite_where_ieee_says(isa: str) -> None:
    bias = torch.tensor([F16_MAX, -F16_MAX, F16_MAX, -F16_MAX, F16_MAX, 0.0])
    extra = torch.tensor([15.9921875, -15.9921875, OVERFLOWS - F16_MAX, F16_MAX - OVERFLOWS, F16_MAX, 0.0])
    want = torch.tensor([F16_MAX, -F16_MAX, math.inf, -math.inf, math.inf, 0.0]).half()
    inputs = {"x": torch.ones(9, 1).half(), "weight": extra.half().reshape(-1, 1), "bias": bias.half()}
    for activation in ("none", "relu"):
        expected = want if activation == "none" else want.clamp_min(0)
        got = call("fused_matmul", "torch", inputs | {"activation": activation})
        assert_equal(got, expected.expand(9, 6).contiguous(), f"{activation} on {isa}")


def test_quantizers_take_what_float32_would_give(isa: str) -> None:
    w = torch.cat([torch.randn(7, 70), torch.randn(2, 70) * 2.0**-24, torch.randn(2, 70) * 6e4]).half()
    w[w.isinf()] = F16_MAX
    for quantize, options in (
        (deepseek_fast.int8_quantize_weight, {}),
        (deepseek_fast.int4_quantize_weight, {"group_size": 32, "symmetric": False}),
        (deepseek_fast.int4_quantize_weight, {"group_size": -1}),
        (deepseek_fast.fp8_quantize_weight, {"block": (1, 32)}),
        (deepseek_fast.fp8_quantize_weight, {"dtype": torch.float8_e5m2}),
    ):
        for got, want in zip(quantize(w, **options), quantize(w.float(), **options), strict=True):
            assert_equal(got, want, f"{quantize.__name__} {options} on {isa}")


def test_gradients_are_those_of_float64_within_float16() -> None:
    inputs = part("fused_matmul", "cases").Case(6, 10, 14, "float16", "gelu", True, "full").inputs(torch.Generator())
    names = [name for name, value in inputs.items() if isinstance(value, Tensor)]
    ours = {n: v.clone().requires_grad_() if n in names else v for n, v in inputs.items()}
    exact = {n: v.double().requires_grad_() if n in names else v for n, v in inputs.items()}
    got = torch.autograd.grad(deepseek_fast.fused_matmul(**ours).sum(), [ours[n] for n in names])
    want = torch.autograd.grad(reference("fused_matmul", exact).sum(), [exact[n] for n in names])
    for name, g, w in zip(names, got, want, strict=True):
        assert g.dtype == torch.float16
        # Four roundings to float16 on the way, of 2^-11 each, in up to 14 terms.
        torch.testing.assert_close(g.double(), w, rtol=0, atol=4 * 2.0**-11 * w.abs().max().item(), msg=name)
