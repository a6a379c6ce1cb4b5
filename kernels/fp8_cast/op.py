"""fp8_cast and its family in torch: the public functions and their Meta kernels."""

import math
from typing import Any

import torch
from torch import Tensor

from deepseek_fast import _linear, _load

_load.load_torch()
_CAST = torch.ops.deepseek_fast.fp8_cast.default
_SILU_MUL_CAST = torch.ops.deepseek_fast.silu_mul_cast.default
_RMS_NORM_CAST = torch.ops.deepseek_fast.rms_norm_cast.default
_CAST_TRANSPOSED = torch.ops.deepseek_fast.fp8_cast_transposed.default
_AMAX = torch.ops.deepseek_fast.fp8_amax.default
_DEQUANTIZE = torch.ops.deepseek_fast.fp8_dequantize.default
_INT8_CAST = torch.ops.deepseek_fast.int8_cast.default
FORMATS = (
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
    torch.float4_e2m1fn_x2,
)
_BE_A_FORMAT = "be float8_e4m3fn, float8_e5m2, float8_e4m3fnuz, float8_e5m2fnuz or float4_e2m1fn_x2"
_FP4 = torch.float4_e2m1fn_x2
_SCALE_DTYPES = {"f32": torch.float32, "ue8m0": torch.float8_e8m0fnu, "e4m3": torch.float8_e4m3fn}
_TMA_BYTES = 16
_PAIR_BLOCK = 128  # most columns of a square that fp8_cast_transposed takes at once


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
        _check_types(op, dict(zip(names, (x, *args), strict=False)))
        if " must " in str(error) and "; got " in str(error):  # a rule that only the compiled check knows
            raise ValueError(str(error)) from None
        raise


def _check_types(op: str, arguments: dict[str, Any]) -> None:
    """The rules whose breach is a TypeError, in the compiled check's order."""
    first = "codes" if op == "fp8_dequantize" else "x"
    if arguments[first] is None:
        raise TypeError(f"{op}: {first} must be a tensor; got NoneType")
    _linear.check_tensors(
        op,
        **{arg: arguments.get(arg) for arg in (first, "given", "scale", "weight", "tensor_scale")}
        | {"scale": None if isinstance(arguments.get("scale"), str) else arguments.get("scale")},
    )
    if first == "codes":
        if arguments["codes"].dtype not in FORMATS:
            _linear.dtype_error(op, "codes", _BE_A_FORMAT, arguments["codes"])
        _check_dtype(op, arguments["dtype"], _linear.DTYPES, _linear.BE_FLOAT)
        scale = arguments.get("scale")
        if scale is not None and scale.dtype not in (*_SCALE_DTYPES.values(), torch.int32):
            _linear.dtype_error(op, "scale", "be float32, float8_e8m0fnu, float8_e4m3fn or int32", scale)
    else:
        _linear.check_float(op, "x", arguments["x"])
        if "dtype" in arguments:
            _check_dtype(op, arguments["dtype"], FORMATS, _BE_A_FORMAT)
        weight, given = arguments.get("weight"), arguments.get("given")
        if weight is not None and weight.dtype != arguments["x"].dtype:
            _linear.dtype_error(op, "weight", f"have x's dtype {_linear.dtype_name(arguments['x'].dtype)}", weight)
        if given is not None and given.dtype not in (torch.float32, torch.float8_e8m0fnu):
            _linear.dtype_error(op, "scale", "be float32 or float8_e8m0fnu", given)
        if op == "fp8_cast_transposed" and arguments["dtype"] == _FP4:
            raise TypeError(f"{op}: dtype must be a float8 type; got {_linear.dtype_name(_FP4)}")
    tensor_scale = arguments.get("tensor_scale")
    if tensor_scale is not None and tensor_scale.dtype != torch.float32:
        _linear.dtype_error(op, "tensor_scale", "be float32", tensor_scale)


def _check_dtype(op: str, dtype: Any, allowed: tuple[torch.dtype, ...], rule: str) -> None:
    if dtype not in allowed:
        raise TypeError(f"{op}: dtype must {rule}; got {_linear.dtype_name(dtype)}")


def _blocks(size: Any, block: int) -> Any:
    """How many blocks a dimension has; -1 is all of it, even of nothing."""
    return (size + block - 1) // block if block > 0 else 1


def _new_scale(x: Tensor, rows: int, columns: int, scale: str, layout: str, *, K: Any) -> Tensor:
    M = math.prod(x.shape[:-1])  # torch.Size.numel() would fix a symbolic size
    dtype = _SCALE_DTYPES.get(scale, torch.float32)
    if rows == 1 and x.dim() > 2:
        return x.new_empty((*x.shape[:-1], _blocks(K, columns)), dtype=dtype)
    down, across = _blocks(M, rows), _blocks(K, columns)
    if layout == "packed":
        dtype, across = torch.int32, (across + 3) // 4
    if layout == "row":
        return x.new_empty((down, across), dtype=dtype)
    step = 1 if layout == "column" else _TMA_BYTES // dtype.itemsize
    return x.new_empty_strided((down, across), (1, (down + step - 1) // step * step), dtype=dtype)


def _codes_like(x: Tensor, dtype: torch.dtype, K: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], K // 2 if dtype == _FP4 else K), dtype=dtype)


@torch.library.register_fake("deepseek_fast::fp8_cast")
def _(
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
    _check_types("fp8_cast", {"x": x, "given": given, "tensor_scale": tensor_scale, "dtype": dtype})
    codes = _codes_like(x, dtype, x.shape[-1])
    if plain:
        return codes, x.new_empty((1, 1), dtype=torch.float32)
    kind = "f32" if given is not None else scale
    return codes, _new_scale(x, block_rows, block_cols, kind, layout, K=x.shape[-1])


@torch.library.register_fake("deepseek_fast::silu_mul_cast")
def _(
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
    _check_types("silu_mul_cast", {"x": x, "tensor_scale": tensor_scale, "dtype": dtype})
    K = x.shape[-1] // 2
    return _codes_like(x, dtype, K), _new_scale(x, block_rows, block_cols, scale, layout, K=K)


@torch.library.register_fake("deepseek_fast::rms_norm_cast")
def _(
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
    _check_types("rms_norm_cast", {"x": x, "weight": weight, "tensor_scale": tensor_scale, "dtype": dtype})
    K = x.shape[-1]
    return _codes_like(x, dtype, K), _new_scale(x, block_rows, block_cols, scale, layout, K=K)


@torch.library.register_fake("deepseek_fast::fp8_cast_transposed")
def _(
    x: Tensor,
    block_rows: int,
    block_cols: int,
    dtype: torch.dtype,
    scale: str = "f32",
    mode: str = "deepgemm",
    saturate: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check_types("fp8_cast_transposed", {"x": x, "dtype": dtype})
    M, K = x.shape
    kind = _SCALE_DTYPES.get(scale, torch.float32)
    codes, codes_t = x.new_empty((M, K), dtype=dtype), x.new_empty((K, M), dtype=dtype)
    scales = x.new_empty((M, _blocks(K, block_cols)), dtype=kind)
    return codes, scales, codes_t, x.new_empty((K, _blocks(M, block_cols)), dtype=kind)


@torch.library.register_fake("deepseek_fast::fp8_amax")
def _(
    x: Tensor,
    block_rows: int,
    block_cols: int,
) -> Tensor:
    _check_types("fp8_amax", {"x": x})
    return _new_scale(x, block_rows, block_cols, "f32", "row", K=x.shape[-1])


@torch.library.register_fake("deepseek_fast::fp8_dequantize")
def _(
    codes: Tensor,
    scale: Tensor | None,
    tensor_scale: Tensor | None,
    block_rows: int,
    block_cols: int,
    dtype: torch.dtype,
) -> Tensor:
    arguments = {"codes": codes, "scale": scale, "tensor_scale": tensor_scale, "dtype": dtype}
    _check_types("fp8_dequantize", arguments)
    K = codes.shape[-1] * (2 if codes.dtype == _FP4 else 1)
    return codes.new_empty((*codes.shape[:-1], K), dtype=dtype)


@torch.library.register_fake("deepseek_fast::int8_cast")
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    _check_types("int8_cast", {"x": x})
    return x.new_empty(x.shape, dtype=torch.int8), x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
