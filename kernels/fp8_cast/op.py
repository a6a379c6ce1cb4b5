"""fp8_cast and its family in torch: the public functions; meta.py has their Meta kernels."""

from typing import Any

import torch
from torch import Tensor

from deepseek_fast import _load
from deepseek_fast.gpu.register import register
from deepseek_fast.kernels.fp8_cast.meta import check_types

_load.load_torch()
register(
    "fp8_cast",  # the room, then its ops
    "fp8_cast",
    "silu_mul_cast",
    "rms_norm_cast",
    "fp8_cast_transposed",
    "fp8_amax",
    "fp8_dequantize",
    "int8_cast",
)
_CAST = torch.ops.deepseek_fast.fp8_cast.default
_SILU_MUL_CAST = torch.ops.deepseek_fast.silu_mul_cast.default
_RMS_NORM_CAST = torch.ops.deepseek_fast.rms_norm_cast.default
_CAST_TRANSPOSED = torch.ops.deepseek_fast.fp8_cast_transposed.default
_AMAX = torch.ops.deepseek_fast.fp8_amax.default
_DEQUANTIZE = torch.ops.deepseek_fast.fp8_dequantize.default
_INT8_CAST = torch.ops.deepseek_fast.int8_cast.default


def fp8_cast(
    x: Tensor,
    *,
    block: tuple[int, int] | None = (1, 128),
    dtype: torch.dtype = torch.float8_e4m3fn,
    scale: str | Tensor = "f32",
    mode: str = "deepgemm",
    saturate: bool = True,
    out_layout: str = "row",
    tensor_scale: Tensor | None = None,
    rounding: str = "nearest",
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Casts to FP8 or FP4 with a scale per block, as the code base that `mode` names does it, bit for bit.

    x: (..., K) float32, bfloat16 or float16; outer dimensions fold into rows. block: rows and columns that share a
    scale, -1 for all, the last ones of a dimension smaller; None: a plain cast, whose scale is one 1.
    dtype: float8_e4m3fn, float8_e5m2, their fnuz forms, or float4_e2m1fn_x2 (two values a byte, K even).
    scale: "f32", "ue8m0" (powers of two), "e4m3" (NVFP4, with mode="torchao"; tensor_scale: its second level, one
    float32), or a tensor: the scales to use, float32 or float8_e8m0fnu, finite and above zero.
    mode: v3, v32, deepgemm, tilekernels, vllm, te, torchao, or with "ue8m0" torchao_ceil, _even, _rceil.
    saturate: sizes above the largest become the largest, infinity too; False: NaN or infinity, as OCP has it.
    out_layout: of a two-dimensional scale, "row", "column", "tma" (columns that begin at multiples of 16 bytes) or
    "packed" (four e8m0 in an int32, columns as for "tma"). rounding: "nearest" (half to even) or "stochastic",
    from Philox4x32-10 of seed and each value's place.
    Returns codes: x's shape, of dtype, and scale: (blocks of rows, blocks of columns), or x's leading dimensions and
    the blocks of columns where block has one row; codes * scale is x again. Neither has a gradient.
    Raises ValueError for shapes, blocks, scales and names, TypeError for dtypes.
    Numerics: float32, each operation rounded once; a NaN stays NaN.

    >>> codes, scale = deepseek_fast.fp8_cast(torch.randn(8, 512, dtype=torch.bfloat16))
    >>> codes.shape, scale.shape
    (torch.Size([8, 512]), torch.Size([8, 4]))

    Source: kernels/fp8_cast/README.md, with the place of each convention.
    """
    op = "fp8_cast"
    given = None if isinstance(scale, str) else scale
    if given is not None and not isinstance(given, Tensor):
        raise TypeError(f"{op}: scale must be a name or a tensor; got {type(given).__name__}")
    rows, columns = (0, 0) if block is None else as_block(op, block)
    kind = "f32" if given is not None else scale
    options = (dtype, kind, mode, saturate, out_layout, rounding, seed)
    codes, scales = _call(op, _CAST, x, given, tensor_scale, rows, columns, block is None, *options)
    return codes, scales if given is None else given


def silu_mul_cast(
    x: Tensor,
    *,
    block: tuple[int, int] = (1, 128),
    dtype: torch.dtype = torch.float8_e4m3fn,
    scale: str = "f32",
    mode: str = "deepgemm",
    out_layout: str = "row",
    tensor_scale: Tensor | None = None,
    rounding: str = "nearest",
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """fp8_cast of silu(x[..., :K]) * x[..., K:] in one pass: what a SwiGLU layer's second product takes.

    x: (..., 2 K) float32, bfloat16 or float16. block has one row; the other options are those of fp8_cast.
    Returns codes: (..., K) and scale as fp8_cast does. The product is in float32 and not rounded to x's dtype.
    Raises ValueError for shapes, blocks and names, TypeError for dtypes.

    >>> codes, scale = deepseek_fast.silu_mul_cast(torch.randn(8, 1024))
    >>> codes.shape, scale.shape
    (torch.Size([8, 512]), torch.Size([8, 4]))

    Source: kernels/fp8_cast/README.md; TileKernels, swiglu_forward_and_per_token_cast.
    """
    op = "silu_mul_cast"
    rows, columns = as_block(op, block)
    options = (dtype, scale, mode, out_layout, rounding, seed)
    return _call(op, _SILU_MUL_CAST, x, tensor_scale, rows, columns, *options)  # type: ignore[no-any-return]


def rms_norm_cast(
    x: Tensor,
    weight: Tensor,
    *,
    eps: float = 1e-6,
    block: tuple[int, int] = (1, 128),
    dtype: torch.dtype = torch.float8_e4m3fn,
    scale: str = "f32",
    mode: str = "deepgemm",
    out_layout: str = "row",
    tensor_scale: Tensor | None = None,
    rounding: str = "nearest",
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """fp8_cast of x / sqrt(mean(x^2) + eps) * weight, over the last dimension, in one pass.

    x: (..., K) float32, bfloat16 or float16; weight: (K,) of x's dtype; eps finite and not negative. block has one
    row; the other options are those of fp8_cast. Returns codes and scale as fp8_cast does. Everything is in float32.
    Raises ValueError for shapes, blocks and names, TypeError for dtypes.

    >>> codes, scale = deepseek_fast.rms_norm_cast(torch.randn(8, 512), torch.ones(512))
    >>> codes.shape, scale.shape
    (torch.Size([8, 512]), torch.Size([8, 4]))

    Source: kernels/fp8_cast/README.md; TileKernels, rmsnorm_forward_and_per_token_cast.
    """
    op = "rms_norm_cast"
    rows, columns = as_block(op, block)
    options = (dtype, scale, mode, out_layout, rounding, seed)
    return _call(op, _RMS_NORM_CAST, x, weight, tensor_scale, eps, rows, columns, *options)  # type: ignore[no-any-return]


def fp8_cast_transposed(
    x: Tensor,
    *,
    block: tuple[int, int] = (1, 128),
    dtype: torch.dtype = torch.float8_e4m3fn,
    scale: str = "f32",
    mode: str = "deepgemm",
    saturate: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """fp8_cast of x and of its transpose while x is read once: what training's three products take.

    x: (M, K) float32, bfloat16 or float16. block: (1, n), n up to 128. dtype: a float8 type.
    Returns codes: (M, K), scale: (M, ceil(K / n)), and of x.T codes: (K, M), scale: (K, ceil(M / n)).
    Raises ValueError for shapes, blocks and names, TypeError for dtypes.

    >>> [part.shape for part in deepseek_fast.fp8_cast_transposed(torch.randn(256, 384))]
    [torch.Size([256, 384]), torch.Size([256, 3]), torch.Size([384, 256]), torch.Size([384, 2])]

    Source: kernels/fp8_cast/README.md; TileKernels, per_channel_cast_and_transpose.
    """
    op = "fp8_cast_transposed"
    rows, columns = as_block(op, block)
    return _call(op, _CAST_TRANSPOSED, x, rows, columns, dtype, scale, mode, saturate)  # type: ignore[no-any-return]


def fp8_amax(x: Tensor, *, block: tuple[int, int] = (1, 128)) -> Tensor:
    """The largest size in each block, float32; NaN where a block holds NaN.

    x: (..., K) float32, bfloat16 or float16; block and the result's shape as for fp8_cast.
    Raises ValueError for shapes and blocks, TypeError for dtypes.

    >>> deepseek_fast.fp8_amax(torch.randn(8, 512), block=(-1, -1)).shape
    torch.Size([1, 1])
    """
    op = "fp8_amax"
    rows, columns = as_block(op, block)
    return _call(op, _AMAX, x, rows, columns)  # type: ignore[no-any-return]


def fp8_dequantize(
    codes: Tensor,
    scale: Tensor | None = None,
    *,
    block: tuple[int, int] | None = (1, 128),
    dtype: torch.dtype = torch.float32,
    tensor_scale: Tensor | None = None,
) -> Tensor:
    """codes * scale, as numbers; without a scale the numbers that the codes are, exactly.

    codes: (..., K) of any float8 type, or (..., K / 2) float4_e2m1fn_x2. scale: as fp8_cast returns it, in any layout:
    float32, float8_e8m0fnu, float8_e4m3fn, or int32 of four e8m0. block: what shares a scale, -1 or None for all.
    tensor_scale: one float32 that multiplies all scales. dtype: float32, bfloat16 or float16.
    Returns (..., K) of dtype. Raises ValueError for shapes and blocks, TypeError for dtypes.
    Numerics: codes are decoded exactly; the product is in float32, then rounded to dtype, as DeepSeek-V3's
    weight_dequant has it.

    >>> codes, scale = deepseek_fast.fp8_cast(torch.randn(256, 512), block=(128, 128))
    >>> deepseek_fast.fp8_dequantize(codes, scale, block=(128, 128), dtype=torch.bfloat16).shape
    torch.Size([256, 512])

    Source: kernels/fp8_cast/README.md; DeepSeek-V3 inference/kernel.py, weight_dequant.
    """
    op = "fp8_dequantize"
    rows, columns = (-1, -1) if block is None else as_block(op, block)
    return _call(op, _DEQUANTIZE, codes, scale, tensor_scale, rows, columns, dtype)  # type: ignore[no-any-return]


def int8_cast(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantizes each row to int8, symmetrically: what int8_matmul does with x before it multiplies.

    x: (..., K) float32, bfloat16 or float16. Returns q: (..., K) int8 and scale: (..., 1) float32, q * scale is x
    again. Raises ValueError for shapes, TypeError for dtypes.
    Numerics: scale = amax / 127, q = x * (127 / amax) rounded half to even; a row whose largest size is below 2^-100
    counts as zeros, one with NaN or infinity has a scale of NaN.

    >>> q, scale = deepseek_fast.int8_cast(torch.randn(8, 64, 384))
    >>> q.shape, scale.shape
    (torch.Size([8, 64, 384]), torch.Size([8, 64, 1]))

    Source: kernels/int8_matmul/README.md.
    """
    return _call("int8_cast", _INT8_CAST, x)  # type: ignore[no-any-return]


def as_block(op: str, block: Any) -> tuple[int, int]:
    """Two integers; anything else is refused in the words of the check of their values."""
    is_pair = isinstance(block, (tuple, list)) and len(block) == 2
    if not is_pair or any(isinstance(size, bool) or not isinstance(size, int) for size in block):
        raise ValueError(f"{op}: block must be two positive numbers, or -1 for all; got {block!r}")
    return block[0], block[1]


def _call(op: str, compiled: Any, x: Tensor, *args: Any) -> Any:
    """compiled(x, ...), with a failed check as ValueError or TypeError; what is cast has no gradient."""
    try:
        return compiled(x.detach() if x.requires_grad else x, *args)
    except (RuntimeError, AttributeError) as error:
        names = [argument.name for argument in compiled._schema.arguments]
        check_types(op, dict(zip(names, (x, *args), strict=False)))
        if " must " in str(error) and "; got " in str(error):  # a rule that only the compiled check knows
            raise ValueError(str(error)) from None
        raise
