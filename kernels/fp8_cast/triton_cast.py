"""A cast's kernels: one pass where blocks lie within a tile, two for larger ones, one for scales that are known."""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepseek_fast.gpu.launch import has_fp8, launch
from deepseek_fast.kernels.fp8_cast.triton_blocks import _cast_blocks
from deepseek_fast.kernels.fp8_cast.triton_parts import _amax, _encode, _inverse_rms
from deepseek_fast.kernels.fp8_cast.triton_tiles import (
    AMAX,
    BLOCKS,
    ENCODE,
    MANY,
    WIDTH,
    fits,
    grid,
    group,
    is_exact,
    is_wide,
    length,
    parts,
    power,
    tile,
)

FORMATS = {
    torch.float8_e4m3fn: "e4m3fn",
    torch.float8_e5m2: "e5m2",
    torch.float8_e4m3fnuz: "e4m3fnuz",
    torch.float8_e5m2fnuz: "e5m2fnuz",
    torch.float4_e2m1fn_x2: "e2m1",
}
DIVIDES = ("v3", "v32", "vllm")
IGNORES_NAN = (*DIVIDES, "tilekernels", "te")


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
        return length(rows, self.M), length(columns, self.K)

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
            "HARDWARE": has_fp8(),
            "STOCHASTIC": self.stochastic,
            "PACKED": self.scale.dtype == torch.int32,
        }

    @property
    def keys(self) -> tuple[int, int]:
        """The seed's words, as int32: a seed makes no variant of a kernel."""
        return _int32(self.seed), _int32(self.seed >> 32)


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
    rows, columns = map(power, call.block_sizes)
    if fits(rows, columns, call.K):
        _in_one_pass(call, rows, columns)
    else:
        _in_two_passes(call)


def _in_one_pass(call: Cast, rows: int, columns: int) -> None:
    (block_rows, block_cols), (down, across) = call.block_sizes, call.blocks
    whole = call.source == "rms_norm" and is_exact(block_cols, call.K) and fits(1, power(across) * columns, call.K)
    # A sum's order follows the tile: that of a row's squares may not depend on how many rows there are.
    sums = call.source == "rms_norm"
    total = call.M * call.K if not sums else MANY
    config = BLOCKS.choose(BLOCK=power(across) * columns if whole else rows * columns, TOTAL=total)
    values = max(config.pop("VALUES"), rows * columns)
    col_parts = power(across) if whole else parts(across, min(values // (rows * columns), max(1, WIDTH // columns)))
    row_parts = max(1, values // (rows * columns * col_parts))
    row_parts = row_parts if sums else min(row_parts, power(down))
    inverses = None if call.source != "rms_norm" or whole else _inverses(call)
    scale, strides = scale_bytes(call.scale)
    exact = is_exact(block_cols, call.K)
    rules = call.rules()
    launch(
        _cast_blocks, grid(-(-down // row_parts), -(-across // col_parts)),
        call.x, call.weight, inverses, call.tensor_scale, call.codes, scale,
        call.M, call.K, call.x.stride(0), block_rows, block_cols, down, across, *strides, call.eps,
        *call.keys,
        ROWS=rows, COLUMNS=columns, ROW_PARTS=row_parts, COL_PARTS=col_parts,
        EXACT_ROWS=is_exact(block_rows, call.M), EXACT_COLUMNS=exact, WIDE=is_wide(call.M, call.K),
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
    width = min(WIDTH, power(call.K))
    columns = min(power(block_cols), width)
    col_parts = max(1, width // columns) if power(block_cols) <= width else 1
    rows = min(power(block_rows), max(1, values // (columns * col_parts)))
    row_parts, parts_of_a_block = -(-block_rows // rows), -(-block_cols // columns)
    groups = across * parts_of_a_block if col_parts == 1 else -(-across // col_parts)
    launch(
        _amax, grid(down * row_parts, groups), call.x, call.weight, inverses, amax,
        call.M, call.K, call.x.stride(0), block_rows, block_cols, across, row_parts, parts_of_a_block,
        ROWS=rows, COLUMNS=columns, COL_PARTS=col_parts, EXACT=columns == block_cols, WIDE=is_wide(call.M, call.K),
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
    if kind == "nothing" and x_stride == K and not is_wide(1, M * K):  # one long row
        M, K = 1, M * K
    config = ENCODE.choose(TOTAL=M * K)
    tile_m, tile_k = tile(M, K, config.pop("VALUES"))
    block_rows, block_cols = call.block_sizes
    scale, strides = scale_bytes(call.scale)
    launch(
        _encode, grid(-(-M // tile_m), -(-K // tile_k)),
        call.x, call.weight, inverses, known, call.tensor_scale, call.codes, scale,
        M, K, x_stride, block_rows, block_cols, *known_strides, *strides, *call.keys,
        TILE_M=tile_m, TILE_K=tile_k, ROW_GROUP=group(block_rows, M, tile_m), COL_GROUP=group(block_cols, K, tile_k),
        WIDE=is_wide(M, K), KNOWN=kind, IN_FOURS=K % 4 == 0 and tile_k >= 4, **call.rules(), **config,
        enable_fp_fusion=False,
    )  # fmt: skip


def _inverses(call: Cast) -> Tensor:
    inverses = call.x.new_empty(call.M, dtype=torch.float32)
    block = min(4096, power(call.K))
    launch(
        _inverse_rms, (call.M,), call.x, call.x.stride(0), inverses, call.K, call.eps, BLOCK_K=block, num_warps=4,
        enable_fp_fusion=False,
    )  # fmt: skip
    return inverses


def scale_bytes(scale: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """What a kernel stores scales to, and the strides of rows and columns of blocks, of bytes where they are packed."""
    if scale.dtype == torch.int32:
        return scale.t().view(torch.uint8), (4 * scale.stride(0), 4 * scale.stride(1))
    strides = (scale.stride(0), scale.stride(1)) if scale.dim() == 2 else (scale.shape[-1], 1)
    return (scale if scale.element_size() == 4 else scale.view(torch.uint8)), strides


def _int32(word: int) -> int:
    return (word & 0xFFFFFFFF) - ((word & 0x80000000) << 1)
