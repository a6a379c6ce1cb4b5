"""sparse_mla and its family by the plain C ABI: what tests/native/mla.h answers, as the ops return it."""

from typing import Any

import torch
from torch import Tensor

from tests.emulated import AsItLies, Emulated, as_tensor
from tests.mla_doors import arguments


def words(inputs: dict[str, Any]) -> dict[str, Any]:
    """Arguments as the runner takes them: tensors as they lie, numbers as text."""
    result = {}
    for name, value in arguments(inputs).items():
        result[name] = (
            AsItLies(value) if isinstance(value, Tensor) else str(value) if isinstance(value, float) else value
        )
    return result


def call(process: Emulated, op: str, inputs: dict[str, Any]) -> tuple[Tensor, ...]:
    """sparse_mla or sparse_mla_decode; RuntimeError with the sentence where it refuses its arguments."""
    results = process.run(op, words(inputs))
    q, d_v = inputs["q"], inputs["d_v"]
    rows = q.shape[:-1]
    sums = (rows[0], rows[2], rows[1]) if op == "sparse_mla_decode" else rows
    numbers = (as_tensor(values, torch.float32).reshape(sums) for values in results[1:])
    return as_tensor(results[0], q.dtype).reshape(*rows, d_v), *numbers


def backward(process: Emulated, dout: Tensor, inputs: dict[str, Any]) -> tuple[Tensor, ...]:
    """(dq, dkv, dattn_sink) of what call() gave."""
    out, _, lse = call(process, "sparse_mla", inputs)
    dq, dkv, dsink = process.run("sparse_mla_backward", words(inputs | {"dout": dout, "out": out, "lse": lse}))
    q, kv = inputs["q"], inputs["kv"]
    return (
        as_tensor(dq, q.dtype).reshape(q.shape),
        as_tensor(dkv, q.dtype).reshape(kv.shape),
        as_tensor(dsink, torch.float32),
    )


def cache_numbers(process: Emulated, cache: Tensor, kv: Tensor, layout: str, d_qk: int) -> Tensor:
    """All numbers of the cache after kv was written to its first places."""
    given = {"cache": AsItLies(cache), "kv": AsItLies(kv), "layout": layout}
    (numbers,) = process.run("mla_cache", given)
    return as_tensor(numbers, torch.bfloat16).reshape(*cache.shape[:2], d_qk)
