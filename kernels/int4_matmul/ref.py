"""The meaning of int4_matmul: an exact float32 replay for compute="int8", float64 for "float".

int4_matmul: y = act(x @ ((q - zeros) * scale)^T + bias) + residual, a scale and a zero point per row and group of k

What a reference returns says how it is compared: x's dtype means bit-equal, float64 means within `bound`.
"""

import torch
from torch import Tensor

from deepseek_fast.kernels.fused_matmul.ref import (
    F32_MAX,
    F32_MIN_NORMAL,
    F32_MIN_SUBNORMAL,
    SMOOTH,
    U,
    epilogue,
    epilogue_bound,
    matmul_bound,
    tensor_core_roundings,
)
from deepseek_fast.kernels.int8_matmul.ref import quantize_rows

NO_ZERO_POINT = 8  # the zero point of a weight without any
MAX_CODE = 15
WHOLE_ROW_BLOCK = 128  # values of k that are summed at a time where one scale serves the whole row
MIN_RANGE = 2.0**-100  # a group whose values span less counts as zeros


def unpack(q: Tensor, in_features: int = -1) -> Tensor:
    """(N, ceil(K / 2)) bytes -> (N, K) codes, the low nibble first."""
    codes = torch.stack([q & 15, q >> 4], dim=-1).flatten(1)
    return codes if in_features < 0 else codes[:, :in_features]


def pack(codes: Tensor) -> Tensor:
    """(N, K) codes -> (N, ceil(K / 2)) bytes; the last high nibble is 0 where K is odd."""
    codes = torch.nn.functional.pad(codes.to(torch.uint8), (0, codes.shape[1] % 2))
    return codes[:, ::2] | codes[:, 1::2] << 4


def num_groups(K: int, group_size: int) -> int:
    return 1 if group_size < 0 else -(-K // group_size)


def int4_quantize_weight_ref(w: Tensor, *, group_size: int = 32, symmetric: bool = True) -> tuple[Tensor, ...]:
    """q, scale and, where not symmetric, zeros, bit for bit; each operation rounded to f32 unless it says double."""
    w = w.float()
    N, K = w.shape
    size = K if group_size < 0 else group_size
    codes = torch.full((N, K), NO_ZERO_POINT, dtype=torch.uint8)
    scale = torch.ones(N, num_groups(K, group_size))
    zeros = torch.full(scale.shape, NO_ZERO_POINT, dtype=torch.uint8)
    for group in range(scale.shape[1]):
        part = w[:, group * size : (group + 1) * size]
        if part.numel() == 0:
            continue
        if symmetric:
            most = part.gather(1, part.abs().argmax(1, keepdim=True))[:, 0]
            is_zero = most.abs() < MIN_RANGE
            step, inverse = most / -8, torch.full_like(most, -8) / most
            zero = torch.full_like(most, NO_ZERO_POINT)
        else:
            low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
            extent = high.double() - low.double()
            is_zero = extent < MIN_RANGE
            step = (extent / MAX_CODE).float()
            inverse = torch.ones_like(step) / step
            zero = torch.round(-low * inverse)
        code = torch.round(part * inverse[:, None]) + zero[:, None]
        codes[:, group * size : (group + 1) * size] = torch.where(
            is_zero[:, None], NO_ZERO_POINT, code.clamp(0, MAX_CODE)
        ).to(torch.uint8)
        scale[:, group] = torch.where(is_zero, 1.0, step)
        zeros[:, group] = torch.where(is_zero, NO_ZERO_POINT, zero).to(torch.uint8)
    return (pack(codes), scale) if symmetric else (pack(codes), scale, zeros)


def blocks_of(
    q: Tensor, scale: Tensor, zeros: Tensor | None, group_size: int, in_features: int
) -> list[tuple[slice, Tensor, Tensor]]:
    """The blocks of k in the order of the sums: its k, q - zero (N, block) and its scale (N,), exact in float64."""
    codes = unpack(q, in_features).double()
    K = codes.shape[1]
    if zeros is None:
        zeros = torch.full(scale.shape, NO_ZERO_POINT, dtype=torch.uint8)
    size = WHOLE_ROW_BLOCK if group_size < 0 else group_size
    blocks = []
    for begin in range(0, K, size):
        group = 0 if group_size < 0 else begin // size
        k = slice(begin, min(begin + size, K))
        blocks.append((k, codes[:, k] - zeros[:, group, None].double(), scale[:, group].double()))
    return blocks


def int4_matmul_ref(
    x: Tensor,
    q: Tensor,
    scale: Tensor,
    zeros: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    group_size: int = 32,
    in_features: int = -1,
    activation: str = "none",
    residual: Tensor | None = None,
    compute: str = "int8",
    gated: bool = False,
) -> Tensor:
    """y in x's dtype, bit for bit, where every step is exactly rounded ("int8", no smooth act); else float64."""
    z = preactivation(x, blocks_of(q, scale, zeros, group_size, in_features), bias, compute, q.shape[0])
    exact = compute == "int8" and activation not in SMOOTH
    y = epilogue(z if exact else z.double(), activation, residual, gated)
    return y.to(x.dtype) if exact else y


def preactivation(
    x: Tensor, blocks: list[tuple[slice, Tensor, Tensor]], bias: Tensor | None, compute: str, N: int
) -> Tensor:
    """What the activation sees: f32 bit for bit for "int8", float64 for "float"."""
    dtype = torch.float32 if compute == "int8" else torch.float64
    z = torch.zeros(*x.shape[:-1], N, dtype=dtype)
    for k, weight, scale in blocks:
        if compute == "int8":
            x_q, x_scale = quantize_rows(x[..., k])
            accumulator = x_q.double() @ weight.T  # integers below 2^18: exact in any order
            z = z + (accumulator.float() * x_scale.unsqueeze(-1)) * scale.float()
        else:
            z = z + (x[..., k].double() @ weight.T) * scale
    return z + (0.0 if bias is None else bias.to(dtype))


def bound(
    x: Tensor,
    q: Tensor,
    scale: Tensor,
    zeros: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    group_size: int = 32,
    in_features: int = -1,
    activation: str = "none",
    residual: Tensor | None = None,
    compute: str = "int8",
    gated: bool = False,
    tensor_cores: bool = False,
) -> Tensor:
    """Largest |kernel - int4_matmul_ref| per output, float64, where the reference is float64. tensor_cores: of a GPU.

    "int8": z itself is exact, so only the epilogue errs. "float": a block's sum errs as in fused_matmul and is
    multiplied by its scale; the product and the sum so far meet at most two roundings in each of B blocks, one more
    factor covers the float64 reference itself: gamma(B + 2) of sum |acc| |scale|.
    """
    blocks = blocks_of(q, scale, zeros, group_size, in_features)
    z = preactivation(x, blocks, bias, compute, q.shape[0]).double()
    error = torch.zeros_like(z)
    if compute == "float":
        magnitude = torch.zeros_like(z)
        for k, weight, step in blocks:
            bound_of = tensor_core_bound if tensor_cores else matmul_bound
            of_sum = bound_of(x[..., k], weight.to(x.dtype))
            size = (x[..., k].double() @ weight.T).abs() + of_sum
            error = error + _times(of_sum, step.abs()) + 2 * F32_MIN_SUBNORMAL
            magnitude = magnitude + _times(size, step.abs())
        roundings = (len(blocks) + 2) * U
        error = error + roundings / (1 - roundings) * magnitude
        error = torch.where(magnitude + error > F32_MAX, torch.inf, error)
    bias_rounds = compute == "float" and bias is not None
    rest = {"activation": activation, "residual": residual, "gated": gated}
    return epilogue_bound(z, error, x.dtype, bias=bias_rounds, **rest)  # type: ignore[arg-type]


def tensor_core_bound(x: Tensor, weight: Tensor) -> Tensor:
    """Error of a block's sum of products on a GPU's tensor cores.

    A float32 x is the exact sum of three bfloat16: three times the steps. What is below the smallest normal number may
    count as zero.
    """
    K = x.shape[-1]
    x_abs, weight_abs = x.double().abs(), weight.double().abs()
    magnitude = x_abs @ weight_abs.T
    roundings = tensor_core_roundings(K) * (3 if x.dtype == torch.float32 else 1)
    error = roundings * U / (1 - roundings * U) * magnitude
    error = error + F32_MIN_NORMAL * (x_abs.sum(-1, keepdim=True) + weight_abs.sum(-1) + K)
    return torch.where(magnitude + error > F32_MAX, torch.inf, error)


def _times(size: Tensor, factor: Tensor) -> Tensor:
    """size * factor, infinite where size is: an overflow times 0 is NaN in a kernel."""
    return torch.where(size.isinf(), size, size * factor)
