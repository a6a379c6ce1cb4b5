"""fp8_cast and its family by the plain C ABI: what tests/native/casts.h answers, as the op returns it."""

import inspect
import struct
from typing import Any

import torch
from torch import Tensor

import deepseek_fast
from tests.emulated import Emulated, as_tensor

E2M1 = torch.float4_e2m1fn_x2
SCALES = {"ue8m0": torch.float8_e8m0fnu, "e4m3": torch.float8_e4m3fn}


def cast(process: Emulated, op: str, inputs: dict[str, Any]) -> tuple[Tensor, ...]:
    """The op; RuntimeError with the sentence where it refuses its arguments. flush: the thread flushes subnormals."""
    signature = inspect.signature(getattr(deepseek_fast, op))
    defaults = {n: p.default for n, p in signature.parameters.items() if p.default is not inspect.Parameter.empty}
    arguments = defaults | inputs
    block = arguments.pop("block", None)
    words = {name: str(value) if isinstance(value, float) else value for name, value in arguments.items()}
    words |= {"plain": block is None} | dict(zip(("block_rows", "block_cols"), block or (-1, -1), strict=True))
    results = process.run(op, words)
    shape = arguments["codes" if op == "fp8_dequantize" else "x"].shape
    if op == "int8_cast":
        return shaped(results[0], torch.int8, shape), shaped(results[1], torch.float32, (*shape[:-1], 1))
    if op == "fp8_dequantize":
        columns = shape[-1] * (1 + (arguments["codes"].dtype == E2M1))
        return (shaped(results[0], arguments["dtype"], (*shape[:-1], columns)),)
    scale = laid_out(arguments, block is None, results[1:4])
    if op == "fp8_amax":
        return (scale,)
    dtype = arguments["dtype"]
    columns = shape[-1] // (1 + (op == "silu_mul_cast")) // (1 + (dtype == E2M1))
    codes = shaped(results[0], dtype, (*shape[:-1], columns))
    if op != "fp8_cast_transposed":
        return codes, scale
    down = -(-shape[0] // block[1])
    return (
        codes,
        scale,
        shaped(results[4], dtype, (columns, shape[0])),
        shaped(results[5], scale.dtype, (columns, down)),
    )


def laid_out(arguments: dict[str, Any], plain: bool, results: list[bytes]) -> Tensor:
    """The scale with the shape and strides that the library says."""
    given = arguments.get("scale")
    if isinstance(given, Tensor):
        return given
    memory, sizes, strides = results
    dtype = torch.float32 if plain else SCALES.get(given or "", torch.float32)
    values = as_tensor(memory, torch.int32 if arguments.get("out_layout") == "packed" else dtype)
    form = [struct.unpack(f"<{len(numbers) // 8}q", numbers) for numbers in (sizes, strides)]
    return values.as_strided(*form) if 0 not in form[0] else values.new_empty_strided(*form)


def shaped(values: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return as_tensor(values, dtype).reshape(shape)
