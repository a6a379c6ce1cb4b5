"""fused_conv and its family on emulated CPUs: within the reference's bound, of bytes the reference's bits, on every
aarch64 level, on x86-64 without AVX and with AVX2 but no more. An instruction above the CPU's level ends the process
with SIGILL, a byte outside a tensor, the packed weight or the workspace with SIGSEGV. amx has no kernel of its own.
"""

import inspect
from collections.abc import Iterator, Sequence
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import deepseek_fast
from deepseek_fast.kernels.fused_conv import (
    ref,
    test_fused_conv,
    test_fused_conv_errors,
    test_fused_conv_int8_errors,
    test_local_response_norm,
    test_pool2d_errors,
)
from deepseek_fast.kernels.fused_conv.cases import (
    CASES,
    INT8_CASES,
    LAYOUTS,
    LRN_BETAS,
    LRN_CASES,
    POOLS,
    Case,
    laid_out,
)
from tests.conv_doors import assert_close, assert_same, call, prepared, prepared_int8
from tests.conv_errors import GOOD
from tests.emulated import Cpu, Emulated
from tests.emulated_convs import LRN, conv, pool_arguments
from tests.test_emulated import RUNS, arguments_of, started

pytestmark = pytest.mark.slow  # `make test-emulated` runs them
REFUSED = {"fused_conv": 50, "fused_conv_int8": 20, "pool2d": 10, LRN: 5}  # sentences of the compiled checks, at least
BAD = (*test_fused_conv_errors.BAD, *test_fused_conv_int8_errors.BAD, *test_pool2d_errors.BAD)
BORROWED = (
    test_fused_conv.test_images_repeated_by_a_stride_of_zero,
    test_fused_conv.test_pool2d_takes_torch_s_place,
    test_fused_conv.test_pool2d_of_odd_strides,
    test_fused_conv.test_a_pool_keeps_nan_and_infinity,
    test_fused_conv.test_strides_of_x_the_weight_and_the_residual,
    test_fused_conv.test_integers_are_exact,
    test_fused_conv.test_the_typical_error_grows_as_the_root_of_the_taps,
    test_fused_conv.test_nan_and_infinity_reach_the_windows_that_hold_them,
    test_fused_conv.test_an_activation_keeps_nan,
    test_local_response_norm.test_it_takes_torch_s_place,
    test_local_response_norm.test_odd_strides,
    test_local_response_norm.test_nan_and_infinity_reach_the_windows_that_hold_them,
)


@pytest.fixture(
    scope="module",
    params=[run for run in RUNS if run[1] != "amx"],
    ids=lambda run: f"{run[0].model}-{run[1]}",
)
def emulated(request: pytest.FixtureRequest) -> Iterator[Emulated]:
    with started(*request.param) as process:
        assert process.level == request.param[1]
        yield process


FLOAT_CASES = {
    (dtype, algorithm): [case for case in CASES if (case.dtype, case.algorithm) == (dtype, algorithm)]
    for dtype, algorithm in (("float32", "direct"), ("float32", "winograd"), ("bfloat16", "direct"))
}


@pytest.mark.parametrize("kind", FLOAT_CASES, ids="-".join)
def test_every_case_is_within_the_bound(emulated: Emulated, kind: tuple[str, str]) -> None:
    assert len(FLOAT_CASES[kind]) > 10
    check(emulated, FLOAT_CASES[kind])


def check(emulated: Emulated, cases: Sequence[Case]) -> None:
    for case in cases:
        inputs, want, bound = prepared(case)
        got = conv(emulated, "fused_conv", inputs)
        assert_close(got, want, bound, case.id)
        assert got.stride() == call("fused_conv", "torch", inputs).stride(), case.id


@pytest.mark.parametrize("run", [run for run in RUNS if run[0].architecture == "aarch64"], ids=lambda run: run[1])
def test_nothing_before_a_tensor_is_touched(run: tuple[Cpu, str]) -> None:
    """The other tests' tensors lie before a page without access, these behind one."""
    with started(*run, "begin") as process:
        check(process, CASES[::3])
        check_int8(process, INT8_CASES[::3])


def test_int8_has_the_bits_of_the_reference(emulated: Emulated) -> None:
    check_int8(emulated, INT8_CASES)


def check_int8(emulated: Emulated, cases: Sequence[Any]) -> None:
    for case in cases:
        inputs, want, bound = prepared_int8(case)
        assert_close(conv(emulated, "fused_conv_int8", inputs), want.double(), bound, case.id)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_pool2d(emulated: Emulated, dtype: torch.dtype, generator: torch.Generator) -> None:
    for pool, C, layout in product(POOLS, (1, 21), LAYOUTS):
        x = laid_out(torch.randn(2, C, 13, 15, generator=generator).to(dtype), layout)
        for options in test_fused_conv.POOL_OPTIONS:
            inputs = {"x": x} | pool_arguments(pool) | options
            want, bound = ref.pool2d_ref(**inputs).double(), ref.pool2d_bound(**inputs)
            assert_close(conv(emulated, "pool2d", inputs), want, bound, f"{layout} C={C} {pool} {options}")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8], ids=str)
def test_pool2d_of_bytes(emulated: Emulated, dtype: torch.dtype, generator: torch.Generator) -> None:
    limits = torch.iinfo(dtype)
    for pool, C, layout in product(POOLS, (1, 21), LAYOUTS):
        x = torch.randint(limits.min, limits.max + 1, (2, C, 13, 15), generator=generator, dtype=dtype)
        inputs = {"x": laid_out(x, layout)} | pool_arguments(pool)
        assert_same(conv(emulated, "pool2d", inputs), ref.pool2d_ref(**inputs), f"{layout} C={C} {pool}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_lrn(emulated: Emulated, dtype: torch.dtype, generator: torch.Generator) -> None:
    """Without a power of libm's, the bits of x86-64."""
    for (i, (shape, size)), beta in product(enumerate(LRN_CASES), LRN_BETAS):
        x = laid_out((torch.randn(shape, generator=generator) * 8).to(dtype), LAYOUTS[i % 2])
        inputs = {"x": x, "size": size, "alpha": 0.3, "beta": beta, "k": 2.0}
        got = conv(emulated, LRN, inputs)
        what = f"{shape}, strides {x.stride()}, size {size}, beta {beta}"
        assert_close(got, ref.lrn_ref(**inputs), ref.lrn_bound(**inputs), what)
        if beta in (0.5, 0.75, 1.0):
            assert_same(got, call(LRN, "torch", inputs), what)


@pytest.mark.parametrize("test", BORROWED, ids=lambda test: test.__name__)
def test_what_holds_at_the_other_doors(emulated: Emulated, test: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def counted(op: str, inputs: dict[str, Any]) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return conv(emulated, op, inputs)

    def public(op: str) -> Any:
        """The op with positional arguments, too."""
        names = list(inspect.signature(getattr(deepseek_fast, op)).parameters)
        return lambda *args, **given: counted(op, dict(zip(names, args, strict=False)) | given)

    door = SimpleNamespace(**{op: public(op) for op in REFUSED})
    for module in (test_fused_conv, test_local_response_norm):
        monkeypatch.setattr(module, "call", lambda op, _, inputs: counted(op, inputs))
        monkeypatch.setattr(module, "deepseek_fast", door)
    for arguments in arguments_of(test):
        if arguments.get("door", "torch") == "torch":
            test(**arguments, **({"isa": emulated.level} if "isa" in test.__code__.co_varnames else {}))
    assert calls, "the borrowed test calls no kernel"


@pytest.mark.parametrize("op", REFUSED)
def test_the_sentences_are_those_of_the_other_doors(emulated: Emulated, op: str) -> None:
    refused = 0
    for name, changes, kind, _ in BAD:
        if name != op:
            continue
        inputs = GOOD[op] | changes
        with pytest.raises(kind) as wanted:
            call(op, "torch", inputs)
        try:
            conv(emulated, op, inputs)
        except RuntimeError as raised:
            assert str(raised) == str(wanted.value)
            refused += 1
        except (TypeError, ValueError):
            pass  # no numbers: the doors refuse it themselves
    assert refused >= REFUSED[op]
