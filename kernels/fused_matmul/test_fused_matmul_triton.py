"""fused_matmul's kernels for CUDA: every form within the bound of ref.py."""

import pytest
import torch

import deepseek_fast
from deepseek_fast.kernels.fused_matmul.cases import CASES
from deepseek_fast.kernels.fused_matmul.ref import bound, fused_matmul_ref
from tests import gpu

pytestmark = gpu.gpu


def check(got, inputs):
    want, limit = fused_matmul_ref(**inputs), bound(**inputs)
    assert got.dtype == inputs["x"].dtype and got.shape == want.shape
    wrong = ~((got.double() - want).abs() <= limit)
    assert not wrong.any(), ((got.double() - want).abs() / limit)[wrong].max()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_cases(case, generator):
    inputs = case.inputs(generator)
    check(gpu.call(deepseek_fast.fused_matmul, **inputs), inputs)
