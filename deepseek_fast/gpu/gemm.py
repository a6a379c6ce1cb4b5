"""Which form a product takes, its launch, and the launch that ends it where K was split.

few    up to FEW_M rows of x: bound by the weight's bytes. K is split until the blocks fill the chip; in how many parts
       depends on N and K alone, so that a row's bits do not depend on how many others there are in a call.
tma    more rows on 9.0 and 10.x, of values of at most two bytes, from tensors that TMA can read
tiles  more rows elsewhere
Sums of integers are exact in any order: they are split by the tiles that there are, in every form.
"""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from deepseek_fast.gpu import launch
from deepseek_fast.gpu.gemm_kernels import _end_parts, _tile, _tile_tma
from deepseek_fast.gpu.linear import End
from deepseek_fast.gpu.tiles import Config, Table

FEW_M = 64  # rows of the largest tile of `few`
SPAN = 512  # values of K that a part has a multiple of: every BLOCK_K divides it
FEW_N = 32  # columns of the smallest tile of `few`, by which its parts are counted
TMA_BYTES = 2  # float32 is split into parts of TF32 in registers, which wgmma does not take its right factor from
GROUP_M = 8  # rows of tiles that go together, where a table says nothing: as many columns of them share 132 blocks
END_BLOCK = {"BLOCK_M": 1, "BLOCK_N": 512, "num_warps": 4}  # derived: four values a thread in 16-byte loads


@dataclass(frozen=True)
class Forms:
    """A room's tile tables; they are asked for bytes (of a value of x), gated (0 or 1), M, N and K."""

    few: Table
    tiles: Table
    tma: Table | None = None


@dataclass(frozen=True)
class Product:
    """x: (M, K), w: (N or 2 N, K), rows of contiguous values. scale of w's rows, x_scale of x's: float32."""

    x: Tensor
    w: Tensor
    end: End
    x_scale: Tensor | None = None
    scale: Tensor | None = None
    swapped: bool = False  # also where there are many rows: the weight is converted in registers

    @property
    def exact(self) -> bool:
        """Sums of integers: K may be split anywhere, and what follows has the reference's bits."""
        return self.x.dtype == torch.int8


def multiply(product: Product, forms: Forms) -> Tensor:
    """end.y, of (M, N)."""
    x, w, end = product.x, product.w, product.end
    (M, K), N = x.shape, end.y.shape[1]
    sizes = {"bytes": x.element_size(), "gated": int(end.constants["GATED"]), "M": M, "N": N, "K": K}  # type: ignore[call-overload]
    is_few = M <= FEW_M
    by_tma = not is_few and launch.arch() in range(90, 120) and _tma_reads(x) and _tma_reads(w)
    tma = forms.tma if by_tma else None
    config = (forms.few if is_few else tma or forms.tiles).choose(**sizes)
    tiles = triton.cdiv(M, config["BLOCK_M"]) * triton.cdiv(N, config["BLOCK_N"])
    splits, span = 1, triton.cdiv(K, config["BLOCK_K"]) * config["BLOCK_K"]
    if is_few or product.exact:
        splits, span = _splits(tiles if product.exact else triton.cdiv(N, FEW_N), K, config["BLOCK_K"])
    if tma is not None:
        _launch_tma(product, config, tiles, splits, span)
    else:
        _launch_tiles(product, config, tiles, splits, span, swapped=is_few or product.swapped)
    return end.y


def _launch_tiles(product: Product, config: Config, tiles: int, splits: int, span: int, *, swapped: bool) -> None:
    x, w, end = product.x, product.w, product.end
    (M, K), N = x.shape, end.y.shape[1]
    parts = _parts(product, splits)
    out = end.y if parts is None else parts
    launch.launch(
        _tile, (tiles, splits), x, w, product.x_scale, product.scale, out, end.bias, end.residual,
        x.stride(0), w.stride(0), N, end.residual_stride, M, N, K, span, SCALES=_scales(product), **end.constants,
        INT8=product.exact, SWAPPED=swapped, SPLITS=splits, WHOLE=splits * span == K,
        **_sliced(config, out), enable_fp_fusion=not product.exact,
    )  # fmt: skip
    if parts is not None:
        _end(product, parts)


def _launch_tma(product: Product, config: Config, tiles: int, splits: int, span: int) -> None:
    x, w, end = product.x, product.w, product.end
    (M, K), N = x.shape, end.y.shape[1]
    block_m, block_n, block_k = config["BLOCK_M"], config["BLOCK_N"], config["BLOCK_K"]
    parts = _parts(product, splits)
    out = end.y if parts is None else parts
    launch.launch(
        _tile_tma, (min(tiles * splits, launch.multiprocessors()),),
        TensorDescriptor(x, [M, K], [x.stride(0), 1], [block_m, block_k]),
        TensorDescriptor(w, [w.shape[0], K], [w.stride(0), 1], [block_n, block_k]),
        product.x_scale, product.scale, out, end.bias, end.residual, N, end.residual_stride, M, N, span,
        SCALES=_scales(product), **end.constants, INT8=product.exact, SPLITS=splits,
        **_sliced(config, out), enable_fp_fusion=not product.exact,
    )  # fmt: skip
    if parts is not None:
        _end(product, parts)


def _end(product: Product, parts: Tensor) -> None:
    end, (splits, M, _) = product.end, parts.shape
    N = end.y.shape[1]
    launch.launch(
        _end_parts, (M, triton.cdiv(N, END_BLOCK["BLOCK_N"])), parts, product.x_scale, product.scale, end.y,
        end.bias, end.residual, N, end.residual_stride, M, N, SCALES=_scales(product), **end.constants,
        SPLITS=splits, **END_BLOCK, enable_fp_fusion=not product.exact,
    )  # fmt: skip


def _sliced(config: Config, out: Tensor) -> Config:
    """With GROUP_M; SLICES are for values of two bytes, twice as many of four."""
    slices = config.get("SLICES", 1) * (1 if out.element_size() <= TMA_BYTES else 2)
    return {"GROUP_M": GROUP_M} | config | {"SLICES": slices}


def _splits(tiles: int, K: int, block_k: int) -> tuple[int, int]:
    """Parts of K, and how many values each has: of block_k, and of SPAN where there are several; none empty."""
    splits, whole = 1, block_k
    while 2 * splits * tiles <= launch.multiprocessors() and 2 * splits * SPAN <= K:
        splits, whole = 2 * splits, max(SPAN, block_k)
    span = triton.cdiv(K, splits * whole) * whole
    return triton.cdiv(K, span) if K else 1, span


def _parts(product: Product, splits: int) -> Tensor | None:
    if splits == 1:
        return None
    x, w = product.x, product.w
    dtype = torch.int32 if product.exact else torch.float32
    return torch.empty((splits, x.shape[0], w.shape[0]), dtype=dtype, device=x.device)


def _scales(product: Product) -> int:
    return (product.scale is not None) + (product.x_scale is not None)


def _tma_reads(rows: Tensor) -> bool:
    """Values are small enough; rows begin at multiples of 16 bytes, each behind the one before."""
    size, stride = rows.element_size(), rows.stride(0)
    aligned = stride * size % 16 == 0 and rows.data_ptr() % 16 == 0
    return size <= TMA_BYTES and rows.numel() > 0 and stride >= rows.shape[1] and aligned
