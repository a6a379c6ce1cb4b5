"""The gradient of sparse_mla: of out alone, in q, kv and attn_sink."""

from typing import Any

import torch
from torch import Tensor

from deepseek_fast import _load

_load.load_torch()
_OP = torch.ops.deepseek_fast.sparse_mla.default
_BACKWARD = torch.ops.deepseek_fast.sparse_mla_backward.default


class SparseMla(torch.autograd.Function):
    """Saves the inputs, out and lse; the weights are computed again."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        q: Tensor,
        kv: Tensor,
        indices: Tensor,
        scale: float | None,
        d_v: int,
        attn_sink: Tensor | None,
        topk_length: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        out, max_logits, lse = _OP(q, kv, indices, scale, d_v, attn_sink, topk_length)
        ctx.save_for_backward(q, kv, indices, out, lse, attn_sink, topk_length)
        ctx.options = (scale, d_v)
        ctx.mark_non_differentiable(max_logits, lse)
        return out, max_logits, lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dout: Tensor, *_: Any) -> Any:  # type: ignore[override]
        q, kv, indices, out, lse, attn_sink, topk_length = ctx.saved_tensors
        dq, dkv, dsink = _BACKWARD(dout, q, kv, indices, out, lse, *ctx.options, attn_sink, topk_length)
        return dq, dkv, None, None, None, None if attn_sink is None else dsink, None
