"""block_sparse_attention's peers in torch: SDPA with the dense mask, or over gathered keys."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek_fast.bench.peers import Peer, Unsupported
from deepseek_fast.bench.peers._common import float_peer
from deepseek_fast.kernels.block_sparse_attention.bench_cases import backward_call, gathered

ASKED = {"q", "k", "v", "block_mask", "block_size", "is_causal", "window", "dout"}


def refuse(inputs: dict[str, Any]) -> None:
    """What no peer here is asked for."""
    more = sorted(inputs.keys() - ASKED)
    if more:
        raise Unsupported(f"peers are asked for masks, windows and causality; got {', '.join(more)}")


def is_token_list(inputs: dict[str, Any]) -> bool:
    """Whether the mask is lists of single keys, which peers gather."""
    return isinstance(inputs.get("block_mask"), tuple)


def dense_mask(inputs: dict[str, Any]) -> Tensor | None:
    """(1, 1 | H, S_q, S_k) of q's dtype, 0 or -inf, which torch takes faster than a boolean one (1.6x); None where
    every query sees all, or is_causal says it all."""
    S_q, S_k = inputs["q"].shape[2], inputs["k"].shape[2]
    distance = torch.arange(S_q)[:, None] - torch.arange(S_k)
    mask = None
    if inputs.get("window"):
        mask = (distance.abs() < inputs["window"])[None, None]
        mask = mask & (distance >= 0) if inputs.get("is_causal") else mask
    if inputs.get("block_mask") is not None:
        size = inputs["block_size"]
        blocks = inputs["block_mask"].repeat_interleave(size, -2)[..., :S_q, :].repeat_interleave(size, -1)[..., :S_k]
        mask = blocks if mask is None else mask & blocks
    return None if mask is None else torch.zeros(mask.shape, dtype=inputs["q"].dtype).masked_fill(~mask, -torch.inf)


def sdpa(inputs: dict[str, Any]) -> Callable[..., Tensor]:
    """F.scaled_dot_product_attention as a function of q, k and v."""
    mask = dense_mask(inputs)
    causal = mask is None and inputs.get("is_causal", False)

    def call(q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)

    return call


def eager(inputs: dict[str, Any]) -> dict[str, Peer]:
    refuse(inputs)
    if is_token_list(inputs):

        def call() -> Tensor:  # a step of a decoder: its list is new in each
            keys = gathered(inputs)
            return F.scaled_dot_product_attention(keys["q"], keys["k"], keys["v"], enable_gqa=True)

        return {"torch gather + SDPA": float_peer(call, inputs["q"])}
    attention, label = sdpa(inputs), "torch SDPA" if dense_mask(inputs) is None else "torch SDPA, dense mask"
    q, k, v = (inputs[name] for name in ("q", "k", "v"))
    return {label: float_peer(lambda: attention(q, k, v), q)}


def eager_backward(inputs: dict[str, Any]) -> dict[str, Peer]:
    refuse(inputs)
    with torch.inference_mode(False):
        attention = sdpa(inputs)  # a mask that autograd may keep
    label = "torch SDPA backward" + (", dense mask" if dense_mask(inputs) is not None else "")
    return {label: float_peer(backward_call(attention, inputs), inputs["q"])}
