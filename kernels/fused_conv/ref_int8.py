"""The meaning of fused_conv_int8: exact integer sums, then the steps that cpu.h writes down, each one f32 operation.

A result has these bits, but of a curved activation: there the level's own function may differ from torch's by a few
units in the last place, which turns a tie the other way: `bound_int8` allows a step of 1.
"""

import math
from typing import Any

import torch
from torch import Tensor

from deepseek_fast.kernels.fused_conv.ref import DEFAULTS, activate, conv, pooled

CURVED = ("gelu", "gelu_tanh", "silu", "hardswish", "sigmoid", "tanh", "hardsigmoid")


def fused_conv_int8_ref(
    x: Tensor,
    weight: Tensor,
    x_scale: float,
    x_zero_point: int,
    weight_scale: Tensor,
    y_scale: float,
    y_zero_point: int,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    activation: str = "none",
    activation_params: Any = (),
    residual: Tensor | None = None,
    residual_scale: float = 1.0,
    residual_zero_point: int = 0,
    residual_at: str = "before",
    max_pool: Any = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """y of out_dtype, x's where that is None."""
    out_dtype = out_dtype or x.dtype
    of_x, of_y, of_residual = (f32(value) for value in (x_scale, y_scale, residual_scale))
    per_filter = (-1, *[1] * (weight.dim() - 2))
    # A tap outside x is x_zero_point: the padding of x - x_zero_point is 0. Integers below 2^53 are exact in float64.
    sums = conv(x.double() - x_zero_point, weight.double(), stride, padding, dilation, groups)
    if bias is not None:
        sums = sums + bias.double().reshape(per_filter)
    scale = weight_scale.float().reshape(per_filter if weight_scale.numel() > 1 else [1] * (weight.dim() - 1))
    z = sums.float() * (of_x * scale / of_y)
    added = None if residual is None else (residual.float() - residual_zero_point) * (of_residual / of_y)
    if added is not None and residual_at == "before":
        z = z + added
    z = activate_scaled(z, of_y, activation, activation_params)
    if added is not None and residual_at == "after":
        z = z + added
    limits = torch.iinfo(out_dtype)
    y = (z.round().double() + y_zero_point).clamp(limits.min, limits.max)
    return pooled(y, weight.dim() - 2, max_pool).to(out_dtype)


def f32(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float32)


def activate_scaled(z: Tensor, y_scale: Tensor, activation: str, activation_params: Any = ()) -> Tensor:
    """act of z * y_scale, over y_scale, in f32: of limits and slopes without the two, of curves with them."""
    if activation in CURVED:
        return activate((z * y_scale).double(), activation, activation_params).float() / y_scale
    if activation == "leaky_relu":
        (slope,) = activation_params or DEFAULTS["leaky_relu"]
        return torch.where(z < 0, f32(slope) * z, z)
    if activation == "none":
        return z
    smallest, largest = {"relu": (0.0, math.inf), "relu6": (0.0, 6.0), "clip": activation_params}[activation]
    return z.clamp_min(f32(smallest) / y_scale).clamp_max(f32(largest) / y_scale)


def bound_int8(**inputs: Any) -> Tensor:
    """0, or 1 step of y where the activation is curved."""
    y = fused_conv_int8_ref(**inputs)
    step = 1 if inputs.get("activation", "none") in CURVED else 0
    return torch.full(y.shape, step, dtype=torch.float64)
