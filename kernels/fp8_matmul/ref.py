"""The meaning of fp8_matmul: float64 sums over FP8 numbers and scales that are replayed bit for bit.

fp8_matmul: y = act(x @ (weight * scale)^T + bias) + residual

The cast of x (activations="fp8"), the product of two scales and the quantizer are exactly rounded float32 operations in
a fixed order, so they are replayed; only sums are compared within `bound`.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from deepseek_fast.kernels.fused_matmul.ref import (
    F32_MAX,
    F32_MIN_NORMAL,
    F32_MIN_SUBNORMAL,
    U,
    epilogue,
    epilogue_bound,
)

STEP = 128  # most values of k that one sum takes before it is scaled, and values per scale of a cast x
AMAX_MIN = 1e-4  # DeepGEMM's floor of a block's largest magnitude: a block of zeros has a scale above zero
LARGEST = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}


class Step(NamedTuple):
    """One step of k: z += (x @ weight^T) * factor."""

    x: Tensor  # (M, k) float64
    weight: Tensor  # (N, k) float64
    factor: Tensor  # (1, N) or (M, N), exact in float64


def fp8_matmul_ref(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    block: tuple[int, int] = (128, 128),
    activation: str = "none",
    residual: Tensor | None = None,
    activations: str = "float",
    gated: bool = False,
) -> Tensor:
    """y in float64, not rounded to x's dtype."""
    z = _z(steps_of(x, weight, scale, block, activations), x, weight, bias)
    return epilogue(z, activation, residual, gated)


def bound(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    block: tuple[int, int] = (128, 128),
    activation: str = "none",
    residual: Tensor | None = None,
    activations: str = "float",
    gated: bool = False,
    tensor_cores: bool = False,
) -> Tensor:
    """Largest |kernel - fp8_matmul_ref| per output, float64; inf where f32 sums may overflow on the way.

    tensor_cores: of a kernel on a GPU.
    """
    steps = list(steps_of(x, weight, scale, block, activations))
    z = _z(steps, x, weight, bias)
    flushes = x.dtype == torch.bfloat16 and activations == "float"
    error = _sum_bound(steps, flushes, z)
    if tensor_cores:
        error = error + tensor_core_bound(steps, fp8=activations == "fp8").reshape(error.shape)
    rest = {"activation": activation, "residual": residual, "gated": gated}
    return epilogue_bound(z, error, x.dtype, bias=bias is not None, **rest)  # type: ignore[arg-type]


def fp8_quantize_weight_ref(
    w: Tensor, *, block: tuple[int, int] = (128, 128), dtype: torch.dtype = torch.float8_e4m3fn
) -> tuple[Tensor, Tensor]:
    """(weight, scale), bit for bit, of a finite w."""
    values = w.float()
    N, K = w.shape
    rows, columns = _parts(N, block[0]), _parts(K, block[1])
    block_n, block_k = (N if block[0] < 0 else block[0]), (K if block[1] < 0 else block[1])
    amax = torch.zeros(rows, columns)
    for row in range(rows):
        for column in range(columns):
            part = values[row * block_n : (row + 1) * block_n, column * block_k : (column + 1) * block_k]
            if part.numel():
                amax[row, column] = part.abs().max()
    scale, inverse = _scale_of(amax, LARGEST[dtype])
    return _to_fp8(values * expand_scale(inverse, block, N, K), dtype), scale


def cast_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x in blocks of 1 x 128 as DeepGEMM casts it: x_q (M, K) e4m3fn and x_scale (M, ceil(K / 128)) f32."""
    M, K = x.shape
    values = torch.nn.functional.pad(x.float(), (0, -K % STEP)).reshape(M, -(-K // STEP), STEP)
    scale, inverse = _scale_of(values.abs().amax(-1), LARGEST[torch.float8_e4m3fn])
    codes = _to_fp8(values * inverse.unsqueeze(-1), torch.float8_e4m3fn)
    return codes.flatten(1)[:, :K], scale


def expand_scale(scale: Tensor, block: tuple[int, int], N: int, K: int) -> Tensor:
    """One scale a value: (N, K)."""
    n, k = (_block_of(size, part) for size, part in zip((N, K), block, strict=True))
    return scale.float()[n][:, k]


def scaled_mm_steps(
    x: Tensor, x_scale: Tensor, weight: Tensor, scale: Tensor, x_block: tuple[int, int], block: tuple[int, int]
) -> Iterator[Step]:
    """Steps of a product of codes with codes; x_scale and scale have one value a block."""
    (M, K), N = x.shape, weight.shape[0]
    size = STEP if block[1] < 0 else math.gcd(block[1], STEP)
    x_scales, scales = expand_scale(x_scale, x_block, M, K), expand_scale(scale, block, N, K)
    for k in range(0, K, size):
        part = slice(k, k + size)
        factor = x_scales[:, k : k + 1] * scales[:, k]  # in f32: the kernels multiply the scales first
        yield Step(_exact(x[:, part]), _exact(weight[:, part]), factor.double())


def steps_of(x: Tensor, weight: Tensor, scale: Tensor, block: tuple[int, int], activations: str) -> Iterator[Step]:
    rows = x.reshape(x.shape[:-1].numel(), x.shape[-1])
    if activations == "fp8":
        codes, x_scale = cast_rows(rows)
        yield from scaled_mm_steps(codes, x_scale, weight, scale, (1, STEP), block)
        return
    N, K = weight.shape
    size = STEP if block[1] < 0 else math.gcd(block[1], STEP)
    scales = expand_scale(scale, block, N, K).double()
    for k in range(0, K, size):
        part = slice(k, k + size)
        yield Step(rows[:, part].double(), _exact(weight[:, part]), scales[None, :, k])


def _z(steps: Iterator[Step] | list[Step], x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    z = torch.zeros(x.shape[:-1].numel(), weight.shape[0], dtype=torch.float64)
    for step in steps:
        z = z + (step.x @ step.weight.T) * step.factor
    z = z.reshape(*x.shape[:-1], weight.shape[0])
    return z if bias is None else z + bias.double()


def _sum_bound(steps: list[Step], flushes: bool, like: Tensor) -> Tensor:
    """Error of z, before the bias. u = 2^-24, gamma(n) = n u / (1 - n u), S values of k in each of B steps.

    Sum of a step: a product meets its own rounding and at most S additions, one more factor covers the float64
    reference: e <= gamma(S + 2) a, with a = sum |x||w|. A rounding in the subnormal range adds at most half a smallest
    subnormal. Where VDPBF16PS takes x as it is (`flushes`), it reads a subnormal x as zero (2^-126 times the weight a
    product) and writes a subnormal sum as zero (2^-126 a step); weights are never subnormal, nor is a cast x, nor any
    sum of their products. BFDOT stays inside, see fused_matmul.
    Scaling: acc * factor meets one rounding of its own (none with FMA) and at most B additions, one more for the
    reference: sum_b e factor + gamma(B + 2) sum_b (a + e) factor, and two roundings in the subnormal range a step.
    """
    shape = like.shape[:-1].numel(), like.shape[-1]
    error, magnitude = (torch.zeros(shape, dtype=torch.float64, device=like.device) for _ in range(2))
    for step in steps:
        size = step.x.shape[1]
        weight = step.weight.abs()
        a = step.x.abs() @ weight.T
        e = _gamma(size + 2) * a + size * F32_MIN_SUBNORMAL
        if flushes:
            e = e + F32_MIN_NORMAL * (weight.sum(-1) + size)
        e = torch.where(a + e > F32_MAX, math.inf, e)
        error = error + e * step.factor
        magnitude = magnitude + (a + e) * step.factor
    error = error + _gamma(len(steps) + 2) * magnitude + len(steps) * F32_MIN_SUBNORMAL
    return torch.where(magnitude + error > F32_MAX, math.inf, error).reshape(like.shape)


def tensor_core_bound(steps: list[Step], *, fp8: bool) -> Tensor:
    """What a GPU's tensor cores may err by beyond `_sum_bound`: (M, N) float64.

    An instruction shifts its addends, `products` of them and the sum before, to the exponent of the largest and cuts
    off the bits beyond the last that it keeps: an error of less than 2^-bits of the largest, which is at most
    a = sum |x||w|, by each addend. FP8 on compute capability 8.9 and 9.0: 32 products, 13 bits (DeepSeek-V3 report,
    3.3.2, which is why a step's sum ends after 128); bfloat16 and float16: 16 products, 23 bits. 2 % for what the
    errors themselves add to a.
    """
    products, bits = (32, 13) if fp8 else (16, 23)
    error = torch.zeros(())
    for step in steps:
        instructions = -(-step.x.shape[1] // products)
        a = step.x.abs() @ step.weight.abs().T
        error = error + instructions * (products + 1) * 1.02 * 2.0**-bits * a * step.factor
    return error


def _gamma(n: int) -> float:
    return n * U / (1 - n * U)


def _scale_of(amax: Tensor, largest: float) -> tuple[Tensor, Tensor]:
    """(scale, 1 / scale) in f32. Tensors, so that torch divides and does not multiply by a reciprocal."""
    scale = amax.clamp_min(AMAX_MIN) / torch.full_like(amax, largest)
    return scale, torch.ones_like(scale) / scale


def _to_fp8(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Round half to even; clamped before, because what torch makes of values that are too large differs by version."""
    return value.clamp(-LARGEST[dtype], LARGEST[dtype]).to(dtype)  # clamp keeps NaN


def _exact(codes: Tensor) -> Tensor:
    return codes.float().double()


def _parts(size: int, block: int) -> int:
    return 1 if block < 0 else -(-size // block)


def _block_of(size: int, block: int) -> Tensor:
    """The block that each place of a dimension lies in."""
    return torch.zeros(size, dtype=torch.int64) if block < 0 else torch.arange(size) // block
