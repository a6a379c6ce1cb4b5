"""The numerics suite on emulated CPUs: every aarch64 level, x86-64 without AVX, with AVX2 but no more, and with AMX.

An instruction above the CPU's level ends the emulated process with SIGILL, be it at load, in dispatch or in a kernel.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch

from deepseek_fast._activations import ACTIVATIONS
from tests import test_contract, test_errors, test_sizes, test_special_values
from tests.doors import ROOMS, call, part, prepared
from tests.emulated import CPUS, LEVELS, Cpu, Emulated, Unavailable, as_tensor
from tests.oracle import assert_equal, assert_matches
from tests.plugin import isa_cap

pytestmark = pytest.mark.slow  # `make test-emulated` runs them
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


def started(cpu: Cpu, level: str, place: str = "end") -> Emulated:
    try:
        return Emulated(cpu, level, place)
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


@pytest.mark.parametrize("room", ROOMS)
def test_every_case(emulated: Emulated, room: str) -> None:
    for case in part(room, "cases").CASES:
        check(emulated, room, case)


@pytest.mark.parametrize(("room", "scheme"), test_sizes.SWEEPS, ids=str)
def test_every_tail_is_a_corner_of_a_larger_product(emulated: Emulated, room: str, scheme: dict[str, Any]) -> None:
    M, N = 9, 70
    sizes = [(m, N) for m in range(M)] + [(M, n) for n in (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 63, 64, 65)]
    for K in (1, 4, 7, 12, 33):  # of steps of 8 values of k: less than half, half, one and a half
        case = part(room, "cases").Case(M, N, K, residual="full", **scheme)
        inputs, want, bound = prepared(room, case)
        full = emulated.call(room, inputs)
        assert_matches(full, want, bound, case.id)
        for m, n in sizes:
            got = emulated.call(room, test_sizes.corner(inputs, m, n))
            assert_equal(got, full[:m, :n].contiguous(), f"{case.id} cut to M={m} N={n}")


def arguments_of(test: Any) -> Iterator[dict[str, Any]]:
    """Every combination of a test's parametrize marks."""
    choices = []
    for mark in getattr(test, "pytestmark", ()):
        names, rows = mark.args
        names = [names] if isinstance(names, str) else names
        values = [getattr(row, "values", row if len(names) > 1 else (row,)) for row in rows]
        choices.append([dict(zip(names, row, strict=True)) for row in values])
    for chosen in product(*choices):
        yield {name: value for part in chosen for name, value in part.items()}


@pytest.mark.parametrize("test", BORROWED, ids=lambda test: test.__name__)
def test_what_holds_at_the_other_doors(emulated: Emulated, test: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def counted(room: str, door: str, inputs: dict[str, Any]) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return emulated.call(room, inputs)

    for module in (test_contract, test_special_values):
        monkeypatch.setattr(module, "DOORS", ("emulated",))
        monkeypatch.setattr(module, "call", counted)
    for arguments in arguments_of(test):
        test(**arguments, **({"isa": emulated.level} if "isa" in test.__code__.co_varnames else {}))
    assert calls, "the borrowed test calls no kernel through `call`"


def test_activations_have_the_bits_of_x86(emulated: Emulated) -> None:
    z = test_special_values.spread_f32().reshape(-1, 1)
    for activation in ACTIVATIONS:
        inputs = {"x": z, "weight": torch.ones(1, 1), "activation": activation}
        assert_equal(emulated.call("fused_matmul", inputs), call("fused_matmul", "torch", inputs), activation)


def test_the_sentences_are_those_of_the_other_doors(emulated: Emulated) -> None:
    for room, changes, _, sentence in test_errors.BAD:
        with pytest.raises(RuntimeError) as raised:
            emulated.call(room, test_errors.good_call(room) | changes)
        assert str(raised.value) == f"{room}: {sentence}"


INSTRUCTIONS = {  # of fma_f32, bf16_dot, int8_dot
    ("x86_64", "scalar"): ("MULPS + ADDPS xmm", "MULPS + ADDPS xmm", "PMADDWD + PADDD xmm"),
    ("x86_64", "avx2"): ("VFMADD231PS ymm", "VFMADD231PS ymm", "VPMADDWD + VPADDD ymm"),
    ("amx_model", "amx"): ("VFMADD231PS zmm", "TDPBF16PS tmm", "TDPBSSD tmm"),
    ("aarch64", "scalar"): ("FMUL + FADD 4s", "FMUL + FADD 4s", "SMLAL 4s"),
    ("aarch64", "neon"): ("FMLA 4s", "FMLA 4s", "SMULL + SMLAL + SADALP 4s"),
    ("aarch64", "neon_dotprod"): ("FMLA 4s", "FMLA 4s", "SDOT 4s"),
    ("aarch64", "neon_i8mm"): ("FMLA 4s", "BFDOT 4s", "SMMLA 4s"),
}


def test_a_ceiling_is_measured_with_the_level_s_own_instruction(emulated: Emulated) -> None:
    got = tuple(instruction.decode() for instruction in emulated.run("ceilings", {}))
    assert got == INSTRUCTIONS[emulated.cpu.architecture, emulated.level]


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


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_all_codes_of_fp8_are_decoded_exactly(emulated: Emulated, dtype: torch.dtype) -> None:
    """Rows of the weight hold the codes, one place further each; one-hot rows of x give them back.

    A sum would turn all of a row with NaN or inf into NaN, so that those codes stand alone: K is 1.
    """
    codes = torch.arange(256).to(torch.uint8).view(dtype)
    finite = codes[codes.float().isfinite()]
    for x_dtype in (torch.float32, torch.bfloat16):
        for weight in (
            codes.reshape(256, 1),
            torch.stack([finite.view(torch.uint8).roll(m).view(dtype) for m in range(4)]),
        ):
            x = torch.eye(weight.shape[1], dtype=x_dtype)
            inputs = {"x": x, "weight": weight, "scale": torch.ones(1, 1), "block": (-1, -1), "activations": "float"}
            want = weight.to(x_dtype).T.contiguous() + 0.0  # a sum has no -0
            assert_equal(emulated.call("fp8_matmul", inputs), want, f"{dtype} in {x_dtype}")


@pytest.mark.parametrize("activations", ["float", "fp8"])
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_subnormal_scales_count_where_the_caller_flushes_them(
    emulated: Emulated, x_dtype: torch.dtype, activations: str
) -> None:
    scale = torch.zeros(1, 1, dtype=torch.uint8).view(torch.float8_e8m0fnu)  # 2^-127
    x = torch.tensor([[2.0**20, 0.0], [1.0, 0.0], [0.25, 0.25]], dtype=x_dtype)
    inputs = {"x": x, "weight": torch.full((3, 2), 3.0).to(torch.float8_e4m3fn), "scale": scale, "block": (-1, -1)}
    inputs["activations"] = activations
    want = call("fp8_matmul", "torch", inputs)
    assert (want != 0).all()
    assert_equal(emulated.call("fp8_matmul", inputs | {"flush": 1}), want)
    # The thread does flush: a product in fused_matmul, which promises nothing, is lost.
    tiny, one = torch.full((1, 1), 2.0**-127), torch.ones(1, 1)
    assert emulated.call("fused_matmul", {"x": tiny, "weight": one, "flush": 1}).item() == 0
    assert emulated.call("fused_matmul", {"x": tiny, "weight": one}).item() == 2.0**-127
