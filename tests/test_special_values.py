"""NaN, infinities, zeros, subnormals and overflow, as cpu.h of each room states them."""

import math
from typing import Any

import pytest
import torch

from deepseek_fast._activations import ACTIVATIONS
from tests.doors import DOORS, ROOMS, WEIGHT, call, mode_of, part, reference
from tests.oracle import assert_equal, assert_matches, assert_within
from tests.plugin import isa_cap, supported_isas

M, N, K = 7, 19, 21
SCHEMES = [
    ("fp8_matmul", {"dtype": "float32"}),
    ("fp8_matmul", {"dtype": "bfloat16", "weight": "float8_e5m2"}),
    ("fp8_matmul", {"dtype": "float32", "activations": "fp8"}),
    ("fp8_matmul", {"dtype": "bfloat16", "activations": "fp8"}),
    ("fused_matmul", {"dtype": "float32"}),
    ("fused_matmul", {"dtype": "bfloat16"}),
    ("fused_matmul", {"dtype": "float16"}),
    ("int4_matmul", {"dtype": "float32", "compute": "int8"}),
    ("int4_matmul", {"dtype": "bfloat16", "compute": "int8", "zeros": True}),
    ("int4_matmul", {"dtype": "float32", "compute": "float", "zeros": True}),
    ("int4_matmul", {"dtype": "bfloat16", "compute": "float", "group_size": -1}),
    ("int8_matmul", {"dtype": "float32", "activations": "int8"}),
    ("int8_matmul", {"dtype": "bfloat16", "activations": "int8"}),
    ("int8_matmul", {"dtype": "float32", "activations": "float"}),
    ("int8_matmul", {"dtype": "bfloat16", "activations": "float"}),
]
REFUSES_SCALE = ("fp8_matmul", "int4_matmul")  # one with NaN or inf


def inputs_of(room: str, scheme: dict[str, str], activation: str = "none", residual: str = "none") -> dict[str, Any]:
    case = part(room, "cases").Case(M, N, K, activation=activation, residual=residual, **scheme)
    return case.inputs(torch.Generator().manual_seed(3))


def check(room: str, inputs: dict[str, Any], what: str) -> torch.Tensor:
    want, bound = reference(room, inputs), part(room, "ref").bound(**inputs)
    for door in DOORS:
        got = call(room, door, inputs)
        assert_matches(got, want, bound, f"{what} through {door}")
    return got


@pytest.mark.parametrize("activation", ["none", "relu", "gelu", "hardswish", "tanh"])
@pytest.mark.parametrize(("room", "scheme"), SCHEMES, ids=str)
def test_nan_and_inf_stay_in_their_row(room: str, scheme: dict[str, str], activation: str, isa: str) -> None:
    inputs = inputs_of(room, scheme, activation)
    clean = call(room, "torch", inputs)
    for k in (0, 15, K - 1):
        for value in (math.nan, math.inf, -math.inf):
            spoiled = {**inputs, "x": inputs["x"].clone()}
            spoiled["x"][3, k] = value
            got = check(room, spoiled, f"{value} at {k}")
            untouched = [m for m in range(M) if m != 3]
            assert_equal(got[untouched], clean[untouched], f"{value} at {k}: the other rows")
            if math.isnan(value) or scheme.get(mode_of(room)) == "int8":
                assert got[3].isnan().all(), f"{value} at {k}"


@pytest.mark.parametrize(("room", "scheme"), SCHEMES, ids=str)
def test_nan_and_inf_in_the_other_arguments(room: str, scheme: dict[str, str], isa: str) -> None:
    for activation in ("none", "relu6", "gelu_tanh"):
        inputs = inputs_of(room, scheme, activation, residual="full")
        for name in ("weight", "scale", "bias", "residual"):
            if name not in inputs or (name == "scale" and room in REFUSES_SCALE):
                continue
            for value in (math.nan, math.inf, -math.inf):
                spoiled = {**inputs, name: inputs[name].clone()}
                spoiled[name].view(-1)[4] = value
                check(room, spoiled, f"{activation}, {value} in {name}")


@pytest.mark.parametrize(("room", "scheme"), SCHEMES, ids=str)
def test_rows_of_zeros_give_the_bias(room: str, scheme: dict[str, str], isa: str) -> None:
    inputs = inputs_of(room, scheme)
    inputs["x"][2] = 0.0
    inputs["x"][5] = -0.0
    got = check(room, inputs, "zero rows")
    assert_equal(got[2], inputs["bias"])
    assert_equal(got[5], inputs["bias"])
    inputs["bias"] = None
    assert_equal(check(room, inputs, "zero rows, no bias")[[2, 5]], torch.zeros(2, N, dtype=got.dtype))


@pytest.mark.parametrize("exponent", [-126, -130, -133, -140, -149])
@pytest.mark.parametrize(("room", "scheme"), SCHEMES, ids=str)
def test_subnormal_rows(room: str, scheme: dict[str, str], exponent: int, isa: str) -> None:
    inputs = inputs_of(room, scheme)
    inputs["bias"] = None
    inputs["x"][1] = (torch.randn(K).sign() * 2.0**exponent).to(inputs["x"].dtype)
    check(room, inputs, f"2^{exponent}")


@pytest.mark.parametrize("power", [-101, -100, -99, 0, 100, 127])
def test_int8_rows_of_any_magnitude(power: int, isa: str) -> None:
    inputs = inputs_of("int8_matmul", {"dtype": "float32", "activations": "int8"})
    inputs["bias"] = None
    inputs["x"] = inputs["x"] / inputs["x"].abs().amax(-1, keepdim=True) * 2.0**power
    check("int8_matmul", inputs, f"2^{power}")


@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("residual", ["none", "one"])
def test_int8_underflow_gives_plus_zero(activation: str, residual: str, isa: str) -> None:
    """-1 * 2^-100 * 2^-100 is -0; adding the residual, or its absence, makes it +0 as in the ONNX function body."""
    inputs: dict[str, Any] = {
        "x": torch.full((1, 4), -(2.0**-99)),
        "q": torch.ones(3, 4, dtype=torch.int8),
        "scale": torch.full((3,), 2.0**-100),
        "activation": activation,
        "residual": torch.zeros(1) if residual == "one" else None,
    }
    for door in DOORS:
        assert_equal(call("int8_matmul", door, inputs), torch.zeros(1, 3), f"{door} on {isa}")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("room", ROOMS)
def test_sums_that_overflow_become_infinite(room: str, dtype: str, isa: str) -> None:
    inputs = inputs_of(room, {"dtype": dtype} | ({mode_of(room): "float"} if "int" in room else {}))
    inputs["x"] = torch.full((M, K), 3e38).to(inputs["x"].dtype)
    inputs[WEIGHT[room]] = torch.full((N, K), 2).to(inputs[WEIGHT[room]].dtype)
    if room == "int4_matmul":
        inputs["q"] = torch.full((N, (K + 1) // 2), 0xAA, dtype=torch.uint8)  # 10, two above the zero point of 8
    inputs["bias"] = None
    if "scale" in inputs:
        inputs["scale"] = torch.ones_like(inputs["scale"])
    got = call(room, "torch", inputs)
    assert (got == math.inf).all()


def every_bf16() -> torch.Tensor:
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)


def spread_f32() -> torch.Tensor:
    """2^17 values over all exponents and signs, more of them where activations bend, and the special ones."""
    generator = torch.Generator().manual_seed(5)
    bits = torch.randint(-(2**31), 2**31, (2**16,), generator=generator, dtype=torch.int64)
    everywhere = bits.to(torch.int32).view(torch.float32)
    bend = torch.linspace(-20, 20, 2**15)
    wide = torch.linspace(-128, 128, 2**15)
    ends = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 3.4e38, -3.4e38, 1e-45, -1e-45])
    return torch.cat([everywhere, bend, wide, ends])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_over_their_whole_domain(activation: str, dtype: str, isa: str) -> None:
    """x of one column times a weight of 1 is x itself, so the result is the activation's alone."""
    ref = part("fused_matmul", "ref")
    z = (every_bf16() if dtype == "bfloat16" else spread_f32()).reshape(-1, 1)
    weight = torch.ones(1, 1, dtype=z.dtype)
    got = call("fused_matmul", "torch", {"x": z, "weight": weight, "activation": activation})
    if dtype == "bfloat16":  # VDPBF16PS reads subnormal x as zero
        error = torch.where(z.double().abs() < ref.F32_MIN_NORMAL, ref.F32_MIN_NORMAL, 0.0)
    else:
        error = torch.zeros_like(z, dtype=torch.float64)
    want = ref.activate(z.double(), activation)
    bound = ref.epilogue_bound(z.double(), error, z.dtype, bias=False, activation=activation, residual=None)
    assert_within(got, want, bound, f"{activation} on {isa}")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_have_the_same_bits_on_every_level(activation: str) -> None:
    z = spread_f32().reshape(-1, 1)
    inputs = {"x": z, "weight": torch.ones(1, 1), "activation": activation}
    with isa_cap("scalar"):
        want = call("fused_matmul", "torch", inputs)
    for level in supported_isas():
        with isa_cap(level):
            assert_equal(call("fused_matmul", "torch", inputs), want, level)
