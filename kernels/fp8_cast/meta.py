"""What fp8_cast and its family give, without computing it: the Meta kernels, and the checks of types.

The compiled operators check every call themselves, but from C++ only RuntimeError is portable: these twins raise the
sentences of those checks whose breach is a TypeError.
"""

import math
from typing import Any

import torch
from torch import Tensor

from deepseek_fast import _linear, _load

_load.load_torch()
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
NAMES = {"scale": "scale", "mode": "mode", "layout": "out_layout", "rounding": "rounding"}  # op's: function's


def check_types(op: str, arguments: dict[str, Any]) -> None:
    """The rules whose breach is a TypeError, in the compiled check's order."""
    first = "codes" if op == "fp8_dequantize" else "x"
    for arg in (first, "weight"):
        if arg in arguments and arguments[arg] is None:
            raise TypeError(f"{op}: {arg} must be a tensor; got NoneType")
    if not torch.compiler.is_compiling():
        _check_options(op, arguments)
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


def _check_options(op: str, arguments: dict[str, Any]) -> None:
    """Those that torch's own sentence, of several lines, would refuse."""
    for arg, name in NAMES.items():
        is_tensor = arg == "scale" and op == "fp8_dequantize"
        if arg in arguments and not is_tensor and not isinstance(arguments[arg], str):
            raise TypeError(f"{op}: {name} must be a name; got {arguments[arg]!r}")
    if not isinstance(arguments.get("saturate", True), bool):
        raise TypeError(f"{op}: saturate must be True or False; got {arguments['saturate']!r}")
    seed, eps = arguments.get("seed", 0), arguments.get("eps", 0.0)
    if not isinstance(seed, int) or not -(2**63) <= seed < 2**63:
        raise TypeError(f"{op}: seed must be an integer of 64 bits; got {seed!r}")
    if not isinstance(eps, (int, float)):
        raise TypeError(f"{op}: eps must be a number; got {eps!r}")


def _check_dtype(op: str, dtype: Any, allowed: tuple[torch.dtype, ...], rule: str) -> None:
    if dtype not in allowed:
        raise TypeError(f"{op}: dtype must {rule}; got {_linear.dtype_name(dtype)}")


def blocks_of(size: Any, block: int) -> Any:
    """How many blocks a dimension has; -1 is all of it, even of nothing."""
    return (size + block - 1) // block if block > 0 else 1


def new_scale(x: Tensor, rows: int, columns: int, scale: str, layout: str, *, K: Any) -> Tensor:
    M = math.prod(x.shape[:-1])  # torch.Size.numel() would fix a symbolic size
    dtype = _SCALE_DTYPES.get(scale, torch.float32)
    if rows == 1 and x.dim() > 2:
        return x.new_empty((*x.shape[:-1], blocks_of(K, columns)), dtype=dtype)
    down, across = blocks_of(M, rows), blocks_of(K, columns)
    if layout == "packed":
        dtype, across = torch.int32, (across + 3) // 4
    if layout == "row":
        return x.new_empty((down, across), dtype=dtype)
    step = 1 if layout == "column" else _TMA_BYTES // dtype.itemsize
    return x.new_empty_strided((down, across), (1, (down + step - 1) // step * step), dtype=dtype)


def codes_like(x: Tensor, dtype: torch.dtype, K: Any) -> Tensor:
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
    check_types("fp8_cast", {"x": x, "given": given, "tensor_scale": tensor_scale, "dtype": dtype})
    codes = codes_like(x, dtype, x.shape[-1])
    if plain:
        return codes, x.new_empty((1, 1), dtype=torch.float32)
    kind = "f32" if given is not None else scale
    return codes, new_scale(x, block_rows, block_cols, kind, layout, K=x.shape[-1])


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
    check_types("silu_mul_cast", {"x": x, "tensor_scale": tensor_scale, "dtype": dtype})
    K = x.shape[-1] // 2
    return codes_like(x, dtype, K), new_scale(x, block_rows, block_cols, scale, layout, K=K)


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
    check_types("rms_norm_cast", {"x": x, "weight": weight, "tensor_scale": tensor_scale, "dtype": dtype})
    K = x.shape[-1]
    return codes_like(x, dtype, K), new_scale(x, block_rows, block_cols, scale, layout, K=K)


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
    check_types("fp8_cast_transposed", {"x": x, "dtype": dtype})
    M, K = x.shape
    kind = _SCALE_DTYPES.get(scale, torch.float32)
    codes, codes_t = x.new_empty((M, K), dtype=dtype), x.new_empty((K, M), dtype=dtype)
    scales = x.new_empty((M, blocks_of(K, block_cols)), dtype=kind)
    return codes, scales, codes_t, x.new_empty((K, blocks_of(M, block_cols)), dtype=kind)


@torch.library.register_fake("deepseek_fast::fp8_amax")
def _(
    x: Tensor,
    block_rows: int,
    block_cols: int,
) -> Tensor:
    check_types("fp8_amax", {"x": x})
    return new_scale(x, block_rows, block_cols, "f32", "row", K=x.shape[-1])


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
    check_types("fp8_dequantize", arguments)
    K = codes.shape[-1] * (2 if codes.dtype == _FP4 else 1)
    return codes.new_empty((*codes.shape[:-1], K), dtype=dtype)


@torch.library.register_fake("deepseek_fast::int8_cast")
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    check_types("int8_cast", {"x": x})
    return x.new_empty(x.shape, dtype=torch.int8), x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
