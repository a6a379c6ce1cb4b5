"""The scales of fp8_cast: from the largest magnitude of a block to its scale and to what an element becomes.

Every operation is one float32 operation, rounded to nearest even, as the named source has it. A tensor is divided by a
tensor, because torch may multiply by the reciprocal of a number.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from deepseek_fast.kernels.fp8_cast.ref_formats import E2M1, E4M3, E4M3FNUZ, E8M0, FORMATS, decode, encode

TORCHAO_MX = ("torchao", "torchao_ceil", "torchao_even", "torchao_rceil")
MODES = ("deepgemm", "v3", "v32", "tilekernels", "vllm", "te", *TORCHAO_MX)
DIVIDES = ("v3", "v32", "vllm")  # x / s; the others multiply by a factor
PROPAGATES = ("deepgemm", *TORCHAO_MX)  # a NaN makes its block's largest magnitude NaN; the others take the rest's
FLOORS = {"v3": 1e-4, "v32": 1e-4, "deepgemm": 1e-4, "tilekernels": 1e-4, "vllm": 1e-10, "te": 0.0, "torchao": 1e-12}
TILEKERNELS_E2M1_FLOOR = 6 * 2.0**-126
VLLM_FNUZ_LARGEST = 224.0  # what vLLM takes for 240 on AMD's GPUs
NAN_BYTE = 255
POWERS = torch.tensor([2.0 ** (byte - 127) for byte in range(255)] + [math.nan])  # float32; what an e8m0 byte means


class Scaled(NamedTuple):
    """What a block's largest magnitude becomes: a scale, and a factor or a divisor; one value a block each."""

    scale: Tensor  # float32, or e8m0 and e4m3 as uint8
    factor: Tensor | None = None  # an element v becomes encode(v * factor)
    divisor: Tensor | None = None  # encode(v / divisor)


def amax_of(x: Tensor, block: tuple[int, int], propagate: bool = True) -> Tensor:
    """Largest |x| of each block of x (M, K), float32; 0 of a block with nothing in it.

    NaN where a value of the block is NaN, or, without `propagate`, the largest of the others.
    """
    size = x.float().abs()
    parts = parts_of(x, block)
    index = block_index(x, block)
    largest = torch.zeros(parts[0] * parts[1]).scatter_reduce(
        0, index, size.nan_to_num(0.0, math.inf).flatten(), "amax"
    )
    any_nan = torch.zeros(parts[0] * parts[1]).scatter_reduce(0, index, size.isnan().float().flatten(), "amax") > 0
    return torch.where(any_nan & propagate, math.nan, largest).reshape(parts)


def parts_of(x: Tensor, block: tuple[int, int]) -> tuple[int, int]:
    """How many blocks of rows and of columns; -1 is one in all, even of nothing."""
    rows, columns = (1 if part < 0 else -(-size // part) for size, part in zip(x.shape, block, strict=True))
    return rows, columns


def block_index(x: Tensor, block: tuple[int, int]) -> Tensor:
    """The flat number of the block that each element of x lies in, (M * K,)."""
    row, column = (
        torch.zeros(size, dtype=torch.int64) if part < 0 else torch.arange(size) // part
        for size, part in zip(x.shape, block, strict=True)
    )
    return (row.unsqueeze(1) * parts_of(x, block)[1] + column).flatten()


def largest_of(mode: str, dtype: torch.dtype) -> float:
    return VLLM_FNUZ_LARGEST if mode == "vllm" and dtype == E4M3FNUZ else FORMATS[dtype].largest


def scale_blocks(
    amax: Tensor,
    mode: str,
    kind: str,
    dtype: torch.dtype,
    *,
    block: tuple[int, int],
    x_dtype: torch.dtype = torch.float32,
    tensor_scale: Tensor | None = None,
) -> Scaled:
    """A block's scale and what multiplies or divides its elements. kind: "f32", "ue8m0" or "e4m3"."""
    largest = torch.full_like(amax, largest_of(mode, dtype))
    if kind == "e4m3":
        return _nvfp4(amax, tensor_scale)
    if kind == "ue8m0" and mode in TORCHAO_MX:
        return power_of_two(_torchao_byte(amax, mode, dtype))
    if mode == "te":
        if kind == "ue8m0" and block in ((1, 32), (32, 1)):
            return power_of_two(_te_mx_byte(amax * (1 / largest)))
        return _te(amax, largest, kind, x_dtype)
    amax = floored(amax, TILEKERNELS_E2M1_FLOOR if (mode, dtype) == ("tilekernels", E2M1) else FLOORS[mode])
    if mode == "torchao":  # torchao/float8/float8_utils.py amax_to_scale
        factor = largest / amax
        return Scaled(1 / factor, factor=factor)
    scale = amax * (1 / largest) if mode == "v32" else amax / largest
    if kind == "ue8m0":
        if mode == "tilekernels":  # tile_kernels/quant/common.py get_sf_and_inv
            return power_of_two((((bits_of(scale) - 1) >> 23) + 1).clamp_max(254))
        return power_of_two((field(scale) + (mantissa(scale) != 0)).clamp(1, 254))  # DeepGEMM's ceil_to_ue8m0
    if mode == "tilekernels":
        return Scaled(scale, factor=largest / amax)
    return Scaled(scale, divisor=scale) if mode in DIVIDES else Scaled(scale, factor=1 / scale)


def given_scale(scale: Tensor, mode: str) -> Scaled:
    """A scale of the caller's, float32 or e8m0."""
    value = scale_value(scale)
    return Scaled(scale, divisor=value) if mode in DIVIDES else Scaled(scale, factor=1 / value)


def floored(amax: Tensor, floor: float) -> Tensor:
    """`floor` where amax is below it; NaN stays."""
    least = torch.full_like(amax, floor)
    return torch.where(amax < least, least, amax)


def _te(amax: Tensor, largest: Tensor, kind: str, x_dtype: torch.dtype) -> Scaled:
    """TransformerEngine's transformer_engine/common/recipe/recipe_common.cuh compute_scale_from_amax."""
    most = torch.finfo(torch.bfloat16 if x_dtype == torch.bfloat16 else torch.float32).max
    factor = largest / amax
    factor = torch.where(factor.isinf(), most, factor)
    factor = torch.where((amax == 0) | ~amax.isfinite(), 1.0, factor)
    if kind == "ue8m0":
        factor = (bits_of(factor) & 0x7F800000).to(torch.int32).view(torch.float32)
        return Scaled((254 - field(factor)).clamp(0, 254).to(torch.uint8), factor=factor)
    return Scaled(1 / factor, factor=factor)


def _te_mx_byte(scale: Tensor) -> Tensor:
    """TransformerEngine's transformer_engine/common/util/ptx_arch_spec.cuh float_to_e8m0."""
    up = (mantissa(scale) > 0) & (field(scale) != 254) & ~((field(scale) == 0) & (mantissa(scale) <= 0x400000))
    byte = torch.where(scale == 0, 0, field(scale) + up)
    return torch.where(scale.isnan(), NAN_BYTE, torch.where(scale.isinf(), 254, byte))


def _torchao_byte(amax: Tensor, mode: str, dtype: torch.dtype) -> Tensor:
    """torchao/prototype/mx_formats/mx_tensor.py to_mx."""
    form = FORMATS[dtype]
    if mode == "torchao_rceil":
        scale = amax * (1 / torch.full_like(amax, form.largest))
        up = torch.where(field(scale) == 0, mantissa(scale) > 0x400000, mantissa(scale) != 0)
        return torch.where(scale.isfinite(), field(scale) + up, NAN_BYTE)
    if mode == "torchao_even":
        rounded = (bits_of(amax) + (1 << (23 - form.mantissa_bits - 1))) & 0x7F800000
        amax = torch.where(amax.isnan(), amax, rounded.to(torch.int32).view(torch.float32))
    exponent = field(amax) - 127 - int(math.log2(form.largest))
    if mode == "torchao_ceil":
        exponent = exponent + (mantissa(amax) != 0)
    return torch.where(amax.isfinite(), exponent.clamp(-127, 128) + 127, NAN_BYTE)


def _nvfp4(amax: Tensor, tensor_scale: Tensor | None) -> Scaled:
    """torchao/prototype/mx_formats/nvfp4_tensor.py nvfp4_quantize; its scales are e4m3fn."""
    wanted, one = amax / torch.full_like(amax, 6), torch.ones_like(amax)
    if tensor_scale is not None:
        wanted, one = wanted / tensor_scale, one / tensor_scale
    scale = encode(wanted.clamp(FORMATS[E4M3].smallest_normal, 448), E4M3)  # clamp keeps NaN
    return Scaled(scale, factor=one / decode(scale, E4M3))


def power_of_two(byte: Tensor) -> Scaled:
    """The scale 2^(byte - 127) and its reciprocal as a factor; byte 255 makes NaN of every element."""
    return Scaled(byte.to(torch.uint8), factor=POWERS[torch.where(byte == NAN_BYTE, byte, 254 - byte).long()])


def scale_value(scale: Tensor) -> Tensor:
    """A scale's float32 values."""
    if scale.dtype == E8M0:
        return POWERS[scale.contiguous().view(torch.uint8).long()]
    return decode(scale.contiguous().view(torch.uint8), E4M3) if scale.dtype == E4M3 else scale


def bits_of(value: Tensor) -> Tensor:
    """A float32's bits without its sign, int64."""
    return value.contiguous().view(torch.int32).long() & 0x7FFFFFFF


def field(value: Tensor) -> Tensor:
    """The exponent field of a float32, 0 to 255."""
    return bits_of(value) >> 23


def mantissa(value: Tensor) -> Tensor:
    return bits_of(value) & 0x7FFFFF
