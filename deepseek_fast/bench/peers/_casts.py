"""The casts as one writes them in plain torch: what torch runs eagerly, and what torch.compile fuses.

Each function here takes the op's keyword arguments and gives a Formula: the same work as a function of one tensor.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek_fast.bench.peers import Peer, Unsupported

AMAX_MIN = 1e-4  # DeepGEMM's floor of a block's largest magnitude
E2M1_MAX = 6.0
E4M3_MIN, E4M3_MAX = 2.0**-6, 448.0  # the normal numbers: NVFP4 scales stay among them
MX_EXPONENTS = (1, 254)  # of a ue8m0 scale, biased, as DeepGEMM clamps them
# What the formulas do not vary.
PLAIN = {"out_layout": "row", "rounding": "nearest", "saturate": True}
Blocks = tuple[int, int, int, int]
Exponents = Callable[[Tensor, torch.dtype], Tensor]
# (tolerance, reason) of a peer
EXACT = (0.0, "the same operations in the same order: every bit")
BETWEEN = (1e-3, "the product is rounded to f32 before it is rounded to the output: a tie may fall the other way")
# A value just beside a tie takes the next code, a step of 2^-3 of it: one code in a thousand is 4e-3 of the norm.
OTHER_SCALE = (1e-2, "x meets one more or one less rounding than ours before the cast: some codes are the next ones")
# Half an ULP of bf16 against a step of e4m3: 2^-9 / 2^-4 of the codes are the next ones; their scales differ by 2^-9.
BF16_BETWEEN = (3e-2, "the product is rounded to bf16 before it is cast: a few codes in a hundred are the next ones")


def _as_it_is(answer: Any) -> Any:
    return answer


@dataclass(frozen=True)
class Formula:
    """answer(function(x)) is what the op gives, or the first tensors of it."""

    function: Callable[[Tensor], Any]
    x: Tensor
    tolerance: tuple[float, str] = EXACT
    answer: Callable[[Any], Any] = _as_it_is

    def peer(self, call: Callable[[], Any]) -> Peer:
        """The peer whose call does the work of function(x)."""
        return Peer(call, *self.tolerance, self.answer)


def fp8_dequantize(inputs: dict[str, Any]) -> Formula:
    codes, scale, dtype = inputs["codes"], inputs.get("scale"), inputs.get("dtype", torch.float32)
    if inputs.get("tensor_scale") is not None or codes.dtype == torch.float4_e2m1fn_x2:
        raise Unsupported("torch has no operation on FP4 codes")
    if scale is None:
        return Formula(lambda codes: codes.to(dtype), codes)
    blocks = shape_of_blocks(codes, inputs.get("block", (1, 128)))
    factor = scale.float().reshape(blocks[0], 1, blocks[2], 1)

    def dequantize(codes: Tensor) -> Tensor:
        return (codes.reshape(blocks).float() * factor).to(dtype).reshape(codes.shape)

    return Formula(dequantize, codes, EXACT if dtype == torch.float32 else BETWEEN)


def int8_cast(inputs: dict[str, Any]) -> Formula:
    def cast(x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.float()
        amax = x.abs().amax(-1, keepdim=True)
        largest = torch.full_like(amax, 127.0)  # a tensor, so that torch divides
        return (x * (largest / amax)).round().to(torch.int8), amax / largest

    return Formula(cast, inputs["x"])


def silu_mul_cast(inputs: dict[str, Any]) -> Formula:
    x = inputs["x"]
    cast = fp8_cast(inputs | {"x": x.chunk(2, -1)[0]})

    def silu_mul(x: Tensor) -> Any:
        gate, up = x.chunk(2, -1)
        return cast.function(F.silu(gate) * up)

    return replace(cast, function=silu_mul, x=x, tolerance=BF16_BETWEEN)


def rms_norm_cast(inputs: dict[str, Any]) -> Formula:
    cast, weight, eps = fp8_cast(inputs), inputs["weight"], inputs.get("eps", 1e-6)

    def rms_norm(x: Tensor) -> Any:
        return cast.function(F.rms_norm(x, weight.shape, weight, eps))

    return replace(cast, function=rms_norm, tolerance=BF16_BETWEEN)


def fp8_cast(inputs: dict[str, Any]) -> Formula:
    """A plain cast, DeepGEMM's scales, OCP's of MX, NVFP4's."""
    x, block, dtype = inputs["x"], inputs.get("block", (1, 128)), inputs.get("dtype", torch.float8_e4m3fn)
    scale, tensor_scale = inputs.get("scale", "f32"), inputs.get("tensor_scale")
    for name, value in PLAIN.items():
        if inputs.get(name, value) != value:
            raise Unsupported(f"the formula in plain torch has no {name} {inputs[name]}")
    if block is None:
        return Formula(lambda x: x.to(dtype), x)
    blocks = shape_of_blocks(x, block)
    if dtype == torch.float4_e2m1fn_x2 and scale == "e4m3":
        return Formula(lambda x: nvfp4(x, blocks, tensor_scale), x)
    if dtype == torch.float4_e2m1fn_x2:
        raise Unsupported(f"the formula in plain torch has no scale {scale} of {dtype}")
    mode = inputs.get("mode", "deepgemm")
    if scale == "f32" and mode == "deepgemm":
        return Formula(lambda x: deepgemm(x, blocks, dtype), x)
    if scale == "ue8m0" and mode in ("deepgemm", "torchao"):
        exponents = rounded_up if mode == "deepgemm" else rounded_down
        return Formula(lambda x: powers_of_two(x, blocks, dtype, exponents), x, EXACT, _with_ue8m0)
    raise Unsupported(f"the formula in plain torch has no scale {scale} of mode {mode}")


def _with_ue8m0(answer: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return answer[0], answer[1].view(torch.float8_e8m0fnu)  # a type that inductor does not know


def deepgemm(x: Tensor, blocks: Blocks, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """per_token_cast_to_fp8, per_block_cast_to_fp8: amax, scale, cast."""
    parts = x.reshape(blocks)
    scale = _amax_scale(parts, dtype)
    codes = (parts * (1.0 / scale)).to(dtype)
    return codes.reshape(x.shape), scale.reshape(blocks[0], blocks[2])


def powers_of_two(x: Tensor, blocks: Blocks, dtype: torch.dtype, exponents: Exponents) -> tuple[Tensor, Tensor]:
    """(codes, biased exponents of the scales)"""
    parts, largest = x.reshape(blocks), torch.finfo(dtype).max
    exponent = exponents(parts, dtype)
    codes = (parts * (1.0 / (exponent << 23).view(torch.float32))).clamp(-largest, largest).to(dtype)
    return codes.reshape(x.shape), exponent.to(torch.uint8).reshape(blocks[0], blocks[2])


def rounded_up(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """DeepGEMM's: the power of two at or above amax / largest."""
    bits = _amax_scale(parts, dtype).view(torch.int32)
    return ((bits >> 23) + (bits & 0x7FFFFF).bool().int()).clamp(*MX_EXPONENTS)


def rounded_down(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """OCP MX: the power of two at or below amax over that at or below the largest number."""
    bits = parts.abs().amax((1, 3), keepdim=True).float().view(torch.int32)
    return ((bits >> 23) - math.floor(math.log2(torch.finfo(dtype).max))).clamp(*MX_EXPONENTS)


def _amax_scale(parts: Tensor, dtype: torch.dtype) -> Tensor:
    amax = parts.abs().amax((1, 3), keepdim=True).float().clamp(AMAX_MIN)
    return amax / torch.full_like(amax, torch.finfo(dtype).max)  # by a tensor, so that torch divides


def nvfp4(x: Tensor, blocks: Blocks, tensor_scale: Any) -> tuple[Tensor, Tensor]:
    """amax / 6 as an e4m3 scale, two e2m1 codes a byte, the first in the low half."""
    parts = x.reshape(blocks).float()
    amax = parts.abs().amax((1, 3), keepdim=True)
    scale = amax / torch.full_like(amax, E2M1_MAX)
    inverse = 1.0
    if tensor_scale is not None:
        scale, inverse = scale / tensor_scale, 1.0 / tensor_scale
    kept = scale.clamp(E4M3_MIN, E4M3_MAX).to(torch.float8_e4m3fn)
    codes = e2m1((parts * (inverse / kept.float())).reshape(-1, x.shape[-1]))
    packed = (codes[:, ::2] | codes[:, 1::2] << 4).reshape(*x.shape[:-1], -1)
    return packed.view(torch.float4_e2m1fn_x2), kept.reshape(blocks[0], blocks[2])


def e2m1(x: Tensor) -> Tensor:
    """Codes 0..15, rounded half to even: steps of 1/2 below 2, of 1 below 4, of 2 to the largest, 6."""
    magnitude = x.abs().clamp(max=E2M1_MAX)
    small, middle, large = (magnitude * 2).round(), magnitude.round() + 2, (magnitude / 2).round() + 4
    code = torch.where(magnitude < 2, small, torch.where(magnitude < 4, middle, large))
    return code.to(torch.uint8) | torch.signbit(x).to(torch.uint8) << 3


def shape_of_blocks(x: Tensor, block: tuple[int, int]) -> Blocks:
    """x (..., K) as (rows of blocks, rows of one, columns of blocks, columns of one)."""
    M, K = x.shape[:-1].numel(), x.shape[-1]
    rows, columns = (size if part < 0 else part for size, part in zip((M, K), block, strict=True))
    if M % rows or K % columns:
        raise Unsupported("the formula in plain torch has whole blocks")
    return M // rows, rows, K // columns, columns
