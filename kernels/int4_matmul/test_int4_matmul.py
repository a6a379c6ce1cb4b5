"""int4_matmul: the quantizer over its domain, every pair of codes, and sums at the edge of what instructions hold."""

from typing import Any

import pytest
import torch

import deepseek_fast
from deepseek_fast.kernels.int4_matmul import cases, ref
from tests.doors import DOORS, call, numpy_op, reference, to_numpy
from tests.oracle import assert_equal
from tests.plugin import isa_cap, supported_isas

GROUP_SIZES = (32, 64, 128, -1)


def quantize_doors(w: torch.Tensor, **how: Any) -> dict[str, tuple[torch.Tensor, ...]]:
    through_numpy = numpy_op("int4_quantize_weight")(to_numpy(w), **how)
    return {
        "torch": deepseek_fast.int4_quantize_weight(w, **how),
        "numpy": tuple(torch.from_numpy(array) for array in through_numpy),
    }


def check_quantize(w: torch.Tensor, what: str) -> None:
    for group_size in GROUP_SIZES:
        for symmetric in (True, False):
            how = {"group_size": group_size, "symmetric": symmetric}
            want = ref.int4_quantize_weight_ref(w, **how)
            for door, got in quantize_doors(w, **how).items():
                assert len(got) == len(want) == (2 if symmetric else 3)
                for name, g, r in zip(("q", "scale", "zeros"), got, want, strict=False):
                    assert_equal(g, r, f"{what}: {name} of {how} through {door}")


def dequantized(q: torch.Tensor, scale: torch.Tensor, zeros: Any, group_size: int, K: int) -> torch.Tensor:
    """In float64, exact."""
    columns = [torch.zeros(q.shape[0], 0, dtype=torch.float64)]
    for _, weight, step in ref.blocks_of(q, scale, zeros, group_size, K):
        columns.append(weight * step[:, None])
    return torch.cat(columns, 1)


def test_quantize_is_the_reference_s() -> None:
    for shape in ((0, 5), (5, 0), (0, 0), (1, 1), (3, 31), (3, 32), (3, 33), (4, 129), (2, 1029)):
        for dtype in (torch.float32, torch.bfloat16):
            check_quantize(torch.randn(shape).to(dtype), f"{shape} {dtype}")
        check_quantize(torch.randn(shape[1], shape[0]).T, f"{shape} transposed")
        check_quantize(torch.rand(shape) + 1, f"{shape} above zero")
        check_quantize(-torch.rand(shape), f"{shape} below zero")


def test_quantize_at_the_ends_of_float32() -> None:
    largest = torch.finfo(torch.float32).max
    smallest = torch.tensor(ref.MIN_RANGE)
    below = torch.nextafter(smallest, torch.tensor(0.0))
    for value in (0.0, -0.0, 1e-45, below.item(), smallest.item(), largest, -largest):
        w = torch.zeros(2, 70)
        w[0], w[1, 40] = value, value
        check_quantize(w, f"{value!r}")
    mixed = torch.tensor([[largest, -largest, 1.0, 0.0]])
    check_quantize(mixed, "both ends")
    q, scale = deepseek_fast.int4_quantize_weight(torch.zeros(2, 70))
    assert_equal(scale, torch.ones(2, 3))
    assert (ref.unpack(q) == 8).all()


def test_ties_round_to_even_and_the_first_of_equals_leads() -> None:
    ties = torch.arange(-7.5, 8, 1.0)
    w = torch.cat([torch.tensor([-8.0]), ties]).unsqueeze(0)
    q, scale = deepseek_fast.int4_quantize_weight(w)
    assert scale.item() == 1
    assert_equal(ref.unpack(q, 17)[0], (torch.round(w[0]) + 8).clamp(max=15).to(torch.uint8))
    for sign in (1.0, -1.0):
        w = torch.tensor([[0.0, sign * 4, -sign * 4]])
        q, scale = deepseek_fast.int4_quantize_weight(w)
        assert scale.item() == sign * -0.5
        assert ref.unpack(q, 3)[0].tolist() == [8, 0, 15]


@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_quantized_weights_are_within_half_a_step(group_size: int) -> None:
    w = torch.randn(64, 515)
    q, scale, zeros = deepseek_fast.int4_quantize_weight(w, group_size=group_size, symmetric=False)
    size = 515 if group_size < 0 else group_size
    step = scale.double().abs().repeat_interleave(size, 1)[:, :515]
    # Half a step of the value and half of the zero point; at the ends of the range both round the same way.
    error = (dequantized(q, scale, zeros, group_size, 515) - w).abs()
    assert (error <= step * (1 + 1e-6)).all()
    q, scale = deepseek_fast.int4_quantize_weight(w, group_size=group_size)
    step = scale.double().abs().repeat_interleave(size, 1)[:, :515]
    error = (dequantized(q, scale, None, group_size, 515) - w).abs()
    clipped = ref.unpack(q, 515) == 15
    assert (error <= torch.where(clipped, step, step / 2) * (1 + 1e-6)).all()


def test_the_symmetric_rule_is_the_better_of_two_on_gaussian_weights() -> None:
    """m / -8 against amax / 7: RMS error 0.086 to 0.097 of a standard deviation in groups of 32."""
    w = torch.randn(4096, 32)
    q, scale = deepseek_fast.int4_quantize_weight(w)
    ours = (dequantized(q, scale, None, 32, 32) - w).square().mean().sqrt()
    step = w.abs().amax(1, keepdim=True) / 7
    other = ((w / step).round() * step - w).square().mean().sqrt()
    assert 0.084 < ours < 0.088
    assert ours < 0.9 * other


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_weight_that_is_not_finite_is_refused(value: float) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        w = torch.zeros(3, 40, dtype=dtype)
        w[1, 35] = value
        for quantize in (deepseek_fast.int4_quantize_weight, lambda w: numpy_op("int4_quantize_weight")(to_numpy(w))):
            with pytest.raises(
                ValueError, match=rf"^int4_quantize_weight: w must be finite; got {value} at \(1, 35\)$"
            ):
                quantize(w)


def test_quantize_refuses_other_group_sizes() -> None:
    for size in (0, 16, 256, -2):
        with pytest.raises(ValueError, match=rf"group_size must be one of 32, 64, 128, -1; got {size}$"):
            deepseek_fast.int4_quantize_weight(torch.zeros(2, 2), group_size=size)


def products(zero: int | None) -> dict[str, Any]:
    """All pairs (x_q, code): a block of 8 rows of k, all zeros but two."""
    x = torch.zeros(255, 8)
    x[:, 0] = torch.arange(-127.0, 128)
    x[:, 1] = 127  # fixes the scale of every row at 1
    codes = torch.zeros(16, 8, dtype=torch.uint8)
    codes[:, 0] = torch.arange(16)
    codes[:, 1] = 8 if zero is None else zero
    zeros = None if zero is None else torch.full((16, 1), zero, dtype=torch.uint8)
    return {"x": x, "q": ref.pack(codes), "scale": torch.ones(16, 1), "zeros": zeros}


def test_every_code_meets_every_activation_code(isa: str) -> None:
    for zero in (None, 0, 7, 8, 15):
        inputs = products(zero)
        want = inputs["x"][:, :1] @ (torch.arange(16.0) - (8 if zero is None else zero)).unsqueeze(0) + 0.0
        for door in DOORS:
            assert_equal(call("int4_matmul", door, inputs), want, f"zero {zero} through {door} on {isa}")


@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_sums_at_the_edge_of_a_block(group_size: int, isa: str) -> None:
    """127 * 15 * group_size, of both signs: instructions that saturate, or hold sums in 16 bits, would show."""
    K = 2 * group_size
    x = torch.full((3, K), 127.0)
    x[1] = -127
    x[2, ::2] = -127
    for code, zero in ((15, 0), (0, 15), (15, 15), (0, 0)):
        q = ref.pack(torch.full((70, K), code, dtype=torch.uint8))
        zeros = torch.full((70, 2), zero, dtype=torch.uint8)
        inputs = {"x": x, "q": q, "scale": torch.ones(70, 2), "zeros": zeros, "group_size": group_size}
        want = x.sum(1, keepdim=True) * (code - zero) * torch.ones(1, 70)
        for door in DOORS:
            assert_equal(call("int4_matmul", door, inputs), want + 0.0, f"{code} - {zero} through {door} on {isa}")


@pytest.mark.parametrize("power", [-101, -100, -99, 0, 100, 126])
def test_blocks_of_any_magnitude(power: int, isa: str) -> None:
    inputs = cases.Case(7, 19, 70, zeros=True, bias=False).inputs(torch.Generator().manual_seed(power))
    blocks = torch.nn.functional.pad(inputs["x"], (0, 26)).reshape(7, 3, 32)
    x = blocks / blocks.abs().amax(-1, keepdim=True) * 2.0**power
    x[:, 1] *= 2.0**-20  # beside blocks of another size
    inputs["x"] = x.reshape(7, 96)[:, :70].contiguous()
    for door in DOORS:
        assert_equal(call("int4_matmul", door, inputs), reference("int4_matmul", inputs), f"2^{power} {door} on {isa}")


@pytest.mark.parametrize("residual", ["none", "one"])
def test_underflow_gives_plus_zero(residual: str, isa: str) -> None:
    """-1 * 2^-100 * 2^-100 is -0; a sum that starts at +0 is +0, as in the ONNX function body."""
    inputs: dict[str, Any] = {
        "x": torch.full((1, 4), -(2.0**-99)),
        "q": torch.full((3, 2), 0x99, dtype=torch.uint8),
        "scale": torch.full((3, 1), 2.0**-100),
        "residual": torch.zeros(1) if residual == "one" else None,
    }
    for door in DOORS:
        assert_equal(call("int4_matmul", door, inputs), torch.zeros(1, 3), f"{door} on {isa}")


@pytest.mark.parametrize("group_size", GROUP_SIZES[:3])
def test_blocks_that_are_quantized_together_keep_apart(group_size: int, isa: str) -> None:
    """512 values of a row share a pass: NaN, inf, zeros and the ends of the range stay in their blocks and rows."""
    case = cases.Case(8, 33, 1061, group_size=group_size, zeros=True)
    inputs = case.inputs(torch.Generator().manual_seed(group_size + 1))
    x = inputs["x"]
    x[0, 40], x[1, 600], x[2, 1060] = torch.nan, torch.inf, -torch.inf
    x[3, 128:256], x[4, 512:640], x[5, 384:512] = 0.0, 2.0**-120, 2.0**120
    x[6, 5::32] = 1000.0
    for dtype in (torch.float32, torch.bfloat16):
        converted = inputs | {"x": x.to(dtype), "bias": inputs["bias"].to(dtype)}
        want = reference("int4_matmul", converted)
        assert_equal(call("int4_matmul", "torch", converted), want, f"{dtype} on {isa}")
        for rows in (1, 7):
            few = converted | {"x": converted["x"][-rows:]}
            assert_equal(call("int4_matmul", "torch", few), want[-rows:], f"{rows} rows of {dtype} on {isa}")


@pytest.mark.parametrize("group_size", (32, -1))
def test_a_float_row_is_the_same_among_any_number_of_rows(group_size: int, isa: str) -> None:
    """1 to 7 rows: few read blocks side by side, the last of K is short and odd."""
    for zeros, dtype in ((True, "float32"), (False, "float32"), (True, "bfloat16"), (False, "bfloat16")):
        case = cases.Case(7, 70, 429, dtype, compute="float", group_size=group_size, zeros=zeros)
        inputs = case.inputs(torch.Generator().manual_seed(3))
        want = call("int4_matmul", "torch", inputs)
        for rows in range(1, 7):
            got = call("int4_matmul", "torch", inputs | {"x": inputs["x"][-rows:]})
            assert_equal(got, want[-rows:], f"{rows} rows, {dtype}, zeros {zeros} on {isa}")


def test_zero_points_of_8_are_none(isa: str) -> None:
    for compute in cases.MODES:
        inputs = cases.Case(9, 70, 100, compute=compute).inputs(torch.Generator().manual_seed(1))
        eights = inputs | {"zeros": torch.full(inputs["scale"].shape, 8, dtype=torch.uint8)}
        assert_equal(call("int4_matmul", "torch", eights), call("int4_matmul", "torch", inputs), f"{compute} on {isa}")


def test_what_lies_behind_an_odd_k_is_not_read(isa: str) -> None:
    inputs = cases.Case(5, 20, 33, zeros=True).inputs(torch.Generator().manual_seed(2))
    other = inputs | {"q": inputs["q"].clone()}
    other["q"][:, -1] ^= 0xF0
    assert not torch.equal(other["q"], inputs["q"])
    for compute in cases.MODES:
        for door in DOORS:
            want = call("int4_matmul", door, inputs | {"compute": compute})
            assert_equal(call("int4_matmul", door, other | {"compute": compute}), want, f"{compute} {door} on {isa}")


def test_one_scale_a_row_is_that_scale_in_every_block(isa: str) -> None:
    for compute in cases.MODES:
        inputs = cases.Case(7, 66, 300, compute=compute, group_size=-1, zeros=True).inputs(torch.Generator())
        wide = {name: inputs[name].expand(66, 3).contiguous() for name in ("scale", "zeros")}
        want = call("int4_matmul", "torch", inputs | wide | {"group_size": 128})
        assert_equal(call("int4_matmul", "torch", inputs), want, f"{compute} on {isa}")


def test_the_integer_scheme_is_closer_than_its_activations_allow() -> None:
    """W4A8 against the exact product of the weight's numbers: x errs by half a step, 1 / 127 of its block's amax."""
    inputs = cases.Case(33, 64, 512, bias=False).inputs(torch.Generator().manual_seed(4))
    weight = dequantized(inputs["q"], inputs["scale"], None, 32, 512)
    exact = inputs["x"].double() @ weight.T
    step = inputs["x"].reshape(33, 16, 32).abs().amax(-1, keepdim=True).expand(33, 16, 32).reshape(33, 512) / 127
    limit = (step.double() / 2 * (1 + 1e-4)) @ weight.abs().T
    for level in supported_isas():
        with isa_cap(level):
            got = call("int4_matmul", "torch", inputs)
        assert ((got - exact).abs() <= limit + 1e-5).all(), level


def test_a_packed_weight_keeps_its_groups() -> None:
    """block_k lies at byte 12 and the flag of zero points at byte 40 of the header."""
    inputs = cases.Case(3, 8, 64, zeros=True).inputs(torch.Generator())
    op = torch.ops.deepseek_fast
    packed = op.int4_matmul_pack(inputs["q"], inputs["scale"], inputs["zeros"])
    for offset, values in ((12, (0, 1, 7, 8, 16, 48, 96, 255)), (40, (0, 2, 3, 255))):
        for value in values:
            forged = packed.clone()
            forged[offset] = value
            with pytest.raises(RuntimeError, match="int4_matmul_packed: packed must be whole"):
                op.int4_matmul_packed(inputs["x"], forged, out_features=8)
    for block_k in (8, 16, 256):  # whole in itself, but no group size
        blocks = -(-64 // block_k)
        forged = torch.zeros(64 + 64 * 64 // 2 + blocks * 64 * 5, dtype=torch.uint8)
        forged[:64] = packed[:64]
        forged[12:14] = torch.tensor([block_k % 256, block_k // 256], dtype=torch.uint8)
        forged[32:40] = torch.tensor([len(forged)]).view(torch.uint8)
        with pytest.raises(RuntimeError, match="int4_matmul_packed: packed must be whole"):
            op.int4_matmul_packed(inputs["x"], forged, out_features=8)


def test_there_is_no_gradient() -> None:
    inputs = cases.Case(3, 8, 64).inputs(torch.Generator())
    inputs["x"].requires_grad_()
    y = deepseek_fast.int4_matmul(**inputs)
    with pytest.raises(RuntimeError, match=r"^int4_matmul: x must be used without a backward pass; got one"):
        y.sum().backward()
