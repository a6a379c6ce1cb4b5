"""block_sparse_attention by the plain C ABI: what tests/native/attentions.h answers, as the doors return it."""

from typing import Any

import torch
from torch import Tensor

from tests.attention_doors import OP, TENSORS, options, tensors, without_flex
from tests.emulated import AsItLies, Emulated, as_tensor

NUMBERS = ("is_causal", "left", "right", "sinks", "q_offset", "q_at_end", "enable_gqa", "block_q", "block_k")


def attend(process: Emulated, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    q, v = inputs["q"], inputs["v"]
    out, lse = process.run(OP, words(inputs))
    shape = q.shape[:3]
    return as_tensor(out, q.dtype).reshape(*shape, v.shape[3]), as_tensor(lse, torch.float32).reshape(shape)


def gradients(process: Emulated, dout: Tensor, dlse: Tensor | None, inputs: dict[str, Any]) -> list[Tensor]:
    """dq, dk, dv, and dsink_logits where there are any."""
    forward = dict(zip(("out", "lse"), attend(process, inputs), strict=True))
    upstream = {"dout": AsItLies(dout)} | ({} if dlse is None else {"dlse": dlse})
    found = process.run(f"{OP}_backward", words(inputs) | forward | upstream)
    names = [name for name in ("q", "k", "v", "sink_logits") if name in inputs]
    return [
        as_tensor(values, inputs[name].dtype).reshape(inputs[name].shape)
        for name, values in zip(names, found, strict=False)
    ]


def words(inputs: dict[str, Any]) -> dict[str, Any]:
    """q, k and v as they lie, all else contiguous."""
    inputs = without_flex(inputs)
    scale, *numbers = options(inputs)
    given = {name: value for name, value in zip(TENSORS, tensors(inputs), strict=True) if value is not None}
    found = {name: AsItLies(value) if name in "qkv" else value.contiguous() for name, value in given.items()}
    found |= dict(zip(NUMBERS, map(int, numbers), strict=True))
    return found if scale is None else found | {"scale": repr(scale)}
