"""fused_matmul's kernels for CUDA: every form within the bound of ref.py, gradients, modules, refusals."""

import contextlib
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import deepseek_fast
from deepseek_fast._activations import ACTIVATIONS
from deepseek_fast.gpu import launch, tiles
from deepseek_fast.kernels.fused_matmul.cases import CASES, Case
from deepseek_fast.kernels.fused_matmul.ref import activate, activation_bound, bound, fused_matmul_ref
from tests import gpu
from tests.oracle import assert_equal

pytestmark = gpu.gpu
SMALL = {"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": 16, "num_warps": 4, "num_stages": 2}
SMALL_TMA = {**SMALL, "FLATTEN": True, "SLICES": 2}
ON_CHIP = gpu.device() == "cuda"


def check(got: Tensor, inputs: dict[str, Any]) -> None:
    want, limit = fused_matmul_ref(**inputs), bound(**inputs, tensor_cores=ON_CHIP)
    assert got.dtype == inputs["x"].dtype and got.shape == want.shape
    wrong = ~((got.double() - want).abs() <= limit)
    assert not wrong.any(), f"{int(wrong.sum())} beyond the bound, {((got.double() - want).abs() / limit).max()} of it"


def run(arch: int = 90, **inputs: Any) -> Tensor:
    got: Tensor = gpu.call(deepseek_fast.fused_matmul, arch=arch, **inputs)
    return got


@pytest.mark.parametrize("case", CASES[::2], ids=lambda case: case.id)
def test_cases_are_within_the_bound(case: Case, generator: torch.Generator) -> None:
    inputs = case.inputs(generator)
    check(run(**inputs), inputs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("arch", gpu.ARCHS)
@pytest.mark.parametrize(("M", "N", "K"), [(1, 40, 1040), (64, 33, 70), (65, 64, 64), (97, 31, 33)], ids=str)
def test_every_form(arch: int, M: int, N: int, K: int, dtype: str, generator: torch.Generator) -> None:
    """Few rows with K in parts, many rows with and without TMA, whose tensors begin rows at multiples of 16 bytes."""
    for gated, activation in ((False, "gelu"), (True, "silu")):
        inputs = Case(M, N, K, dtype, activation, residual="full", gated=gated).inputs(generator)
        with tiles.forced("fused_matmul_tma", SMALL_TMA), tiles.forced("fused_matmul_tiles", SMALL):
            check(run(arch, **inputs), inputs)


def test_tma_takes_over_where_it_can(generator: torch.Generator) -> None:
    """More tiles than multiprocessors: a block of the persistent form takes several. Then rows that TMA cannot read."""
    inputs = Case(100, 70, 32, "bfloat16", "relu").inputs(generator)
    with mock.patch.object(launch, "multiprocessors", lambda: 3), tiles.forced("fused_matmul_tma", SMALL_TMA):
        assert tables_of(inputs) == {"fused_matmul_tma"}
    odd = inputs | {"x": inputs["x"][:, 1:], "weight": inputs["weight"][:, 1:]}
    with tiles.forced("fused_matmul_tiles", SMALL):
        assert tables_of(odd) == {"fused_matmul_tiles"}


def tables_of(inputs: dict[str, Any]) -> set[str]:
    with tiles.asked() as asked:
        check(run(90, **inputs), inputs)
    return {table.name for table, _ in asked.values()}


@pytest.mark.parametrize("M", [3, 70])
def test_strides(M: int, generator: torch.Generator) -> None:
    """Rows apart, columns apart, rows that are one row, three dimensions."""
    inputs = Case(M, 20, 48, "bfloat16").inputs(generator)
    x, weight, bias = inputs["x"], inputs["weight"], inputs["bias"]
    wide = torch.cat([x, x], -1)
    forms = {
        "rows apart": (wide[:, :48], weight, bias),
        "columns apart": (x.T.contiguous().T, weight.T.contiguous().T, bias),
        "one row": (x[:1].expand(M, 48), weight, bias),
        "bias apart": (x, weight, torch.stack([bias, bias], -1)[:, 0]),
        "three dimensions": (x.reshape(1, M, 48).expand(2, M, 48), weight, bias),
    }
    for given in forms.values():
        named = dict(zip(("x", "weight", "bias"), given, strict=True))
        check(run(**named), named)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_over_their_whole_range(activation: str, generator: torch.Generator) -> None:
    """Products of zeros, so that z is the bias. The chip's own exponential and reciprocal take part on a GPU."""
    sizes = torch.exp2(torch.rand(9000, generator=generator) * 276 - 149)
    z = torch.cat([torch.linspace(-20, 20, 20001), torch.linspace(-150, 150, 9999), sizes, -sizes])
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 3e38, -3e38, 1e-45, -1e-45])
    bias = torch.cat([z, special])
    with contextlib.ExitStack() as stack:
        if not ON_CHIP:  # fewer steps of the interpreter
            stack.enter_context(tiles.forced("fused_matmul_few", {**SMALL, "BLOCK_M": 16, "BLOCK_N": 8192}))
        got = run(x=torch.zeros(1, 1), weight=torch.zeros(len(bias), 1), bias=bias, activation=activation)[0]
    limit = activation_bound(z.double(), torch.zeros_like(z.double()), activation)
    assert ((got[: len(z)].double() - activate(z.double(), activation)).abs() <= limit).all()
    want = activate(special.double(), activation)
    torch.testing.assert_close(got[len(z) :].double(), want, rtol=1e-6, atol=2.0**-100, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_how_many_there_are(dtype: torch.dtype) -> None:
    x, weight = torch.randn(64, 2048).to(dtype), torch.randn(40, 2048).to(dtype)
    if ON_CHIP:
        want = run(x=x, weight=weight)
        for M in (1, 16, 17, 33):
            assert_equal(run(x=x[:M], weight=weight), want[:M], f"{M} rows")
    with tiles.forced("fused_matmul_few", {**SMALL, "BLOCK_M": 64, "BLOCK_K": 128}):
        want = run(x=x, weight=weight)
        for M in (1, 17):  # nor on its neighbours
            assert_equal(run(x=x[:M], weight=weight), want[:M], f"{M} rows, one tile")


def test_nan_stays_in_its_row() -> None:
    x, weight = torch.randn(20, 40), torch.randn(9, 40)
    x[3, 5], x[7, 0] = torch.nan, torch.inf
    got = run(x=x, weight=weight, activation="relu")
    assert got[3].isnan().all() and not got[[i for i in range(20) if i not in (3, 7)]].isnan().any()
    assert (got[7].isinf() | (got[7] == 0)).all()


def gradients(inputs: dict[str, Any], activation: str, gated: bool) -> list[Tensor]:
    leaves = [inputs[name].detach().to(gpu.device()).requires_grad_() for name in ("x", "weight", "bias", "residual")]
    with gpu.on_gpu():
        y = deepseek_fast.fused_matmul(*leaves[:3], activation=activation, residual=leaves[3], gated=gated)
        return [grad.cpu() for grad in torch.autograd.grad(y.square().sum(), leaves)]


@pytest.mark.parametrize(("activation", "gated"), [("none", False), ("gelu", False), ("relu6", False), ("silu", True)])
def test_gradients(activation: str, gated: bool, generator: torch.Generator) -> None:
    inputs = Case(5, 12, 16, "float32", activation, residual="full", gated=gated).inputs(generator)
    doubles = [inputs[name].double().requires_grad_() for name in ("x", "weight", "bias", "residual")]
    y = fused_matmul_ref(*doubles[:3], activation=activation, residual=doubles[3], gated=gated)
    want = torch.autograd.grad(y.square().sum(), doubles)
    for got, exact in zip(gradients(inputs, activation, gated), want, strict=True):
        torch.testing.assert_close(got.double(), exact, rtol=1e-4, atol=1e-4)


def test_modules_use_the_plain_weight_on_a_gpu() -> None:
    linear, x = nn.Linear(24, 16), torch.randn(3, 24)
    layer = deepseek_fast.nn.FusedLinear.from_float(linear, activation="relu")
    assert layer.packed is not None
    want = layer(x).detach()
    layer = layer.to(gpu.device())
    with torch.no_grad():
        got = gpu.call(layer, x)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        with gpu.on_gpu():
            assert layer.to(gpu.device()).packed is None
        assert_equal(layer.to("cpu")(x), want, "back on the CPU")


def test_refusals() -> None:
    x, weight = torch.randn(3, 8), torch.randn(4, 8)
    with pytest.raises(ValueError, match=r"fused_matmul: weight must have 8 columns, as x's last dimension; got shape"):
        run(x=x, weight=torch.randn(4, 7))
    with pytest.raises(TypeError, match=r"fused_matmul: weight must have x's dtype float32; got dtype bfloat16"):
        run(x=x, weight=weight.bfloat16())
    packed = torch.ops.deepseek_fast.fused_matmul_pack(weight)
    with pytest.raises(
        RuntimeError, match=r"fused_matmul_packed: packed must be a CPU tensor; got one on a GPU, use fused"
    ):
        gpu.call(torch.ops.deepseek_fast.fused_matmul_packed, x, packed, out_features=4)
