"""The meaning of fp8_cast: which codes and which scales, bit for bit.

fp8_cast: codes = encode(x / scale), scale = one value a block of x, from the block's largest magnitude

ref_formats.py says what a number rounds to, ref_modes.py what a block's scale is; ref_fused.py holds the casts of an
activation, whose own value is known to within a bound only. Every step here is exact or one float32 operation, so that
there is nothing to tolerate.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from deepseek_fast.kernels.fp8_cast.ref_formats import (
    E2M1,
    E4M3,
    E8M0,
    FORMATS,
    decode,
    encode,
    pack,
    random_bits,
    unpack,
)
from deepseek_fast.kernels.fp8_cast.ref_formats import philox as philox
from deepseek_fast.kernels.fp8_cast.ref_modes import (
    PROPAGATES,
    Scaled,
    amax_of,
    block_index,
    given_scale,
    parts_of,
    scale_blocks,
    scale_value,
)
from deepseek_fast.kernels.int8_matmul.ref import quantize_rows

F = TypeVar("F", bound=Callable[..., Any])


def keeps_subnormals(function: F) -> F:
    """Runs with subnormal numbers, also for a caller who flushes them."""

    @functools.wraps(function)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        flushes = torch.tensor(2.0**-127).mul(1.0).item() == 0
        torch.set_flush_denormal(False)
        try:
            return function(*arguments, **options)
        finally:
            torch.set_flush_denormal(flushes)

    return wrapped  # type: ignore[return-value]


@keeps_subnormals
def fp8_cast_ref(
    x: Tensor,
    *,
    block: tuple[int, int] | None = (1, 128),
    dtype: torch.dtype = E4M3,
    scale: str | Tensor = "f32",
    mode: str = "deepgemm",
    saturate: bool = True,
    out_layout: str = "row",
    tensor_scale: Tensor | float | None = None,
    rounding: str = "nearest",
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """(codes, scale), with the strides that `out_layout` says."""
    rows = as_rows(x)
    values = rows.float()
    if block is None:
        scaled = Scaled(torch.ones(1, 1), factor=torch.ones(1, 1))
    elif isinstance(scale, Tensor):
        scaled = given_scale(scale.reshape(parts_of(rows, block)), mode)
    else:
        pts = None if tensor_scale is None else torch.as_tensor(tensor_scale, dtype=torch.float32).reshape(())
        amax = amax_of(rows, block, propagate=mode in PROPAGATES)
        scaled = scale_blocks(amax, mode, scale, dtype, block=block, x_dtype=x.dtype, tensor_scale=pts)
    v = scale_values(values, scaled, block or (-1, -1))
    codes = encode(
        v,
        dtype,
        saturate=saturate,
        sign=values.signbit(),
        ties="down" if (dtype, mode) == (E2M1, "deepgemm") else "even",
        bits=random_bits(*rows.shape, seed) if rounding == "stochastic" else None,
    )
    if isinstance(scale, Tensor):
        return pack(codes.reshape(x.shape), dtype), scale
    scale_dtype = {"ue8m0": E8M0, "e4m3": E4M3}.get(scale, torch.float32) if block else torch.float32
    shape = scaled.scale.shape if block is None else scale_shape(x, block)
    result = scaled.scale.reshape(shape).view(scale_dtype)
    return pack(codes.reshape(x.shape), dtype), lay_out(result, out_layout)


def as_rows(x: Tensor) -> Tensor:
    return x.reshape(x.shape[:-1].numel(), x.shape[-1])


def scale_values(values: Tensor, scaled: Scaled, block: tuple[int, int]) -> Tensor:
    """values (M, K) times the factor of their block, or over its divisor."""
    index = block_index(values, block)
    if scaled.divisor is not None:
        return values / scaled.divisor.flatten()[index].reshape(values.shape)
    assert scaled.factor is not None
    return values * scaled.factor.flatten()[index].reshape(values.shape)


def scale_shape(x: Tensor, block: tuple[int, int]) -> tuple[int, ...]:
    """(blocks of rows, blocks of columns); x's own leading dimensions where a block is within a row."""
    rows, columns = parts_of(as_rows(x), block)
    return (*x.shape[:-1], columns) if block[0] == 1 and x.ndim > 2 else (rows, columns)


def lay_out(scale: Tensor, out_layout: str) -> Tensor:
    """The scale with the strides of a layout; "packed" has four e8m0 in an int32."""
    if out_layout == "row":
        return scale.contiguous()
    rows, columns = scale.shape
    if out_layout == "packed":
        bytes_ = torch.zeros(rows, -(-columns // 4) * 4, dtype=torch.uint8)
        bytes_[:, :columns] = scale.view(torch.uint8)
        scale = bytes_.view(torch.int32) if bytes_.numel() else torch.empty(rows, -(-columns // 4), dtype=torch.int32)
    if out_layout != "column":
        step = 16 // scale.element_size()  # rows that begin at a multiple of 16 bytes
        rows = -(-rows // step) * step
    result = torch.empty_strided(scale.shape, (1, max(rows, 1)), dtype=scale.dtype)
    return _as_bytes(result).copy_(_as_bytes(scale)).view(scale.dtype)


def _as_bytes(value: Tensor) -> Tensor:
    return value.view(torch.uint8) if value.element_size() == 1 else value


@keeps_subnormals
def fp8_dequantize_ref(
    codes: Tensor,
    scale: Tensor | None = None,
    *,
    block: tuple[int, int] | None = (1, 128),
    dtype: torch.dtype = torch.float32,
    tensor_scale: Tensor | float | None = None,
) -> Tensor:
    """codes * scale, or codes * (tensor_scale * scale): each product in float32, the last then rounded to dtype."""
    numbers = decode(unpack(codes), codes.dtype)
    if scale is None:
        return round_once(numbers.double(), dtype)
    rows = as_rows(numbers)
    block = (-1, -1) if block is None else block
    parts = parts_of(rows, block)
    if scale.dtype == torch.int32:  # packed: a row's bytes in order, then some that belong to no block
        bytes_ = torch.stack([scale >> 8 * j & 0xFF for j in range(4)], -1).flatten(1)[:, : parts[1]]
        scale = bytes_.to(torch.uint8).contiguous().view(E8M0)
    factor = scale_value(scale).reshape(parts)
    if tensor_scale is not None:
        factor = torch.as_tensor(tensor_scale, dtype=torch.float32).reshape(()) * factor
    product = rows.float() * factor.flatten()[block_index(rows, block)].reshape(rows.shape)
    return round_once(product.double(), dtype).reshape(numbers.shape)


def round_once(value: Tensor, dtype: torch.dtype) -> Tensor:
    """float64 to nearest even of dtype. By way of a float32 rounded to odd, which no second rounding can mislead."""
    near = value.float()
    if dtype == torch.float32:
        return near
    bits = near.view(torch.int32)
    bits = bits - (near.abs().double() > value.abs()).int()  # towards zero
    odd = torch.where(near.double() == value, bits, bits | 1).view(torch.float32)
    return torch.where(value.isnan(), near, odd).to(dtype)


@keeps_subnormals
def fp8_amax_ref(x: Tensor, *, block: tuple[int, int] = (1, 128)) -> Tensor:
    """float32, of the shape of a scale; a block with a NaN has NaN."""
    return amax_of(as_rows(x), block).reshape(scale_shape(x, block))


@keeps_subnormals
def int8_cast_ref(x: Tensor) -> tuple[Tensor, Tensor]:
    """(q, scale) int8 (..., K) and float32 (..., 1): what int8_matmul makes of x."""
    q, scale = quantize_rows(x)
    return q.to(torch.int8), scale.unsqueeze(-1)


def fp8_cast_transposed_ref(x: Tensor, **options: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(codes, scale, codes_t, scale_t): the casts of x and of x.T."""
    return *fp8_cast_ref(x, **options), *fp8_cast_ref(x.T, **options)


def silu_mul_cast_ref(x: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """The cast of silu(the first half of x's columns) * the second half; a kernel's may be a step of the format off."""
    gate, up = x.double().chunk(2, -1)
    return fp8_cast_ref((torch.nn.functional.silu(gate) * up).float(), **options)


def rms_norm_cast_ref(x: Tensor, weight: Tensor, *, eps: float = 1e-6, **options: Any) -> tuple[Tensor, Tensor]:
    """The cast of x / sqrt(mean(x^2) + eps) * weight, alike; ref_fused.py says exactly what is right."""
    rms = (x.double().square().mean(-1, keepdim=True) + eps).sqrt()
    return fp8_cast_ref((x.double() / rms * weight.double()).float(), **options)


def silu_mul_cast_bound(x: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """Codes: a step of the format; scales: 2^-20 of themselves, many times the error of v."""
    return _steps(*silu_mul_cast_ref(x, **options))


def rms_norm_cast_bound(x: Tensor, weight: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    return _steps(*rms_norm_cast_ref(x, weight, **options))


def _steps(codes: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    form = FORMATS[codes.dtype]
    size = decode(unpack(codes), codes.dtype).double().abs()
    return size * 2.0**-form.mantissa_bits + form.unit, scale.double() * 2.0**-20
