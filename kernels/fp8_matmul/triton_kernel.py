"""fp8_matmul and fp8_scaled_mm on CUDA tensors."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import ScalingType

from deepseek_fast.gpu.launch import has_fp8, launch, multiprocessors
from deepseek_fast.gpu.linear import End, as_rows, end_of
from deepseek_fast.kernels.fp8_matmul.triton_cast import STEP, cast_rows
from deepseek_fast.kernels.fp8_matmul.triton_product import _fp8_matmul
from deepseek_fast.kernels.fp8_matmul.triton_tiles import CODES, NUMBERS

NUMBER, E4M3, E5M2 = -1, 0, 1  # formats, as the kernel has them
FORMATS = {torch.float8_e4m3fn: E4M3, torch.float8_e5m2: E5M2}
ONE, WIDE, GATED_PAIR = 0, 1, 2  # a program's tiles, as the kernel has them
BLOCK_OF_RECIPE = {
    ScalingType.TensorWise.value: (-1, -1),
    ScalingType.RowWise.value: (1, -1),
    ScalingType.BlockWise1x128.value: (1, 128),
    ScalingType.BlockWise128x128.value: (128, 128),
}
LARGEST_N = 128  # rows of the weight in any tile
MOST_PLACES = 2**31 - 1  # that a kernel counts in a scale
TMA_BYTES = 16  # what the address and the rows of a matrix must be multiples of


@dataclass(frozen=True)
class Operand:
    """Rows of contiguous values, codes or numbers, with one scale a block of codes."""

    values: Tensor  # (rows, K)
    scale: Tensor | None  # (ceil(rows / block[0]), ceil(K / block[1]))
    block: tuple[int, int]

    @property
    def format(self) -> int:
        return FORMATS.get(self.values.dtype, NUMBER)

    @property
    def is_for_tma(self) -> bool:
        values = self.values
        stride = values.stride(0)
        return (
            stride >= values.shape[1] > 0
            and stride * values.element_size() % TMA_BYTES == 0
            and values.data_ptr() % TMA_BYTES == 0
        )


def fp8_matmul(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    block_n: int = 128,
    block_k: int = 128,
    activation: str = "none",
    residual: Tensor | None = None,
    activations: str = "float",
    gated: bool = False,
) -> Tensor:
    N = weight.shape[0] // 2 if gated else weight.shape[0]
    end = end_of(x, N, bias, residual, activation, gated)
    rows = Operand(as_rows(x), None, (1, STEP))
    if activations == "fp8" and rows.values.numel():
        codes, scales = cast_rows(rows.values, has_fp8())
        rows = Operand(codes, scales, (1, STEP))
    _multiply(rows, Operand(as_rows(weight), scale, (block_n, block_k)), end, N)
    return end.y.view(*x.shape[:-1], N)


def fp8_scaled_mm(
    mat_a: Tensor,
    mat_b: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    bias: Tensor | None = None,
    *,
    scale_recipe_a: int,
    scale_recipe_b: int,
    output_dtype: torch.dtype,
) -> Tensor:
    N = mat_b.shape[0]
    end = end_of(mat_a, N, bias, None, "none", False, dtype=output_dtype)
    a = Operand(as_rows(mat_a), scale_a, BLOCK_OF_RECIPE[scale_recipe_a])
    _multiply(a, Operand(as_rows(mat_b), scale_b, BLOCK_OF_RECIPE[scale_recipe_b]), end, N)
    return end.y


def _multiply(x: Operand, weight: Operand, end: End, N: int) -> None:
    """end.y from x @ weight^T."""
    M, K = x.values.shape
    if M == 0 or N == 0:
        return
    step = STEP if weight.block[1] < 0 else math.gcd(weight.block[1], STEP)
    config, constants = _config(x, weight, M, N, K, step, gated=bool(end.constants["GATED"]))
    block_m, block_n, block_k = (config[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K"))
    if K == 0:  # the scales may have no value, and one is read
        ones = torch.ones(1, 1, device=x.values.device)
        x, weight = (Operand(side.values, ones, (-1, -1)) for side in (x, weight))
    x_side, side = _scales(x, block_k), _scales(weight, block_k)
    one_scale = x.format != NUMBER and _in_one_block(weight, block_n, N)
    width = block_n + block_n // 2 if constants["TILES"] == WIDE else block_n
    programs = -(-M // block_m) * -(-N // width)
    if config["PERSISTENT"]:
        programs = min(programs, multiprocessors())
    launch(
        _fp8_matmul, (programs,), *_values(
            x, weight, config, x_side.values, side.values, wide=constants["TILES"] == WIDE
        ),
        end.y, end.bias, end.residual, M, N, K, x.values.stride(0), weight.values.stride(0), end.y.stride(0),
        end.residual_stride, x_side.stride_n, x_side.stride_k, side.stride_n, side.stride_k,
        1 if side.stride_n == 0 else weight.block[0], programs,
        X_FORMAT=x.format, FORMAT=weight.format, X_BLOCK_M=1 if x_side.stride_n == 0 else x.block[0],
        X_STEPS=x_side.steps, STEPS=side.steps, ONE_SCALE=one_scale,
        WHOLE_K=config["TMA"] or K % block_k == 0, **constants, **end.constants, **config,
    )  # fmt: skip


def _config(
    x: Operand, weight: Operand, M: int, N: int, K: int, step: int, *, gated: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tile, and what of it is a matter of the whole program."""
    ragged = not (x.is_for_tma and weight.is_for_tma)
    if x.format == NUMBER:
        config = NUMBERS.choose(M=M, ITEM=x.values.element_size(), RAGGED=int(ragged))
    else:
        columns = 2 * N if gated else N
        vector = not _in_one_block(weight, LARGEST_N, N)
        config = CODES.choose(M=M, TILES=-(-M // 64) * -(-columns // 16), RAGGED=int(ragged), VECTOR=int(vector))
    wide = config.pop("WIDE")
    config["TMA"] = config["TMA"] and not ragged
    config["NUM_STAGES"] = config["num_stages"]
    config["BLOCK_K"] = min(config["BLOCK_K"], step)
    if not gated:
        return config, {"TILES": WIDE if wide else ONE}
    # Two tiles of half the size; warpgroups need 64 rows of the first operand.
    config["BLOCK_N"] = max(config["BLOCK_N"] // 2, 64 if config["SWAP"] else 16)
    return config, {"TILES": GATED_PAIR}


def _in_one_block(weight: Operand, rows: int, N: int) -> bool:
    """Whether so many rows of the weight from a multiple of it on share their scales, in a gated one's halves, too."""
    assert weight.scale is not None
    half = weight.values.shape[0] != N
    return weight.scale.shape[0] == 1 or (weight.block[0] % rows == 0 and not (half and N % weight.block[0]))


@dataclass(frozen=True)
class Scales:
    """A scale as the kernel reads it."""

    values: Tensor | None
    stride_n: int  # 0 where all rows share theirs
    stride_k: int
    steps: int  # of BLOCK_K a column is for; 0 where it is for all


def _scales(side: Operand, block_k: int) -> Scales:
    scale = side.scale
    if scale is None:
        return Scales(None, 0, 0, 0)
    if sum((size - 1) * stride for size, stride in zip(scale.shape, scale.stride(), strict=True)) > MOST_PLACES:
        scale = scale.contiguous()
    stride_n = 0 if scale.shape[0] == 1 else scale.stride(0)
    steps = 0 if scale.shape[1] == 1 else side.block[1] // block_k
    values = scale if scale.dtype == torch.float32 else scale.view(torch.uint8)
    return Scales(values, stride_n, scale.stride(1), steps)


def _values(
    x: Operand, weight: Operand, config: dict[str, Any], x_scale: Tensor | None, scale: Tensor | None, *, wide: bool
) -> tuple[Any, ...]:
    """x, its scale, weight and its scale, as a launch takes them."""
    rows, codes = (
        side.values if side.format == NUMBER or has_fp8() else side.values.view(torch.uint8) for side in (x, weight)
    )
    if not config["TMA"]:
        return rows, x_scale, codes, codes, scale
    from triton.tools.tensor_descriptor import TensorDescriptor

    def described(values: Tensor, block: int) -> Any:
        return TensorDescriptor(values, values.shape, values.stride(), [block, config["BLOCK_K"]])

    block_n = config["BLOCK_N"]
    tile = described(codes, block_n)
    return described(rows, config["BLOCK_M"]), x_scale, tile, described(codes, block_n // 2) if wide else tile, scale


OPS: dict[str, Callable[..., Any]] = {"fp8_matmul": fp8_matmul, "fp8_scaled_mm": fp8_scaled_mm}
