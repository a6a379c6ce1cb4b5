"""The meaning of fused_matmul in float64, and the a-priori bound that every kernel must stay inside.

fused_matmul: y = act(x @ weight^T + bias) + residual

`activate` and `epilogue_bound` also serve int8_matmul, whose epilogue is the same.
"""

import math

import torch
from torch import Tensor

from deepseek_fast._activations import ACTIVATIONS

U = 2.0**-24  # unit roundoff of f32: the kernels multiply, add and activate in f32
F32_MAX = torch.finfo(torch.float32).max
F32_MIN_NORMAL = 2.0**-126  # smallest normal of f32 and of bf16; VDPBF16PS reads and writes less than this as zero
F32_MIN_SUBNORMAL = 2.0**-149
SIGNIFICANT_BITS = {torch.bfloat16: 8, torch.float16: 11}
MIN_SUBNORMAL = {torch.bfloat16: 2.0**-133, torch.float16: 2.0**-24}
SMOOTH = ("gelu", "gelu_tanh", "silu", "sigmoid", "tanh")  # the others have one exactly rounded chain of operations
RELATIVE_TO_Z = ("gelu", "gelu_tanh", "silu")
# Largest |derivative|, 1 of those that are not named: gelu 1.129, gelu_tanh 1.129, silu 1.100.
LIPSCHITZ = {"gelu": 1.13, "gelu_tanh": 1.13, "silu": 1.13, "hardswish": 1.5, "sigmoid": 0.25}
ACTIVATION_ERROR = 4 * U  # a kernel's own error in act(z), relative to |z| or to |act(z)|; hardswish rounds three times
SMOOTH_FLAT = -128.0  # below, an activation of RELATIVE_TO_Z is 0 to within SMOOTH_TAIL
SMOOTH_TAIL = 2.0**-100


def fused_matmul_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    residual: Tensor | None = None,
    gated: bool = False,
) -> Tensor:
    """y in float64, not rounded to x's dtype; a one-element residual is added to every output."""
    z = x.double() @ weight.double().T
    if bias is not None:
        z = z + bias.double()
    return epilogue(z, activation, residual, gated)


def epilogue(z: Tensor, activation: str, residual: Tensor | None, gated: bool) -> Tensor:
    """act(z) + residual, or act(the first half of z's columns) * the second half + residual, in z's dtype."""
    if not gated:
        return add_residual(activate(z, activation), residual)
    gate, up = z.chunk(2, -1) if z.shape[-1] else (z, z)
    return add_residual(activate(gate, activation) * up, residual)


def activate(z: Tensor, activation: str) -> Tensor:
    """act(z), in forms that lose nothing where the result is small; at -inf and inf the limits.

    relu6 and hardswish are computed as the kernels do: in f32 they have their bits.
    """
    if activation == "none":
        return z
    if activation == "relu":
        return torch.where(z < 0, 0.0, z)  # keeps NaN
    if activation == "relu6":
        return torch.where(z < 0, 0.0, torch.where(z > 6, 6.0, z))
    if activation == "hardswish":  # a tensor of 6, so that torch divides and does not multiply by 1/6
        return torch.where(z <= -3, 0.0, z) * ((z + 3).clamp(0, 6) / torch.full_like(z, 6))
    if activation == "sigmoid":
        return torch.sigmoid(z)
    if activation == "tanh":
        return torch.tanh(z)
    if activation == "gelu":
        share = 0.5 * torch.special.erfc(-z * math.sqrt(0.5))
    elif activation == "gelu_tanh":  # (1 + tanh(u)) / 2 = 1 / (1 + exp(-2u))
        share = torch.sigmoid(2 * math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))
    elif activation == "silu":
        share = torch.sigmoid(z)
    else:
        raise ValueError(f"activate: activation must be one of {', '.join(ACTIVATIONS)}; got {activation!r}")
    return torch.where(z == -math.inf, 0.0, z * share)


def add_residual(y: Tensor, residual: Tensor | None) -> Tensor:
    """y + residual; none counts as 0, which turns -0 into +0 as the kernels do."""
    if residual is None:
        return y + 0.0
    value = residual.to(y.dtype)
    return y + (value.reshape(()) if value.numel() == 1 else value)


def bound(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    residual: Tensor | None = None,
    gated: bool = False,
    tensor_cores: bool = False,
) -> Tensor:
    """Largest |kernel - fused_matmul_ref| per output, float64; inf where f32 sums may overflow on the way.

    tensor_cores: of a GPU.
    """
    z = x.double() @ weight.double().T
    if bias is not None:
        z = z + bias.double()
    error = matmul_bound(x, weight, tensor_cores=tensor_cores)
    rest = {"activation": activation, "residual": residual, "gated": gated}
    return epilogue_bound(z, error, x.dtype, bias=bias is not None, **rest)  # type: ignore[arg-type]


def tensor_core_roundings(K: int) -> int:
    """How many u of sum|x||w| a GPU's tensor cores may lose of a sum of K exact products.

    They align the b products of a step, 4 to 16, and the sum before them to the largest of them, cut each off below
    2 u of it, and the new sum too (Fasi, Higham, Mikaitis, Pranesh: Numerical behavior of NVIDIA tensor cores, 2021):
    (b + 2) 2u sum|x||w| a step, K / b + 1 steps, 3 K + 36 at most.
    """
    return 3 * K + 36


def matmul_bound(x: Tensor, weight: Tensor, *, tensor_cores: bool = False) -> Tensor:
    """Error of the sum of products, before the bias.

    A product meets its own rounding and at most K additions, one more factor covers the float64 reference itself:
    |err| <= gamma(K + 2) sum|x||w|, gamma(n) = n u / (1 - n u). A rounding in the subnormal range adds at most half a
    smallest subnormal. bf16 and f16 products are exact in f32, but VDPBF16PS reads a subnormal bf16 as zero (error of
    a product: 2^-126 times the other factor) and writes a subnormal sum as zero (2^-126 a step).
    BFDOT does the same and rounds to odd, which errs by up to 2 u; but it adds two products first, and the first such
    sum to zero, so that a product meets at most (K + 1) / 2 roundings: (1 + 2u)^((K + 1) / 2) <= 1 + gamma(K + 1).

    tensor_cores: `tensor_core_roundings`, and: a float32 is two parts of TF32, the large one rounded to 11 bits, the
    small one cut off to them: both lose 2^-21, and the small parts' product, 2^-22, is left out, 20 u. The sums of each
    tile of K, at least 16, are added once more: 4 K + 64 in all. A small part below 2^-126 may count as zero.
    """
    K = x.shape[-1]
    x_abs, weight_abs = x.double().abs(), weight.double().abs()
    magnitude = x_abs @ weight_abs.T
    roundings = tensor_core_roundings(K) + K + 28 if tensor_cores else K + 2
    error = roundings * U / (1 - roundings * U) * magnitude + K * F32_MIN_SUBNORMAL
    if x.dtype == torch.bfloat16 or tensor_cores:
        error = error + F32_MIN_NORMAL * (x_abs.sum(-1, keepdim=True) + weight_abs.sum(-1) + K)
    return torch.where(magnitude + error > F32_MAX, math.inf, error)


def epilogue_bound(
    z: Tensor,
    error: Tensor,
    dtype: torch.dtype,
    *,
    bias: bool,
    activation: str,
    residual: Tensor | None,
    gated: bool = False,
) -> Tensor:
    """Error of the output, from the exact z before the activation and the error of the sum without the bias."""
    if bias:  # one rounding of acc + bias
        error = error + U * (z.abs() + error)
    error = gated_bound(z, error, activation) if gated else activation_bound(z, error, activation)
    y = epilogue(z, activation, residual, gated)
    if residual is not None:  # one rounding of act + residual
        error = error + U * (y.abs() + error)
    if dtype != torch.float32:
        error = error + half_ulp(y.abs() + error, dtype)
    return error


def activation_bound(z: Tensor, error: Tensor, activation: str) -> Tensor:
    """Error of act(z), from that of z."""
    carried = LIPSCHITZ.get(activation, 1.0) * error
    if activation in RELATIVE_TO_Z:
        size = torch.where(z < SMOOTH_FLAT, 0.0, z.abs())
        return carried + ACTIVATION_ERROR * (size + error) + SMOOTH_TAIL
    if activation in SMOOTH or activation == "hardswish":
        return carried + ACTIVATION_ERROR * (activate(z, activation).abs() + carried) + SMOOTH_TAIL
    return carried


def gated_bound(z: Tensor, error: Tensor, activation: str) -> Tensor:
    """Error of act(gate) * up, from that of z: each factor's error times the other, and one rounding of the product."""
    (gate, up), (of_gate, of_up) = ((t.chunk(2, -1) if t.shape[-1] else (t, t)) for t in (z, error))
    of_gate, factor = activation_bound(gate, of_gate, activation), activate(gate, activation)
    carried = factor.abs() * of_up + (up.abs() + of_up) * of_gate
    total = carried + U * ((factor * up).abs() + carried) + F32_MIN_SUBNORMAL
    return torch.where(total.isnan(), math.inf, total)  # 0 times an error without bound


def half_ulp(magnitude: Tensor, dtype: torch.dtype) -> Tensor:
    """Half the distance between dtype's neighbours at a float64 magnitude: the error of rounding to nearest."""
    exponent = torch.frexp(magnitude).exponent.double()  # magnitude < 2^exponent
    half_ulp = torch.exp2(exponent - SIGNIFICANT_BITS[dtype] - 1).clamp_min(MIN_SUBNORMAL[dtype] / 2)
    return torch.where(magnitude.isfinite(), half_ulp, magnitude)
