"""fp8_cast and its family as torch operators: Meta kernels, torch.compile, torch.export, autograd, autocast."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import deepseek_fast
from deepseek_fast.kernels.fp8_cast import op
from tests.cast_doors import assert_same

E4M3, E2M1 = torch.float8_e4m3fn, torch.float4_e2m1fn_x2
OPS = torch.ops.deepseek_fast


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


X, X3 = numbers(6, 130), numbers(2, 3, 128, dtype=torch.bfloat16)
CODES, SCALE = deepseek_fast.fp8_cast(X, block=(4, 32))
CALLS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "1x128": (op._CAST, (X3, None, None, 1, 128, False, E4M3)),
    "plain": (op._CAST, (X, None, None, 0, 0, True, torch.float8_e5m2)),
    "given": (op._CAST, (X, torch.ones(2, 3), None, 4, 64, False, E4M3)),
    "packed": (op._CAST, (X, None, None, 1, 32, False, E4M3, "ue8m0", "deepgemm", True, "packed")),
    "tma": (op._CAST, (X, None, None, 1, 32, False, E4M3, "f32", "v3", True, "tma")),
    "nvfp4": (op._CAST, (X, None, torch.ones(()), 1, 16, False, E2M1, "e4m3", "torchao")),
    "silu_mul": (op._SILU_MUL_CAST, (X3, None, 1, 32, E4M3)),
    "rms_norm": (op._RMS_NORM_CAST, (X, X[0].contiguous(), None, 1e-6, 1, -1, E4M3)),
    "transposed": (op._CAST_TRANSPOSED, (X, 1, 32, E4M3)),
    "amax": (op._AMAX, (X, -1, 32)),
    "dequantize": (op._DEQUANTIZE, (CODES, SCALE, None, 4, 32, torch.bfloat16)),
    "decode": (op._DEQUANTIZE, (CODES, None, None, 0, 0, torch.float16)),
    "int8": (op._INT8_CAST, (X3,)),
}


@pytest.mark.parametrize("name", CALLS)
def test_opcheck(name: str) -> None:
    """Schema, autograd registration and Meta kernel. torch's test of a schema multiplies the inputs, but not FP8."""
    operator, args = CALLS[name]
    reads_fp8 = operator is op._DEQUANTIZE
    tests = ("test_autograd_registration", "test_faketensor", *(() if reads_fp8 else ("test_schema",)))
    torch.library.opcheck(operator, args, test_utils=tests)


@pytest.mark.parametrize("name", CALLS)
def test_the_meta_kernel_says_what_the_op_gives(name: str) -> None:
    operator, args = CALLS[name]
    meta = operator(*(arg.to("meta") if isinstance(arg, Tensor) else arg for arg in args))
    real = operator(*args)
    for one, other in zip(as_tuple(meta), as_tuple(real), strict=True):
        assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())


def as_tuple(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def round_trip(x: Tensor) -> Tensor:
    codes, scale = deepseek_fast.fp8_cast(x, block=(1, 32))
    return deepseek_fast.fp8_dequantize(codes, scale, block=(1, 32), dtype=x.dtype)


def fused(x: Tensor) -> tuple[Tensor, Tensor]:
    q, scale = deepseek_fast.int8_cast(x)
    _, other = deepseek_fast.silu_mul_cast(x, block=(1, 16))
    return q, scale + other.amax()


@pytest.mark.parametrize("function", [round_trip, fused])
def test_compile_has_no_graph_break(function: Callable[[Tensor], Any]) -> None:
    x = numbers(5, 96)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (5, 7):
        x = numbers(rows, 96)
        for one, other in zip(as_tuple(compiled(x)), as_tuple(function(x)), strict=True):
            assert_same(one, other, "compiled")


def test_export_keeps_the_op() -> None:
    class Module(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return round_trip(x)

    x = numbers(5, 96)
    program = torch.export.export(Module(), (x,), dynamic_shapes={"x": {0: torch.export.Dim("rows")}})
    assert OPS.fp8_cast.default in {node.target for node in program.graph.nodes}
    x = numbers(9, 96)
    assert torch.equal(program.module()(x), round_trip(x))


def test_casts_have_no_gradient_and_need_no_no_grad() -> None:
    x = numbers(4, 64).requires_grad_()
    codes, scale = deepseek_fast.fp8_cast(x, block=(1, 32))
    assert not codes.requires_grad
    assert not scale.requires_grad
    assert not deepseek_fast.fp8_amax(x).requires_grad


def test_autocast_leaves_a_cast_its_own_dtypes() -> None:
    x = numbers(4, 64)
    with torch.autocast("cpu", torch.bfloat16):
        codes, scale = deepseek_fast.fp8_cast(x, block=(1, 32))
        again = deepseek_fast.fp8_dequantize(codes, scale, block=(1, 32))
    assert again.dtype == torch.float32
    assert_same(codes, deepseek_fast.fp8_cast(x, block=(1, 32))[0], "under autocast")


def test_inputs_that_other_rooms_read_are_those_that_casts_make() -> None:
    """int8_cast is int8_matmul's first step; fp8_quantize_weight is a cast; fp8_matmul reads codes and scale."""
    x, weight = numbers(5, 96), numbers(64, 96)
    q, scale = deepseek_fast.int8_cast(x)
    identity = torch.eye(96).to(torch.int8)
    assert torch.equal(deepseek_fast.int8_matmul(x, identity, torch.ones(96)), q * scale)
    codes, scales = deepseek_fast.fp8_cast(weight, block=(128, 128))
    for one, other in zip((codes, scales), deepseek_fast.fp8_quantize_weight(weight), strict=True):
        assert_same(one, other, "fp8_quantize_weight")
    dense = deepseek_fast.fp8_dequantize(codes, scales, block=(128, 128))
    torch.testing.assert_close(deepseek_fast.fp8_matmul(x, codes, scales), x @ dense.T, rtol=1e-5, atol=1e-5)
