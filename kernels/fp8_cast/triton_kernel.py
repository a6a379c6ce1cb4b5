"""fp8_cast and its family on CUDA tensors, with the CPU kernels' bits: which kernel a call takes, and its tiles.

triton_blocks.py reads x once, where blocks lie within a tile; triton_parts.py twice, for blocks of any size, and once
where scales are given or none are wanted.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepseek_fast.gpu.launch import arch, launch
from deepseek_fast.gpu.linear import as_rows
from deepseek_fast.gpu.register import interpreted
from deepseek_fast.gpu.tiles import Row, Table
from deepseek_fast.kernels.fp8_cast.meta import codes_like, new_scale
from deepseek_fast.kernels.fp8_cast.triton_blocks import _cast_blocks
from deepseek_fast.kernels.fp8_cast.triton_dequantize import _dequantize
from deepseek_fast.kernels.fp8_cast.triton_int8 import _int8_cast
from deepseek_fast.kernels.fp8_cast.triton_pair import _cast_pair
from deepseek_fast.kernels.fp8_cast.triton_parts import _amax, _encode, _inverse_rms

FORMATS = {
    torch.float8_e4m3fn: "e4m3fn",
    torch.float8_e5m2: "e5m2",
    torch.float8_e4m3fnuz: "e4m3fnuz",
    torch.float8_e5m2fnuz: "e5m2fnuz",
    torch.float4_e2m1fn_x2: "e2m1",
}
DIVIDES = ("v3", "v32", "vllm")
IGNORES_NAN = (*DIVIDES, "tilekernels", "te")
MOST = 16384  # values of a block that is cast in one pass: 128 x 128, and 64 values a thread at most
WIDTH = 1024  # columns of a tile: 2 KiB of bfloat16 side by side, more rows beside them
NARROWEST = 32  # columns of a tile that reads memory well: two sectors of bfloat16
MANY = 1 << 40  # values, as of a large call
WIDE = 1 << 30  # rows or columns from which they are counted in int64, a tile's beyond the last included

# Bytes in flight decide: 3.35 TB/s times 0.7 us of latency are 2.3 MB, 18 KiB of loads on each of 132 SMs at every
# moment, so about twice as many bytes in resident programs. 32 values a thread are 64 bytes of bfloat16 in four loads.
BLOCKS = Table(
    "fp8_cast_blocks",
    "BLOCK TOTAL",
    (
        Row(
            {"VALUES": 1024, "num_warps": 2},
            BLOCK=1024,
            TOTAL=1 << 19,
            why="derived: below 128 programs of 4,096 values not every SM has one; 16 values a thread",
        ),
        Row(
            {"VALUES": 4096, "num_warps": 4},
            BLOCK=4096,
            why="derived: 8 KiB of bfloat16 a program, 7 programs or more on an SM: above 40 KiB",
        ),
        Row({"VALUES": 8192, "num_warps": 8}, BLOCK=8192, why="derived: rows of 7,168 whole; 32 values a thread"),
        Row({"VALUES": 16384, "num_warps": 16}, why="derived: 128 x 128, 32 KiB of bfloat16, 2 programs on an SM"),
    ),
)
ENCODE = Table(
    "fp8_cast_encode",
    "TOTAL",
    (
        Row({"VALUES": 1024, "num_warps": 2}, TOTAL=1 << 19, why="derived: as for fp8_cast_blocks"),
        Row({"VALUES": 4096, "num_warps": 4}, why="derived: as for fp8_cast_blocks"),
    ),
)
AMAX = Table(
    "fp8_cast_amax",
    "TOTAL",
    (
        Row({"VALUES": 2048, "num_warps": 4}, TOTAL=1 << 20, why="derived: 512 programs at most"),
        Row({"VALUES": 8192, "num_warps": 8}, why="derived: an atomic for 16 KiB of bfloat16; 32 values a thread"),
    ),
)
DEQUANTIZE = Table(
    "fp8_dequantize",
    "TOTAL",
    (
        Row({"VALUES": 1024, "num_warps": 2}, TOTAL=1 << 19, why="derived: as for fp8_cast_blocks"),
        Row({"VALUES": 4096, "num_warps": 4}, why="derived: 32 values a thread, two loads of 16 bytes, four stores"),
    ),
)
PAIR = Table(
    "fp8_cast_transposed",
    "PART",
    (
        Row({"TILE": 64, "num_warps": 8}, PART=64, why="derived: 16 values a thread; 64-byte rows of both results"),
        Row({"TILE": 128, "num_warps": 16}, why="derived: squares of 128; 32 values a thread"),
    ),
)
INT8 = Table(
    "int8_cast",
    "K",
    (
        Row({"BLOCK_K": 1024, "num_warps": 2}, K=1024, why="derived: one pass, 16 values a thread"),
        Row({"BLOCK_K": 4096, "num_warps": 4}, K=4096, why="derived: one pass, 32 values a thread"),
        Row({"BLOCK_K": 8192, "num_warps": 8}, why="derived: 32 values a thread; longer rows are read again, from L2"),
    ),
)


@dataclass(frozen=True)
class Cast:
    """A call: x (M, K) as rows, or what is made of them, and where codes and scales go. Checked."""

    source: str  # "x", "silu_mul", "rms_norm"
    x: Tensor  # (M, K), of silu_mul (M, 2 K)
    K: int
    codes: Tensor | None  # bytes; None: amax alone, in scale
    scale: Tensor
    block: tuple[int, int] | None
    dtype: torch.dtype
    kind: str = "f32"
    mode: str = "deepgemm"
    saturate: bool = True
    stochastic: bool = False
    seed: int = 0
    given: Tensor | None = None
    tensor_scale: Tensor | None = None
    weight: Tensor | None = None
    eps: float = 0.0

    @functools.cached_property
    def M(self) -> int:
        return self.x.shape[0]

    @functools.cached_property
    def block_sizes(self) -> tuple[int, int]:
        """Values of a block: those that there are, at least one."""
        rows, columns = self.block or (-1, -1)
        return _length(rows, self.M), _length(columns, self.K)

    @functools.cached_property
    def blocks(self) -> tuple[int, int]:
        """How many blocks of rows and of columns; a block of all is one, of nothing too."""
        rows, columns = self.block or (-1, -1)
        return (1 if rows < 0 else -(-self.M // rows)), (1 if columns < 0 else -(-self.K // columns))

    def rules(self) -> dict[str, Any]:
        """The constants that every kernel of codes has."""
        format = FORMATS[self.dtype]
        return {
            "SOURCE": self.source,
            "MODE": self.mode,
            "KIND": self.kind,
            "FORMAT": format,
            "MX": self.block in ((1, 32), (32, 1)),
            "BF16": self.x.dtype == torch.bfloat16 and self.source == "x",
            "DIVIDE": self.mode in DIVIDES and self.kind == "f32" and self.block is not None,
            "SATURATE": self.saturate,
            "DOWN": format == "e2m1" and self.mode == "deepgemm",
            "HARDWARE": _has_fp8(),
            "STOCHASTIC": self.stochastic,
            "PACKED": self.scale.dtype == torch.int32,
        }

    @property
    def keys(self) -> tuple[int, int]:
        """The seed's words, as int32: a seed makes no variant of a kernel."""
        return _int32(self.seed), _int32(self.seed >> 32)


def fp8_cast(
    x: Tensor,
    given: Tensor | None,
    tensor_scale: Tensor | None,
    block_rows: int,
    block_cols: int,
    plain: bool,
    dtype: torch.dtype,
    scale: str = "f32",
    mode: str = "deepgemm",
    saturate: bool = True,
    layout: str = "row",
    rounding: str = "nearest",
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    K = x.shape[-1]
    kind = "f32" if plain or given is not None else scale
    codes = codes_like(x, dtype, K)
    scales = (
        x.new_empty((1, 1), dtype=torch.float32) if plain else new_scale(x, block_rows, block_cols, kind, layout, K=K)
    )
    block = None if plain else (block_rows, block_cols)
    call = Cast(
        "x", as_rows(x), K, codes.view(torch.uint8), scales, block, dtype, kind, mode, saturate,
        rounding == "stochastic", seed, given, tensor_scale,
    )  # fmt: skip
    run(call)
    return codes, scales


def silu_mul_cast(
    x: Tensor,
    tensor_scale: Tensor | None,
    block_rows: int,
    block_cols: int,
    dtype: torch.dtype,
    scale: str = "f32",
    mode: str = "deepgemm",
    layout: str = "row",
    rounding: str = "nearest",
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    K = x.shape[-1] // 2
    codes, scales = codes_like(x, dtype, K), new_scale(x, block_rows, block_cols, scale, layout, K=K)
    call = Cast(
        "silu_mul", as_rows(x), K, codes.view(torch.uint8), scales, (block_rows, block_cols), dtype, scale, mode,
        True, rounding == "stochastic", seed, None, tensor_scale,
    )  # fmt: skip
    run(call)
    return codes, scales


def rms_norm_cast(
    x: Tensor,
    weight: Tensor,
    tensor_scale: Tensor | None,
    eps: float,
    block_rows: int,
    block_cols: int,
    dtype: torch.dtype,
    scale: str = "f32",
    mode: str = "deepgemm",
    layout: str = "row",
    rounding: str = "nearest",
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    K = x.shape[-1]
    codes, scales = codes_like(x, dtype, K), new_scale(x, block_rows, block_cols, scale, layout, K=K)
    call = Cast(
        "rms_norm", as_rows(x), K, codes.view(torch.uint8), scales, (block_rows, block_cols), dtype, scale, mode,
        True, rounding == "stochastic", seed, None, tensor_scale, weight.contiguous(), eps,
    )  # fmt: skip
    run(call)
    return codes, scales


def fp8_amax(x: Tensor, block_rows: int, block_cols: int) -> Tensor:
    K = x.shape[-1]
    amax = new_scale(x, block_rows, block_cols, "f32", "row", K=K)
    run(Cast("x", as_rows(x), K, None, amax, (block_rows, block_cols), torch.float8_e4m3fn))
    return amax


def run(call: Cast) -> None:
    """The kernels of a call."""
    if call.scale.dtype == torch.int32 and call.blocks[1] % 4:
        call.scale.zero_()  # the bytes that no block has
    if call.block is None or call.given is not None:
        if call.M and call.K:
            _with_known_scales(call)
        elif call.given is None:
            call.scale.fill_(1.0)
        elif call.scale.numel():
            call.scale.copy_(call.given.reshape(call.scale.shape))
        return
    rows, columns = map(_power, call.block_sizes)
    if rows * max(columns, min(NARROWEST, _power(call.K))) <= MOST:
        _in_one_pass(call, rows, columns)
    else:
        _in_two_passes(call)


def _in_one_pass(call: Cast, rows: int, columns: int) -> None:
    (block_rows, block_cols), (down, across) = call.block_sizes, call.blocks
    whole = call.source == "rms_norm" and _is_exact(block_cols, call.K) and _power(across) * columns <= MOST
    # A sum's order follows the tile: that of a row's squares may not depend on how many rows there are.
    sums = call.source == "rms_norm"
    total = call.M * call.K if not sums else MANY
    config = BLOCKS.choose(BLOCK=_power(across) * columns if whole else rows * columns, TOTAL=total)
    values = max(config.pop("VALUES"), rows * columns)
    col_parts = _power(across) if whole else _parts(across, min(values // (rows * columns), max(1, WIDTH // columns)))
    row_parts = max(1, values // (rows * columns * col_parts))
    row_parts = row_parts if sums else min(row_parts, _power(down))
    inverses = None if call.source != "rms_norm" or whole else _inverses(call)
    scale, strides = _scale_bytes(call.scale)
    exact = _is_exact(block_cols, call.K)
    rules = call.rules()
    launch(
        _cast_blocks, _grid(-(-down // row_parts), -(-across // col_parts)),
        call.x, call.weight, inverses, call.tensor_scale, call.codes, scale,
        call.M, call.K, call.x.stride(0), block_rows, block_cols, down, across, *strides, call.eps,
        *call.keys,
        ROWS=rows, COLUMNS=columns, ROW_PARTS=row_parts, COL_PARTS=col_parts,
        EXACT_ROWS=_is_exact(block_rows, call.M), EXACT_COLUMNS=exact, WIDE=max(call.M, call.K) > WIDE,
        IGNORE_NAN=call.mode in IGNORES_NAN and call.codes is not None,
        IN_FOURS=exact and call.K % 4 == 0 and columns * col_parts >= 4, AMAX_ONLY=call.codes is None,
        **rules, **config, enable_fp_fusion=False,
    )  # fmt: skip


def _in_two_passes(call: Cast) -> None:
    inverses = _inverses(call) if call.source == "rms_norm" else None
    (block_rows, block_cols), (down, across) = call.block_sizes, call.blocks
    of_amax = call.codes is None  # by their bits, and NaN above all: amax as float32 is the same memory
    amax = call.scale.zero_().view(torch.int32) if of_amax else call.x.new_zeros((down, across), dtype=torch.int32)
    config = AMAX.choose(TOTAL=call.M * call.K)
    values = config.pop("VALUES")
    width = min(WIDTH, _power(call.K))
    columns = min(_power(block_cols), width)
    col_parts = max(1, width // columns) if _power(block_cols) <= width else 1
    rows = min(_power(block_rows), max(1, values // (columns * col_parts)))
    row_parts, parts_of_a_block = -(-block_rows // rows), -(-block_cols // columns)
    groups = across * parts_of_a_block if col_parts == 1 else -(-across // col_parts)
    launch(
        _amax, _grid(down * row_parts, groups), call.x, call.weight, inverses, amax,
        call.M, call.K, call.x.stride(0), block_rows, block_cols, across, row_parts, parts_of_a_block,
        ROWS=rows, COLUMNS=columns, COL_PARTS=col_parts, EXACT=columns == block_cols, WIDE=max(call.M, call.K) > WIDE,
        SOURCE=call.source, IGNORE_NAN=call.mode in IGNORES_NAN and not of_amax, **config, enable_fp_fusion=False,
    )  # fmt: skip
    if not of_amax:
        _encode_tiles(call, "amax", amax, amax.stride(), inverses)


def _with_known_scales(call: Cast) -> None:
    if call.given is None:
        _encode_tiles(call, "nothing", None, (0, 0), None)
        return
    given = call.given.reshape(call.blocks)
    of_bytes = given.dtype == torch.float8_e8m0fnu
    known = given.view(torch.uint8) if of_bytes else given
    _encode_tiles(call, "e8m0" if of_bytes else "f32", known, given.stride(), None)


def _encode_tiles(
    call: Cast, kind: str, known: Tensor | None, known_strides: tuple[int, ...], inverses: Tensor | None
) -> None:
    M, K, x_stride = call.M, call.K, call.x.stride(0)
    if kind == "nothing" and x_stride == K and M * K < WIDE:  # one long row
        M, K = 1, M * K
    config = ENCODE.choose(TOTAL=M * K)
    tile_m, tile_k = _tile(M, K, config.pop("VALUES"))
    block_rows, block_cols = call.block_sizes
    scale, strides = _scale_bytes(call.scale)
    launch(
        _encode, _grid(-(-M // tile_m), -(-K // tile_k)),
        call.x, call.weight, inverses, known, call.tensor_scale, call.codes, scale,
        M, K, x_stride, block_rows, block_cols, *known_strides, *strides, *call.keys,
        TILE_M=tile_m, TILE_K=tile_k, ROW_GROUP=_group(block_rows, M, tile_m), COL_GROUP=_group(block_cols, K, tile_k),
        WIDE=max(M, K) > WIDE, KNOWN=kind, IN_FOURS=K % 4 == 0 and tile_k >= 4, **call.rules(), **config,
        enable_fp_fusion=False,
    )  # fmt: skip


def _inverses(call: Cast) -> Tensor:
    inverses = call.x.new_empty(call.M, dtype=torch.float32)
    block = min(4096, _power(call.K))
    launch(
        _inverse_rms, (call.M,), call.x, call.x.stride(0), inverses, call.K, call.eps, BLOCK_K=block, num_warps=4,
        enable_fp_fusion=False,
    )  # fmt: skip
    return inverses


def fp8_cast_transposed(
    x: Tensor,
    block_rows: int,
    block_cols: int,
    dtype: torch.dtype,
    scale: str = "f32",
    mode: str = "deepgemm",
    saturate: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = as_rows(x)
    M, K = rows.shape
    down, across = -(-M // block_cols), -(-K // block_cols)
    codes, codes_t = codes_like(x, dtype, K), x.new_empty((K, M), dtype=dtype)
    scales = new_scale(x, 1, block_cols, scale, "row", K=K)
    scales_t = scales.new_empty((K, down))
    call = Cast("x", rows, K, codes.view(torch.uint8), scales, (1, block_cols), dtype, scale, mode, saturate)
    rules = call.rules()
    for name in ("SOURCE", "DOWN", "STOCHASTIC", "PACKED"):
        del rules[name]
    part = _power(block_cols)
    config = PAIR.choose(PART=part)
    parts = config.pop("TILE") // part
    launch(
        _cast_pair, _grid(-(-down // parts), -(-across // parts)),
        rows, call.codes, _scale_bytes(scales)[0], codes_t.view(torch.uint8), _scale_bytes(scales_t)[0],
        M, K, rows.stride(0), block_cols, down, across, PART=part, PARTS=parts, EXACT=part == block_cols,
        IGNORE_NAN=mode in IGNORES_NAN, **rules, **config, enable_fp_fusion=False,
    )  # fmt: skip
    return codes, scales, codes_t, scales_t


def fp8_dequantize(
    codes: Tensor,
    scale: Tensor | None,
    tensor_scale: Tensor | None,
    block_rows: int,
    block_cols: int,
    dtype: torch.dtype,
) -> Tensor:
    per_byte = 2 if codes.dtype == torch.float4_e2m1fn_x2 else 1
    rows = as_rows(codes.view(torch.uint8))
    M, K = rows.shape[0], rows.shape[1] * per_byte
    y = codes.new_empty((*codes.shape[:-1], K), dtype=dtype)
    if y.numel() == 0:
        return y
    block_rows, block_cols = _length(block_rows, M), _length(block_cols, K)
    kind, strides = "nothing", (0, 0)
    if scale is not None:
        kind = SCALE_KINDS[scale.dtype]
        flat = scale if scale.dim() == 2 else scale.reshape(-(-M // block_rows), -1)
        strides = (flat.stride(0), flat.stride(1))
        scale = flat if scale.element_size() == 4 else flat.view(torch.uint8)
    elif rows.stride(0) * per_byte == K and M * K < WIDE:  # one long row
        M, K = 1, M * K
    config = DEQUANTIZE.choose(TOTAL=M * K)
    tile_m, tile_k = _tile(M, K, config.pop("VALUES"))
    launch(
        _dequantize, _grid(-(-M // tile_m), -(-K // tile_k)),
        rows, scale, tensor_scale, y, M, K, rows.stride(0), block_rows, block_cols, *strides,
        TILE_M=tile_m, TILE_K=tile_k, ROW_GROUP=_group(block_rows, M, tile_m), COL_GROUP=_group(block_cols, K, tile_k),
        WIDE=max(M, K) > WIDE, KIND=kind, FORMAT=FORMATS[codes.dtype], HARDWARE=_has_fp8(), **config,
        enable_fp_fusion=False,
    )  # fmt: skip
    return y


SCALE_KINDS = {
    torch.float32: "f32",
    torch.float8_e8m0fnu: "e8m0",
    torch.float8_e4m3fn: "e4m3",
    torch.int32: "packed",
}


def int8_cast(x: Tensor) -> tuple[Tensor, Tensor]:
    rows = as_rows(x)
    M, K = rows.shape
    q, scale = x.new_empty(x.shape, dtype=torch.int8), x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
    config = INT8.choose(K=K)
    # The bits of the CPU's kernel: nothing may be contracted.
    launch(
        _int8_cast, (M,), rows, q, scale, rows.stride(0), K, WHOLE=config["BLOCK_K"] >= K, **config,
        enable_fp_fusion=False,
    )  # fmt: skip
    return q, scale


def _has_fp8() -> bool:
    """Whether the chip converts to and from e4m3 itself."""
    return arch() >= 89 and not interpreted()


def _grid(down: int, across: int) -> tuple[int, int, int]:
    """Programs of down x across tiles, columns first; those beyond the last row have nothing inside."""
    most = 32768  # a grid's second and third number end at 65,535
    return across, min(down, most), -(-down // most)


def _length(block: int, size: int) -> int:
    return max(1, size) if block < 0 or block > size else block


def _is_exact(block: int, size: int) -> bool:
    """Whether a tile of blocks has no gaps."""
    return block == _power(block) or block >= size


def _power(size: int) -> int:
    """The power of two at or above size, at least 1."""
    return 1 << (size - 1).bit_length() if size > 1 else 1


def _parts(count: int, most: int) -> int:
    """How many of `count` a tile takes, a power of two up to `most`: as few places as can be stay empty."""
    sizes = [1 << i for i in range(min(most, _power(count)).bit_length())]
    return min(reversed(sizes), key=lambda size: -(-count // size) * size)


def _tile(M: int, K: int, values: int) -> tuple[int, int]:
    """Rows and columns of a tile: whole sectors of memory, few places beyond the last column."""
    sectors = _parts(-(-K // NARROWEST), WIDTH // NARROWEST) if M > 1 else values // NARROWEST
    tile_k = min(NARROWEST * sectors, values)
    return min(max(1, values // tile_k), _power(M)), tile_k


def _group(block: int, size: int, tile: int) -> int:
    """Values in a row of a tile that lie in one block together, wherever the tile begins."""
    return tile if block >= size else math.gcd(block, tile)


def _scale_bytes(scale: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """What a kernel stores scales to, and the strides of rows and columns of blocks, of bytes where they are packed."""
    if scale.dtype == torch.int32:
        return scale.t().view(torch.uint8), (4 * scale.stride(0), 4 * scale.stride(1))
    strides = (scale.stride(0), scale.stride(1)) if scale.dim() == 2 else (scale.shape[-1], 1)
    return (scale if scale.element_size() == 4 else scale.view(torch.uint8)), strides


def _int32(word: int) -> int:
    return (word & 0xFFFFFFFF) - ((word & 0x80000000) << 1)


OPS: dict[str, Callable[..., Any]] = {
    "fp8_cast": fp8_cast,
    "silu_mul_cast": silu_mul_cast,
    "rms_norm_cast": rms_norm_cast,
    "fp8_cast_transposed": fp8_cast_transposed,
    "fp8_amax": fp8_amax,
    "fp8_dequantize": fp8_dequantize,
    "int8_cast": int8_cast,
}
