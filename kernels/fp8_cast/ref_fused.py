"""Casts of an activation: its value in float64 with a derived bound, and which codes and scales that bound admits.

v is not bit-exact, because exp and sums are not; what follows from v is. So a kernel's scale must lie between those of
the smallest and the largest amax that the bound allows, and its code between those of the smallest and largest v.
"""

import math
from typing import Any

import torch
from torch import Tensor

from deepseek_fast.kernels.fp8_cast.ref import as_rows, keeps_subnormals, scale_values
from deepseek_fast.kernels.fp8_cast.ref_formats import E2M1, E4M3, decode, encode, random_bits, unpack
from deepseek_fast.kernels.fp8_cast.ref_modes import (
    PROPAGATES,
    Scaled,
    amax_of,
    given_scale,
    parts_of,
    scale_blocks,
    scale_value,
)
from deepseek_fast.kernels.fused_matmul.ref import F32_MIN_SUBNORMAL, U, epilogue, epilogue_bound


def silu_mul_ref(x: Tensor) -> tuple[Tensor, Tensor]:
    """silu(the first half of x's columns) * the second half, and the largest error of a kernel: both float64."""
    z, exact = x.double(), torch.zeros_like(x, dtype=torch.float64)
    options: dict[str, Any] = {"activation": "silu", "residual": None, "gated": True}
    return epilogue(z, **options), epilogue_bound(z, exact, torch.float32, bias=False, **options)


def rms_norm_ref(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x / sqrt(mean(x^2) + eps) * weight, and the largest error of a kernel: both float64.

    With u = 2^-24 and gamma(n) = n u / (1 - n u): a square meets its own rounding and at most K - 1 additions, the mean
    one more (two where it multiplies by 1 / K), eps itself and its addition one each: the radicand errs by gamma(K + 4)
    of itself, nothing in it being negative, and by K / 2 smallest subnormals where squares are subnormal. The root
    halves that; root, reciprocal and two products round four times, and 1 / sqrt in one instruction that is off by up
    to 2 u is within the last two of gamma(K / 2 + 8).
    """
    K = x.shape[-1]
    z, factor = x.double(), weight.double()
    radicand = z.square().mean(-1, keepdim=True) + eps
    v = z / radicand.sqrt() * factor
    relative = (K / 2 + 8) * U / (1 - (K / 2 + 8) * U) + K * F32_MIN_SUBNORMAL / radicand
    return v, relative * v.abs() + F32_MIN_SUBNORMAL * (1 + factor.abs())


def silu_mul_cast_admits(codes: Tensor, scale: Tensor, x: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """Which codes and which scales of a silu_mul_cast(x, **options) are right."""
    return admissible(codes, scale, *silu_mul_ref(x), **options)


def rms_norm_cast_admits(
    codes: Tensor, scale: Tensor, x: Tensor, weight: Tensor, eps: float = 1e-6, **options: Any
) -> tuple[Tensor, Tensor]:
    """Which codes and which scales of an rms_norm_cast(x, weight, eps, **options) are right."""
    return admissible(codes, scale, *rms_norm_ref(x, weight, eps), **options)


@keeps_subnormals
def admissible(
    codes: Tensor,
    scale: Tensor,
    v: Tensor,
    error: Tensor,
    *,
    block: tuple[int, int] | None = (1, 128),
    dtype: torch.dtype = E4M3,
    kind: str | Tensor = "f32",
    mode: str = "deepgemm",
    saturate: bool = True,
    tensor_scale: Tensor | None = None,
    rounding: str = "nearest",
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """For each code and each scale whether some float32 within `error` of v makes it. kind: the op's argument `scale`.

    Needs finite bounds and scales above zero; a scale of layout "row".
    """
    low, high = (as_rows(_outwards(v + sign * error, sign)) for sign in (-1, 1))
    least, most = torch.where(low.sign() == high.sign(), torch.minimum(low.abs(), high.abs()), 0.0), _larger(low, high)
    parts = parts_of(v := as_rows(v), block or (-1, -1))

    def scaled(size: Tensor) -> Scaled:
        if block is None:
            return Scaled(torch.ones(1, 1), factor=torch.ones(1, 1))
        if isinstance(kind, Tensor):
            return given_scale(kind.reshape(parts), mode)
        amax = amax_of(size, block, propagate=mode in PROPAGATES)
        return scale_blocks(amax, mode, kind, dtype, block=block, tensor_scale=tensor_scale)

    smallest, largest = scaled(least), scaled(most)  # the scales; the factors are the other way round
    value = scale_value(scale).reshape(parts)
    bounds = [scale_value(_typed(each.scale, scale)).reshape(parts) for each in (smallest, largest)]
    right_scale = ((bounds[0] <= value) & (value <= bounds[1])) | (value.isnan() & bounds[1].isnan())

    def number(values: Tensor, by: Scaled) -> Tensor:
        code = encode(
            scale_values(values, by, block or (-1, -1)),
            dtype,
            saturate=saturate,
            ties="down" if (dtype, mode) == (E2M1, "deepgemm") else "even",
            bits=random_bits(*values.shape, seed) if rounding == "stochastic" else None,
        )
        return decode(code, dtype)

    below = torch.where(low < 0, number(low, smallest), number(low, largest))
    above = torch.where(high < 0, number(high, largest), number(high, smallest))
    got = as_rows(decode(unpack(codes), dtype))
    right = ((below <= got) & (got <= above)) | (got.isnan() & (v.isnan() | above.isnan() | below.isnan()))
    return right, right_scale


def _larger(low: Tensor, high: Tensor) -> Tensor:
    return torch.maximum(low.abs(), high.abs())


def _outwards(value: Tensor, sign: int) -> Tensor:
    """A float32 not inside the bound."""
    return torch.nextafter(value.float(), torch.tensor(sign * math.inf))


def _typed(scale: Tensor, like: Tensor) -> Tensor:
    return scale.view(like.dtype) if scale.dtype == torch.uint8 else scale
