"""block_sparse_attention and its backward on CUDA tensors; README.md says how, triton_walk.py which keys."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deepseek_fast.gpu.launch import launch
from deepseek_fast.gpu.tiles import Row, Table
from deepseek_fast.kernels.block_sparse_attention.triton_backward import _dq, _row_terms, _sink_gradient
from deepseek_fast.kernels.block_sparse_attention.triton_backward_keys import _dkdv
from deepseek_fast.kernels.block_sparse_attention.triton_call import (
    Call,
    _power,
    call_of,
    form_of_keys,
    of_heads,
    rows_of,
    width_of,
)
from deepseek_fast.kernels.block_sparse_attention.triton_forward import _attend
from deepseek_fast.kernels.block_sparse_attention.triton_lists import transposed
from deepseek_fast.kernels.block_sparse_attention.triton_top_k import top_k_blocks
from deepseek_fast.kernels.block_sparse_attention.triton_walk import BLOCKS, GATHERED, WHOLE

SMALL_SHARED = (86, 89, 120)  # chips with 99 KiB of shared memory a block
LARGE = (90, 100)
_ROWS_OF_TERMS = 32  # of a program that computes what a row needs once


def _tile(M: int, N: int, warps: int, stages: int) -> dict[str, int]:
    return {"BLOCK_M": M, "BLOCK_N": N, "num_warps": warps, "num_stages": stages}


# M: rows that one list has, heads of a group times queries; D: the wider of q's and v's heads, padded; bytes: of a
# value; heavy: 1 where tables or a bias of pairs take registers.
FORWARD = Table(
    "block_sparse_attention",
    "M D bytes heavy",
    (
        Row(
            _tile(16, 64, 4, 2), M=16, D=128, bytes=2, archs=SMALL_SHARED, why="derived: two tiles of k and v in 64 KiB"
        ),
        Row(_tile(16, 64, 4, 3), M=16, D=128, bytes=2, why="derived: bound by loads, three tiles of k and v under way"),
        Row(_tile(128, 128, 8, 3), D=64, bytes=2, heavy=0, archs=LARGE, why="derived: 112 KiB; wgmma's widest product"),
        Row(_tile(128, 128, 8, 3), D=128, bytes=2, heavy=0, archs=LARGE, why="derived: 224 KiB; two tiles under way"),
        Row(_tile(128, 64, 8, 3), D=64, bytes=2, heavy=0, why="derived: mma.sync, 16 rows a warp; 4 warps spill"),
        Row(_tile(128, 32, 8, 3), D=128, bytes=2, heavy=0, why="derived: 64 sums a thread; 64 keys spill"),
        Row(_tile(64, 64, 8, 2), D=128, bytes=2, why="derived: registers for the bias or the bits beside the scores"),
        Row(_tile(128, 32, 8, 2), D=256, bytes=2, heavy=0, archs=LARGE, why="derived: 128 sums a thread, 128 KiB"),
        Row(_tile(32, 32, 8, 2), bytes=2, why="derived: heads of 256 and parts of wider ones, in 99 KiB"),
        Row(_tile(16, 32, 4, 2), M=16, D=128, why="derived: three TF32 products of each, half the registers"),
        Row(_tile(64, 32, 8, 2), D=64, heavy=0, archs=LARGE, why="derived: three TF32 products of each, 64 KiB"),
        Row(_tile(32, 32, 8, 2), D=64, why="derived: three TF32 products of each; 64 rows spill on 8.0"),
        Row(_tile(64, 16, 8, 2), D=128, heavy=0, archs=(90,), why="derived: wgmma, three TF32 products of each"),
        Row(_tile(32, 16, 8, 2), D=128, why="derived: three TF32 products of each, 52 KiB"),
        Row(_tile(16, 16, 8, 2), why="derived: heads of 256 of float32 in 99 KiB"),
    ),
)
# As FORWARD's, of products of dout, q, k and v at a time.
DQ = Table(
    "block_sparse_attention_dq",
    "M D bytes heavy",
    (
        Row(_tile(16, 64, 4, 3), M=16, D=128, bytes=2, why="derived: bound by loads, two tiles of k and v under way"),
        Row(_tile(128, 64, 8, 3), D=128, bytes=2, heavy=0, archs=LARGE, why="derived: 160 KiB with q and dout"),
        Row(_tile(128, 64, 8, 3), D=64, bytes=2, heavy=0, why="derived: 80 KiB"),
        Row(_tile(64, 32, 4, 3), D=128, bytes=2, heavy=0, why="derived: q and dout in 32 KiB, 32 KiB of k and v"),
        Row(_tile(64, 32, 8, 2), D=128, bytes=2, why="derived: registers for the bits beside the scores, 72 KiB"),
        Row(_tile(32, 32, 8, 2), bytes=2, why="derived: heads of 256 and parts of wider ones, in 99 KiB"),
        Row(_tile(32, 32, 8, 2), D=64, why="derived: three TF32 products of each, 48 KiB"),
        Row(_tile(16, 16, 4, 2), D=128, why="derived: three TF32 products of each, 48 KiB"),
        Row(_tile(16, 16, 8, 2), why="derived: heads of 256 of float32 in 99 KiB"),
    ),
)
# BLOCK_N: the keys that a program owns; N: keys of a block. BLOCK_M: queries that it takes at a time.
DKDV = Table(
    "block_sparse_attention_dkdv",
    "N D bytes heavy",
    (
        Row(_tile(32, 32, 4, 2), N=32, D=128, bytes=2, why="derived: small blocks"),
        Row(_tile(32, 64, 4, 3), N=64, D=128, bytes=2, heavy=0, why="derived: 64 + 64 sums a thread; 64 queries spill"),
        Row(_tile(64, 128, 8, 2), D=64, bytes=2, heavy=0, archs=LARGE, why="derived: 32 + 32 sums a thread, 64 KiB"),
        Row(
            _tile(32, 128, 8, 3),
            D=128,
            bytes=2,
            heavy=0,
            archs=LARGE,
            why="derived: 64 + 64 sums a thread, 112 KiB; 64 queries spill",
        ),
        Row(_tile(32, 64, 8, 2), D=128, bytes=2, why="derived: 32 + 32 sums a thread, 64 KiB"),
        Row(_tile(32, 32, 8, 2), bytes=2, why="derived: heads of 256 and parts of wider ones, in 99 KiB"),
        Row(_tile(16, 32, 4, 2), D=64, why="derived: three TF32 products of each, 40 KiB"),
        Row(_tile(16, 16, 8, 2), why="derived: heads of 128 and 256 of float32 in 99 KiB"),
    ),
)


def rows_of_tile(call: Call) -> int:
    """Rows that one list has."""
    S_q, group = call.q.shape[2], call.q.shape[1] // call.k.shape[1]
    queries = S_q if call.lists is None else min(call.block_q, S_q)
    return queries * (group if call.together else 1)


def pack_of(call: Call, BLOCK_M: int) -> int:
    """Heads of a group that a tile has: as many as leave room for the queries of a block."""
    S_q, group = call.q.shape[2], call.q.shape[1] // call.k.shape[1]
    queries = S_q if call.lists is None else min(call.block_q, S_q)
    return min(_power(group), max(1, BLOCK_M // _power(queries))) if call.together else 1


def block_sparse_attention(q: Tensor, k: Tensor, v: Tensor, *rest: Any, **named: Any) -> tuple[Tensor, Tensor]:
    call = call_of(q, k, v, *rest, **named)
    q, k, v = call.q, call.k, call.v
    B, H, H_kv, S_q, S_k, D, D_v = call.sizes
    out, lse = q.new_empty((B, H, S_q, D_v)), q.new_empty((B, H, S_q), dtype=torch.float32)
    if S_k == 0:
        return out.zero_(), lse.fill_(float("-inf"))
    if out.numel() == 0:
        return out, lse
    if call.ends_q is not None:  # tokens that no sequence has
        out.zero_()
        lse.fill_(float("-inf"))
    width, width_v = width_of(D, q.element_size()), width_of(D_v, q.element_size())
    config = FORWARD.choose(
        M=rows_of_tile(call), D=max(_power(D), _power(D_v)), bytes=q.element_size(), heavy=int(call.is_heavy)
    )
    shared = tile_arguments(call, config)
    parts = -(-D_v // width_v)
    grid = (parts * shared["tiles"] * -(-(H // H_kv) // shared["PACK"]) * H_kv * B,)
    launch(
        _attend, grid, q, k, v, out, lse, **pointers_of(call), **shared, **strides_of(call),
        scale=call.scale, D=D, D_V=D_v, BLOCK_D=width, BLOCK_DV=width_v, PARTS=parts, **config,
    )  # fmt: skip
    return out, lse


def block_sparse_attention_backward(
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    *rest: Any,
    **named: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    call = call_of(q, k, v, *rest, **named)
    q, k, v, dout, out = call.q, call.k, call.v, rows_of(dout), rows_of(out)
    B, H, H_kv, S_q, S_k, D, D_v = call.sizes
    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    dq, dk, dv = dq.contiguous(), dk.contiguous(), dv.contiguous()
    dsink = q.new_empty(0 if call.sink_logits is None else H, dtype=torch.float32)
    if S_k == 0 or B * S_q == 0:
        return dq.zero_(), dk.zero_(), dv.zero_(), dsink.zero_()
    if call.ends_q is not None:  # tokens that no sequence has
        for gradient in (dq, dk, dv):
            gradient.zero_()
    rows = B * H * S_q
    has_sink = call.sink_logits is not None
    terms = q.new_empty((4 if has_sink else 2, rows), dtype=torch.float32)
    shift, lse_used = terms[0], terms[1]
    share, sink_part = (terms[2], terms[3]) if has_sink else (None, None)
    launch(
        _row_terms, (-(-rows // _ROWS_OF_TERMS),), dout, out, lse.contiguous(),
        None if dlse is None else dlse.contiguous(), call.sink_logits, shift, lse_used, share, sink_part, rows, H, S_q,
        *dout.stride()[:3], *out.stride()[:3], D_V=D_v, BLOCK_DV=min(128, max(16, _power(D_v))),
        BLOCK_M=_ROWS_OF_TERMS, FOLD=call.constants["FOLD"], SINK=has_sink, HAS_DLSE=dlse is not None, num_warps=4,
    )  # fmt: skip
    if has_sink:
        launch(_sink_gradient, (H,), sink_part, dsink, B, H, S_q, BLOCK=1024, num_warps=4)
    widths = {"D": D, "D_V": D_v, "BLOCK_D": width_of(D, q.element_size()), "BLOCK_DV": width_of(D_v, q.element_size())}
    strides = strides_of(call) | {f"dout_{d}": stride for d, stride in zip("bhs", dout.stride(), strict=False)}
    sizes = {"D": max(_power(D), _power(D_v)), "bytes": q.element_size(), "heavy": int(call.is_heavy)}

    config = DQ.choose(M=rows_of_tile(call), **sizes)
    shared = tile_arguments(call, config)
    parts = -(-D // widths["BLOCK_D"])
    grid = (parts * shared["tiles"] * -(-(H // H_kv) // shared["PACK"]) * H_kv * B,)
    launch(
        _dq, grid, dout, q, k, v, dq, shift, lse_used, share, **pointers_of(call), **shared, **strides, **widths,
        scale=call.scale, PARTS=parts, **config,
    )  # fmt: skip

    config = DKDV.choose(N=S_k if call.lists is None else call.block_k, **sizes)
    keys = key_tile_arguments(call, config)
    parts = max(parts, -(-D_v // widths["BLOCK_DV"]))
    grid = (parts * keys["tiles"] * H_kv * B,)
    launch(
        _dkdv, grid, dout, q, k, v, dk, dv, shift, lse_used, share, **(strides | widths | keys),
        scale=call.scale, PARTS=parts, ALIKE=q.stride(2) == dout.stride(2), **config,
    )  # fmt: skip
    return dq, dk, dv, dsink


def key_tile_arguments(call: Call, config: dict[str, int]) -> dict[str, Any]:
    """What _dkdv takes, whose programs have tiles of keys; sets config's tile to that of the form."""
    _, H, H_kv, S_q, S_k, *_ = call.sizes
    group, lists = H // H_kv, call.lists
    pointers = {name: value for name, value in pointers_of(call).items() if name != "columns"}
    numbers: dict[str, Any] = {}
    if lists is None:
        block_k = config["BLOCK_N"]
        block_q = config["BLOCK_M"]
        columns = S_k // block_k + call.sequences if call.sequences else -(-S_k // block_k)
        # Few queries: those of all heads in one tile
        form = GATHERED if S_q < config["BLOCK_M"] and group > 1 else WHOLE
        pointers |= {"listed": None, "entry_of": None}
        entries = 0
    else:
        block_q, block_k = call.block_q, call.block_k
        config["BLOCK_N"] = min(config["BLOCK_N"], max(16, _power(block_k)))
        starts, ends, listed, entry_of = transposed(call)
        columns = starts.shape[1]
        heads = lists.shape[1]
        b = 0 if lists.shape[0] == 1 else heads * columns
        numbers = dict(zip(("list_b", "list_h", "list_kv"), (b, *of_heads(heads, columns, H, H_kv)), strict=True))
        pointers |= {"starts": starts, "ends": ends, "listed": listed, "entry_of": entry_of}
        divisor = math.gcd(block_q, config["BLOCK_M"])
        form = BLOCKS if divisor >= 32 or divisor == config["BLOCK_M"] else GATHERED
        if form is BLOCKS:
            config["BLOCK_M"] = divisor
        entries = listed.shape[0]
    tiles = columns * -(-block_k // config["BLOCK_N"])
    step = block_q if form is BLOCKS else config["BLOCK_M"]
    even = not call.constants["SEQUENCES"] and S_q % step == 0 and form is not GATHERED
    return pointers | numbers | {
        "behind": call.behind, "ahead": call.ahead, "sinks": call.sinks, "offset": call.offset, "GROUP": group,
        "H_kv": H_kv, "S_q": S_q, "S_k": S_k, "tiles": tiles, "FORM": form.value, "BLOCK_Q": block_q,
        "BLOCK_K": block_k, "EVEN": even, "TOGETHER": call.together, "LISTS": lists is not None, "entries": entries,
        "num_tables": 0 if call.bits is None else call.bits.shape[0], "num_sequences": call.sequences,
    } | call.constants  # fmt: skip


def tile_arguments(call: Call, config: dict[str, int]) -> dict[str, Any]:
    """What a kernel whose programs have tiles of queries takes; sets config's BLOCK_N to that of the form."""
    _, H, H_kv, S_q, S_k, *_ = call.sizes
    form, config["BLOCK_N"] = form_of_keys(call, config["BLOCK_N"])
    pack = pack_of(call, config["BLOCK_M"])
    queries = config["BLOCK_M"] // pack
    if call.lists is None:
        block_q, block_k = queries, config["BLOCK_N"]
        tiles = S_q // queries + call.sequences if call.sequences else -(-S_q // queries)
    else:
        block_q, block_k = call.block_q, call.block_k
        tiles = call.lists.shape[2] * -(-block_q // queries)
    even = not call.constants["SEQUENCES"] and S_k % block_k == 0 and form in (WHOLE.value, BLOCKS.value)
    return {
        "behind": call.behind, "ahead": call.ahead, "sinks": call.sinks, "offset": call.offset, "group": H // H_kv,
        "H_kv": H_kv, "S_q": S_q, "S_k": S_k, "tiles": tiles, "PACK": pack, "FORM": form, "BLOCK_Q": block_q,
        "BLOCK_K": block_k, "EVEN": even, **call.constants,
        "entries": 0 if call.lists is None else call.lists.columns.shape[0],
        "num_tables": 0 if call.bits is None else call.bits.shape[0], "num_sequences": call.sequences,
    }  # fmt: skip


def pointers_of(call: Call) -> dict[str, Any]:
    lists = call.lists
    return {
        "starts": None if lists is None else lists.starts, "ends": None if lists is None else lists.ends,
        "columns": None if lists is None else lists.columns, "tables": call.tables, "bits": call.bits,
        "bias": call.bias, "sink_logits": call.sink_logits, "ends_q": call.ends_q, "ends_k": call.ends_k,
    }  # fmt: skip


def strides_of(call: Call) -> dict[str, int]:
    named: dict[str, int] = {}
    for name, tensor in (("q", call.q), ("k", call.k), ("v", call.v)):
        named |= {f"{name}_{d}": stride for d, stride in zip("bhs", tensor.stride(), strict=False)}
    lists = (0, 0, 0) if call.lists is None else call.lists.strides
    named |= dict(zip(("list_b", "list_h", "list_kv"), lists, strict=True))
    return named | dict(zip(("bias_b", "bias_h", "bias_s"), call.strides_of_bias(), strict=True))


OPS: dict[str, Callable[..., Any]] = {
    "block_sparse_attention": block_sparse_attention,
    "block_sparse_attention_backward": block_sparse_attention_backward,
    "top_k_blocks": top_k_blocks,
}
