"""The gradients of block_sparse_attention: the compiled backward, from out and lse as forward stored them."""

from typing import Any

import torch
from torch import Tensor

from deepseek_fast import _linear
from deepseek_fast.kernels.block_sparse_attention import meta

_OP = meta.OP
_BACKWARD = meta.BACKWARD_OP


class BlockSparseAttention(torch.autograd.Function):
    """Takes the op's arguments in its order; saves its tensors, out and lse."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        kept: Tensor | None,
        row_offsets: Tensor | None,
        columns: Tensor | None,
        token_bias: Tensor | None,
        sink_logits: Tensor | None,
        cu_seqlens_q: Tensor | None,
        cu_seqlens_k: Tensor | None,
        tables: Tensor | None,
        bits: Tensor | None,
        *options: Any,
    ) -> tuple[Tensor, Tensor]:
        masks = (kept, row_offsets, columns, token_bias, sink_logits, cu_seqlens_q, cu_seqlens_k, tables, bits)
        out, lse = _OP(q, k, v, *masks, *options)
        ctx.save_for_backward(q, k, v, out, lse, *masks)
        ctx.options = options
        ctx.has_sink = sink_logits is not None
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> Any:  # type: ignore[override]
        q, k, v, out, lse, *masks = ctx.saved_tensors
        if dout is None:
            dout = torch.zeros_like(out)
        with torch.autocast(_linear.autocast_device(q), enabled=False):
            dq, dk, dv, dsink = _BACKWARD(dout, dlse, q, k, v, out, lse, *masks, *ctx.options)
        return (dq, dk, dv, *[None] * 4, dsink if ctx.has_sink else None, *[None] * (4 + len(ctx.options)))
