"""Tensors of a good fused_conv in two groups, for what is no matter of numbers."""

import pytest
import torch
from torch import Tensor

from deepseek_fast.kernels.fused_conv.cases import laid_out

# Dynamo and Inductor use what torch 2.13 itself has deprecated: torch.jit, an instantiated autograd.Function.
TORCH_S_OWN_WARNINGS = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def numbers(*shape: int, dtype: torch.dtype = torch.float32, layout: str = "NCHW") -> Tensor:
    return laid_out(torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype), layout)


X, WEIGHT, BIAS = numbers(2, 6, 9, 8), numbers(8, 3, 3, 3), numbers(8)
PIXELS = laid_out(X, "NHWC")
RESIDUAL = numbers(2, 8, 5, 4)
