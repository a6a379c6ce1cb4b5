"""The numerics suite on emulated CPUs: every aarch64 level, and x86-64 without AVX and with AVX2 but no more.

An instruction above the CPU's level ends the emulated process with SIGILL, be it at load, in dispatch or in a kernel.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch

from tests import test_contract, test_errors, test_special_values
from tests.doors import ROOMS, call, part, prepared
from tests.emulated import CPUS, LEVELS, Cpu, Emulated, Unavailable, as_tensor
from tests.oracle import assert_equal, assert_matches
from tests.plugin import isa_cap

# Each CPU at its own level, and the level that aarch64 only runs when it is asked to.
RUNS = [(cpu, cpu.level) for cpu in CPUS] + [(CPUS[-1], "scalar")]
BORROWED = (
    test_contract.test_a_row_does_not_see_the_other_rows,
    test_contract.test_the_residual_may_be_x_or_any_single_element,
    test_special_values.test_nan_and_inf_stay_in_their_row,
    test_special_values.test_nan_and_inf_in_the_other_arguments,
    test_special_values.test_rows_of_zeros_give_the_bias,
    test_special_values.test_subnormal_rows,
    test_special_values.test_int8_rows_of_any_magnitude,
    test_special_values.test_int8_underflow_gives_plus_zero,
    test_special_values.test_sums_that_overflow_become_infinite,
    test_special_values.test_activations_over_their_whole_domain,
)


def started(cpu: Cpu, level: str) -> Emulated:
    try:
        return Emulated(cpu, level)
    except Unavailable as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module", params=RUNS, ids=lambda run: f"{run[0].model}-{run[1]}")
def emulated(request: pytest.FixtureRequest) -> Iterator[Emulated]:
    with started(*request.param) as process:
        assert process.level == request.param[1]
        yield process


def check(emulated: Emulated, room: str, case: Any) -> None:
    """Within the reference's bound; an integer scheme gives the bits of this machine's scalar level."""
    inputs, want, bound = prepared(room, case)
    got = emulated.call(room, inputs)
    assert_matches(got, want, bound, f"{room} {case.id}")
    if pytest.param(room, case).values in [p.values for p in test_contract.INTEGER_CASES]:
        with isa_cap("scalar"):
            assert_equal(got, call(room, "torch", inputs), f"{room} {case.id} against x86-64")


@pytest.mark.parametrize("cpu", CPUS, ids=lambda cpu: cpu.model)
def test_the_library_finds_the_level_of_the_cpu(cpu: Cpu) -> None:
    levels = LEVELS[cpu.architecture]
    for cap in levels:
        with started(cpu, cap) as process:
            assert process.level == levels[min(levels.index(cap), levels.index(cpu.level))]
    with started(cpu, "no such level") as process:
        assert process.level == cpu.level


@pytest.mark.parametrize("room", ROOMS)
def test_a_case_of_every_scheme(emulated: Emulated, room: str) -> None:
    for parameters in test_contract.SCHEMES:
        if parameters.values[0] == room:
            check(emulated, *parameters.values)


@pytest.mark.slow
@pytest.mark.parametrize("room", ROOMS)
def test_every_case(emulated: Emulated, room: str) -> None:
    for case in part(room, "cases").CASES:
        check(emulated, room, case)


def arguments_of(test: Any) -> Iterator[dict[str, Any]]:
    """Every combination of a test's parametrize marks."""
    choices = []
    for mark in test.pytestmark:
        names, rows = mark.args
        names = [names] if isinstance(names, str) else names
        values = [getattr(row, "values", row if len(names) > 1 else (row,)) for row in rows]
        choices.append([dict(zip(names, row, strict=True)) for row in values])
    for chosen in product(*choices):
        yield {name: value for part in chosen for name, value in part.items()}


@pytest.mark.slow
@pytest.mark.parametrize("test", BORROWED, ids=lambda test: test.__name__)
def test_what_holds_at_the_other_doors(emulated: Emulated, test: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (test_contract, test_special_values):
        monkeypatch.setattr(module, "DOORS", ("emulated",))
        monkeypatch.setattr(module, "call", lambda room, door, inputs: emulated.call(room, inputs))
    for arguments in arguments_of(test):
        test(**arguments, **({"isa": emulated.level} if "isa" in test.__code__.co_varnames else {}))


@pytest.mark.slow
def test_activations_have_the_bits_of_x86(emulated: Emulated) -> None:
    z = test_special_values.spread_f32().reshape(-1, 1)
    for activation in test_special_values.SMOOTH:
        inputs = {"x": z, "weight": torch.ones(1, 1), "activation": activation}
        assert_equal(emulated.call("fused_matmul", inputs), call("fused_matmul", "torch", inputs), activation)


@pytest.mark.slow
def test_the_sentences_are_those_of_the_other_doors(emulated: Emulated) -> None:
    for room, changes, _, sentence in test_errors.BAD:
        with pytest.raises(RuntimeError) as raised:
            emulated.call(room, test_errors.good_call(room) | changes)
        assert str(raised.value) == f"{room}: {sentence}"


QUANTIZERS = [
    ("int8_quantize_weight", {}),
    *(
        ("int4_quantize_weight", {"group_size": size, "symmetric": symmetric})
        for size in (32, -1)
        for symmetric in (True, False)
    ),
    *(
        ("fp8_quantize_weight", {"block": block, "dtype": dtype})
        for block in ((128, 128), (3, 96), (-1, -1))
        for dtype in (torch.float8_e4m3fn, torch.float8_e5m2)
    ),
]


@pytest.mark.slow
def test_quantizers_give_the_bits_of_x86(emulated: Emulated, generator: torch.Generator) -> None:
    import deepseek_fast

    for dtype in (torch.float32, torch.bfloat16):
        for exponent in (-140, -99, 0, 100):  # subnormal numbers too
            w = (torch.randn(37, 301, generator=generator) * 2.0**exponent).to(dtype)
            w[3], w[4, 5] = 0.0, -0.0
            for name, options in QUANTIZERS:
                want = getattr(deepseek_fast, name)(w, **options)
                for i, (bits, tensor) in enumerate(zip(emulated.run(name, {"w": w, **options}), want, strict=False)):
                    got = as_tensor(bits, tensor.dtype).reshape(tensor.shape)
                    assert_equal(got, tensor, f"{name} {options} 2^{exponent}, result {i}")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_all_codes_of_fp8_are_decoded_exactly(emulated: Emulated, dtype: torch.dtype) -> None:
    """x picks one code after the other out of a weight that holds each in every place of a quad."""
    K = 256 + 4
    codes = torch.arange(4 * K).reshape(4, K).to(torch.uint8).roll(1, 0).view(dtype)
    codes = torch.stack([(torch.arange(K) + shift).to(torch.uint8) for shift in range(4)]).view(dtype)
    for x_dtype in (torch.float32, torch.bfloat16):
        for k in range(K):
            x = torch.zeros(1, 1, dtype=x_dtype) + 1
            inputs = {"x": x, "weight": codes[:, k : k + 1], "scale": torch.ones(1, 1), "block": (-1, -1)}
            got = emulated.call("fp8_matmul", inputs | {"activation": "none", "activations": "float"})
            assert_equal(got, codes[:, k].to(x_dtype).reshape(1, 4) + 0.0, f"code {k} of {dtype} in {x_dtype}")
