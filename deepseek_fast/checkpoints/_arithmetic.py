"""The arithmetic of a conversion, and the torch dtypes of safetensors' names: all that it needs of torch."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

import deepseek_fast

DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
}
LARGEST_CODE, LARGEST_F16 = 448.0, 65504.0
NAN_CODE = 0x7F  # of float8_e4m3fn, without its sign


def as_tensor(data: Any, dtype: str, shape: tuple[int, ...]) -> Tensor:
    """Bytes as a tensor that shares their memory."""
    return torch.frombuffer(data, dtype=torch.uint8).view(DTYPES[dtype]).view(shape)


def as_bytes(x: Tensor) -> Any:
    """A tensor's memory."""
    data: Any = x.contiguous().view(-1).view(torch.uint8).numpy()
    return memoryview(data)


def dequantize(codes: Tensor, scale: Tensor, block: tuple[int, int], dtype: str) -> Tensor:
    """codes * scale, (N, K) of dtype."""
    return deepseek_fast.fp8_dequantize(codes, scale, block=block, dtype=DTYPES[dtype])


def quantize(weight: Tensor, block: tuple[int, int], scale: str) -> tuple[Tensor, Tensor]:
    """(codes, scale) with codes * scale = weight; the scale in float32, powers of two where it is to be "ue8m0".

    Raises ValueError where a value is NaN; an infinite one makes an infinite scale.
    """
    codes, scales = deepseek_fast.fp8_cast(weight, block=block, scale=scale)
    if int((codes.view(torch.uint8) & NAN_CODE).max()) == NAN_CODE:
        raise ValueError("NaN")
    return codes, scales.float()


@contextlib.contextmanager
def one_thread_each() -> Iterator[tuple[int, Callable[[], None]]]:
    """torch's number of threads, and what makes torch work alone in each thread that calls it.

    Slices of a tensor in several threads, each reading, converting and writing, wait for no other; torch's own threads
    would wait for each other at the end of every operation.
    """
    threads = torch.get_num_threads()
    try:
        yield threads, partial(torch.set_num_threads, 1)
    finally:
        torch.set_num_threads(threads)  # what threads of the future begin with, too


def is_scale(scale: Tensor) -> bool:
    """Whether every value is finite and above zero."""
    return bool(((scale > 0) & scale.isfinite()).all())


def overflows(x: Tensor, scale: Tensor) -> bool:
    """Whether float16 was too narrow for a product."""
    return x.dtype == torch.float16 and float(scale.max()) * LARGEST_CODE > LARGEST_F16 and bool(x.isinf().any())
