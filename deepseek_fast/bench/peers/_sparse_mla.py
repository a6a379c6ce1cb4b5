"""sparse_mla's peers in torch: the listed rows are gathered in each call, an FP8 cache's expanded to bf16, then SDPA.

The heads of a query stand as SDPA's queries, for they share their keys. A sink has no place in SDPA: there the softmax
is written out.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek_fast.bench.peers import Peer, Unsupported
from deepseek_fast.bench.peers._common import float_peer

ASKED = {"q", "kv", "indices", "d_v", "scale", "attn_sink", "k_cache", "layout", "extra_k_cache", "extra_indices"}


def refuse(inputs: dict[str, Any]) -> None:
    """What no peer here is asked for."""
    more = sorted(inputs.keys() - ASKED)
    if more:
        raise Unsupported(f"peers are asked for lists and sinks; got {', '.join(more)}")


def prefill(inputs: dict[str, Any]) -> dict[str, Peer]:
    refuse(inputs)
    q, kv, index = inputs["q"], inputs["kv"], inputs["indices"][:, 0].long()
    return _peers(q, lambda: kv[:, 0][index], inputs, lambda out: out.reshape(*q.shape[:2], -1))


def decode(inputs: dict[str, Any]) -> dict[str, Peer]:
    refuse(inputs)
    q, layout = inputs["q"], inputs["layout"]
    lists = [
        (inputs[f"{name}k_cache"], inputs[f"{name}indices"].flatten(0, 1).long())
        for name in ("", "extra_")
        if f"{name}k_cache" in inputs
    ]

    def rows() -> Tensor:
        found = [listed(cache, layout, index) for cache, index in lists]
        return found[0] if len(found) == 1 else torch.cat(found, 1)

    return _peers(q.flatten(0, 1), rows, inputs, lambda out: out.reshape(*q.shape[:3], -1))


def listed(cache: Tensor, layout: str, index: Tensor) -> Tensor:
    """(queries, topk, d_qk) bf16 of the listed tokens."""
    page = cache.shape[1]
    if layout == "plain":
        return cache.flatten(0, 2)[index]
    from deepseek_fast.kernels.sparse_mla.caches import LAYOUTS  # not with the plug-in: it loads ml_dtypes

    form = LAYOUTS[layout]
    if layout == "v32":
        tokens = cache.flatten(0, 2)[index]
        codes, scales, kept = tokens.split((form.coded, form.scale_bytes, 2 * form.kept), -1)
        factors = scales.contiguous().view(torch.float32)
    else:
        pages, front = cache.flatten(1), form.coded + 2 * form.kept
        which, at = index // page, index % page
        stride = pages.stride(0)
        tokens = pages.as_strided((len(pages), page, front), (stride, front, 1))[which, at]
        codes, kept = tokens.split((form.coded, 2 * form.kept), -1)
        start = pages.storage_offset() + page * front
        tail = pages.as_strided((len(pages), page, form.scale_bytes), (stride, form.scale_bytes, 1), start)[which, at]
        factors = (tail[..., : form.coded // form.tile].int() << 23).view(torch.float32)
    numbers = codes.contiguous().view(torch.float8_e4m3fn).bfloat16().unflatten(-1, (-1, form.tile))
    numbers = (numbers * factors.bfloat16()[..., None]).flatten(-2)  # powers of two: exact
    return torch.cat([numbers, kept.contiguous().view(torch.bfloat16)], -1)


def _peers(
    q: Tensor, rows: Callable[[], Tensor], inputs: dict[str, Any], shaped: Callable[[Tensor], Tensor]
) -> dict[str, Peer]:
    """q (queries, h, d_qk); rows() (queries, topk, d_qk)."""
    d_v, scale, sink = inputs["d_v"], inputs["scale"], inputs.get("attn_sink")

    def written_out() -> Tensor:
        k = rows()
        z = (q @ k.transpose(-1, -2)).float() * scale
        if sink is not None:
            z = torch.cat([z, sink[None, :, None].expand(len(z), -1, 1)], -1)
        p = z.softmax(-1)[..., : k.shape[1]].to(q.dtype)
        return shaped(p @ k[..., :d_v])

    def sdpa() -> Tensor:
        k = rows()
        attention = F.scaled_dot_product_attention
        return shaped(attention(q[:, None], k[:, None], k[:, None, :, :d_v], scale=scale))

    # The first one is the gate's reference: SDPA's time is one of two, by process.
    found = {"torch gather + softmax": float_peer(written_out, q)}
    return found if sink is not None else found | {"torch gather + SDPA": float_peer(sdpa, q)}
