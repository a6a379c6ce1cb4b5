"""A room of casts for the benchmark's tests: fp8_cast's measured cases made small, and what they mean in plain torch.

It needs no kernel: `Case.call` gives the reference itself.
"""

import dataclasses
import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from deepseek_fast.kernels.fp8_cast import bench_cases
from deepseek_fast.kernels.fp8_matmul.ref import cast_rows, fp8_quantize_weight_ref
from deepseek_fast.kernels.int8_matmul.ref import quantize_rows

NAME = "casts_of_a_test"
M, K = 128, 256  # whole blocks of every case


class Case(bench_cases.Bench):
    """A measured case whose call is the reference."""

    def call(self, inputs: dict[str, Any]) -> Callable[[], Any]:
        return functools.partial(getattr(REFERENCE, f"{self.op}_ref"), **inputs)


def small(case: bench_cases.Bench) -> Case:
    """The case with M x K codes."""
    return Case(**{field.name: getattr(case, field.name) for field in dataclasses.fields(case)} | {"M": M, "K": K})


def fp8_cast_ref(
    x: Tensor,
    *,
    block: tuple[int, int] | None,
    dtype: torch.dtype,
    scale: str = "f32",
    mode: str = "deepgemm",
) -> tuple[Tensor, Tensor]:
    if block is None:
        return x.to(dtype), torch.ones(1, 1)
    if scale == "f32":
        return cast_rows(x) if block == (1, 128) else fp8_quantize_weight_ref(x, block=block, dtype=dtype)
    parts = x.float().reshape(x.shape[0], -1, block[1])
    amax = parts.abs().amax(-1)
    if scale == "ue8m0":
        assert mode == "torchao"
        biased = torch.frexp(amax).exponent - 1 - 8 + 127  # 2^8 is the power of two below 448
        codes = (parts / torch.exp2(biased - 127.0)[..., None]).clamp(-448, 448).to(dtype)
        return codes.reshape(x.shape), biased.to(torch.uint8).view(torch.float8_e8m0fnu)
    kept = (amax / 6).clamp(2**-6, 448).to(torch.float8_e4m3fn)
    codes = _e2m1((parts * (1 / kept.float())[..., None]).reshape(x.shape))
    return (codes[:, ::2] + 16 * codes[:, 1::2]).view(dtype), kept


def fp8_dequantize_ref(
    codes: Tensor, scale: Tensor | None = None, *, block: tuple[int, int] = (1, 128), dtype: torch.dtype
) -> Tensor:
    if scale is None:
        return codes.to(dtype)
    whole = scale.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return (codes.double() * whole.double()).to(dtype)


def int8_cast_ref(x: Tensor) -> tuple[Tensor, Tensor]:
    q, scale = quantize_rows(x)
    return q.to(torch.int8), scale[..., None]


def silu_mul_cast_ref(x: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    gate, up = x.float().chunk(2, -1)
    return fp8_cast_ref(torch.nn.functional.silu(gate) * up, **options)


def rms_norm_cast_ref(x: Tensor, weight: Tensor, eps: float = 1e-6, **options: Any) -> tuple[Tensor, Tensor]:
    y = torch.nn.functional.rms_norm(x.float(), weight.shape, weight.float(), eps)
    return fp8_cast_ref(y, **options)


def _e2m1(x: Tensor) -> Tensor:
    """The nearest code of four bits; of two as near the even one."""
    numbers = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    distance = (x.abs()[..., None] - numbers).abs()
    nearest = distance == distance.amin(-1, keepdim=True)
    even = torch.arange(8) % 2 == 0
    code = (nearest * (1 + even)).argmax(-1)
    return (code + 8 * torch.signbit(x)).to(torch.uint8)


CASES = tuple({case.id: case for case in map(small, bench_cases.BENCH)}.values())
REFERENCE = SimpleNamespace(**{name: value for name, value in globals().items() if name.endswith("_ref")})


def part(room: str, name: str) -> Any:
    """rooms.part of this room, to be patched in."""
    assert room == NAME
    return {"cases": SimpleNamespace(BENCH=CASES), "ref": REFERENCE}[name]
