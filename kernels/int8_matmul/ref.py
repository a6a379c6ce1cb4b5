"""The meaning of int8_matmul: exact integers and an exact float32 replay for "int8", float64 for "float".

int8_matmul: y = act(x @ (q * scale)^T + bias) + residual

What a reference returns says how it is compared: x's dtype means bit-equal, float64 means within `bound`.
"""

import torch
from torch import Tensor

from deepseek_fast.kernels.fused_matmul.ref import (
    F32_MIN_SUBNORMAL,
    SMOOTH,
    U,
    epilogue,
    epilogue_bound,
    matmul_bound,
)

Q_MAX = 127  # largest quantized magnitude
AMAX_MIN = 2.0**-100  # a row whose largest magnitude is below counts as zeros: 127 / amax must stay finite


def int8_quantize_weight_ref(w: Tensor) -> tuple[Tensor, Tensor]:
    """q (N, K) int8 and scale (N,) f32, bit for bit."""
    q, scale = quantize_rows(w)
    return q.to(torch.int8), scale


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows to integers in [-127, 127], held in f32, and their scales; each operation rounded to f32.

    A row with NaN or inf becomes zeros with scale NaN.
    """
    x = x.float()
    amax = x.abs().amax(-1) if x.shape[-1] else x.new_zeros(x.shape[:-1])
    q_max = torch.full_like(amax, Q_MAX)  # a tensor, so that torch divides and does not multiply by 1/127
    inverse = torch.where(amax < AMAX_MIN, 0.0, q_max / amax)
    q = torch.round(x * inverse.unsqueeze(-1))  # half to even
    finite = amax.isfinite()
    return torch.where(finite.unsqueeze(-1), q, 0.0), torch.where(finite, amax / q_max, torch.nan)


def int8_matmul_ref(
    x: Tensor,
    q: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    residual: Tensor | None = None,
    activations: str = "int8",
    gated: bool = False,
) -> Tensor:
    """y in x's dtype, bit for bit, where every step is exactly rounded ("int8", no smooth act); else float64."""
    z = preactivation(x, q, scale, bias, activations)
    exact = activations == "int8" and activation not in SMOOTH
    y = epilogue(z if exact else z.double(), activation, residual, gated)
    return y.to(x.dtype) if exact else y


def preactivation(x: Tensor, q: Tensor, scale: Tensor, bias: Tensor | None, activations: str) -> Tensor:
    """What the activation sees: f32 bit for bit for "int8", float64 for "float"."""
    if activations == "float":
        z = (x.double() @ q.double().T) * scale.double()
        return z if bias is None else z + bias.double()
    x_q, x_scale = quantize_rows(x)
    accumulator = x_q.double() @ q.double().T  # integers below 2^31: exact in any order
    z = (accumulator.float() * x_scale.unsqueeze(-1)) * scale
    return z + (0.0 if bias is None else bias.float())


def bound(
    x: Tensor,
    q: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    residual: Tensor | None = None,
    activations: str = "int8",
    gated: bool = False,
    tensor_cores: bool = False,
) -> Tensor:
    """Largest |kernel - int8_matmul_ref| per output, float64, where the reference is float64.

    "int8": z itself is exact, so only the epilogue errs. "float": the sum errs as in fused_matmul, is multiplied by
    the scale and rounded once more. tensor_cores: of a GPU, as there.
    """
    z = preactivation(x, q, scale, bias, activations).double()
    if activations == "int8":
        error, bias_rounds = torch.zeros_like(z), False
    else:
        product = (x.double() @ q.double().T).abs()
        error = (
            matmul_bound(x, q, tensor_cores=tensor_cores) * (1 + U) + U * product
        ) * scale.double().abs() + F32_MIN_SUBNORMAL
        bias_rounds = bias is not None
    rest = {"activation": activation, "residual": residual, "gated": gated}
    return epilogue_bound(z, error, x.dtype, bias=bias_rounds, **rest)  # type: ignore[arg-type]
