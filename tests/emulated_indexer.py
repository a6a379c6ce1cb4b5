"""The indexer's operators by the plain C ABI: what tests/native/indexer.h answers, as the op returns it."""

from typing import Any

import torch
from torch import Tensor

from tests.emulated import AsItLies, Emulated, as_tensor


def indexer(process: Emulated, op: str, inputs: dict[str, Any]) -> Tensor:
    """The op; RuntimeError with the sentence where it refuses its arguments. flush: the thread flushes subnormals."""
    given = {name: value for name, value in inputs.items() if value is not None}
    (values,) = process.run(op, {name: AsItLies(v) if isinstance(v, Tensor) else v for name, v in given.items()})
    dtype = given.get("dtype", torch.float32) if op.endswith("logits") else torch.int32
    return as_tensor(values, dtype).reshape(shape_of(op, given))


def shape_of(op: str, inputs: dict[str, Any]) -> tuple[int, ...]:
    if op == "topk_indices":
        return (*inputs["scores"].shape[:-1], inputs["k"])
    q = inputs["q"].shape
    if op == "fp8_mqa_logits":
        return q[0], inputs.get("max_seqlen_k", 0) or len(inputs["k"])
    if op == "fp8_paged_mqa_logits":
        return q[0] * q[1], inputs["max_context_len"]
    return (*q[:-2], inputs["top_k"])
