"""The meaning of block_sparse_attention, forward and backward, in float64; ref_bounds.py has the errors allowed.

z = scale * q k^T + token_bias; p = softmax over the keys that the query sees; out = p v; lse = log sum exp z

ref_masks.py says which those are. A query that sees none has out = 0 and lse = -inf, and gives and gets no gradient.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deepseek_fast.kernels.block_sparse_attention.ref_masks import sizes_of, visible

MASK_OPTIONS = ("block_size", "is_causal", "window", "sinks", "q_offset", "cu_seqlens_q", "cu_seqlens_k")


class Gradients(NamedTuple):
    dq: Tensor
    dk: Tensor
    dv: Tensor
    dsink_logits: Tensor | None


def block_sparse_attention_ref(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_mask: Any = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    window: Any = None,
    sinks: int | None = None,
    enable_gqa: bool = True,
    return_lse: bool = False,
    block_size: int | tuple[int, int] = 128,
    token_bias: Tensor | None = None,
    sink_logits: Tensor | None = None,
    q_offset: int | str = 0,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
) -> Any:
    """out (B, H, S_q, D_v), or (out, lse (B, H, S_q)), in float64, not rounded to q's dtype."""
    assert enable_gqa or q.shape[1] == k.shape[1]
    seen = visible(
        sizes_of(q, k),
        block_mask,
        block_size=block_size,
        is_causal=is_causal,
        window=window,
        sinks=sinks,
        q_offset=q_offset,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
    )
    out, lse = attention(q, k, v, seen, scale, token_bias, of_heads(sink_logits))
    return (out, lse) if return_lse else out


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    seen: Tensor,
    scale: float | None = None,
    token_bias: Tensor | None = None,
    sink: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(out, lse) of the keys that `seen` (B, H, S_q, S_k) allows, in float64; sink broadcasts to (B, H, S_q)."""
    z = scores(q, k, seen, scale, token_bias)
    nothing = z.isneginf().all(-1)
    some = z.masked_fill(nothing[..., None], 0.0)  # so that autograd has no NaN of an empty row
    lse = some.logsumexp(-1).masked_fill(nothing, -math.inf) if z.shape[-1] else z.new_full(z.shape[:-1], -math.inf)
    total = lse if sink is None else torch.logaddexp(lse, sink.double())
    return weights(z, total) @ values(v, seen), lse


def scores(q: Tensor, k: Tensor, seen: Tensor, scale: float | None = None, token_bias: Tensor | None = None) -> Tensor:
    """z, float64 (B, H, S_q, S_k), -inf where a query does not see a key."""
    z = scale_of(q, scale) * (q.double() @ per_head(k, q.shape[1]).transpose(-1, -2))
    if token_bias is not None:
        z = z + token_bias.double()
    return z.masked_fill(~seen, -math.inf)


def weights(z: Tensor, lse: Tensor) -> Tensor:
    """exp(z - lse); zeros where nothing is seen or all weight is the sink's."""
    safe = torch.where(lse.isinf(), 0.0, lse)
    return torch.where(z.isneginf() | lse.isposinf()[..., None], 0.0, (z - safe[..., None]).exp())


def values(v: Tensor, seen: Tensor) -> Tensor:
    """v for every head of q; 0 for a key that no query sees, which may be NaN."""
    unseen = ~seen.any(-2)
    return per_head(v, seen.shape[1]).masked_fill(unseen[..., None], 0.0)


def per_head(x: Tensor, H: int) -> Tensor:
    """k or v in float64 with a head for each of q's."""
    return x.double().repeat_interleave(H // x.shape[1], 1)


def scale_of(q: Tensor, scale: float | None) -> float:
    """The number that a kernel has: f32."""
    return torch.tensor(q.shape[-1] ** -0.5 if scale is None else scale, dtype=torch.float32).double().item()


def block_sparse_attention_backward_ref(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_mask: Any = None,
    *,
    dlse: Tensor | None = None,
    scale: float | None = None,
    token_bias: Tensor | None = None,
    sink_logits: Tensor | None = None,
    enable_gqa: bool = True,
    **mask_options: Any,
) -> Gradients:
    """Gradients in float64 of sum(out * dout) + sum(lse * dlse)."""
    seen = visible(sizes_of(q, k), block_mask, **mask_options)
    dq, dk, dv, dsink = gradients(dout, q, k, v, seen, dlse, scale, token_bias, of_heads(sink_logits))
    dsink = None if dsink is None else dsink.sum((0, 2))
    return Gradients(dq, over_group(dk, k.shape[1]), over_group(dv, k.shape[1]), dsink)


def gradients(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    seen: Tensor,
    dlse: Tensor | None = None,
    scale: float | None = None,
    token_bias: Tensor | None = None,
    sink: Tensor | None = None,
) -> Gradients:
    """Those of attention in the closed form that the kernels take: dk, dv for every head of q, dsink for every query.

    p = exp(z - lse), f = the share of a row's weight that is not the sink's, delta = rowsum(dout * out)
    dv = (f p)^T dout;  dz = p * (f * (dout v^T) - (f * delta - dlse));  dsink = -(1 - f) delta
    dq = scale dz k;  dk = scale dz^T q
    """
    z = scores(q, k, seen, scale, token_bias)
    out, lse = attention(q, k, v, seen, scale, token_bias, sink)
    p, f = weights(z, lse), share_of_keys(lse, sink)[..., None]
    delta = (dout.double() * out).sum(-1, keepdim=True)
    dp = dout.double() @ values(v, seen).transpose(-1, -2)
    shift = f * delta if dlse is None else f * delta - dlse.double()[..., None]
    dz = scale_of(q, scale) * torch.where(seen, p * (f * dp - shift), 0.0)
    return Gradients(
        dz @ keys(k, seen),
        dz.transpose(-1, -2) @ queries(q, seen),
        (f * p).transpose(-1, -2) @ dout.double(),
        None if sink is None else -((1 - f) * delta)[..., 0],
    )


def of_heads(sink_logits: Tensor | None) -> Tensor | None:
    """A logit a head, for every query."""
    return None if sink_logits is None else sink_logits[:, None]


def share_of_keys(lse: Tensor, sink: Tensor | None) -> Tensor:
    """f (B, H, S_q): 1 without a sink, 0 where it takes all; 1 where nothing is seen, whose gradients are 0 anyway."""
    return (
        torch.ones_like(lse) if sink is None else torch.where(lse.isneginf(), 1.0, torch.sigmoid(lse - sink.double()))
    )


def keys(k: Tensor, seen: Tensor) -> Tensor:
    """k for every head of q; 0 for a key that no query sees."""
    return values(k, seen)


def queries(q: Tensor, seen: Tensor) -> Tensor:
    """q; 0 for a query that sees no key."""
    return q.double().masked_fill(~seen.any(-1)[..., None], 0.0)


def over_group(gradient: Tensor, H_kv: int) -> Tensor:
    """The sum over the heads of q that share one of k."""
    B, H, *rest = gradient.shape
    return gradient.reshape(B, H_kv, H // H_kv, *rest).sum(2)


def seen_of(inputs: dict[str, Any]) -> Tensor:
    """`visible` of a call's keyword arguments."""
    options = {name: inputs[name] for name in MASK_OPTIONS if name in inputs}
    return visible(sizes_of(inputs["q"], inputs["k"]), inputs.get("block_mask"), **options)
