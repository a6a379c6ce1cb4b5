"""Every way to call fp8_cast and its family from Python, behind one signature: torch tensors in and out."""

from typing import Any

import ml_dtypes
import torch
from torch import Tensor

import deepseek_fast
from tests import doors
from tests.oracle import assert_equal

CAST_DOORS = ("torch", "numpy")
E2M1 = torch.float4_e2m1fn_x2  # NumPy has it as bytes of two codes, uint8
NUMPY_DTYPES = {
    torch.float8_e4m3fnuz: ml_dtypes.float8_e4m3fnuz,
    torch.float8_e5m2fnuz: ml_dtypes.float8_e5m2fnuz,
}


def call(op: str, door: str, inputs: dict[str, Any]) -> tuple[Tensor, ...]:
    if door == "torch":
        results = getattr(deepseek_fast, op)(**inputs)
        return results if isinstance(results, tuple) else (results,)
    given = {name: to_numpy(value) for name, value in inputs.items()}
    results = doors.numpy_op(op)(**given)
    results = results if isinstance(results, tuple) else (results,)
    return tuple(from_numpy(value, inputs.get("dtype")) for value in results)


def to_numpy(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, Tensor) and value.dtype == E2M1:
        return value.view(torch.uint8).numpy()
    if isinstance(value, Tensor) and value.dtype in NUMPY_DTYPES:
        return value.view(torch.uint8).numpy().view(NUMPY_DTYPES[value.dtype])
    return doors.to_numpy(value)


def from_numpy(value: Any, dtype: torch.dtype | None = None) -> Tensor:
    if value.dtype == "uint8" and dtype == E2M1:
        return torch.from_numpy(value).view(E2M1)
    for torch_dtype, numpy_dtype in NUMPY_DTYPES.items():
        if value.dtype == numpy_dtype:
            return torch.from_numpy(value.view("uint8")).view(torch_dtype)
    return doors.from_numpy(value)


def assert_same(got: Tensor, want: Tensor, what: str, exact_strides: bool = False) -> None:
    """The bits of want, and its strides: where a dimension has more than one place, or exactly."""
    assert got.dtype == want.dtype, f"{what}: dtype must be {want.dtype}; got {got.dtype}"
    assert got.shape == want.shape, f"{what}: shape must be {tuple(want.shape)}; got {tuple(got.shape)}"
    if got.numel():
        for size, stride, wanted in zip(got.shape, got.stride(), want.stride(), strict=True):
            assert stride == wanted or (size == 1 and not exact_strides), f"{what}: {got.stride()}, not {want.stride()}"
    assert_equal(dense(got), dense(want), what)


def dense(value: Tensor) -> Tensor:
    """The values in a row each, of a dtype that can be copied; FP4, of which torch prints none, as bytes."""
    bits = value.view(torch.uint8) if value.element_size() == 1 and value.dtype != torch.int8 else value
    return bits.contiguous().view(torch.uint8 if value.dtype == E2M1 else value.dtype)
