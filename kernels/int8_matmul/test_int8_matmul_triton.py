"""int8_matmul's kernels for CUDA: the reference's bits, or within its bound."""

import pytest
import torch

import deepseek_fast
from deepseek_fast.kernels.int8_matmul.cases import CASES
from deepseek_fast.kernels.int8_matmul.ref import bound, int8_matmul_ref
from tests import gpu
from tests.oracle import assert_equal

pytestmark = gpu.gpu


def check(got, inputs):
    want = int8_matmul_ref(**inputs)
    assert got.dtype == inputs["x"].dtype and got.shape == want.shape
    if want.dtype == got.dtype and inputs["activations"] == "int8" and inputs["activation"] in ("none","relu","relu6","hardswish"):
        assert_equal(got, want, "")
        return
    limit = bound(**inputs)
    wrong = ~((got.double() - want).abs() <= limit)
    assert not wrong.any(), ((got.double() - want).abs() / limit)[wrong].max()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_cases(case, generator):
    inputs = case.inputs(generator)
    check(gpu.call(deepseek_fast.int8_matmul, **inputs), inputs)
