"""sparse_mla and its family on emulated CPUs, within the reference's bounds: on every aarch64 level, on x86-64 without
AVX and with AVX2 but no more. An instruction above the CPU's level ends the process with SIGILL.
"""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

import deepseek_fast
from deepseek_fast.kernels.sparse_mla import caches
from deepseek_fast.kernels.sparse_mla.cases import CASES, DECODE_CASES
from tests.emulated import Emulated
from tests.emulated_mla import backward, cache_numbers, call
from tests.mla_doors import prepared, prepared_backward, prepared_decode
from tests.oracle import assert_equal, assert_within
from tests.test_emulated import RUNS, started

pytestmark = pytest.mark.slow  # `make test-emulated` runs them


@pytest.fixture(scope="module", params=RUNS, ids=lambda run: f"{run[0].model}-{run[1]}")
def emulated(request: pytest.FixtureRequest) -> Iterator[Emulated]:
    with started(*request.param) as process:
        assert process.level == request.param[1]
        yield process


def test_every_prefill_and_its_gradients(emulated: Emulated) -> None:
    for case in CASES:
        if case.h_q > 17:  # more heads are more of the same tiles
            continue
        inputs, want, bound = prepared(case)
        for got, w, e in zip(call(emulated, "sparse_mla", inputs), want, bound, strict=True):
            assert_within(got, w, e, case.id)
        dout, gradients, bounds = prepared_backward(case)
        for got, w, e in zip(backward(emulated, dout, inputs), gradients, bounds, strict=True):
            if w is not None:
                assert_within(got, w, e, f"backward, {case.id}")


def test_every_decode(emulated: Emulated) -> None:
    for case in DECODE_CASES:
        inputs, want, bound = prepared_decode(case)
        for got, w, e in zip(call(emulated, "sparse_mla_decode", inputs), want, bound, strict=True):
            assert_within(got, w, e, case.id)


@pytest.mark.parametrize("layout", ["v32", "v4"])
def test_caches_have_the_reference_s_numbers(emulated: Emulated, layout: str) -> None:
    d_qk = caches.LAYOUTS[layout].d_qk
    kv = torch.randn(20, d_qk) * torch.exp2(torch.randint(-20, 20, (20, 1)).float())
    for given in (kv, kv.bfloat16()):
        want = caches.read_cache(caches.write_cache(given.float().numpy(), layout, 5), layout)
        got = cache_numbers(emulated, deepseek_fast.mla_cache_empty(4, 5, layout=layout), given, layout, d_qk)
        assert_equal(got.float(), torch.from_numpy(want.astype(np.float32)), layout)
