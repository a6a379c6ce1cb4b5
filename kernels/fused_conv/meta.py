"""What fused_conv, pool2d and local_response_norm give, without computing it: the Meta kernels, with the compiled
checks' sentences.

The twins of checks.cc that a tensor without memory can meet: types, shapes, names.
"""

from typing import Any

import torch
from torch import Tensor

from deepseek_fast import _conv, _linear, _load

_load.load_torch()
FLOATS = (torch.float32, torch.bfloat16)
BYTES = (torch.uint8, torch.int8)
BE_FLOAT = "be float32 or bfloat16"
BE_8_BITS = "be uint8 or int8"
_PARAMS = {"leaky_relu": (0, 1), "clip": (2,), "hardsigmoid": (0, 2)}
_PARAM_RULES = {
    "leaky_relu": "be (slope,) or nothing for leaky_relu",
    "clip": "be (smallest, largest) for clip",
    "hardsigmoid": "be (alpha, beta) or nothing for hardsigmoid",
}


def places(size: Any, before: Any, after: Any, kernel: Any, stride: Any, ceil_mode: Any = False) -> Any:
    """Places of a window along a side; torch's rule."""
    count = (size + before + after - kernel + (stride - 1 if ceil_mode else 0)) // stride + 1
    return count - 1 if ceil_mode and (count - 1) * stride >= size + before else count


def is_channels_last(sizes: Any, strides: Any, has_n: bool) -> bool:
    """Whether torch takes (N, C, H, W) for channels_last; an N that was put in has no say (view.h)."""
    least: Any = 0
    if strides[1] == 0:
        return False
    for d in (1, 3, 2, 0):
        if sizes[d] == 0 or (d == 0 and least == strides[1]):
            return False
        if d == 0 and not has_n:
            break
        if strides[d] < least:
            return False
        least = strides[d] * sizes[d] if sizes[d] > 1 else strides[d]
    return True


def view4(tensor: Tensor, spatial: int) -> tuple[list[Any], list[Any]]:
    """Sizes and strides as (N, C, H, W)."""
    sizes, strides = list(tensor.shape), list(tensor.stride())
    if spatial == 1:
        sizes.insert(-1, 1)
        strides.insert(-1, sizes[-1] * strides[-1])
    if len(sizes) == 3:
        sizes.insert(0, 1)
        strides.insert(0, sizes[1] * strides[0])
    return sizes, strides


def new_result(x: Tensor, pixels: bool, sizes: Any, has_n: bool, spatial: int, dtype: torch.dtype) -> Tensor:
    """An empty (N, C, H, W) in one order or the other, without the dimensions that x's users do not have."""
    _, C, H, W = sizes
    strides = [H * W * C, 1, W * C, C] if pixels else [C * H * W, H * W, W, 1]
    kept = [d for d in range(4) if (d != 0 or has_n) and (d != 2 or spatial == 2)]
    return x.new_empty_strided([sizes[d] for d in kept], [strides[d] for d in kept], dtype=dtype)


def conv_result(
    op: str,
    x: Tensor,
    weight: Tensor | None,
    weight_shape: Any,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    activation: str,
    activation_params: Any,
    residual: Tensor | None,
    residual_at: str,
    max_pool: Any,
    y_dtype: torch.dtype,
    channels_last: bool = False,
) -> Tensor:
    """Checks as dsf_fused_conv_check does; y without values. weight: None where it is packed."""
    arg = "weight" if weight is not None else "weight_shape"
    is_int8 = "int8" in op

    def weight_error(rule: str) -> None:
        raise ValueError(f"{op}: {arg} must {rule}; got shape {tuple(weight_shape)}")

    if x.dtype not in (BYTES if is_int8 else FLOATS):
        _linear.dtype_error(op, "x", BE_8_BITS if is_int8 else BE_FLOAT, x)
    spatial = len(weight_shape) - 2
    if spatial not in (1, 2):
        weight_error("have 3 or 4 dimensions")
    if x.dim() - spatial not in (1, 2):
        rule = "have 3 or 4 dimensions, as weight has 4" if spatial == 2 else "have 2 or 3 dimensions, as weight has 3"
        _linear.shape_error(op, "x", rule, x)
    same_dtype = f"have x's dtype {_linear.dtype_name(x.dtype)}"
    if weight is not None and weight.dtype != (torch.int8 if is_int8 else x.dtype):
        _linear.dtype_error(op, "weight", "be int8" if is_int8 else same_dtype, weight)
    if groups < 1:
        raise ValueError(f"{op}: groups must be positive; got {groups}")
    if any(size < 1 for size in weight_shape):
        weight_error("have no empty dimension")
    if weight_shape[0] % groups != 0:
        weight_error(f"have a first dimension that groups = {groups} divides")
    (N, C, H, W), x_strides = view4(x, spatial)
    if C < 1 or H < 1 or W < 1:
        _linear.shape_error(op, "x", "be empty in no dimension but the batch's", x)
    if C % groups != 0:
        _linear.shape_error(op, "x", f"have channels that groups = {groups} divides", x)
    if weight_shape[1] != C // groups:
        weight_error(f"have {C // groups} channels in its second dimension, x's over groups")
    F = weight_shape[0]
    R, S = weight_shape[2:] if spatial == 2 else (1, weight_shape[2])
    P, Q = _check_window(op, H, W, R, S, stride, padding, dilation)

    _check_vector(op, "bias", bias, F, torch.int32 if is_int8 else x.dtype, "be int32" if is_int8 else same_dtype)
    has_n = x.dim() == spatial + 2
    if residual is not None:
        if residual.dtype != y_dtype:
            whose = "the result's" if is_int8 else "x's"
            _linear.dtype_error(op, "residual", f"have {whose} dtype {_linear.dtype_name(y_dtype)}", residual)
        wanted = (*([N] if has_n else []), F, *([P] if spatial == 2 else []), Q)
        if tuple(residual.shape) != wanted:
            pooled = ", that of what is pooled" if len(max_pool) else ""
            _linear.shape_error(op, "residual", f"have shape {wanted}{pooled}", residual)
    _linear.check_choice(op, "residual_at", residual_at, ("before", "after"))
    _linear.check_choice(op, "activation", activation, _conv.ACTIVATIONS)
    if len(activation_params) not in _PARAMS.get(activation, (0,)):
        rule = _PARAM_RULES.get(activation, "be left out for this activation")
        raise ValueError(f"{op}: activation_params must {rule}; got {len(activation_params)} of them")
    if len(max_pool):
        P, Q = check_pool(op, ("max_pool",) * 3, P, Q, max_pool)
    pixels = channels_last or is_channels_last([N, C, H, W], x_strides, has_n)
    if weight is not None and not pixels:
        pixels = is_channels_last(*view4(weight, spatial), True)
    return new_result(x, pixels, [N, F, P, Q], has_n, spatial, y_dtype)


def _check_window(op: str, H: Any, W: Any, R: Any, S: Any, stride: Any, padding: Any, dilation: Any) -> tuple[Any, Any]:
    """Rows and columns of the convolution."""
    check_numbers(op, "stride", stride, 2, 1, "be from 1 to 2^24")
    check_numbers(op, "dilation", dilation, 2, 1, "be from 1 to 2^24")
    check_numbers(op, "padding", padding, 4, 0, "be from 0 to 2^24")
    top, left, bottom, right = padding
    span = dilation[0] * (R - 1) + 1, dilation[1] * (S - 1) + 1
    P = places(H, top, bottom, span[0], stride[0])
    Q = places(W, left, right, span[1], stride[1])
    if P < 1 or Q < 1:
        rule = f"have at least ({span[0]}, {span[1]}) rows and columns with its padding, as the weight spans"
        raise ValueError(f"{op}: x must {rule}; got ({H + top + bottom}, {W + left + right})")
    return P, Q


def check_numbers(op: str, arg: str, values: Any, count: int, least: int, rule: str) -> None:
    if len(values) != count:
        raise ValueError(f"{op}: {arg} must be {count} numbers; got {len(values)} of them")
    if any(value < least or value > 2**24 for value in values):
        raise ValueError(f"{op}: {arg} must {rule}; got {tuple(values)}")


def check_pool(op: str, args: tuple[str, str, str], H: Any, W: Any, window: Any) -> tuple[Any, Any]:
    """Rows and columns of the pool of (H, W); args: what the kernel, stride and padding are called."""
    own = args[0] != "max_pool"
    if len(window) != 9:
        raise ValueError(f"{op}: {'window' if own else 'max_pool'} must be 9 numbers; got {len(window)} of them")
    kernel, stride, padding, ceil_mode = window[:2], window[2:4], window[4:8], window[8]
    check_numbers(op, args[0], kernel, 2, 1, "be from 1 to 2^24" if own else "have a kernel from 1 to 2^24")
    check_numbers(op, args[1], stride, 2, 1, "be from 1 to 2^24" if own else "have a stride from 1 to 2^24")
    check_numbers(op, args[2], padding, 4, 0, "be from 0 to 2^24" if own else "have padding from 0 to 2^24")
    if any(2 * side > kernel[i % 2] for i, side in enumerate(padding)):
        rule = f"{'be' if own else 'have padding of'} at most half the kernel {tuple(kernel)}"
        raise ValueError(f"{op}: {args[2]} must {rule}; got {tuple(padding)}")
    top, left, bottom, right = padding
    out_h = places(H, top, bottom, kernel[0], stride[0], ceil_mode)
    out_w = places(W, left, right, kernel[1], stride[1], ceil_mode)
    if out_h < 1 or out_w < 1:
        most = (H + top + bottom, W + left + right)
        rule = f"{'be' if own else 'have a kernel of'} at most {most}, as what is pooled has with its padding"
        raise ValueError(f"{op}: {args[0]} must {rule}; got {tuple(kernel)}")
    return out_h, out_w


def _check_vector(op: str, arg: str, vector: Tensor | None, length: Any, dtype: torch.dtype, rule: str) -> None:
    if vector is None:
        return
    if vector.dtype != dtype:
        _linear.dtype_error(op, arg, rule, vector)
    if vector.dim() != 1 or vector.shape[0] != length:
        _linear.shape_error(op, arg, f"have shape ({length},)", vector)


def _check_algorithm(op: str, algorithm: str, weight: Tensor, groups: Any) -> None:
    _linear.check_choice(op, "algorithm", algorithm, ("direct", "winograd"))
    may_be = weight.dtype == torch.float32 and groups == 1 and tuple(weight.shape[2:]) == (3, 3)
    if algorithm == "winograd" and not may_be:
        rule = "be float32, 3x3 and of one group for algorithm winograd"
        got = f"{_linear.dtype_name(weight.dtype)}, {'x'.join(map(str, weight.shape[2:]))} in {groups} groups"
        raise ValueError(f"{op}: weight must {rule}; got {got}")


def _check_scale(op: str, scale: Tensor, F: Any) -> None:
    if scale.dtype != torch.float32:
        _linear.dtype_error(op, "weight_scale", "be float32", scale)
    if scale.dim() > 1 or (scale.dim() == 1 and scale.shape[0] not in (F, 1)):
        _linear.shape_error(op, "weight_scale", f"have shape ({F},) or one value", scale)


@torch.library.register_fake("deepseek_fast::fused_conv")
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    activation: str = "none",
    activation_params: Any = (),
    residual: Tensor | None = None,
    residual_at: str = "before",
    max_pool: Any = (),
    algorithm: str = "direct",
) -> Tensor:
    op = "fused_conv"
    _check_algorithm(op, algorithm, weight, groups)
    if algorithm == "winograd" and any(step != 1 for step in (*stride, *dilation)):
        arg = "stride" if any(step != 1 for step in stride) else "dilation"
        got = tuple(stride if arg == "stride" else dilation)
        raise ValueError(f"{op}: {arg} must be 1 for algorithm winograd; got {got}")
    window = (stride, padding, dilation, groups)
    after: Any = (activation, activation_params, residual, residual_at, max_pool, x.dtype)
    return conv_result(op, x, weight, weight.shape, bias, *window, *after)


@torch.library.register_fake("deepseek_fast::fused_conv_packed")
def _(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    weight_shape: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    activation: str = "none",
    activation_params: Any = (),
    residual: Tensor | None = None,
    residual_at: str = "before",
    max_pool: Any = (),
    channels_last: bool = False,
) -> Tensor:
    window = (stride, padding, dilation, groups)
    after: Any = (activation, activation_params, residual, residual_at, max_pool, x.dtype, channels_last)
    return conv_result("fused_conv_packed", x, None, weight_shape, bias, *window, *after)


@torch.library.register_fake("deepseek_fast::fused_conv_int8")
def _(
    x: Tensor,
    weight: Tensor,
    x_scale: float,
    x_zero_point: int,
    weight_scale: Tensor,
    y_scale: float,
    y_zero_point: int,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    out_dtype: torch.dtype,
    activation: str = "none",
    activation_params: Any = (),
    residual: Tensor | None = None,
    residual_scale: float = 1.0,
    residual_zero_point: int = 0,
    residual_at: str = "before",
    max_pool: Any = (),
) -> Tensor:
    _check_scale("fused_conv_int8", weight_scale, weight.shape[0])
    window = (stride, padding, dilation, groups)
    after: Any = (activation, activation_params, residual, residual_at, max_pool, out_dtype)
    return conv_result("fused_conv_int8", x, weight, weight.shape, bias, *window, *after)


@torch.library.register_fake("deepseek_fast::fused_conv_int8_packed")
def _(
    x: Tensor,
    packed: Tensor,
    x_scale: float,
    x_zero_point: int,
    weight_scale: Tensor,
    y_scale: float,
    y_zero_point: int,
    bias: Tensor | None,
    weight_shape: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    out_dtype: torch.dtype,
    activation: str = "none",
    activation_params: Any = (),
    residual: Tensor | None = None,
    residual_scale: float = 1.0,
    residual_zero_point: int = 0,
    residual_at: str = "before",
    max_pool: Any = (),
    channels_last: bool = False,
) -> Tensor:
    op = "fused_conv_int8_packed"
    _check_scale(op, weight_scale, weight_shape[0])
    window = (stride, padding, dilation, groups)
    after: Any = (activation, activation_params, residual, residual_at, max_pool, out_dtype, channels_last)
    return conv_result(op, x, None, weight_shape, bias, *window, *after)


@torch.library.register_fake("deepseek_fast::pool2d")
def _(x: Tensor, window: Any, kind: str = "max", count_include_pad: bool = True) -> Tensor:
    op = "pool2d"
    _linear.check_choice(op, "kind", kind, ("max", "average"))
    if x.dtype not in (FLOATS if kind == "average" else (*FLOATS, *BYTES)):
        _linear.dtype_error(op, "x", BE_FLOAT if kind == "average" else "be float32, bfloat16, uint8 or int8", x)
    if x.dim() not in (3, 4):
        _linear.shape_error(op, "x", "have 3 or 4 dimensions", x)
    (N, C, H, W), strides = view4(x, 2)
    if C < 1 or H < 1 or W < 1:
        _linear.shape_error(op, "x", "be empty in no dimension but the batch's", x)
    out_h, out_w = check_pool(op, ("kernel", "stride", "padding"), H, W, window)
    pixels = is_channels_last([N, C, H, W], strides, x.dim() == 4)
    return new_result(x, pixels, [N, C, out_h, out_w], x.dim() == 4, 2, x.dtype)


@torch.library.register_fake("deepseek_fast::local_response_norm")
def _(x: Tensor, size: Any, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    op = "local_response_norm"
    if x.dtype not in FLOATS:
        _linear.dtype_error(op, "x", BE_FLOAT, x)
    if x.dim() not in (3, 4):
        _linear.shape_error(op, "x", "have 3 or 4 dimensions", x)
    sizes, strides = view4(x, x.dim() - 2)
    if any(length < 1 for length in sizes[1:]):
        _linear.shape_error(op, "x", "be empty in no dimension but the batch's", x)
    if size < 1 or size > 2**24:
        raise ValueError(f"{op}: size must be from 1 to 2^24; got {size}")
    return new_result(x, is_channels_last(sizes, strides, True), sizes, True, x.dim() - 2, x.dtype)


# --- packed.h, in bytes -----------------------------------------------------------------------------------------------

_HEADER, _PANEL_F, _LANES, _STEM_C, _GROUPED_F, _WINOGRAD_POINTS = 64, 32, 16, 4, 8, 36


@torch.library.register_fake("deepseek_fast::fused_conv_pack")
def _(weight: Tensor, groups: Any = 1, algorithm: str = "direct") -> Tensor:
    _check_algorithm("fused_conv_pack", algorithm, weight, groups)
    F, C, *rest = weight.shape
    R, S = rest if len(rest) == 2 else (1, *rest)
    item_bytes = weight.element_size()
    sums = _round_up(F, _LANES) * 4 if item_bytes == 1 else 0
    if groups > 1 and ((C == 1 and groups == F) or F // groups <= _GROUPED_F):
        values = _round_up(F, _LANES) * R * S * C * (1 if item_bytes == 1 else 4)
        return weight.new_empty(_HEADER + sums + values, dtype=torch.uint8)
    side_by_side = 4 // item_bytes
    is_stem = groups == 1 and C <= _STEM_C and S > 1
    if algorithm == "winograd":
        panels = _round_up(F, _PANEL_F)
        return weight.new_empty(_HEADER + panels * _WINOGRAD_POINTS * C * item_bytes, dtype=torch.uint8)
    runs, length = (R, S * C) if is_stem else (R * S, C)
    panels = groups * (_round_up(F // groups, _PANEL_F) // _PANEL_F)
    panel_bytes = runs * _round_up(length, side_by_side) * _PANEL_F * item_bytes
    return weight.new_empty(_HEADER + sums + panels * panel_bytes, dtype=torch.uint8)


def _round_up(size: Any, step: int) -> Any:
    return (size + step - 1) // step * step
