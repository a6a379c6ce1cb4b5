"""fp8_cast's kernels for CUDA: the bits of ref.py."""

import pytest
import torch

import deepseek_fast
from deepseek_fast.kernels.fp8_cast.cases import CASES
from deepseek_fast.kernels.fp8_cast.ref import int8_cast_ref
from tests import gpu
from tests.cast_doors import assert_same

pytestmark = gpu.gpu
INT8 = [case for case in CASES if case.op == "int8_cast"]


@pytest.mark.parametrize("case", INT8, ids=lambda case: case.id)
def test_int8_cast_gives_the_references_bits(case, generator):
    x = case.inputs(generator)["x"]
    for got, want in zip(gpu.call(deepseek_fast.int8_cast, x), int8_cast_ref(x), strict=True):
        assert_same(got, want, case.id)


def test_a_wrong_dtype_has_the_cpu_ops_sentence():
    with pytest.raises(TypeError, match="int8_cast: x must be float32, bfloat16 or float16; got dtype int32"):
        gpu.call(deepseek_fast.int8_cast, torch.zeros(2, 3, dtype=torch.int32))
