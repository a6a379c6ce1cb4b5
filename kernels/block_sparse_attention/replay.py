"""cpu.h's order of arithmetic, step by step in f32: what a kernel does, slowly. The bounds are checked against it.

A fused multiply-add is one of float64 rounded to f32, which is exact but for double rounding; exp and log are torch's.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from deepseek_fast.kernels.block_sparse_attention import ref
from deepseek_fast.kernels.block_sparse_attention.ref_masks import (
    KEY_STEP,
    block_matrix,
    flex_blocks,
    pair,
    sequences,
    sizes_of,
    spread_over_heads,
)

LANES = 16  # partial sums of a row's weights


class Sums(NamedTuple):
    """A row's maximum, sums of weights, and sums of weighted values."""

    m: Tensor
    lanes: Tensor
    acc: Tensor


def forward(inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """(out in q's dtype, lse f32)."""
    q, v = inputs["q"], inputs["v"]
    z, values = scores(inputs), ref.values(v, ref.seen_of(inputs)).float()
    kept = small_kept_blocks(inputs)
    if kept is None:
        sums = accumulated(z, values[..., None, :, :], key_steps(inputs), q.dtype)
    else:
        size_k = pair(inputs["block_size"])[1]
        step = max(KEY_STEP // size_k, 1) * size_k
        z, values = strung(z, values, kept, size_k)
        sums = accumulated(z, values, [slice(j, j + step) for j in range(0, z.shape[-1], step)], q.dtype)
    return finished(sums, ref.of_heads(inputs.get("sink_logits")), q.dtype)


def small_kept_blocks(inputs: dict[str, Any]) -> Tensor | None:
    """bool (B, H, S_q, columns), where blocks are smaller than a step and several make one."""
    mask, sizes = inputs.get("block_mask"), sizes_of(inputs["q"], inputs["k"])
    size_q, size_k = pair(inputs.get("block_size", KEY_STEP))
    if mask is None or size_k >= KEY_STEP or "cu_seqlens_q" in inputs:
        return None
    rows, columns = -(-sizes.S_q // size_q), -(-sizes.S_k // size_k)
    if hasattr(mask, "BLOCK_SIZE"):
        shape = (*mask.kv_num_blocks.shape[:2], rows, columns)
        kept = flex_blocks(mask.kv_num_blocks, mask.kv_indices, shape)
        if mask.full_kv_num_blocks is not None:
            kept = kept | flex_blocks(mask.full_kv_num_blocks, mask.full_kv_indices, shape)
    else:
        kept = block_matrix(mask, rows, columns)
    kept = spread_over_heads(kept, sizes.H)[:, :, torch.arange(sizes.S_q) // size_q]
    return kept.expand(sizes.B, sizes.H, sizes.S_q, columns)


def strung(z: Tensor, values: Tensor, kept: Tensor, size_k: int) -> tuple[Tensor, Tensor]:
    """Each row's scores and values (..., S_q, n, D_v) in the order of its kept blocks, hidden ones behind them."""
    width = kept.shape[-1] * size_k - z.shape[-1]
    z, values = (
        torch.nn.functional.pad(z, (0, width), value=-torch.inf),
        torch.nn.functional.pad(values, (0, 0, 0, width)),
    )
    order = (~kept).byte().argsort(dim=-1, stable=True)
    place = (order[..., None] * size_k + torch.arange(size_k)).flatten(-2)
    index = place[..., None].expand(*place.shape, values.shape[-1])
    return z.gather(-1, place), values[..., None, :, :].expand(*index.shape[:3], -1, -1).gather(-2, index)


def accumulated(z: Tensor, values: Tensor, steps: list[slice], dtype: torch.dtype) -> Sums:
    """values: (..., S_q or 1, keys, D_v)."""
    m = torch.full(z.shape[:-1], -torch.inf)
    lanes, acc = torch.zeros(*z.shape[:-1], LANES), torch.zeros(*z.shape[:-1], values.shape[-1])
    for keys in steps:
        part = z[..., keys]
        m, r = rescaled(m, part.amax(-1))
        p = torch.where(part.isneginf(), 0.0, (part - m[..., None]).exp())
        lanes, acc = lanes * r[..., None], acc * r[..., None]
        multiplied = p.to(dtype).float() if dtype == torch.bfloat16 else p
        for j in range(part.shape[-1]):
            lanes[..., j % LANES] += p[..., j]
            acc = fma(multiplied[..., j, None], values[..., keys, :][..., j, :], acc)
    return Sums(m, lanes, acc)


def merged(a: Sums, b: Sums) -> Sums:
    """sparse_mla's: a's entries come before b's."""
    top, r_a = rescaled(a.m, b.m)
    r_b = rescaled(b.m, a.m)[1]
    sums = (fma(y, r_b[..., None], x * r_a[..., None]) for x, y in ((a.lanes, b.lanes), (a.acc, b.acc)))
    return Sums(top, *sums)  # type: ignore[call-arg]


def finished(sums: Sums, sink: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    m, lanes, acc = sums
    total = halved(lanes)
    lse = m + total.log()
    if sink is not None:
        column = sink.expand_as(m)
        m, r = rescaled(m, column)
        total, acc = total * r + torch.where(column.isneginf(), 0.0, (column - m).exp()), acc * r[..., None]
        total = torch.where(column.isposinf(), torch.inf, total)
    out = torch.where(total[..., None] > 0, acc * (1 / total)[..., None], 0.0)
    return out.to(dtype), lse


def backward(dout: Tensor, dlse: Tensor | None, out: Tensor, lse: Tensor, inputs: dict[str, Any]) -> ref.Gradients:
    """From out and lse as forward stored them."""
    q, k, v, sink = inputs["q"], inputs["k"], inputs["v"], inputs.get("sink_logits")
    H, H_kv, dtype = q.shape[1], k.shape[1], q.dtype
    seen, z = ref.seen_of(inputs), scores(inputs)
    safe = torch.where(lse.isinf(), 0.0, lse)
    p = torch.where(z.isneginf(), 0.0, (z - safe[..., None]).clamp_max(0).exp())
    f = torch.ones_like(lse) if sink is None else 1 / (1 + (sink[:, None] - safe).exp())
    f = torch.where(lse.isinf(), 1.0, f)
    delta = torch.zeros_like(lse)
    for d in range(v.shape[-1]):
        delta = fma(dout[..., d].float(), out[..., d].float(), delta)
    shift = f * delta if dlse is None else f * delta - dlse
    values, keys, queries = (x.float() for x in (ref.values(v, seen), ref.keys(k, seen), ref.queries(q, seen)))
    gap = f[..., None] * products(dout.float(), values) - shift[..., None]
    dz, w = p * gap, p * f[..., None]
    if dtype == torch.bfloat16:
        dz, w = dz.bfloat16().float(), w.bfloat16().float()
    scale = torch.tensor(ref.scale_of(q, inputs.get("scale")), dtype=torch.float32)
    dq = torch.zeros_like(queries)
    for j in range(k.shape[2]):
        dq = fma(dz[..., j, None], keys[..., j, None, :], dq)
    dk, dv = (torch.zeros(x.shape) for x in (k, v))
    group = H // H_kv
    for member in range(group):
        heads = slice(member, None, group)
        for i in range(q.shape[2]):
            dk = fma(dz[:, heads, i, :, None], queries[:, heads, i, None], dk)
            dv = fma(w[:, heads, i, :, None], dout[:, heads, i, None].float(), dv)
    dsink = None
    if sink is not None:
        dsink = torch.zeros_like(sink)
        for b in range(q.shape[0]):
            for i in range(q.shape[2]):
                dsink = fma(f[b, :, i] - 1, delta[b, :, i], dsink)
    return ref.Gradients((scale * dq).to(dtype), (scale * dk).to(dtype), dv.to(dtype), dsink)


def scores(inputs: dict[str, Any]) -> Tensor:
    q, k, bias = inputs["q"], inputs["k"], inputs.get("token_bias")
    scale = torch.tensor(ref.scale_of(q, inputs.get("scale")), dtype=torch.float32)
    z = scale * products(q.float(), k.float().repeat_interleave(q.shape[1] // k.shape[1], 1))
    z = z if bias is None else z + bias.float()
    return z.masked_fill(~ref.seen_of(inputs), -torch.inf)


def products(a: Tensor, b: Tensor) -> Tensor:
    """a b^T, each element one chain over the last dimension."""
    result = torch.zeros(*a.shape[:-1], b.shape[-2])
    for d in range(a.shape[-1]):
        result = fma(a[..., d, None], b[..., None, :, d], result)
    return result


def key_steps(inputs: dict[str, Any]) -> list[slice]:
    """Of blocks of a step or more, kept or not: a step of which a row sees nothing leaves it as it is."""
    size_q, size_k = pair(inputs.get("block_size", KEY_STEP))
    mask = inputs.get("block_mask")
    if mask is None:
        size_k = KEY_STEP
    elif hasattr(mask, "BLOCK_SIZE"):
        size_k = mask.BLOCK_SIZE[1]
    ends = inputs.get("cu_seqlens_q"), inputs.get("cu_seqlens_k", inputs.get("cu_seqlens_q"))
    result = []
    for part in sequences(sizes_of(inputs["q"], inputs["k"]), *ends, size_q):
        for block in range(part.keys.start, part.keys.stop, size_k):
            end = min(block + size_k, part.keys.stop)
            result += [slice(j, min(j + KEY_STEP, end)) for j in range(block, end, KEY_STEP)]
    return result


def rescaled(m: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
    """The new maximum, and what sums so far are multiplied by."""
    top = torch.maximum(m, largest)
    return top, torch.where(top == m, 1.0, (m - top).exp())


def halved(lanes: Tensor) -> Tensor:
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return (a.double() * b.double() + c.double()).float()
