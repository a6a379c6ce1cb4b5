"""fused_conv, fused_conv_int8, pool2d and local_response_norm on CUDA tensors: launchers, and their tile tables.

triton_conv.py     the implicit product
triton_stem.py     a first layer of few channels and its pool in one pass
triton_windows.py  depthwise convolutions, pools, local response norms
triton_end.py      what follows the sums
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepseek_fast.gpu.launch import launch
from deepseek_fast.gpu.tiles import Row, Table
from deepseek_fast.kernels.fused_conv import meta, triton_conv, triton_stem, triton_windows

MMA_SYNC = (80, 86, 89, 120)  # products take operands from registers; all but 8.0 have 99 KiB a block
FEW_CHANNELS = 16  # the least K of a tensor-core product: with fewer channels a tap would leave its steps half empty
MOST_UNROLLED = 25  # taps of a window, at most: then the loads of all are under way at once
INT32_MAX = 2**31 - 1
DEFAULTS = {"leaky_relu": (0.01,), "hardsigmoid": (1 / 6, 0.5)}

# A step of K copies (BLOCK_M + BLOCK_N) * BLOCK_K values; num_stages of them are in shared memory or on the way.
CONV = Table(
    "fused_conv",
    "M F bytes planes",
    (
        Row(
            {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3},
            bytes=1,
            why="derived: codes pass through registers on the way to a product, which a wider tile has too few of",
        ),
        Row(
            {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 32, "num_warps": 4, "num_stages": 4},
            bytes=2, F=64, archs=MMA_SYNC, why="derived: 48 KiB, two blocks a multiprocessor",
        ),
        Row(
            {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3},
            bytes=2, F=64, why="derived: 72 KiB, so that one block computes while another ends",
        ),
        Row(
            {"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 32, "num_warps": 4, "num_stages": 4},
            bytes=2, M=16384, archs=MMA_SYNC, why="derived: as on other chips, in 48 KiB",
        ),
        Row(
            {"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 64, "num_warps": 4, "num_stages": 4},
            bytes=2, M=16384,
            why="derived: of few pixels (14x14, 7x7) higher tiles would leave multiprocessors without one",
        ),
        Row(
            {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 32, "num_warps": 8, "num_stages": 3},
            bytes=2, archs=MMA_SYNC, why="derived: 48 KiB, two blocks a multiprocessor",
        ),
        Row(
            {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64, "num_warps": 8, "num_stages": 3, "maxnreg": 128},
            bytes=2, planes=0,
            why="derived: 96 KiB and half of the registers, so that one block multiplies while another ends",
        ),
        Row(
            {"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 64, "num_warps": 4, "num_stages": 4},
            bytes=2, why="derived: what writes planes takes more than half of the registers",
        ),
        Row(
            {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32, "num_warps": 4, "num_stages": 3},
            why="derived: of float32 each part of a value takes registers; 48 KiB",
        ),
    ),
)  # fmt: skip
TAPS = Table(
    "fused_conv_taps",
    "M F bytes",
    (
        Row(
            {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32, "num_warps": 4, "num_stages": 2},
            bytes=2, why="derived: values come one by one, through registers: 16 of x and 16 of the weight a thread",
        ),
        Row(
            {"BLOCK_M": 64, "BLOCK_N": 32, "BLOCK_K": 16, "num_warps": 4, "num_stages": 2},
            why="derived: half as many values of each, as a value has two parts",
        ),
    ),
)  # fmt: skip
# With a pool of windows side by side.
POOLED = Table(
    "fused_conv_pooled",
    "M F",
    (
        Row(
            {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32, "num_warps": 4, "num_stages": 3},
            why="derived: the largest values so far take as many registers as the sums",
        ),
    ),
)  # fmt: skip
WINDOWS = Table(
    "fused_conv_windows",
    "C planes",
    (
        Row(
            {"BLOCK_M": 16, "BLOCK_C": 64, "num_warps": 4}, planes=0,
            why="derived: 8 values a thread, side by side in one load",
        ),
        Row({"BLOCK_M": 128, "BLOCK_C": 4, "num_warps": 4}, why="derived: pixels side by side, a warp to a channel"),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Places:
    """A tensor as (N, C, H, W), and its strides in that order."""

    tensor: Tensor
    spatial: int  # dimensions: 2, or 1
    sizes: list[int]
    strides: list[int]

    @staticmethod
    def of(tensor: Tensor, spatial: int) -> "Places":
        return Places(tensor, spatial, *meta.view4(tensor, spatial))

    @property
    def has_n(self) -> bool:
        return self.tensor.dim() == self.spatial + 2

    @property
    def channels_last(self) -> bool:
        return meta.is_channels_last(self.sizes, self.strides, self.has_n)

    def new_result(self, pixels: bool, sizes: list[int], dtype: torch.dtype) -> Tensor:
        return meta.new_result(self.tensor, pixels, sizes, self.has_n, self.spatial, dtype)

    def with_channels_side_by_side(self) -> "Places":
        """A copy, where they are not."""
        if self.strides[1] == 1 or self.sizes[1] == 1:
            return self
        full = self.tensor.as_strided(self.sizes, self.strides).contiguous(memory_format=torch.channels_last)
        return Places(full, self.spatial, self.sizes, list(full.stride()))


@dataclass(frozen=True)
class Quantized:
    """What fused_conv_int8 has beyond fused_conv."""

    x_scale: float
    x_zero_point: int
    weight_scale: Tensor
    y_scale: float
    y_zero_point: int
    residual_scale: float
    residual_zero_point: int
    dtype: torch.dtype


def fused_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: str = "none",
    activation_params: Sequence[float] = (),
    residual: Tensor | None = None,
    residual_at: str = "before",
    max_pool: Sequence[int] = (),
    algorithm: str = "direct",
) -> Tensor:
    """algorithm: "winograd" allows another order of sums, which nothing here needs: the sums are direct ones."""
    window = (stride, padding, dilation, groups)
    return _conv(x, weight, bias, window, activation, activation_params, residual, residual_at, max_pool, None)


def fused_conv_int8(
    x: Tensor,
    weight: Tensor,
    x_scale: float,
    x_zero_point: int,
    weight_scale: Tensor,
    y_scale: float,
    y_zero_point: int,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    out_dtype: torch.dtype,
    activation: str = "none",
    activation_params: Sequence[float] = (),
    residual: Tensor | None = None,
    residual_scale: float = 1.0,
    residual_zero_point: int = 0,
    residual_at: str = "before",
    max_pool: Sequence[int] = (),
) -> Tensor:
    numbers = (x_scale, x_zero_point, weight_scale, y_scale, y_zero_point, residual_scale, residual_zero_point)
    quantized = Quantized(*numbers, out_dtype)
    window = (stride, padding, dilation, groups)
    return _conv(x, weight, bias, window, activation, activation_params, residual, residual_at, max_pool, quantized)


def _conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: Any,
    activation: str,
    params: Sequence[float],
    residual: Tensor | None,
    residual_at: str,
    max_pool: Sequence[int],
    quantized: Quantized | None,
) -> Tensor:
    spatial = weight.dim() - 2
    of_x, filters = Places.of(x, spatial), Places.of(weight, spatial)
    (stride, padding, dilation, groups), (N, C, H, W), (F, _, R, S) = window, of_x.sizes, filters.sizes
    P = meta.places(H, padding[0], padding[2], dilation[0] * (R - 1) + 1, stride[0])
    Q = meta.places(W, padding[1], padding[3], dilation[1] * (S - 1) + 1, stride[1])
    pixels = of_x.channels_last or meta.is_channels_last(filters.sizes, filters.strides, True)
    dtype = x.dtype if quantized is None else quantized.dtype
    rows, columns = P, Q
    pool_in_tile = False
    if max_pool:
        rows = meta.places(P, max_pool[4], max_pool[6], max_pool[0], max_pool[2], max_pool[8])
        columns = meta.places(Q, max_pool[5], max_pool[7], max_pool[1], max_pool[3], max_pool[8])
        if pixels and quantized is None and triton_stem.serves(of_x, filters, window, activation, max_pool, residual):
            y = of_x.new_result(pixels, [N, F, rows, columns], dtype)
            geometry = (P, Q, rows, columns)
            triton_stem.run(of_x, filters, bias, window, _params(activation, params), activation, y, geometry)
            return y
        # Windows that overlap would compute their pixels again: those are pooled by a kernel of their own.
        is_depthwise = groups == C and groups > 1
        pool_in_tile = list(max_pool[:2]) == list(max_pool[2:4]) and not is_depthwise
        if not pool_in_tile:
            args = (x, weight, bias, window, activation, params, residual, residual_at, (), quantized)
            return _pool(Places.of(_conv(*args), spatial), max_pool, False, True, pixels)
    y = of_x.new_result(pixels, [N, F, rows, columns], dtype)
    geometry = (P, Q, rows, columns)
    after = (activation, _params(activation, params), residual, residual_at)
    _sums(of_x, filters, bias, window, geometry, after, max_pool if pool_in_tile else (), quantized, y, pixels)
    return y


def _sums(
    x: Places,
    weight: Places,
    bias: Tensor | None,
    window: Any,
    geometry: tuple[int, int, int, int],
    after: tuple[str, tuple[float, float], Tensor | None, str],
    max_pool: Sequence[int],
    quantized: Quantized | None,
    y: Tensor,
    pixels: bool,
) -> None:
    """Launches what fills y, without a pool or with one of windows side by side."""
    (stride, padding, dilation, groups), (N, _, H, W), (F, per_group, R, S) = window, x.sizes, weight.sizes
    P, Q, rows, columns = geometry
    activation, params, residual, residual_at = after
    M = N * rows * columns
    is_depthwise = per_group == 1 and groups > 1
    taps = not is_depthwise and per_group < FEW_CHANNELS
    if not is_depthwise and not taps:
        x, weight = x.with_channels_side_by_side(), weight.with_channels_side_by_side()
    bias = bias if bias is None else bias.contiguous()
    numbers: tuple[Any, ...] = (1.0, 1.0, 0, 0, 0)
    multiplier = bias
    if quantized is not None:
        bias, multiplier, numbers = _prepared(weight, bias, quantized, x.tensor.dtype, is_depthwise)
    r_strides = [0, 0, 0, 0] if residual is None else meta.view4(residual, x.spatial)[1]
    constants: dict[str, Any] = {
        "R": R, "S": S, "STRIDE_H": stride[0] if P > 1 else 1, "STRIDE_W": stride[1] if Q > 1 else 1,
        "TOP": padding[0], "LEFT": padding[1], "DILATION_H": dilation[0], "DILATION_W": dilation[1],
        "PIXELS": pixels, "HAS_BIAS": bias is not None, "ACTIVATION": activation,
        "RESIDUAL": "none" if residual is None else residual_at, "INT8": quantized is not None,
        "LOWEST": -128 if y.dtype == torch.int8 else 0, "WIDE": M > INT32_MAX,
        "enable_fp_fusion": quantized is None,
    }  # fmt: skip
    tensors = (x.tensor, weight.tensor, bias, multiplier, y if residual is None else residual, y)
    if is_depthwise:
        planes = x.strides[1] != 1
        config = WINDOWS.choose(C=F, planes=int(planes))
        grid = _cdiv(M, config["BLOCK_M"]) * _cdiv(F, config["BLOCK_C"])
        w_f, _, w_r, w_s = weight.strides
        launch(
            triton_windows._depthwise, (grid,), *tensors, M, H, W, F, P, Q, P * Q, *x.strides, w_f, w_r, w_s,
            *r_strides, *params, *numbers, **constants, FILTERS=F // groups, PLANES=planes,
            UNROLLED=_unrolled(R * S), **config,
        )  # fmt: skip
        return
    of_group = F // groups
    table = TAPS if taps else POOLED if max_pool else CONV
    sizes = {"M": M, "F": of_group, "bytes": x.tensor.element_size(), "planes": int(not pixels)}
    config = table.choose(**sizes)
    grid = _cdiv(M, config["BLOCK_M"]) * _cdiv(of_group, config["BLOCK_N"]) * groups
    pool = (max_pool[0], max_pool[1], max_pool[4], max_pool[5]) if max_pool else (0, 0, 0, 0)
    launch(
        triton_conv._conv, (grid,), *tensors, M, per_group, H, W, of_group, P, Q, rows, columns, rows * columns,
        *x.strides, *weight.strides, *r_strides, *params, *numbers, **constants, GROUPS=groups,
        TAPS_C=per_group if taps else 0, PADDED=any(padding) or bool(max_pool),
        POOL_H=pool[0], POOL_W=pool[1], POOL_TOP=pool[2], POOL_LEFT=pool[3], **config,
    )  # fmt: skip


def _prepared(
    weight: Places, bias: Tensor | None, of: Quantized, x_dtype: torch.dtype, is_depthwise: bool
) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
    """What a filter's integer sums lack; its multiplier; y_scale, residual_scale and the zero points."""
    F, *sizes = weight.sizes
    # Products take codes of int8: uint8 less 128. Depthwise sums take them as they are, less the zero point.
    x_zero_point = of.x_zero_point - (128 if x_dtype == torch.uint8 and not is_depthwise else 0)
    values = weight.tensor if weight.tensor.stride(0) == sizes[0] * sizes[1] * sizes[2] else weight.tensor.contiguous()
    offset = weight.tensor.new_empty((F,), dtype=torch.int32)
    multiplier = weight.tensor.new_empty((F,), dtype=torch.float32)
    scale = of.weight_scale.reshape(-1)
    launch(
        triton_conv._prepare_int8, (F,), values, bias, scale, offset, multiplier, sizes[0] * sizes[1] * sizes[2],
        values.stride(0), scale.stride(0) if scale.numel() > 1 else 0, of.x_scale, of.y_scale,
        0 if is_depthwise else x_zero_point, HAS_BIAS=bias is not None, BLOCK=1024, enable_fp_fusion=False,
    )  # fmt: skip
    return offset, multiplier, (of.y_scale, of.residual_scale, x_zero_point, of.residual_zero_point, of.y_zero_point)


def _params(activation: str, params: Sequence[float]) -> tuple[float, float]:
    given = tuple(params) or DEFAULTS.get(activation, ())
    return (*given, 0.0, 0.0)[:2]  # type: ignore[return-value]


def pool2d(x: Tensor, window: Sequence[int], kind: str = "max", count_include_pad: bool = True) -> Tensor:
    of_x = Places.of(x, 2)
    return _pool(of_x, window, kind == "average", count_include_pad, of_x.channels_last)


def _pool(x: Places, window: Sequence[int], average: bool, count_padding: bool, pixels: bool) -> Tensor:
    (kernel_h, kernel_w, stride_h, stride_w, top, left, bottom, right, ceil_mode), (N, C, H, W) = window, x.sizes
    rows = meta.places(H, top, bottom, kernel_h, stride_h, ceil_mode)
    columns = meta.places(W, left, right, kernel_w, stride_w, ceil_mode)
    M = N * rows * columns
    y = x.new_result(pixels, [N, C, rows, columns], x.tensor.dtype)
    planes = x.strides[1] != 1
    config = WINDOWS.choose(C=C, planes=int(planes))
    launch(
        triton_windows._pool, (_cdiv(M, config["BLOCK_M"]) * _cdiv(C, config["BLOCK_C"]),), x.tensor, y,
        M, C, H, W, rows, columns, rows * columns, *x.strides,
        KERNEL_H=kernel_h, KERNEL_W=kernel_w, STRIDE_H=stride_h if rows > 1 else 1,
        STRIDE_W=stride_w if columns > 1 else 1, TOP=top, LEFT=left, BOTTOM=bottom, RIGHT=right, AVERAGE=average,
        COUNT_PADDING=count_padding, PIXELS=pixels, WIDE=M > INT32_MAX, PLANES=planes,
        UNROLLED=_unrolled(kernel_h * kernel_w), **config,
    )  # fmt: skip
    return y


def local_response_norm(x: Tensor, size: int, alpha: float = 0.0001, beta: float = 0.75, k: float = 1.0) -> Tensor:
    of_x = Places.of(x, x.dim() - 2)
    N, C, H, W = of_x.sizes
    pixels = of_x.channels_last
    y = of_x.new_result(pixels, of_x.sizes, x.dtype)
    planes = of_x.strides[1] != 1
    M = N * H * W
    config = WINDOWS.choose(C=C, planes=int(planes))
    before, after = min(size // 2, C - 1), min((size - 1) // 2, C - 1)
    power = {0.0: "none", 0.5: "half", 0.75: "three_quarters", 1.0: "one"}.get(beta, "any")
    launch(
        triton_windows._norm, (_cdiv(M, config["BLOCK_M"]) * _cdiv(C, config["BLOCK_C"]),), x, y, M, C, H, W, H * W,
        *of_x.strides, before, after, alpha / size, beta, k, POWER=power, PIXELS=pixels, WIDE=M > INT32_MAX,
        PLANES=planes, **config,
    )  # fmt: skip
    return y


def _unrolled(taps: int) -> int:
    return taps if taps <= MOST_UNROLLED else 1


def _cdiv(size: int, step: int) -> int:
    return -(-size // step)


OPS: dict[str, Callable[..., Any]] = {
    "fused_conv": fused_conv,
    "fused_conv_int8": fused_conv_int8,
    "pool2d": pool2d,
    "local_response_norm": local_response_norm,
}
