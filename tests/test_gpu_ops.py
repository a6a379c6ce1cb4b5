"""Every op on CUDA tensors has a kernel; torch.compile and CUDA graphs give what a call gives."""

import pytest
import torch

import deepseek_fast
from deepseek_fast.gpu.register import interpreted
from tests import gpu

pytestmark = gpu.gpu


def ops() -> list[str]:
    for name in deepseek_fast.__all__:
        getattr(deepseek_fast, name)  # its module registers its ops
    names = torch._C._dispatch_get_registrations_for_dispatch_key("CPU")
    return sorted(name.split("::")[1] for name in names if name.startswith("deepseek_fast::"))


@pytest.mark.parametrize("op", ops())
def test_every_op_has_a_kernel_for_cuda_tensors(op: str) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"deepseek_fast::{op}", "CUDA")


on_a_chip = pytest.mark.skipif(interpreted(), reason="torch.compile and CUDA graphs need a GPU")


@on_a_chip
def test_compiled_and_captured_calls_give_the_same() -> None:
    x = torch.randn(64, 512, device="cuda", dtype=torch.bfloat16)
    want = deepseek_fast.fp8_cast(x)
    compiled = torch.compile(deepseek_fast.fp8_cast, fullgraph=True)(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = deepseek_fast.fp8_cast(x)
    graph.replay()
    for got in (compiled, captured):
        assert all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(got, want, strict=True))
