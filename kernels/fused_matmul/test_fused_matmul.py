"""fused_matmul: what the contract tests cannot say: rounding bias, typical error, agreement with torch's own layers."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import deepseek_fast
from deepseek_fast.kernels.fused_matmul.ref import U, fused_matmul_ref, half_ulp
from tests.oracle import assert_equal

TORCH_ACTIVATIONS = {
    "none": lambda z: z,
    "relu": F.relu,
    "relu6": F.relu6,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": F.silu,
    "hardswish": F.hardswish,
    "sigmoid": F.sigmoid,
    "tanh": F.tanh,
}


def error_in_sums(x: Tensor, weight: Tensor) -> Tensor:
    """Signed error of each output over sum|x||w|, in units of u sqrt(K)."""
    got = deepseek_fast.fused_matmul(x, weight).double()
    magnitude = x.double().abs() @ weight.double().abs().T
    return (got - fused_matmul_ref(x, weight)) / magnitude / (U * x.shape[-1] ** 0.5)


def test_the_typical_error_grows_as_the_root_of_k(isa: str) -> None:
    """The bound allows K u; independent roundings give sqrt(K) u. A kernel that loses bits somewhere shows here."""
    for K in (64, 1024, 4096):
        error = error_in_sums(torch.randn(48, K), torch.randn(48, K))
        assert error.square().mean().sqrt() < 0.5, K


def test_bf16_outputs_round_to_nearest_without_bias(isa: str) -> None:
    """More outputs up than down would mean truncation. Shares differ from 1/2 by at most 5 standard deviations."""
    x, weight = torch.randn(200, 96).bfloat16(), torch.randn(200, 96).bfloat16()
    got = deepseek_fast.fused_matmul(x, weight).double()
    want = fused_matmul_ref(x, weight)
    moved = got != want
    share = (got > want)[moved].double().mean().item()
    assert abs(share - 0.5) < 5 * 0.5 / moved.sum().item() ** 0.5
    # The mean of |error| / half ULP is 1/2 for a uniform rounding error.
    spread = ((got - want).abs() / half_ulp(want.abs(), torch.bfloat16)).mean().item()
    assert abs(spread - 0.5) < 0.02


def test_bf16_ties_round_to_even(isa: str) -> None:
    """1 + 2^-8 lies between two bf16 values, once below an odd one and once above it."""
    x = torch.tensor([[1.0, 2.0**-8], [1.0 + 2.0**-7, 2.0**-8]]).bfloat16()
    got = deepseek_fast.fused_matmul(x, torch.ones(1, 2, dtype=torch.bfloat16))
    assert_equal(got, torch.tensor([[1.0], [1.0 + 2.0**-6]]).bfloat16(), isa)


@pytest.mark.parametrize("activation", TORCH_ACTIVATIONS)
def test_it_takes_the_place_of_linear_and_its_activation(activation: str) -> None:
    linear = torch.nn.Linear(48, 40)
    x = torch.randn(2, 5, 48)
    want = TORCH_ACTIVATIONS[activation](linear(x))
    got = deepseek_fast.fused_matmul(x, linear.weight, linear.bias, activation=activation)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_integers_are_exact(isa: str) -> None:
    """Sums below 2^24 of small integers have no rounding on any path."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x = torch.randint(-8, 9, (33, 257)).to(dtype)
        weight = torch.randint(-8, 9, (65, 257)).to(dtype)
        got = deepseek_fast.fused_matmul(x, weight)
        assert_equal(got, (x.double() @ weight.double().T).to(dtype), f"{dtype} on {isa}")


def test_relu_of_a_negative_sum_is_plus_zero(isa: str) -> None:
    got = deepseek_fast.fused_matmul(-torch.ones(2, 3), torch.ones(5, 3), activation="relu")
    assert_equal(got, torch.zeros(2, 5), isa)
