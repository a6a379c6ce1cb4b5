"""int8_matmul's kernels for CUDA: the reference's bits where it has some, else within its bound."""

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deepseek_fast
from deepseek_fast.gpu import tiles
from deepseek_fast.kernels.fused_matmul.ref import SMOOTH
from deepseek_fast.kernels.int8_matmul.cases import CASES, Case
from deepseek_fast.kernels.int8_matmul.ref import bound, int8_matmul_ref, int8_quantize_weight_ref
from tests import gpu
from tests.oracle import assert_equal

pytestmark = gpu.gpu
SMALL = {"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": 32, "num_warps": 4, "num_stages": 2}
SMALL_TMA = {**SMALL, "FLATTEN": True, "SLICES": 2}
ON_CHIP = gpu.device() == "cuda"


def check(got: Tensor, inputs: dict[str, Any]) -> None:
    want = int8_matmul_ref(**inputs)
    assert got.dtype == inputs["x"].dtype and got.shape == want.shape
    if inputs["activations"] == "int8" and inputs["activation"] not in SMOOTH:
        assert_equal(got, want)
        return
    limit = bound(**inputs, tensor_cores=ON_CHIP)
    wrong = ~((got.double() - want).abs() <= limit)
    assert not wrong.any(), f"{int(wrong.sum())} beyond the bound, {((got.double() - want).abs() / limit).max()} of it"


def run(arch: int = 90, **inputs: Any) -> Tensor:
    got: Tensor = gpu.call(deepseek_fast.int8_matmul, arch=arch, **inputs)
    return got


@pytest.mark.parametrize("case", CASES[::5], ids=lambda case: case.id)
def test_cases(case: Case, generator: torch.Generator) -> None:
    inputs = case.inputs(generator)
    check(run(**inputs), inputs)


@pytest.mark.parametrize("activations", ["int8", "float"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("M", "N", "K"), [(1, 40, 1040), (64, 33, 70), (65, 48, 64), (70, 31, 33)], ids=str)
def test_every_form(M: int, N: int, K: int, dtype: str, activations: str, generator: torch.Generator) -> None:
    """Few rows, many with and without TMA; K in parts, too. Integers have the reference's bits in every one."""
    forced = {"int8_matmul_tma": SMALL_TMA, "int8_matmul_tiles": SMALL, "int8_matmul_float_tiles": SMALL}
    for gated, arch in ((False, 80), (True, 90), (False, 90)):
        inputs = Case(M, N, K, dtype, "relu", True, "full", activations, gated).inputs(generator)
        with contextlib.ExitStack() as stack:
            for name, config in forced.items():
                stack.enter_context(tiles.forced(name, config))
            check(run(arch, **inputs), inputs)


def test_many_rows_of_integers_in_parts(generator: torch.Generator) -> None:
    inputs = Case(66, 20, 1030, "bfloat16", "hardswish").inputs(generator)
    for name, config, arch in (("int8_matmul_tma", SMALL_TMA, 90), ("int8_matmul_tiles", SMALL, 80)):
        with tiles.forced(name, config):
            check(run(arch, **inputs), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_code_becomes_its_number(dtype: torch.dtype) -> None:
    """An identity matrix picks each of the 256 codes."""
    q = torch.arange(-128, 128, dtype=torch.int8).reshape(8, 32)
    got = run(x=torch.eye(32, dtype=dtype), q=q, scale=torch.ones(8), activations="float")
    assert_equal(got, q.T.to(dtype).contiguous())


def test_sums_at_the_end_of_int32() -> None:
    x, q = torch.ones(2, 131071), torch.full((1, 131071), -128, dtype=torch.int8)
    x[1] = -1
    inputs: dict[str, Any] = {"x": x, "q": q, "scale": torch.ones(1), "activation": "none", "activations": "int8"}
    with tiles.forced("int8_matmul_few", {**SMALL, "BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 4096}):
        check(run(**inputs), inputs)


def test_rows_with_nan_infinity_zeros_and_next_to_nothing(generator: torch.Generator) -> None:
    inputs = Case(9, 20, 33, "float32", "relu").inputs(generator)
    x = inputs["x"]
    x[1, 3], x[2, 4], x[3, 5], x[4], x[5], x[6] = torch.nan, torch.inf, -torch.inf, 0, 2.0**-101, 2.0**-99
    got = run(**inputs)
    check(got, inputs)
    assert got[1:4].isnan().all() and not got[4:].isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_quantizer_has_the_references_bits(dtype: torch.dtype, generator: torch.Generator) -> None:
    w = (torch.rand(40, 130, generator=generator) * 254 - 127).to(dtype)
    w[0], w[1, 3], w[2, 4], w[3] = 0, torch.nan, torch.inf, 2.0**-101
    w[4, :125] = torch.arange(-62, 63) + 0.5  # ties
    w[4, 125:] = 127
    forms = {"whole": w, "rows apart": w[:, :67], "columns apart": w.T.contiguous().T, "no columns": w[:, :0]}
    for what, weight in (forms | {"no rows": w[:0], "one value": w[:1, :1]}).items():
        got = gpu.call(deepseek_fast.int8_quantize_weight, weight)
        for part, want in zip(got, int8_quantize_weight_ref(weight), strict=True):
            assert_equal(part, want, what)


def test_a_row_does_not_depend_on_how_many_there_are() -> None:
    x, q = torch.randn(40, 1030).bfloat16(), torch.randint(-128, 128, (40, 1030), dtype=torch.int8)
    rest: dict[str, Any] = {"q": q, "scale": torch.rand(40), "activation": "gelu"}
    want = run(x=x, **rest)
    for M in (1, 17):
        assert_equal(run(x=x[:M], **rest), want[:M], f"{M} rows")


@pytest.mark.parametrize("activations", ["int8", "float"])
def test_modules_use_the_plain_weight_on_a_gpu(activations: str) -> None:
    layer = deepseek_fast.nn.Int8Linear.from_float(nn.Linear(24, 16), activation="relu", activations=activations)
    x, q = torch.randn(3, 24), layer.q.clone()
    want = layer(x)
    layer = layer.to(gpu.device())
    got = gpu.call(layer, x)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    with gpu.on_gpu():
        assert layer.to(gpu.device()).packed is None
    assert layer.to("cpu").packed is not None and torch.equal(layer.q, q)


def test_inference_with_gradients_on_and_the_refusal_of_a_backward_pass() -> None:
    x = torch.randn(3, 8).to(gpu.device()).requires_grad_()
    q, scale = torch.ones(4, 8, dtype=torch.int8).to(gpu.device()), torch.ones(4).to(gpu.device())
    with gpu.on_gpu():
        y = deepseek_fast.int8_matmul(x, q, scale)
        with pytest.raises(RuntimeError, match="int8_matmul: x must be used without a backward pass; got one"):
            y.sum().backward()


def test_refusals() -> None:
    x, q, scale = torch.randn(3, 8), torch.ones(4, 8, dtype=torch.int8), torch.ones(4)
    with pytest.raises(TypeError, match="int8_matmul: scale must be float32; got dtype bfloat16"):
        run(x=x, q=q, scale=scale.bfloat16())
    with pytest.raises(ValueError, match="int8_matmul: activations must be one of int8, float; got 'int4'"):
        run(x=x, q=q, scale=scale, activations="int4")
    packed = torch.ops.deepseek_fast.int8_matmul_pack(q)
    with pytest.raises(
        RuntimeError, match=r"int8_matmul_packed: packed must be a CPU tensor; got one on a GPU, use int8"
    ):
        gpu.call(torch.ops.deepseek_fast.int8_matmul_packed, x, packed, scale, out_features=4)
