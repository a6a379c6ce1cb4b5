"""The launches of the indexer's kernels: what their operands become, their tables, how work is cut into blocks."""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepseek_fast.gpu import launch as gpu
from deepseek_fast.gpu.tiles import Config, Row, Table
from deepseek_fast.kernels.lightning_indexer import triton_logits, triton_select

# Where a query's tokens end, as window of triton_window.py has it.
NO_ENDS, ENDS_OF_QUERIES, ENDS_OF_REQUESTS = 0, 1, 2
LARGEST_GROUP = 256  # queries that one tile of tokens meets
FILL = 6  # products of a tile that the loading of its tokens takes as long as, when groups are sized
SCALE_BYTES = 4
# Bytes of logits that a fused call has in flight: two thirds of the L2 caches of 40, 6, 72, 50, 126 and 96 MB, and no
# more than would be worth a queue of 128 rows of 65,536.
SCRATCH_BYTES = {80: 24 << 20, 86: 4 << 20, 89: 32 << 20, 90: 32 << 20, 100: 64 << 20, 120: 48 << 20}
ROWS_ALIGNED = 16  # of a chunk: pointers into q, ks and out keep their alignment of 16 bytes

DENSE = Table(
    "lightning_indexer_logits",
    "s_q tokens H D",
    (
        Row(
            {"BLOCK_KV": 128, "COLUMNS": 64, "PER_SM": 4, "num_warps": 4, "STAGES": 2},
            s_q=16,
            archs=(89, 90, 100, 120),
            why="derived: bound by reading keys: many small blocks in flight",
        ),
        Row(
            {"BLOCK_KV": 256, "COLUMNS": 64, "PER_SM": 2, "num_warps": 8, "STAGES": 3},
            D=128,
            archs=(90, 100),
            why="derived: 2 blocks a multiprocessor, one's products under the other's relu; 8 KiB of q for 256 tokens",
        ),
        Row(
            {"BLOCK_KV": 128, "COLUMNS": 64, "PER_SM": 2, "num_warps": 8, "STAGES": 2},
            why="derived: mma.sync keeps operands in registers; float16 tiles of 32 KiB fit 100 KiB",
        ),
    ),
)
PAGED = Table(
    "lightning_indexer_paged_logits",
    "next_n tokens H D",
    (
        Row(
            {"BLOCK_KV": 64, "COLUMNS": 64, "num_warps": 4, "STAGES": 2},
            archs=(80, 86),
            why="derived: the same 16 KiB, as float16",
        ),
        Row(
            {"BLOCK_KV": 128, "COLUMNS": 64, "num_warps": 4, "STAGES": 2},
            why="derived: bound by reading the cache: 4 blocks of 16 KiB in flight a multiprocessor",
        ),
    ),
)
SELECT = Table(
    "lightning_indexer_select",
    "n k",
    (
        Row({"SIZE": 1024, "SAMPLE": 1024, "TILE": 1024, "num_warps": 4}, n=1024, why="derived: 8 keys a thread"),
        Row({"SIZE": 4096, "SAMPLE": 1024, "TILE": 4096, "num_warps": 8}, n=4096, why="derived: 16 keys a thread"),
        Row({"SIZE": 8192, "SAMPLE": 4096, "TILE": 8192, "num_warps": 16}, n=8192, why="derived: the same"),
        Row(
            {"SIZE": 4096, "SAMPLE": 4096, "TILE": 4096, "num_warps": 16},
            k=1024,
            archs=(120,),
            why="compiled: 16 scores of a tile a thread spill 24 bytes there",
        ),
        Row(
            {"SIZE": 4096, "SAMPLE": 4096, "TILE": 8192, "num_warps": 16},
            k=1024,
            why="derived: 1.4 times k reach a guess, 4 times hold them; 16 scores of a tile a thread",
        ),
        Row(
            {"SIZE": 8192, "SAMPLE": 4096, "TILE": 8192, "num_warps": 16},
            why="derived: 16 keys a thread, with their places what registers hold; above a k of 4096 the row",
        ),
    ),
)
LARGEST_GUESSED = 2  # SIZE over k below which a guess would miss too often
IN_REGISTERS, GUESSED, FROM_THE_ROW = 0, 1, 2  # FORM of _select
LARGEST_SORTED = 2048  # that one block sorts; torch.sort the rest
SORT_WARPS = {128: 1, 256: 1, 512: 4, 1024: 8, 2048: 16}  # derived: 4 to 8 keys of 8 bytes a thread
SHORTEST_PART = 16384  # of a row, where several blocks share it
PART_OF_K = 4  # and at least so many times k, or its k winners would be no fewer


@dataclass(frozen=True)
class Windows:
    """The arguments of `window`, with its constants."""

    begins: Tensor | None
    ends: Tensor | None
    of_requests: bool = False  # ends has one number for next_n queries
    next_n: int = 1

    @property
    def constants(self) -> dict[str, Any]:
        of_queries = NO_ENDS if self.ends is None else ENDS_OF_QUERIES
        return {"HAS_BEGINS": self.begins is not None, "ENDS": ENDS_OF_REQUESTS if self.of_requests else of_queries}


@dataclass(frozen=True)
class Dense:
    """Operands of `_logits`."""

    q: Tensor  # (s_q * H, D), contiguous
    k: Tensor
    k_scale: Tensor
    weights: Tensor
    constants: dict[str, Any]


@dataclass(frozen=True)
class Paged:
    """Operands of `_paged_logits`."""

    q: Tensor
    cache: Tensor
    weights: Tensor
    table: Tensor
    constants: dict[str, Any]


def dense_windows(ks: Tensor | None, ke: Tensor | None) -> Windows:
    return Windows(None if ks is None else ks.contiguous(), None if ke is None else ke.contiguous())


def paged_windows(context_lens: Tensor, next_n: int) -> Windows:
    return Windows(None, context_lens.contiguous(), context_lens.dim() == 1, next_n)


def dense_operands(q: Tensor, k: Tensor, k_scale: Tensor, weights: Tensor) -> Dense:
    fp8 = gpu.has_fp8()
    k = k if k.shape[-1] == 1 or k.stride(-1) == 1 else k.contiguous()
    k = k if fp8 else k.view(torch.uint8)
    return Dense(heads_of(q, fp8), k, k_scale.contiguous(), rows_of(weights), {"FP8": fp8})


def paged_operands(q: Tensor, cache: Tensor, weights: Tensor, table: Tensor) -> Paged:
    return Paged(heads_of(q, gpu.has_fp8()), cache, rows_of(weights), rows_of(table), {"FP8": gpu.has_fp8()})


def heads_of(q: Tensor, fp8: bool) -> Tensor:
    """Contiguous codes of q; their numbers as float16, where the chip's products take no FP8."""
    return q.contiguous() if fp8 else q.to(torch.float16).contiguous()


def rows_of(x: Tensor) -> Tensor:
    return x if x.shape[-1] <= 1 or x.stride(-1) == 1 else x.contiguous()


def heads_and_depth(H: int, D: int, columns: int, rows: int) -> dict[str, Any]:
    """Sizes of a block of heads (of one or a few queries) and of D, for a product of `columns` columns."""
    block_h = min(columns, max(16, _power(H)))  # 16: the narrowest product of all chips
    block_d = min(128, max(32, _power(D)))  # 32: the shortest of FP8; 128: longer ones in parts
    return {
        "BLOCK_Q": columns // block_h,
        "BLOCK_H": block_h,
        "BLOCK_D": block_d,
        "ONE_D": block_d >= D,
        "ONE_H": block_h >= H,
        "EVEN": H % block_h == 0 and D % block_d == 0,
    }


def dense(
    operands: Dense, windows: Windows, first: int, rows: int, out: Tensor, config: Config, *, cut: bool,
    compressed: bool = False,
) -> None:  # fmt: skip
    """Logits of queries first ... first + rows - 1 to rows 0 ... of out; cut: -inf where nothing is seen."""
    tokens, D = operands.k.shape
    H = operands.weights.shape[1]
    config = dict(config)
    columns, per_sm = config.pop("COLUMNS"), config.pop("PER_SM")
    sizes = heads_and_depth(H, D, columns, rows)
    tiles = -(-tokens // config["BLOCK_KV"])
    group = group_of(rows, tiles, sizes["BLOCK_Q"], gpu.multiprocessors() * per_sm)
    last = first + rows
    begins, ends = (None if x is None else x[first:last] for x in (windows.begins, windows.ends))
    gpu.launch(
        triton_logits._logits, (tiles * -(-rows // group),),
        operands.q[first:last], operands.k, operands.k_scale, operands.weights[first:last], begins, ends, out,
        rows, tokens, H, D, operands.k.stride(0), operands.weights.stride(0), out.stride(0),
        out.shape[1] if cut else tokens, tiles, group,
        GROUP=LARGEST_GROUP, CUT=cut, COMPRESSED=compressed, **windows.constants, **sizes, **operands.constants,
        **config,
    )  # fmt: skip


def paged(
    operands: Paged, windows: Windows, first: int, rows: int, tokens: int, out: Tensor, config: Config, *, cut: bool
) -> None:
    """The same of a cache; whole requests. tokens: no request has more."""
    _, next_n, H, D = operands.q.shape
    cache, config = operands.cache, dict(config)
    columns = out.shape[1] if cut else tokens
    sizes = heads_and_depth(H, D, config.pop("COLUMNS"), next_n)
    tiles = -(-columns // config["BLOCK_KV"])
    gpu.launch(
        triton_logits._paged_logits, (tiles * (rows // next_n),),
        operands.q, cache.view(torch.float8_e4m3fn) if gpu.has_fp8() else cache, cache, operands.weights, windows.ends,
        operands.table, out, first, next_n, tokens, H, D, cache.shape[0], cache.shape[1], cache.stride(0),
        operands.table.stride(0), operands.weights.stride(0), out.stride(0), columns, tiles,
        GROUP=max(16, _power(next_n)), CUT=cut, ENDS=windows.constants["ENDS"], **sizes, **operands.constants, **config,
    )  # fmt: skip


@functools.lru_cache(4096)
def group_of(rows: int, tiles: int, block_q: int, slots: int) -> int:
    """Queries that a block meets: few rounds of blocks over the chip, the last one full, long loops."""
    fewest = -(-rows // LARGEST_GROUP)

    def time(groups: int) -> int:
        return -(-tiles * groups // slots) * (FILL + -(-rows // (groups * block_q)))

    groups = min(range(fewest, fewest + min(64, -(-rows // block_q))), key=time)
    return -(-rows // (groups * block_q)) * block_q


def scratch_for(like: Tensor, rows: int, tokens: int, multiple: int, least: int) -> Tensor:
    """Logits of as many rows as the L2 cache holds, a multiple of so many, at least `least`, no more than there are."""
    known = max((a for a in SCRATCH_BYTES if a <= gpu.arch()), default=80)
    stride = -(-tokens // 64) * 64  # rows begin at whole cache lines
    most = max(SCRATCH_BYTES[known] // (4 * stride), 1)
    held = most // multiple * multiple if most >= multiple else max(most, least)
    return like.new_empty((min(rows, held), stride), dtype=torch.float32)


def choose(scores: Tensor, windows: Windows, n: int, k: int, sorted_by: str, out: Tensor, *, first: int = 0) -> None:
    """Places of the k largest of each row to out (rows, k), contiguous; windows are of rows first ..."""
    rows = scores.shape[0]
    parts = parts_of(rows, n, k)
    if parts > 1:
        size = -(-n // (parts * 64)) * 64
        parts = -(-n // size)
        keys, places = scores.new_empty((2, rows, parts * k), dtype=torch.int32).unbind(0)
        _select(scores, windows, n, k, places, first=first, parts=parts, part_size=size, out_keys=keys)
        _select(keys, Windows(None, None), parts * k, k, out, first=first, places_of=places)
    else:
        _select(scores, windows, n, k, out, first=first)
    if sorted_by == "value":
        _order(scores, k, out)


def parts_of(rows: int, n: int, k: int) -> int:
    """Blocks that share a row: as many as fill the chip, none with less than a part that is worth it."""
    idle = gpu.multiprocessors() // max(rows, 1)
    return max(1, min(idle, n // max(SHORTEST_PART, PART_OF_K * k)))


def _select(
    scores: Tensor, windows: Windows, n: int, k: int, out: Tensor, *, first: int, part_size: int | None = None,
    parts: int = 1, out_keys: Tensor | None = None, places_of: Tensor | None = None,
) -> None:  # fmt: skip
    rows = scores.shape[0]
    part_size = n if part_size is None else part_size
    config = SELECT.choose(n=part_size, k=k)
    size = config["SIZE"]
    form = IN_REGISTERS if part_size <= size else GUESSED if LARGEST_GUESSED * k <= size else FROM_THE_ROW
    found = scores.new_empty((rows * parts, size), dtype=torch.int32) if form == GUESSED else None
    gpu.launch(
        triton_select._select, (rows * parts,),
        scores, windows.begins, windows.ends, places_of, found, out, out_keys,
        n, scores.stride(0), 0, k, parts, part_size, windows.next_n, first,
        FORM=form, IS_KEYS=places_of is not None, EMIT=out_keys is not None, **windows.constants, **config,
    )  # fmt: skip


def _order(scores: Tensor, k: int, out: Tensor) -> None:
    """Chosen places in the order of their scores."""
    rows = scores.shape[0]
    if k <= LARGEST_SORTED:
        size = max(128, _power(k))
        gpu.launch(
            triton_select._by_value, (rows,), scores, out, scores.stride(0), k, SIZE=size, num_warps=SORT_WARPS[size]
        )
        return
    packed = scores.new_empty((rows, k), dtype=torch.int64)
    programs = rows * -(-k // 1024)
    gpu.launch(triton_select._packed_by_value, (programs,), scores, out, packed, scores.stride(0), k, SIZE=1024)
    packed = packed.sort(-1, descending=True).values
    out.copy_(torch.where(packed == -(2**63), -1, 0x7FFFFFFF - (packed & 0x7FFFFFFF)))


def to_slots(places: Tensor, table: Tensor, page_size: int) -> None:
    """Positions (b, ..., k) in requests become places in the cache."""
    count = places.numel()
    gpu.launch(
        triton_select._to_slots, (-(-count // 1024),), places, table, count, table.shape[1], count // places.shape[0],
        page_size, table.stride(0), SIZE=1024,
    )  # fmt: skip


def _power(size: int) -> int:
    """The power of two at or above size."""
    return 1 << max(0, size - 1).bit_length()
