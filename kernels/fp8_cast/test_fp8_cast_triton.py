"""fp8_cast's kernels for CUDA: the bits of ref.py, and for the casts of activations what ref_fused.py admits."""

import contextlib
import math
from typing import Any

import pytest
import torch

import deepseek_fast
from deepseek_fast.gpu import tiles
from deepseek_fast.gpu.register import interpreted
from deepseek_fast.kernels.fp8_cast import ref, ref_fused
from deepseek_fast.kernels.fp8_cast.cases import CASES, FORMATS, KINDS
from deepseek_fast.kernels.fp8_cast.ref_formats import E2M1, E4M3
from tests import gpu
from tests.cast_doors import assert_same

pytestmark = gpu.gpu
FUSED = ("silu_mul_cast", "rms_norm_cast")
EVERY = 7  # of the cases one in so many is quick: prime to the lengths of the lists that they are products of
# The interpreter's time goes by programs: few large tiles, but for the tests of the tables' own.
LARGE = {
    "fp8_cast_blocks": {"VALUES": 16384, "num_warps": 16},
    "fp8_cast_encode": {"VALUES": 8192, "num_warps": 8},
    "fp8_dequantize": {"VALUES": 8192, "num_warps": 8},
}


@contextlib.contextmanager
def large_tiles():
    with contextlib.ExitStack() as stack:
        for name, config in LARGE.items():
            stack.enter_context(tiles.forced(name, config))
        yield


def check(op: str, inputs: dict[str, Any], what: str = "") -> None:
    got = gpu.call(getattr(deepseek_fast, op), **inputs)
    got = got if isinstance(got, tuple) else (got,)
    if op in FUSED:
        options = {"kind" if name == "scale" else name: value for name, value in inputs.items()}
        right, right_scale = getattr(ref_fused, f"{op}_admits")(*got, **options)
        assert right_scale.all(), f"{what}: {int((~right_scale).sum())} scales"
        assert right.all(), f"{what}: {int((~right).sum())} codes"
        return
    want = getattr(ref, f"{op}_ref")(**inputs)
    for one, other in zip(got, want if isinstance(want, tuple) else (want,), strict=True):
        assert_same(one, other, what, True)


def quick(i: int) -> Any:
    return () if i % EVERY == 0 else pytest.mark.slow


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id, marks=quick(i)) for i, case in enumerate(CASES)])
def test_every_case_has_the_bits_of_the_reference(case, generator):
    with large_tiles():
        check(case.op, case.inputs(generator), case.id)


# --- every input ----------------------------------------------------------------------------------------------------


def every_half(dtype: torch.dtype) -> torch.Tensor:
    """All 65,536 values of a 16-bit type, NaN and inf too."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).reshape(512, 128)


@pytest.mark.parametrize(("mode", "scale"), KINDS)
def test_every_bfloat16_in_blocks(mode, scale):
    i = KINDS.index((mode, scale))
    options = {"mode": mode, "scale": scale, "dtype": getattr(torch, FORMATS[i % 5])}
    with large_tiles():
        check("fp8_cast", {"x": every_half(torch.bfloat16), "block": ((1, 128), (1, 32))[i % 2], **options}, mode)


@pytest.mark.parametrize("format", FORMATS)
def test_every_float16_without_scales(format):
    for saturate in (True, False):
        options = {"block": None, "dtype": getattr(torch, format), "saturate": saturate}
        with large_tiles():
            check("fp8_cast", {"x": every_half(torch.float16), **options}, f"{format}, saturate={saturate}")


@pytest.mark.parametrize(("mode", "scale"), [*KINDS, ("torchao", "e4m3")])
def test_blocks_next_to_every_power_of_two(mode, scale):
    """amax = 2^k and its neighbours, for all k of float32: where a scale's exponent steps; subnormals too."""
    powers = 2.0 ** torch.cat([torch.arange(-149, 0, 3), torch.arange(-126, 128)]).double()
    amax = torch.cat([torch.nextafter(powers.float(), torch.tensor(end)) for end in (0.0, math.inf)] + [powers.float()])
    x = (torch.rand(amax.numel(), 32) * 2 - 1) * amax.unsqueeze(1)
    x[:, 5] = amax
    x[:6, 7] = torch.tensor([math.nan, math.inf, -math.inf, -math.nan, math.nan, math.inf])
    x[4, 6], x[5:7], x[7, :4] = math.inf, math.nan, 0
    x[8:10] = 0
    format = FORMATS[KINDS.index((mode, scale)) % 5] if scale != "e4m3" else "float4_e2m1fn_x2"
    options = {"mode": mode, "scale": scale, "dtype": getattr(torch, format)}
    if scale == "e4m3":
        options["tensor_scale"] = torch.tensor(3e-3)
    with large_tiles():
        check("fp8_cast", {"x": x, "block": (1, 32), **options}, f"{mode} {scale} {format}")


# --- every form -----------------------------------------------------------------------------------------------------

HOT: dict[str, dict[str, Any]] = {
    "1x128": {"block": (1, 128)},
    "128x128": {"block": (128, 128)},
    "row": {"block": (1, -1)},
    "tensor": {"block": (-1, -1)},
    "mx": {"block": (1, 32), "scale": "ue8m0", "mode": "torchao"},
    "nvfp4": {"block": (1, 16), "scale": "e4m3", "mode": "torchao", "dtype": E2M1},
    "plain": {"block": None},
}


@pytest.mark.parametrize("form", HOT)
def test_the_tables_own_tiles(form, generator):
    x = torch.randn(140, 300, generator=generator).to(torch.bfloat16)
    check("fp8_cast", {"x": x, **HOT[form]}, form)


BEYOND = (  # blocks that no tile holds: two passes
    ((70, 130), {"block": (-1, -1), "scale": "ue8m0", "mode": "torchao"}),
    ((70, 130), {"block": (50, 100), "mode": "v3", "dtype": torch.float8_e5m2}),
    ((70, 130), {"block": (-1, -1), "scale": "ue8m0", "out_layout": "packed"}),
    ((3, 1100), {"block": (1, -1), "dtype": E2M1}),
    ((3, 1100), {"block": (1, -1), "mode": "te", "rounding": "stochastic", "seed": -5}),
    ((3, 1101), {"block": (2, -1), "rounding": "stochastic", "seed": 1 << 40, "dtype": torch.float8_e4m3fnuz}),
    ((900, 3), {"block": (-1, 1), "mode": "vllm"}),
    ((900, 6), {"block": (500, 4), "out_layout": "column"}),
)


@pytest.fixture
def small_most(monkeypatch):
    """The largest block of one pass, for the interpreter: small shapes reach two."""
    from deepseek_fast.kernels.fp8_cast import triton_tiles

    monkeypatch.setattr(triton_tiles, "MOST", 256)


@pytest.mark.parametrize(("shape", "options"), BEYOND, ids=str)
def test_blocks_beyond_a_tile(shape, options, small_most, generator):
    x = torch.randn(shape, generator=generator)
    x[1, 1] = math.nan
    with large_tiles():
        check("fp8_cast", {"x": x, **options})
        check("fp8_amax", {"x": x, "block": options["block"]})


def test_a_tensor_of_many_tiles(generator):
    check("fp8_cast", {"x": torch.randn(200, 130, generator=generator), "block": (-1, -1)})


@pytest.mark.parametrize("op", FUSED)
@pytest.mark.parametrize("block", [(1, -1), (1, 128), (1, 48)])
def test_activations_of_long_rows_and_odd_blocks(op, block, small_most, generator):
    K = 1000
    x = torch.randn(3, K * (1 + (op == "silu_mul_cast")), generator=generator)
    extra = {"weight": torch.randn(K, generator=generator), "eps": 1e-6} if op == "rms_norm_cast" else {}
    with large_tiles():
        check(op, {"x": x, **extra, "block": block})


def test_sizes_that_are_counted_in_64_bits(monkeypatch, generator):
    from deepseek_fast.kernels.fp8_cast import triton_tiles

    monkeypatch.setattr(triton_tiles, "WIDE", 1)
    x = torch.randn(20, 300, generator=generator)
    with large_tiles():
        for form, options in HOT.items():
            check("fp8_cast", {"x": x, **options}, form)
        monkeypatch.setattr(triton_tiles, "MOST", 256)
        check("fp8_cast", {"x": x, "block": (-1, -1)})
        check("fp8_cast", {"x": x, "block": (3, 100), "scale": torch.rand(7, 3, generator=generator) + 0.1})
        codes = x.clamp(-448, 448).to(E4M3)
        check("fp8_dequantize", {"codes": codes, "scale": torch.rand(7, 3), "block": (3, 100)})


def test_results_of_a_row_do_not_depend_on_the_others(generator):
    x, weight = torch.randn(40, 256, generator=generator), torch.randn(256, generator=generator)
    together, alone = (gpu.call(deepseek_fast.rms_norm_cast, rows, weight) for rows in (x, x[7:8]))
    for one, other in zip(together, alone, strict=True):
        assert_same(one[7:8].contiguous(), other, "a row alone")


def test_scales_and_codes_at_any_stride(generator):
    x = torch.randn(300, 12, generator=generator).T.contiguous().T  # columns side by side: copied
    check("fp8_cast", {"x": x, "block": (1, 4)})
    check("fp8_cast", {"x": x[::3, ::2], "block": (2, 2)})
    given = (torch.rand(3, 100, generator=generator) + 0.1).T
    check("fp8_cast", {"x": x, "block": (3, 4), "scale": given})
    codes, scale = ref.fp8_cast_ref(torch.randn(40, 96), block=(1, 32), scale="ue8m0", out_layout="packed")
    check("fp8_dequantize", {"codes": codes[::2, 4:36], "scale": scale[::2, :1], "block": (1, 32)})
    check("fp8_dequantize", {"codes": codes[::2, 1:34]})


def test_a_wrong_call_has_the_cpu_ops_sentence():
    with pytest.raises(TypeError, match="int8_cast: x must be float32, bfloat16 or float16; got dtype int32"):
        gpu.call(deepseek_fast.int8_cast, torch.zeros(2, 3, dtype=torch.int32))
    with pytest.raises(ValueError, match="fp8_cast: block must be two positive numbers, or -1 for all; got"):
        gpu.call(deepseek_fast.fp8_cast, torch.zeros(2, 3), block=(0, 3))
    with pytest.raises(ValueError, match="fp8_cast: x must have an even last dimension for FP4; got"):
        gpu.call(deepseek_fast.fp8_cast, torch.zeros(2, 3), dtype=E2M1)
    with pytest.raises(ValueError, match="fp8_cast_transposed: block must be"):
        gpu.call(deepseek_fast.fp8_cast_transposed, torch.zeros(2, 3), block=(1, 129))
    with pytest.raises(ValueError, match="fp8_dequantize: scale must have shape"):
        gpu.call(deepseek_fast.fp8_dequantize, torch.zeros(2, 3).to(E4M3), torch.ones(3, 3))


def test_the_measured_rows_are_right_when_small():
    from deepseek_fast.kernels.fp8_cast.gpu_bench import rows

    for row in rows(((256, 256),), gpu.device()):
        inputs = row.inputs()
        with large_tiles():
            result = gpu.call(row.ours, **inputs)
        assert row.error(inputs, result) == 0, row.name
        wrong = [part.clone() for part in (result if isinstance(result, tuple) else (result,))]
        wrong[0].view(torch.uint8)[0, 0] ^= 1
        assert row.error(inputs, tuple(wrong) if isinstance(result, tuple) else wrong[0]) > 1, row.name


@pytest.mark.skipif(interpreted(), reason="CUDA C++ runs on a GPU only; tests/test_cuda_block.py has its rules")
@pytest.mark.parametrize("engine", ["cuda", "triton"])
@pytest.mark.parametrize(("mode", "scale"), KINDS)
def test_both_engines_give_the_references_bits(engine, mode, scale, generator):
    for M, K, dtype in ((5, 130, torch.float32), (33, 1024, torch.bfloat16), (1, 7168, torch.float16)):
        x = torch.randn(M, K, generator=generator).to(dtype)
        with tiles.forced("fp8_cast_engine", {"engine": engine}):
            check("fp8_cast", {"x": x, "block": (1, 128), "dtype": E4M3, "mode": mode, "scale": scale})
