"""fp8_cast and its family touch nothing outside x, the codes, the scales and y: each lies against a page that the
process may not touch, behind it or before it, and so does what the library writes (tests/native/casts.h).
"""

from collections.abc import Iterator
from itertools import product

import pytest
import torch

from deepseek_fast.kernels.fp8_cast.cases import BLOCKS, DTYPES, FORMATS, FP8, KINDS, LAYOUTS, TAILS, Case
from tests import emulated
from tests.cast_doors import assert_same, call
from tests.doors import ROOT
from tests.emulated import THIS, Emulated, Unavailable
from tests.emulated_casts import cast
from tests.plugin import seed_of, supported_isas

LEVELS = [level for level in supported_isas() if (ROOT / f"kernels/fp8_cast/cpu_{level}.cc").is_file()]
LENGTHS = (*TAILS, 2, 18, 34, 66, 96, 130, 191, 193, 320)  # of rows: steps of 64 values, 0 to 3 vectors, 0 to 15 values


@pytest.fixture(scope="module", params=product(LEVELS, ("end", "begin")), ids="-".join)
def guarded(request: pytest.FixtureRequest) -> Iterator[Emulated]:
    with started(*request.param) as process:
        assert process.level == request.param[0]
        yield process


def started(level: str, place: str) -> Emulated:
    try:
        return Emulated(THIS, level, place)
    except Unavailable as missing:
        pytest.skip(str(missing))


def check(guarded: Emulated, cases: list[Case]) -> None:
    for case in cases:
        inputs = case.inputs(torch.Generator().manual_seed(seed_of(case.id)))
        for got, want in zip(cast(guarded, case.op, inputs), call(case.op, "torch", inputs), strict=True):
            assert_same(got, want, case.id, exact_strides=True)


def even(format: str, *sizes: int) -> tuple[int, ...]:
    """FP4 has two values a byte."""
    return tuple(size + size % 2 if format == FORMATS[-1] and size > 0 else size for size in sizes)


@pytest.mark.parametrize("dtype", DTYPES)
def test_fp8_cast(guarded: Emulated, dtype: str) -> None:
    cases = []
    for i, (K, block) in enumerate(product(LENGTHS, (*BLOCKS, None))):
        format, (mode, scale) = FORMATS[i % 5], KINDS[i % len(KINDS)]
        K, columns = even(format, K, block[1] if block else 1)
        part = (block[0], columns) if block else None
        cases.append(
            Case("fp8_cast", (1, 3)[i % 2], K, dtype, format, part, scale, mode, rows=("dense", "strided")[i % 2])
        )
    for K, format in product((63, 64, 65, 130), FORMATS):
        (K,) = even(format, K)
        for some, scale in ((None, "f32"), ((1, 128), "f32"), ((1, 16), "given"), ((1, 32), "given_ue8m0")):
            cases += [
                Case("fp8_cast", 3, K, dtype, format, some, scale, saturate=False),
                Case("fp8_cast", 3, K, dtype, format, some, scale, "v3", rounding="stochastic"),
            ]
    cases += [
        Case("fp8_cast", M, 130, dtype, FP8[0], block, "ue8m0", out_layout=layout)
        for M, block, layout in product((1, 5), ((1, 32), (3, 7)), LAYOUTS)
    ]
    check(guarded, cases)


@pytest.mark.parametrize("dtype", DTYPES)
def test_fp8_dequantize(guarded: Emulated, dtype: str) -> None:
    cases = []
    for i, (K, block) in enumerate(product(LENGTHS, (None, (1, 128), (1, -1), (3, 8), (1, 16)))):
        format, scale = FORMATS[i % 5], ("given", "given_ue8m0", "e4m3")[i % 3]
        cases.append(
            Case("fp8_dequantize", (1, 3)[i % 2], *even(format, K), dtype, format, block, scale, y_dtype=dtype)
        )
    check(guarded, cases)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_rest_of_the_family(guarded: Emulated, dtype: str) -> None:
    cases = [Case(op, 3, K, dtype, rows="strided") for op, K in product(("int8_cast", "fp8_amax"), LENGTHS)]
    cases += [Case("fp8_amax", 3, K, dtype, block=block) for K, block in product((65, 130), BLOCKS)]
    for op, K in product(("silu_mul_cast", "rms_norm_cast"), LENGTHS):
        cases.append(Case(op, 3, K, dtype, block=(1, 32)))
    for (M, K), block in product(((1, 1), (7, 65), (129, 130)), ((1, 128), (1, 32), (1, 7))):
        cases.append(Case("fp8_cast_transposed", M, K, dtype, block=block))
    check(guarded, cases)


@pytest.mark.parametrize("level", LEVELS)
def test_a_value_too_few_ends_the_process(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = emulated.span
    monkeypatch.setattr(emulated, "span", lambda *form: whole(*form) - 1)
    for K in (1, 64, 130):
        with started(level, "end") as process, pytest.raises(AssertionError, match="ended with -11"):
            cast(process, "fp8_cast", {"x": torch.ones(1, K)})
