"""The modes of the reference against the published formulas, for largest magnitudes around every power of two.

The formulas are transcribed in plain torch operations, which know nothing of ref_modes.py; each names its source. One
block a row: x (rows, block) -> the scale, or the byte of its exponent, and the codes.
"""

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor

from deepseek_fast.kernels.fp8_cast.ref import fp8_cast_ref
from deepseek_fast.kernels.fp8_cast.ref_formats import E2M1, E4M3, E4M3FNUZ, E5M2, E5M2FNUZ, FORMATS, unpack
from tests.oracle import assert_equal

EVERY_FORMAT = pytest.mark.parametrize("dtype", FORMATS, ids=str)
Formula = Callable[[Tensor, Any], tuple[Tensor, Tensor]]
LARGEST = {dtype: form.largest for dtype, form in FORMATS.items()}


def raw(value: Tensor) -> Tensor:
    return value.contiguous().view(torch.uint8)


def over(a: Tensor | float, b: Tensor | float) -> Tensor:
    """A float32 division, tensor by tensor."""
    first, second = torch.broadcast_tensors(*(torch.as_tensor(v, dtype=torch.float32) for v in (a, b)))
    return first.contiguous() / second.contiguous()


def reciprocal(dtype: torch.dtype) -> Tensor:
    """1 / largest, rounded to float32."""
    return torch.tensor(1 / LARGEST[dtype])


def to_byte(power: Tensor) -> Tensor:
    """The e8m0 byte of a power of two: its logarithm + 127."""
    return (torch.frexp(power.double()).exponent + 126).to(torch.uint8)


def cast(v: Tensor, dtype: torch.dtype) -> Tensor:
    """What hardware casts do with what is too large: the largest."""
    largest = LARGEST[dtype]
    v = v.clamp(-largest, largest)
    if dtype == E2M1:
        return torch.from_numpy(v.numpy().astype(ml_dtypes.float4_e2m1fn).view(np.uint8))
    return raw(v.to(dtype))


def deepgemm(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """deepseek-ai/DeepGEMM deep_gemm/utils/math.py: per_token_cast_to_fp8, one block a row; also its fp4."""
    s = over(x.abs().amax(1, keepdim=True).clamp(1e-4), LARGEST[dtype])
    v = x * over(1, s)
    return s, deepgemm_fp4(v) if dtype == E2M1 else cast(v, dtype)


def deepgemm_ue8m0(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """ceil_to_ue8m0 of the same file, by comparison: the smallest power of two that is not below the scale."""
    s = over(x.abs().amax(1, keepdim=True).clamp(1e-4), LARGEST[dtype])
    fraction, exponent = torch.frexp(s)
    p = torch.ldexp(torch.ones_like(s), exponent - (fraction == 0.5).int())
    v = x * over(1, p)
    return to_byte(p), deepgemm_fp4(v) if dtype == E2M1 else cast(v, dtype)


def deepgemm_fp4(v: Tensor) -> Tensor:
    """_quantize_to_fp4_e2m1 of the same file: counts the midpoints below |v|."""
    bounds = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    code = (v.abs().unsqueeze(-1) > bounds).sum(-1)
    return (code + 8 * ((v < 0) & (code > 0))).to(torch.uint8)


def v3(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """deepseek-ai/DeepSeek-V3 inference/kernel.py act_quant_kernel."""
    s = over(x.abs().amax(1, keepdim=True).clamp_min(1e-4), LARGEST[dtype])
    return s, cast(over(x, s), dtype)


def v32(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """deepseek-ai/DeepSeek-V3.2-Exp inference/kernel.py act_quant_kernel: a product with the rounded reciprocal."""
    s = x.abs().amax(1, keepdim=True).clamp_min(1e-4) * reciprocal(dtype)
    return s, cast(over(x, s), dtype)


def v32_rounded(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """fast_round_scale of the same file."""
    s = x.abs().amax(1, keepdim=True).clamp_min(1e-4) * reciprocal(dtype)
    bits = s.view(torch.int32)
    exponent = (bits >> 23 & 0xFF) - 127 + (bits & 0x7FFFFF != 0).int()
    p = (exponent + 127 << 23).view(torch.float32)
    return to_byte(p), cast(over(x, p), dtype)


def tilekernels(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """deepseek-ai/TileKernels tile_kernels/quant/common.py get_sf_and_inv, without round_sf."""
    floor = 6 * 2.0**-126 if dtype == E2M1 else 1e-4
    amax = x.abs().amax(1, keepdim=True).clamp_min(floor)
    return over(amax, LARGEST[dtype]), cast(x * over(LARGEST[dtype], amax), dtype)


def tilekernels_rounded(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """get_sf_and_inv of the same file, with round_sf."""
    bits = tilekernels(x, dtype)[0].view(torch.int32)
    exponent = (bits - 1 >> 23) + 1 - 127
    return (exponent + 127).to(torch.uint8), cast(x * (127 - exponent << 23).view(torch.float32), dtype)


def vllm(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """vllm-project/vllm vllm/model_executor/layers/quantization/utils/fp8_utils.py _per_token_group_quant_fp8."""
    largest = 224.0 if dtype == E4M3FNUZ else LARGEST[dtype]
    s = over(x.abs().amax(1, keepdim=True).clamp_min(1e-10), largest)
    return s, cast(over(x, s).clamp(-largest, largest), dtype)


def te(x: Tensor, dtype: torch.dtype, power: bool = False) -> tuple[Tensor, Tensor]:
    """NVIDIA/TransformerEngine transformer_engine/common/recipe/recipe_common.cuh compute_scale_from_amax."""
    amax = x.abs().amax(1, keepdim=True)
    f = torch.where(amax == 0, 1.0, over(LARGEST[dtype], amax).clamp_max(torch.finfo(torch.float32).max))
    if power:
        f = torch.ldexp(torch.ones_like(f), torch.frexp(f).exponent - 1)
    return over(1, f), cast(x * f, dtype)


def te_power(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    s, codes = te(x, dtype, power=True)
    return to_byte(s), codes


def te_mx(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """transformer_engine/common/util/ptx_arch_spec.cuh float_to_e8m0 and ptx.cuh exp2f_rcp, of blocks of 32.

    It rounds up, but keeps 0 and everything to 2^-127 at byte 0.
    """
    s = x.abs().amax(1, keepdim=True) * reciprocal(dtype)
    byte = (round_up_log2(s) + 127).clamp(0, 254)
    return byte.to(torch.uint8), cast(x * torch.exp2(127.0 - byte.double()).float(), dtype)


def round_up_log2(s: Tensor) -> Tensor:
    fraction, exponent = torch.frexp(s.double())
    return torch.where(s == 0, -127, exponent - (fraction == 0.5).int())


def torchao_amax_to_scale(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """pytorch/ao torchao/float8/float8_utils.py amax_to_scale: in float64, rounded once."""
    f = (LARGEST[dtype] / x.abs().amax(1, keepdim=True).double().clamp_min(1e-12)).float()
    return over(1, f), cast(x * f, dtype)


def torchao_to_mx(rule: str) -> Formula:
    """pytorch/ao torchao/prototype/mx_formats/mx_tensor.py to_mx."""

    def formula(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        amax = x.abs().amax(1, keepdim=True)
        top = {E4M3: 8, E5M2: 15, E4M3FNUZ: 7, E5M2FNUZ: 15, E2M1: 2}[dtype]  # log2 of the largest power of two
        if rule == "rceil":
            byte = (round_up_log2(amax * reciprocal(dtype)) + 127).clamp(0, 254)
            return byte.to(torch.uint8), cast(x * torch.exp2(127.0 - byte.double()).float(), dtype)
        if rule == "even":  # to nearest of as many bits as the format has, half away from zero
            fraction, exponent = torch.frexp(amax.double())
            kept = 2.0 ** (1 + FORMATS[dtype].mantissa_bits)
            rounded = torch.ldexp((fraction * kept + 0.5).floor() / kept, exponent)
            # A subnormal float32 has fewer bits, and the addition is to the bits: below 2^-126 only the floor matters.
            amax = torch.where(amax < 2.0**-125, amax.double(), rounded)
        fraction, exponent = torch.frexp(amax.double())
        up = (fraction != 0.5).int() if rule == "ceil" else 0
        E = torch.where(amax < 2.0**-126, -127 + (up * (amax > 0)), exponent - 1 + up) - top
        byte = E.clamp(-127, 128) + 127
        return byte.to(torch.uint8), cast(x * torch.exp2(127.0 - byte.double()).float(), dtype)

    return formula


def nvfp4(x: Tensor, pts: Tensor | None) -> tuple[Tensor, Tensor]:
    """pytorch/ao torchao/prototype/mx_formats/nvfp4_tensor.py nvfp4_quantize, blocks of 16."""
    s = over(x.abs().amax(1, keepdim=True), 6)
    s = s if pts is None else over(s, pts)
    s = s.clamp(2.0**-6, 448).to(E4M3)
    f = over(1, s.float()) if pts is None else over(over(1, pts), s.float())
    return raw(s), cast((x * f).clamp(-6, 6), E2M1)


FORMULAS: list[tuple[str, str, Formula]] = [
    ("deepgemm", "f32", deepgemm),
    ("deepgemm", "ue8m0", deepgemm_ue8m0),
    ("v3", "f32", v3),
    ("v32", "f32", v32),
    ("v32", "ue8m0", v32_rounded),
    ("tilekernels", "f32", tilekernels),
    ("tilekernels", "ue8m0", tilekernels_rounded),
    ("vllm", "f32", vllm),
    ("te", "f32", te),
    ("te", "ue8m0", te_power),
    ("te", "mx", te_mx),
    ("torchao", "f32", torchao_amax_to_scale),
    ("torchao", "ue8m0", torchao_to_mx("floor")),
    ("torchao_ceil", "ue8m0", torchao_to_mx("ceil")),
    ("torchao_even", "ue8m0", torchao_to_mx("even")),
    ("torchao_rceil", "ue8m0", torchao_to_mx("rceil")),
]


def blocks_of_every_size(columns: int = 32) -> Tensor:
    """Rows of normal numbers whose largest is next to each power of two, and a row of zeros."""
    powers = (torch.arange(1, 254, dtype=torch.int32) << 23).view(torch.float32)
    largest = torch.cat([powers, *(torch.nextafter(powers, torch.tensor(end)) for end in (0.0, 9e38))])
    largest = torch.cat([largest, torch.rand(300).ldexp(torch.randint(-40, 40, (300,))), torch.zeros(1)])
    x = (torch.rand(largest.numel(), columns) * 2 - 1) * largest.unsqueeze(1)
    x[:, columns // 2] = largest
    return x


@EVERY_FORMAT
@pytest.mark.parametrize(("mode", "kind", "formula"), FORMULAS, ids=[f"{mode}-{kind}" for mode, kind, _ in FORMULAS])
def test_modes_are_the_published_formulas(mode: str, kind: str, formula: Formula, dtype: torch.dtype) -> None:
    columns = 32 if kind == "mx" else 48
    x = blocks_of_every_size(columns)
    block = (1, columns)
    codes, scale = fp8_cast_ref(x, block=block, dtype=dtype, mode=mode, scale="ue8m0" if kind == "mx" else kind)
    want_scale, want = formula(x, dtype)
    assert_equal(raw(scale) if kind != "f32" else scale, want_scale, "scale")
    assert_equal(unpack(codes), fnuz_zeros(want, dtype), "codes")


def fnuz_zeros(codes: Tensor, dtype: torch.dtype) -> Tensor:
    return codes if not FORMATS[dtype].fnuz else torch.where(codes == 0x80, 0, codes).to(torch.uint8)


@pytest.mark.parametrize("pts", [None, 1.0, 0.37, 2.0**-9], ids=str)
def test_nvfp4_is_torchao_s(pts: float | None) -> None:
    x = blocks_of_every_size(16)
    x = x[(x.abs().amax(1) < 1e30)]
    tensor_scale = None if pts is None else torch.tensor(pts)
    codes, scale = fp8_cast_ref(x, block=(1, 16), dtype=E2M1, scale="e4m3", mode="torchao", tensor_scale=tensor_scale)
    want_scale, want = nvfp4(x, tensor_scale)
    assert_equal(raw(scale), want_scale)
    assert_equal(unpack(codes), want)


@pytest.mark.parametrize("mode", ["v3", "v32", "deepgemm", "vllm", "tilekernels"])
def test_a_power_of_two_holds_its_block(mode: str) -> None:
    """The smallest power of two that is not below the f32 scale: exact at every power of two and next to it."""
    x = blocks_of_every_size()
    s = fp8_cast_ref(x, block=(1, 32), mode=mode)[1]
    p = fp8_cast_ref(x, block=(1, 32), mode=mode, scale="ue8m0")[1].float()
    assert (p >= s).all()
    assert (p / 2 < s).all()
