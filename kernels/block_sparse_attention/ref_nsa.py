"""The meaning of native_sparse_attention in float64: Yuan et al. 2025, with the argument names and layout of fla.

o = g_cmp * o_cmp + g_slc * o_slc + g_swa * o_swa

o_cmp  attention over the means of key and value blocks, those whose last token the query may see
o_slc  causal attention over the tokens of the blocks that the query selects, the same for a group's heads
o_swa  causal attention over the last window_size tokens, the own included; none where window_size is 0
A query selects its own block, then those of the largest sum over the group's heads of o_cmp's weights.
Layout: q (B, T, HQ, K), k (B, T, H, K), v (B, T, H, V), gates (B, T, HQ); with cu_seqlens B is 1 and blocks, windows
and positions begin anew at every sequence.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from deepseek_fast.kernels.block_sparse_attention import ref, ref_bounds
from deepseek_fast.kernels.block_sparse_attention.ref_bounds import KEY_STEP, U, gamma
from deepseek_fast.kernels.block_sparse_attention.ref_builders import block_means
from deepseek_fast.kernels.block_sparse_attention.ref_masks import position_mask, spread_over_heads
from deepseek_fast.kernels.fused_matmul.ref import SIGNIFICANT_BITS, half_ulp


class Branch(NamedTuple):
    """One attention: heads before tokens; the errors of k and v are those of a kernel's means."""

    gate: Tensor
    k: Tensor
    v: Tensor
    seen: Tensor
    k_error: Tensor | None = None
    v_error: Tensor | None = None


def native_sparse_attention_ref(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g_cmp: Tensor | None = None,
    g_slc: Tensor | None = None,
    g_swa: Tensor | None = None,
    block_indices: Tensor | None = None,
    block_counts: int | Tensor = 16,
    block_size: int = 64,
    window_size: int = 0,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """o (B, T, HQ, V) in float64; a gate that is not there leaves its branch out."""
    return _over_sequences(
        _attend, (q, k, v, g_cmp, g_slc, g_swa, block_indices, block_counts), block_size, window_size, scale, cu_seqlens
    )


def native_sparse_attention_bound(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g_cmp: Tensor | None = None,
    g_slc: Tensor | None = None,
    g_swa: Tensor | None = None,
    block_indices: Tensor | None = None,
    block_counts: int | Tensor = 16,
    block_size: int = 64,
    window_size: int = 0,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Largest |kernel - native_sparse_attention_ref| for given block_indices: of each branch its attention's bound,
    stored in q's dtype; means as summed in f32 and rounded to k's dtype; then the gates in f32, rounded once."""
    return _over_sequences(
        _attend_bound,
        (q, k, v, g_cmp, g_slc, g_swa, block_indices, block_counts),
        block_size,
        window_size,
        scale,
        cu_seqlens,
    )


def select_blocks_ref(
    q: Tensor, k: Tensor, block_counts: int = 16, block_size: int = 64, scale: float | None = None
) -> Tensor:
    """block_indices int64 (B, T, H, block_counts) of one sequence, most important first; T where there are fewer."""
    T = q.shape[1]
    importance = importance_ref(q, k, block_size, scale)
    order = importance.argsort(dim=-1, descending=True, stable=True)[..., :block_counts]
    found = importance.gather(-1, order) >= 0
    order = torch.where(found, order, T)
    return torch.nn.functional.pad(order, (0, block_counts - order.shape[-1]), value=T).transpose(1, 2)


def importance_ref(q: Tensor, k: Tensor, block_size: int = 64, scale: float | None = None) -> Tensor:
    """float64 (B, H, T, blocks): HQ / H for the own block, -1 for later ones."""
    q, k = q.transpose(1, 2), k.transpose(1, 2)
    B, HQ, T, _ = q.shape
    means = _rounded(block_means(k.double(), block_size), k.dtype)
    z = ref.scores(q, means, _whole_blocks(T, block_size).expand(B, HQ, -1, -1), scale)
    lse = z.logsumexp(-1).masked_fill(z.isneginf().all(-1), -torch.inf) if z.shape[-1] else z.new_zeros(z.shape[:-1])
    importance = ref.over_group(ref.weights(z, lse), k.shape[1])
    own, columns = torch.arange(T)[:, None] // block_size, torch.arange(means.shape[2])[None]
    return torch.where(columns == own, float(HQ // k.shape[1]), importance.masked_fill(columns > own, -1.0))


def _branches(arguments: tuple, block_size: int, window_size: int, scale: float | None) -> list[Branch]:  # type: ignore[type-arg]
    q, k, v, g_cmp, g_slc, g_swa, block_indices, block_counts = arguments
    B, T, HQ, _ = q.shape
    keys, values = k.transpose(1, 2), v.transpose(1, 2)
    result = []
    if g_cmp is not None:
        means: list[Tensor] = []
        errors: list[Tensor] = []
        for x in (keys, values):
            exact = block_means(x.double(), block_size)
            means.append(_rounded(exact, x.dtype))
            e = gamma(block_size + 2) * block_means(x.double().abs(), block_size)
            is_16_bits = x.dtype in SIGNIFICANT_BITS
            e = e + 2 * (half_ulp(exact.abs() + e, x.dtype) if is_16_bits else U * exact.abs())
            errors.append(e.repeat_interleave(HQ // x.shape[1], 1).detach())
        seen = _whole_blocks(T, block_size).expand(B, HQ, -1, -1)
        result.append(Branch(g_cmp.transpose(1, 2), means[0], means[1], seen, errors[0], errors[1]))
    if g_slc is not None:
        if block_indices is None:
            block_indices = select_blocks_ref(q.detach(), k.detach(), block_counts, block_size, scale)
        kept = selected(block_indices, block_counts, T, block_size)
        tokens = spread_over_heads(kept[..., torch.arange(T) // block_size], HQ)
        result.append(Branch(g_slc.transpose(1, 2), keys, values, tokens & position_mask(T, T, True, None, None, 0)))
    if g_swa is not None and window_size:
        seen = position_mask(T, T, True, window_size, None, 0).expand(B, HQ, -1, -1)
        result.append(Branch(g_swa.transpose(1, 2), keys, values, seen))
    return result


def selected(block_indices: Tensor, block_counts: int | Tensor, T: int, block_size: int) -> Tensor:
    """bool (B, H, T, blocks) of block_indices (B, T, H, S): the first block_counts that are blocks."""
    indices = block_indices.transpose(1, 2).long()
    counts = block_counts.transpose(1, 2)[..., None] if isinstance(block_counts, Tensor) else block_counts
    blocks = -(-T // block_size)
    real = (torch.arange(indices.shape[-1]) < counts) & (indices >= 0) & (indices < blocks)
    result = torch.zeros(*indices.shape[:-1], blocks + 1, dtype=torch.bool)
    return result.scatter(-1, torch.where(real, indices, blocks), True)[..., :-1]


def _attend(arguments: tuple, block_size: int, window_size: int, scale: float | None) -> Tensor:  # type: ignore[type-arg]
    q, v = arguments[0].transpose(1, 2), arguments[2]
    total = torch.zeros(*q.shape[:3], v.shape[-1], dtype=torch.float64)
    for gate, keys, values, seen, *_ in _branches(arguments, block_size, window_size, scale):
        total = total + gate.double()[..., None] * ref.attention(q, keys, values, seen, scale)[0]
    return total.transpose(1, 2)


def _attend_bound(arguments: tuple, block_size: int, window_size: int, scale: float | None) -> Tensor:  # type: ignore[type-arg]
    q, v, dtype = arguments[0].transpose(1, 2), arguments[2], arguments[0].dtype
    total = torch.zeros(*q.shape[:3], v.shape[-1], dtype=torch.float64)
    size, error = total, total
    for gate, keys, values, seen, k_error, v_error in _branches(arguments, block_size, window_size, scale):
        z, e_z = ref.scores(q, keys, seen, scale), ref_bounds.score_error(q, keys, seen, scale, None, k_error)
        out, lse = ref.attention(q, keys, values, seen, scale)
        steps = 2 * (keys.shape[2] // min(KEY_STEP, block_size) + 1)
        e, _ = ref_bounds.softmax_error(z, e_z, ref.values(values, seen), out, lse, steps, dtype, None, v_error)
        gate = gate.double().abs()[..., None]
        error = error + gate * ref_bounds.stored(out, e, dtype)
        size = size + gate * out.abs()
        total = total + gate * out
    error = error + gamma(4) * (size + error)
    return ref_bounds.stored(size, error, dtype).transpose(1, 2)


def _over_sequences(  # type: ignore[no-untyped-def]
    attend,
    arguments: tuple,
    block_size: int,
    window_size: int,
    scale: float | None,
    cu_seqlens: Tensor | None,  # type: ignore[type-arg]
) -> Tensor:
    if cu_seqlens is None:
        return attend(arguments, block_size, window_size, scale)
    parts = []
    for begin, end in zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True):
        part = tuple(x[:, begin:end] if isinstance(x, Tensor) else x for x in arguments)
        parts.append(attend(part, block_size, window_size, scale))
    return torch.cat(parts, 1)


def _whole_blocks(T: int, block_size: int) -> Tensor:
    """bool (T, blocks): block c when its last token is at most the query."""
    return (torch.arange(-(-T // block_size)) + 1) * block_size - 1 <= torch.arange(T)[:, None]


def _rounded(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """To dtype, as the means are stored; gradients pass through."""
    return exact + (exact.to(dtype).double() - exact).detach()
