"""top_k_blocks on CUDA tensors: means of blocks, a number for every pair of blocks that orders them, the largest.

A pair's number is its score's bits in the order of floats, then the column from the last to the first, so that no two
are equal and the lower of equal scores wins: torch.topk's choice among equal numbers does not matter.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepseek_fast.gpu.launch import launch
from deepseek_fast.gpu.numbers import dot

_BLOCK_ROWS = _BLOCK_COLUMNS = 32  # of a tile of scores
_FAR = 2**59  # tokens


def top_k_blocks(
    q: Tensor,
    k: Tensor,
    num_blocks: int,
    scale: float | None = None,
    first: int = 1,
    local: int = 1,
    is_causal: bool = False,
    q_offset: int = 0,
    q_at_end: bool = False,
    block_q: int = 128,
    block_k: int = 128,
) -> Tensor:
    (B, H, S_q, D), (_, H_kv, S_k, _) = q.shape, k.shape
    rows, columns = -(-S_q // block_q), -(-S_k // block_k)
    kept = torch.zeros((B, H, rows, columns), dtype=torch.bool, device=q.device)
    if kept.numel() == 0:
        return kept
    means_q, means_k = means(q, block_q), means(k, block_k)
    keys = torch.empty((B, H, rows, columns), dtype=torch.int64, device=q.device)
    offset = S_k - S_q if q_at_end else q_offset
    tiles = (-(-rows // _BLOCK_ROWS), -(-columns // _BLOCK_COLUMNS))
    launch(
        _order, (tiles[0] * tiles[1] * B * H,), means_q, means_k, keys, kept.view(torch.uint8),
        D**-0.5 if scale is None else scale, S_q, rows, columns, *tiles, H, H // H_kv, min(first, columns),
        min(local, _FAR), max(-_FAR, min(_FAR, offset)), block_q, block_k, D=D, CAUSAL=is_causal,
        BLOCK_R=_BLOCK_ROWS, BLOCK_C=_BLOCK_COLUMNS, BLOCK_D=min(32, max(16, triton.next_power_of_2(D))), num_warps=4,
        num_stages=2,
    )  # fmt: skip
    chosen = keys.topk(min(num_blocks, columns), sorted=False)
    taken = torch.zeros_like(kept).scatter_(-1, chosen.indices, chosen.values != _NO_CANDIDATE)
    return kept.logical_or_(taken)


def means(x: Tensor, block: int) -> Tensor:
    """(B, H, blocks, D) float32."""
    B, H, S, D = x.shape
    blocks = -(-S // block)
    result = x.new_empty((B, H, blocks, D), dtype=torch.float32)
    width = min(128, max(16, triton.next_power_of_2(D)))
    launch(
        _means, (B * H * blocks, -(-D // width)), x, result, S, blocks, H, block, *x.stride(), D=D, BLOCK_D=width,
        BLOCK_S=min(32, triton.next_power_of_2(block)), num_warps=4,
    )  # fmt: skip
    return result


@triton.jit
def _means(
    x, result, S, blocks, H, block, x_b, x_h, x_s, x_d, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr
):
    number = tl.program_id(0).to(tl.int64)
    place, h, b = number % blocks, number // blocks % H, number // blocks // H
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    begin = place * block
    end = tl.minimum(begin + block, S)
    sums = tl.zeros([BLOCK_S, BLOCK_D], tl.float32)
    for s in range(begin, end, BLOCK_S):
        at = s + tl.arange(0, BLOCK_S)
        pointers = x + b * x_b + h * x_h + at[:, None] * x_s + d[None, :] * x_d
        sums += tl.load(pointers, (at < end)[:, None] & (d < D)[None, :], 0.0).to(tl.float32)
    tl.store(result + number * D + d, tl.div_rn(tl.sum(sums, 0), (end - begin).to(tl.float32)), d < D)


_NO_CANDIDATE = -(2**63)
_LEAST = tl.constexpr(-(2**63))


@triton.jit
def divide_down(a, b):
    """Towards minus infinity, b above 0."""
    return tl.where(a >= 0, a // b, -((b - 1 - a) // b))


@triton.jit(do_not_specialize=["first", "local", "offset"])
def _order(
    means_q, means_k, keys, forced, scale, S_q, rows, columns, tiles_r, tiles_c, H, group, first, local, offset,
    block_q, block_k,
    D: tl.constexpr, CAUSAL: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """keys: the numbers of pairs, _LEAST of no candidate; forced: 1 where a block is kept whatever it scores."""
    program = tl.program_id(0)
    c = program % tiles_c * BLOCK_C + tl.arange(0, BLOCK_C)
    r = program // tiles_c % tiles_r * BLOCK_R + tl.arange(0, BLOCK_R)
    bh = (program // tiles_c // tiles_r).to(tl.int64)
    of_k = bh // H * (H // group) + bh % H // group
    scores = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for begin in range(0, D, BLOCK_D):
        d = begin + tl.arange(0, BLOCK_D)
        at_q = means_q + (bh * rows + r)[:, None] * D + d[None, :]
        at_k = means_k + (of_k * columns + c)[None, :] * D + d[:, None]
        of_q = tl.load(at_q, (r < rows)[:, None] & (d < D)[None, :], 0.0)
        scores = dot(of_q, tl.load(at_k, (c < columns)[None, :] & (d < D)[:, None], 0.0), scores)
    scores = scores * scale + 0.0  # -0 equals 0
    bits = scores.to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    ordered = tl.where(scores != scores, -0x7FFFFFFF, ordered)
    # The first and last of the row's own blocks
    place = r.to(tl.int64) * block_q + offset
    behind = tl.minimum(r.to(tl.int64) * block_q + block_q, S_q) + offset
    own_first, own_last = divide_down(place, block_k)[:, None], divide_down(behind - 1, block_k)[:, None]
    column = c.to(tl.int64)[None, :]
    distance = tl.maximum(tl.maximum(own_first - column, column - own_last), 0)
    candidate = (r[:, None] < rows) & (c[None, :] < columns)
    if CAUSAL:
        candidate = candidate & (column <= own_last)
    is_forced = candidate & ((distance < local) | (column < first))
    number = tl.where(is_forced, 0x7FFFFFFF, ordered).to(tl.int64) * 4294967296 + (4294967295 - column)
    number = tl.where(candidate, number, _LEAST)
    at = (bh * rows + r)[:, None] * columns + c[None, :]
    inside = (r < rows)[:, None] & (c < columns)[None, :]
    tl.store(keys + at, number, inside)
    tl.store(forced + at, is_forced.to(tl.uint8), inside)
