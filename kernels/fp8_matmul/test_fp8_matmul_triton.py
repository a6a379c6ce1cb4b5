"""fp8_matmul's kernels for CUDA: ref.py's bound, the cast's bits, rows that do not depend on their batch."""

from typing import Any

import pytest
import torch

import deepseek_fast
from deepseek_fast.gpu import tiles
from deepseek_fast.gpu.register import interpreted
from deepseek_fast.kernels.fp8_matmul.cases import CASES, Case
from deepseek_fast.kernels.fp8_matmul.ref import (
    _sum_bound,
    bound,
    cast_rows,
    fp8_matmul_ref,
    fp8_quantize_weight_ref,
    scaled_mm_steps,
    tensor_core_bound,
)
from deepseek_fast.kernels.fp8_matmul.scaled_mm import BLOCK_OF_RECIPE
from deepseek_fast.kernels.fp8_matmul.test_scaled_mm import (
    E4M3,
    E5M2,
    PER_128,
    PER_128X128,
    RECIPES,
    ROW,
    TENSOR,
    arguments,
    made,
)
from deepseek_fast.kernels.fp8_matmul.triton_tiles import CODES, NUMBERS
from deepseek_fast.kernels.fused_matmul.ref import epilogue_bound
from tests import gpu
from tests.oracle import assert_equal, assert_within

pytestmark = gpu.gpu
# (a part of the cases, the chip): every chip's products take another form.
ON_CHIPS = [(case, 90) for case in CASES[::16]] + [(case, 80) for case in CASES[5::30]]
ON_CHIPS += [(case, 100) for case in CASES[9::60]]
SMALL = {"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 128, "GROUP_M": 2, "SWAP": False, "num_warps": 4, "num_stages": 2}
# Tiles that only large outputs meet, of a size for the interpreter.
FORMS = {
    "persistent": SMALL | {"TMA": True, "WIDE": False, "PERSISTENT": True},
    "wide": SMALL | {"TMA": True, "WIDE": True, "PERSISTENT": True},
    "wide without TMA": SMALL | {"TMA": False, "WIDE": True, "PERSISTENT": False},
}


def check(inputs: dict[str, Any], what: str, arch: int | None = None) -> None:
    got = gpu.call(deepseek_fast.fp8_matmul, **inputs, arch=arch)
    assert_within(got, fp8_matmul_ref(**inputs), bound(**inputs, tensor_cores=not interpreted()), what)


@pytest.mark.parametrize(("case", "arch"), ON_CHIPS, ids=[f"{arch}-{case.id}" for case, arch in ON_CHIPS])
def test_it_is_within_the_bound(case: Case, arch: int, generator: torch.Generator) -> None:
    check(case.inputs(generator), case.id, arch)


@pytest.mark.parametrize("form", FORMS)
def test_tiles_of_large_outputs(form: str, generator: torch.Generator) -> None:
    """Columns end within the first and within the second tile of a wide one, and beside it."""
    with tiles.forced("fp8_matmul_codes", FORMS[form]):
        for N, gated in ((150, False), (81, False), (40, True)):
            case = Case(17, N, 256, "bfloat16", "silu", activations="fp8", gated=gated, residual="full")
            check(case.inputs(generator), f"{form} {case.id}")


@pytest.mark.parametrize(("recipe_a", "recipe_b"), RECIPES, ids=lambda recipe: recipe.name)
def test_scaled_mm(recipe_a: Any, recipe_b: Any, generator: torch.Generator) -> None:
    """In the layouts that torch asks for, padding of NaN included."""
    pair = RECIPES.index((recipe_a, recipe_b))
    dtypes = ((E4M3, E4M3), (E5M2, E4M3), (E4M3, E5M2), (E5M2, E5M2))[pair % 4]
    output_dtype = (torch.bfloat16, torch.float32, torch.float16)[pair % 3]
    M, N, K = ((5, 130, 299), (130, 33, 160))[(pair + pair // 4) % 2]  # each recipe with either
    call = made(M, N, K, recipe_a, recipe_b, dtypes)
    bias = torch.randn(N).to(output_dtype) if pair % 2 else None
    got = gpu.call(deepseek_fast.fp8_scaled_mm, **arguments(call), bias=bias, output_dtype=output_dtype)
    blocks = BLOCK_OF_RECIPE[recipe_a], BLOCK_OF_RECIPE[recipe_b]
    steps = list(scaled_mm_steps(call["a"], call["scale_a"], call["b"], call["scale_b"], *blocks))
    z = torch.stack([(step.x @ step.weight.T) * step.factor for step in steps]).sum(0)
    error = _sum_bound(steps, False, z)
    if not interpreted():
        error = error + tensor_core_bound(steps, fp8=True)
    z = z if bias is None else z + bias.double()
    rest: dict[str, Any] = {"bias": bias is not None, "activation": "none", "residual": None}
    assert_within(got, z, epilogue_bound(z, error, output_dtype, **rest), f"{M}x{N}x{K} {dtypes}")


@pytest.mark.parametrize(("M", "N", "K"), [(0, 3, 4), (3, 0, 4), (3, 4, 0)])
def test_scaled_mm_of_nothing(M: int, N: int, K: int) -> None:
    for recipes in ((PER_128, PER_128X128), (TENSOR, ROW)):
        got = gpu.call(deepseek_fast.fp8_scaled_mm, **arguments(made(M, N, K, *recipes)))
        assert_equal(got, torch.zeros(M, N, dtype=torch.bfloat16))


def test_the_cast_has_the_references_bits() -> None:
    """Every bfloat16, in an order that mixes magnitudes, NaN and infinity in the blocks of their neighbours; ties."""
    from deepseek_fast.gpu.launch import has_fp8
    from deepseek_fast.kernels.fp8_matmul import triton_cast

    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    shuffled = every[torch.randperm(2**16)]
    numbers = torch.arange(127, dtype=torch.uint8).view(E4M3).double()
    ties = torch.cat([((numbers[1:] + numbers[:-1]) / 2).float(), torch.tensor([448.0])]).repeat(3, 1)
    below, above = torch.nextafter(ties, torch.tensor(0.0)), torch.nextafter(ties, torch.tensor(448.0))
    tiny = torch.tensor([[0.0, 1e-45, 9e-5], [1e-4, 1.1e-4, -1e-4], [3e38, -3e38, 1.0]])
    for x in (every.reshape(-1, 256), shuffled.reshape(-1, 256), ties, below, above, tiny, torch.randn(17, 300).half()):
        with gpu.on_gpu(90):
            codes, scale = (result.cpu() for result in triton_cast.cast_rows(x.to(gpu.device()), has_fp8()))
        want, want_scale = cast_rows(x)
        assert_equal(scale.contiguous(), want_scale, f"{x.shape}")
        nan = want.float().isnan()
        assert torch.equal(codes.float().isnan(), nan)
        got, wanted = (value.view(torch.uint8).masked_fill(nan, 0) for value in (codes, want))
        assert_equal(got, wanted.contiguous(), f"{x.shape}")


@pytest.mark.parametrize("arch", gpu.ARCHS)
@pytest.mark.parametrize("dtype", [E4M3, E5M2], ids=str)
def test_every_code_decodes_exactly(dtype: torch.dtype, arch: int) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(dtype)
    one: dict[str, Any] = {"scale": torch.ones(1, 1), "block": (-1, -1), "arch": arch}
    for x_dtype, activations in ((torch.bfloat16, "float"), (torch.float16, "float"), (torch.float32, "fp8")):
        x = torch.zeros(1, 32, dtype=x_dtype)
        x[0, 7] = 448 if activations == "fp8" else 1  # 448 is a code with scale 1
        weight = torch.zeros(256, 32, dtype=torch.uint8)
        weight[:, 7] = codes.view(torch.uint8)
        got = gpu.call(deepseek_fast.fp8_matmul, x, weight.view(dtype), **one, activations=activations)
        want = codes.float() * x[0, 7].float()
        assert_equal(got, (want + 0.0).to(x_dtype).reshape(1, 256), f"{x_dtype} {activations}")


def test_a_nan_code_stays_in_its_row_and_column() -> None:
    call = made(6, 70, 140, PER_128, PER_128X128)
    clean = gpu.call(deepseek_fast.fp8_scaled_mm, **arguments(call))
    call["a"].view(torch.uint8)[3, 139] = 0x7F
    call["b"].view(torch.uint8)[64, 0] = 0xFF
    for arch in gpu.ARCHS:
        got = gpu.call(deepseek_fast.fp8_scaled_mm, **arguments(call), arch=arch)
        spoiled = torch.zeros(6, 70, dtype=torch.bool)
        spoiled[3], spoiled[:, 64] = True, True
        assert torch.equal(got.isnan(), spoiled)
        assert_equal(got.masked_fill(spoiled, 0), clean.masked_fill(spoiled, 0))


@pytest.mark.parametrize("arch", gpu.ARCHS)
@pytest.mark.parametrize("activations", ["float", "fp8"])
def test_a_row_has_the_same_bits_in_any_batch_and_tile(activations: str, arch: int) -> None:
    """All tiles that a chip's table has: on a GPU those of its own."""
    weight, scale = deepseek_fast.fp8_quantize_weight(torch.randn(70, 304))
    x = torch.randn(19, 304).bfloat16()
    many = gpu.call(deepseek_fast.fp8_matmul, x, weight, scale, activations=activations, arch=arch)
    few = gpu.call(deepseek_fast.fp8_matmul, x[-1:], weight, scale, activations=activations, arch=arch)
    assert_equal(few, many[-1:].contiguous(), "one row")
    table = CODES if activations == "fp8" else NUMBERS
    with gpu.on_gpu(arch):
        configs = table.candidates({})
    for config in configs:
        with tiles.forced(table.name, config):
            got = gpu.call(deepseek_fast.fp8_matmul, x, weight, scale, activations=activations, arch=arch)
        assert_equal(got, many, f"{config}")


def test_strides_and_dimensions(generator: torch.Generator) -> None:
    inputs = Case(12, 33, 160, "bfloat16", activations="fp8", residual="full").inputs(generator)
    want = gpu.call(deepseek_fast.fp8_matmul, **inputs)
    wide, turned = torch.randn(12, 171).bfloat16(), inputs["weight"].t().contiguous().t()
    wide[:, 3:163] = inputs["x"]
    spread = {"bias": inputs["bias"].repeat_interleave(2)[::2], "scale": inputs["scale"].t().contiguous().t()}
    folded = {"residual": inputs["residual"].t().contiguous().t().reshape(3, 4, 33)}
    got = gpu.call(
        deepseek_fast.fp8_matmul,
        **inputs | spread | folded | {"x": wide[:, 3:163].unflatten(0, (3, 4)), "weight": turned},
    )
    assert_equal(got, want.reshape(3, 4, 33))


def test_quantizing_is_the_cpus() -> None:
    w = torch.randn(130, 300)
    for got, want in zip(gpu.call(deepseek_fast.fp8_quantize_weight, w), fp8_quantize_weight_ref(w), strict=True):
        assert_equal(got, want)


def test_refusals() -> None:
    weight, scale = deepseek_fast.fp8_quantize_weight(torch.randn(8, 64))
    with pytest.raises(TypeError, match=r"^fp8_matmul: x must be float32, bfloat16 or float16; got dtype float64"):
        gpu.call(deepseek_fast.fp8_matmul, torch.zeros(2, 64).double(), weight, scale)
    with pytest.raises(ValueError, match=r"^fp8_matmul: scale must have shape \(1, 1\), one value a block; got shape"):
        gpu.call(deepseek_fast.fp8_matmul, torch.zeros(2, 64), weight, torch.ones(2, 1))
    with pytest.raises(RuntimeError, match=r"^fp8_matmul_pack: weight must be a CPU tensor; .*use fp8_matmul with the"):
        gpu.call(torch.ops.deepseek_fast.fp8_matmul_pack, weight, scale)
