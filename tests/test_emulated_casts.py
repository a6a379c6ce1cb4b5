"""fp8_cast and its family on emulated CPUs: the reference's bits on every aarch64 level, on x86-64 without AVX, with
AVX2 but no more, and with AMX. An instruction above the CPU's level ends the process with SIGILL.
"""

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from deepseek_fast.kernels.fp8_cast import ref, test_fp8_cast, test_fp8_cast_errors
from deepseek_fast.kernels.fp8_cast.cases import CASES, FORMATS, KINDS
from tests.cast_doors import CAST_DOORS, assert_same, call
from tests.emulated import Emulated
from tests.emulated_casts import cast
from tests.test_emulated import RUNS, started

pytestmark = pytest.mark.slow  # `make test-emulated` runs them
OPS = tuple(dict.fromkeys(case.op for case in CASES))
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


@pytest.fixture(scope="module", params=RUNS, ids=lambda run: f"{run[0].model}-{run[1]}")
def emulated(request: pytest.FixtureRequest) -> Iterator[Emulated]:
    with started(*request.param) as process:
        assert process.level == request.param[1]
        yield process


@functools.cache
def prepared(op: str) -> list[tuple[str, dict[str, Any], tuple[Tensor, ...]]]:
    """Each case's inputs and results, computed once for all CPUs: of the fused casts those of this machine."""
    found = []
    for case in CASES:
        if case.op == op:
            inputs = case.inputs(test_fp8_cast.random_generator(case.id))
            found.append((case.id, inputs, expected(op, inputs)))
    return found


def expected(op: str, inputs: dict[str, Any]) -> tuple[Tensor, ...]:
    if op in test_fp8_cast.FUSED:
        return call(op, "torch", inputs)
    want = getattr(ref, f"{op}_ref")(**inputs)
    return want if isinstance(want, tuple) else (want,)


def check(emulated: Emulated, op: str, inputs: dict[str, Any], want: tuple[Tensor, ...], what: str) -> None:
    for i, (one, other) in enumerate(zip(cast(emulated, op, inputs), want, strict=True)):
        assert_same(one, other, f"{op}, result {i}, {what}", exact_strides=True)


@pytest.mark.parametrize("op", OPS)
def test_every_case_has_the_bits_of_the_reference(emulated: Emulated, op: str) -> None:
    """The fused casts, whose activation the reference bounds, have those of x86-64."""
    for name, inputs, want in prepared(op):
        check(emulated, op, inputs, want, name)


@functools.cache
def every_half(format: str) -> list[tuple[dict[str, Any], tuple[Tensor, ...]]]:
    """All bfloat16 numbers without a scale, with one, with one a block."""
    x = test_fp8_cast.every_half(torch.bfloat16)
    options: list[dict[str, Any]] = [{"block": None, "saturate": saturate} for saturate in (True, False)]
    options += [{"scale": torch.tensor([[0.37]]), "block": (-1, -1), "mode": mode} for mode in ("deepgemm", "v3")]
    options += [{"mode": mode, "scale": kind, "block": (1, 32)} for mode, kind in KINDS[:: len(FORMATS)]]
    calls = [{"x": x, "dtype": getattr(torch, format)} | some for some in options]
    return [(inputs, expected("fp8_cast", inputs)) for inputs in calls]


@pytest.mark.parametrize("format", FORMATS)
def test_every_bfloat16_input(emulated: Emulated, format: str) -> None:
    for inputs, want in every_half(format):
        check(emulated, "fp8_cast", inputs, want, f"{inputs}")


@functools.cache
def every_code(format: str) -> list[tuple[dict[str, Any], tuple[Tensor, ...]]]:
    codes = torch.arange(256, dtype=torch.uint8).repeat(3, 1).view(getattr(torch, format))
    scale = torch.tensor([[0.37], [2.0**-149], [3e38]])
    calls: list[dict[str, Any]] = [{"codes": codes, "dtype": dtype} for dtype in (torch.float32, torch.bfloat16)]
    calls += [{"scale": scale, "block": (1, -1), **inputs} for inputs in calls]
    return [(inputs, expected("fp8_dequantize", inputs)) for inputs in calls]


@pytest.mark.parametrize("format", FORMATS)
def test_every_code_decodes(emulated: Emulated, format: str) -> None:
    for inputs, want in every_code(format):
        check(emulated, "fp8_dequantize", inputs, want, f"{inputs}")


@functools.cache
def large() -> list[tuple[dict[str, Any], tuple[Tensor, ...]]]:
    """Rows of several parts, and blocks beyond any cache."""
    generator = test_fp8_cast.random_generator("large")
    wide, tall = torch.randn(2, 40_001, generator=generator), torch.randn(300, 513, generator=generator).bfloat16()
    calls = [{"x": wide, "block": block} for block in ((1, 128), (1, -1), (-1, 1), (2, 3), None)]
    calls += [{"x": tall, "block": block, "mode": mode} for block in ((-1, -1), (128, 128)) for mode in ("te", "v3")]
    return [(inputs, expected("fp8_cast", inputs)) for inputs in calls]


def test_rows_and_blocks_beyond_a_cache(emulated: Emulated) -> None:
    for inputs, want in large():
        check(emulated, "fp8_cast", inputs, want, f"{inputs}")


def test_subnormal_numbers_count_where_the_caller_flushes_them(emulated: Emulated) -> None:
    x = torch.tensor([[2.0**-127, 3 * 2.0**-140, 0.0, -(2.0**-130)]])
    scale = torch.full((1, 1), 2.0**-130)
    calls: list[tuple[str, dict[str, Any]]] = [("fp8_amax", {"x": x}), ("int8_cast", {"x": x})]
    calls += [("fp8_cast", {"x": x, "mode": mode, "scale": kind}) for mode, kind in KINDS]
    calls += [("fp8_cast", {"x": x, "scale": scale, "mode": mode}) for mode in ("v3", "deepgemm")]
    calls += [("fp8_dequantize", {"codes": torch.ones(1, 4).to(E4M3), "scale": scale})]
    for op, inputs in calls:
        check(emulated, op, inputs | {"flush": 1}, expected(op, inputs), f"{inputs}")


def test_the_sentences_are_those_of_the_other_doors(emulated: Emulated) -> None:
    refused = 0
    for op, change, kind, _ in test_fp8_cast_errors.BAD:
        inputs = test_fp8_cast_errors.good(op) | change
        block = inputs.get("block") or (1, 128)
        if not isinstance(block, tuple) or [type(size) for size in block] != [int, int]:
            continue  # not two numbers: the doors refuse it themselves
        with pytest.raises(kind) as wanted:
            call(op, CAST_DOORS[0], inputs)
        with pytest.raises(RuntimeError) as raised:
            cast(emulated, op, inputs)
        assert str(raised.value) == str(wanted.value)
        refused += 1
    assert refused > 60
