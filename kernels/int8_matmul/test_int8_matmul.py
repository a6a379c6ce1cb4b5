"""int8_matmul: the quantizer over its whole domain, ties, rounding bias, and sums at the edge of int32."""

import pytest
import torch

import deepseek_fast
from deepseek_fast.kernels.int8_matmul.ref import AMAX_MIN, int8_quantize_weight_ref
from tests.doors import DOORS, call, numpy_op, to_numpy
from tests.oracle import assert_equal

INT8_MAX_K = 131071  # largest K whose sums fit int32


def quantize_doors(w: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    through_numpy = numpy_op("int8_quantize_weight")(to_numpy(w))
    return {
        "torch": deepseek_fast.int8_quantize_weight(w),
        "numpy": (torch.from_numpy(through_numpy[0]), torch.from_numpy(through_numpy[1])),
    }


def check_quantize(w: torch.Tensor, what: str) -> None:
    want_q, want_scale = int8_quantize_weight_ref(w)
    for door, (q, scale) in quantize_doors(w).items():
        assert_equal(q, want_q, f"{what}: q through {door}")
        assert_equal(scale, want_scale, f"{what}: scale through {door}")


def row_codes(x: torch.Tensor) -> torch.Tensor:
    """x_q of each row of x as int8_matmul sees it: an identity weight and a row scale of 1 give it back."""
    K = x.shape[-1]
    assert (x.abs().amax(-1) == 127).all()
    y = deepseek_fast.int8_matmul(x, torch.eye(K, dtype=torch.int8), torch.ones(K))
    return y.to(torch.int8)


def test_every_bf16_code_quantizes_as_the_reference(isa: str) -> None:
    codes = torch.arange(2**15, dtype=torch.int16).view(torch.bfloat16)
    codes = codes[codes.isfinite()]
    in_order = codes.reshape(-1, 128)  # one exponent a row
    mixed = codes[torch.randperm(codes.numel(), generator=torch.Generator().manual_seed(0))].reshape(-1, 32)
    alone = codes.reshape(-1, 1)
    for what, w in (("in order", in_order), ("negative", -in_order), ("mixed", mixed), ("alone", alone)):
        check_quantize(w, what)
        check_quantize(w.float(), f"{what}, float32")


def test_every_f32_tie_rounds_to_even(isa: str) -> None:
    ties = torch.arange(-126.5, 127, 1.0)
    for near in (ties, torch.nextafter(ties, torch.tensor(0.0)), torch.nextafter(ties, ties.sign() * 1e9)):
        x = torch.cat([near, torch.tensor([127.0])]).unsqueeze(0)
        want = torch.round(x).to(torch.int8)
        assert_equal(row_codes(x), want, "activation rows")
        for power in (-60, 0, 60):  # an exact scaling leaves the codes alone
            assert_equal(deepseek_fast.int8_quantize_weight(x * 2.0**power)[0], want, f"weight rows, 2^{power}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activation_rows_and_weight_rows_quantize_alike(dtype: torch.dtype, isa: str) -> None:
    x = (torch.rand(64, 67) * 254 - 127).to(dtype)
    x[:, 0] = 127
    assert_equal(row_codes(x), deepseek_fast.int8_quantize_weight(x)[0])


def test_quantize_edges(isa: str) -> None:
    for shape in ((0, 5), (5, 0), (0, 0), (1, 1), (3, 15), (3, 16), (3, 17), (2, 4099)):
        check_quantize(torch.randn(shape), f"{shape}")
        check_quantize(torch.randn(shape).bfloat16(), f"{shape} bf16")
        check_quantize(torch.randn(shape[1], shape[0]).T, f"{shape} transposed")
    tiny = torch.tensor([[1.0], [2.0]]) * AMAX_MIN
    below = torch.nextafter(tiny, torch.zeros(1))
    huge = torch.full((1, 3), torch.finfo(torch.float32).max)
    for w in (tiny, below, huge, torch.full((2, 3), 1e-45), torch.zeros(2, 3), -torch.zeros(2, 3)):
        check_quantize(w, f"{w[0, 0].item()!r}")
    q, scale = deepseek_fast.int8_quantize_weight(torch.zeros(2, 3))
    assert_equal(q, torch.zeros(2, 3, dtype=torch.int8))
    assert_equal(scale, torch.zeros(2))


def test_a_weight_row_with_nan_or_inf_gets_scale_nan(isa: str) -> None:
    for value in (torch.nan, torch.inf, -torch.inf):
        w = torch.randn(3, 9)
        w[1, 4] = value
        check_quantize(w, f"{value}")


def test_codes_are_never_minus_128() -> None:
    q, _ = deepseek_fast.int8_quantize_weight(torch.randn(300, 300))
    assert int(q.min()) == -127
    assert int(q.max()) == 127


def test_quantization_has_no_bias() -> None:
    """Rounding to nearest is even-handed: the share of values that grew is 1/2 within 5 standard deviations."""
    w = torch.rand(1000, 1000)
    w[:, 0] = 1
    q, scale = deepseek_fast.int8_quantize_weight(w)
    back = q.double() * scale.double().unsqueeze(1)
    moved = back != w.double()
    share = (back > w.double())[moved].double().mean().item()
    assert abs(share - 0.5) < 5 * 0.5 / moved.sum().item() ** 0.5
    # Half a step, and the three roundings of up to 127 * 2^-24 of a step each.
    assert (back - w.double()).abs().max() <= (0.5 + 3 * 127 * 2.0**-24) / 127


@pytest.mark.parametrize(("sign", "code"), [(1, -128), (-1, -128), (1, 127), (-1, 127), (1, -127)])
def test_sums_at_the_edge_of_int32(sign: int, code: int, isa: str) -> None:
    K = INT8_MAX_K
    inputs = {
        "x": torch.full((2, K), sign * 127.0),
        "q": torch.full((3, K), code, dtype=torch.int8),
        "scale": torch.ones(3),
    }
    inputs["x"][1, ::2] *= -1  # alternating signs: a sum of one element
    inputs["q"][1, 1::3] = 0
    accumulator = inputs["x"].long() @ inputs["q"].long().T
    assert int(accumulator.abs().max()) < 2**31
    for door in DOORS:
        assert_equal(call("int8_matmul", door, inputs), accumulator.float(), f"{door} on {isa}")


def test_the_smallest_code_meets_every_activation_code(isa: str) -> None:
    """All pairs (x_q, q): products of one term, exact."""
    x = torch.arange(-127.0, 128).reshape(-1, 1)
    x = torch.cat([x, torch.full_like(x, 127)], dim=1)  # the second column fixes the row's scale at 1
    codes = torch.arange(-128, 128, dtype=torch.int8).reshape(-1, 1)
    q = torch.cat([codes, torch.zeros_like(codes)], dim=1)
    y = deepseek_fast.int8_matmul(x, q, torch.ones(256))
    assert_equal(y, x[:, :1] @ codes.float().T + 0.0, isa)  # + 0.0: no -0


def test_w8a16_takes_more_columns_than_w8a8() -> None:
    K = INT8_MAX_K + 2
    x, q = torch.ones(1, K), torch.ones(1, K, dtype=torch.int8)
    assert deepseek_fast.int8_matmul(x, q, torch.ones(1), activations="float").item() == K
    with pytest.raises(ValueError, match="q must have at most 131071 columns"):
        deepseek_fast.int8_matmul(x, q, torch.ones(1))
