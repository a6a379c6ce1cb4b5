"""The judges are judged: the oracle sees what is wrong, references agree with independent ones, bounds are tight."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from deepseek_fast.kernels.fused_matmul import ref as fused_ref
from deepseek_fast.kernels.int8_matmul import ref as int8_ref
from tests.doors import ROOMS, part, prepared
from tests.oracle import assert_equal, assert_within, ulp_distance
from tests.plugin import seed_of


def test_equal_sees_one_bit_a_sign_of_zero_a_dtype_and_a_shape() -> None:
    a = torch.tensor([[1.0, 0.0, math.nan]])
    assert_equal(a, a.clone())
    assert_equal(a, torch.tensor([[1.0, 0.0, -math.nan]]))
    other = a.clone()
    other[0, 0] = torch.nextafter(other[0, 0], torch.tensor(2.0))
    for wrong in (other, torch.tensor([[1.0, -0.0, math.nan]]), torch.tensor([[1.0, 0.0, 1.0]]), a.T, a.bfloat16()):
        with pytest.raises(AssertionError):
            assert_equal(wrong, a)
    with pytest.raises(AssertionError, match=r"door: 1 of 3 elements are wrong; worst at \(0, 0\): .* 1 ULPs apart"):
        assert_equal(other, a, "door")
    with pytest.raises(AssertionError, match="strides"):
        assert_equal(torch.ones(3, 2).T, torch.ones(2, 3))


def test_within_takes_the_bound_and_no_more() -> None:
    want = torch.tensor([1.0, -2.0, math.nan, math.inf], dtype=torch.float64)
    bound = torch.full((4,), 0.25, dtype=torch.float64)
    assert_within(torch.tensor([1.25, -2.25, math.nan, math.inf]), want, bound)
    for i, value in ((0, 1.26), (1, math.nan), (2, 0.0), (3, 3e38), (0, math.inf)):
        got = want.float()
        got[i] = value
        with pytest.raises(AssertionError, match=rf"1 of 4 elements are wrong; worst at \({i},\)"):
            assert_within(got, want, bound)
    assert_within(torch.tensor([math.inf]), torch.tensor([3.5e38], dtype=torch.float64), torch.zeros(1).double())


def test_ulp_distance_counts_values() -> None:
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    finite = every[every.isfinite()].double().unique()
    values = finite.bfloat16()
    assert (ulp_distance(values[1:], values[:-1]) == 1).all()
    assert ulp_distance(values[-1:], values[:1]).item() == values.numel() - 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_ulp_is_half_the_gap_of_every_pair(dtype: torch.dtype) -> None:
    codes = torch.arange(2**15 - 1).to(torch.int16).view(dtype)
    values = codes[codes.isfinite()].double()
    gaps = values[1:] - values[:-1]
    middle = values[:-1] + gaps / 4  # inside the gap: its exponent is the lower value's
    torch.testing.assert_close(fused_ref.half_ulp(middle, dtype), gaps / 2, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("relu", F.relu),
        ("relu6", F.relu6),
        ("gelu", F.gelu),
        ("gelu_tanh", lambda z: F.gelu(z, approximate="tanh")),
        ("silu", F.silu),
        ("hardswish", F.hardswish),
        ("sigmoid", F.sigmoid),
        ("tanh", F.tanh),
        ("none", lambda z: z),
    ],
)
def test_activations_are_torch_s_in_float64(activation: str, function: Any) -> None:
    z = torch.cat([torch.linspace(-30, 30, 100001, dtype=torch.float64), torch.tensor([1e30, math.inf, math.nan])])
    torch.testing.assert_close(fused_ref.activate(z, activation), function(z), rtol=1e-12, atol=1e-14, equal_nan=True)
    lipschitz = torch.autograd.functional.jvp(
        lambda t: fused_ref.activate(t, activation), z[:100001], torch.ones(100001, dtype=torch.float64)
    )[1]
    assert lipschitz.abs().max() <= fused_ref.LIPSCHITZ.get(activation, 1.0)
    if activation in fused_ref.RELATIVE_TO_Z:
        assert abs(fused_ref.activate(torch.tensor(fused_ref.SMOOTH_FLAT).double(), activation)) < fused_ref.SMOOTH_TAIL
    limit = {"none": -math.inf, "tanh": -1}.get(activation, 0)
    assert fused_ref.activate(torch.tensor(-math.inf), activation) == limit


def test_int8_reference_is_numpy_s_in_one_rounding_a_step() -> None:
    x, w = torch.randn(9, 33), torch.randn(6, 33)
    q, scale = int8_ref.int8_quantize_weight_ref(w)
    bias, residual = torch.randn(6), torch.randn(9, 6)
    got = int8_ref.int8_matmul_ref(x, q, scale, bias, activation="relu", residual=residual)
    rows = x.numpy()
    amax = np.abs(rows).max(1, keepdims=True)
    x_q = np.rint(rows * (np.float32(127) / amax)).astype(np.int64)
    y = (x_q @ q.numpy().astype(np.int64).T).astype(np.float32) * (amax / np.float32(127))
    y = np.maximum(y * scale.numpy() + bias.numpy(), np.float32(0)) + residual.numpy()
    assert y.dtype == np.float32
    assert_equal(got, torch.from_numpy(y))


@pytest.mark.parametrize("room", ROOMS)
def test_bounds_are_small_beside_the_outputs(room: str) -> None:
    """A bound that allows everything would pass every kernel."""
    for case in part(room, "cases").CASES:
        if 0 in (case.M, case.N, case.K):
            continue
        _, want, bound = prepared(room, case)
        relative = {"bfloat16": 2.0**-7, "float16": 2.0**-9}.get(case.dtype, 0.0)
        relative = max(relative, 2.0**-24 * (case.K + 40) * 8)
        factor = 16 if case.gated else 1  # of the other half, whose values are of size 3
        assert (bound <= factor * relative * (want.double().abs() + case.K**0.5 + 4)).all(), case.id


def test_seeds_depend_on_the_text_alone() -> None:
    assert seed_of("a") == 310482890
    assert seed_of("a") != seed_of("b")
