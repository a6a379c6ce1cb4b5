"""fused_conv, pool2d and local_response_norm in torch: the public functions; meta.py has their Meta kernels, grad.py
their gradients."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deepseek_fast import _conv, _linear
from deepseek_fast.gpu.register import register
from deepseek_fast.kernels.fused_conv import grad, meta

_OP = torch.ops.deepseek_fast.fused_conv.default
_PACKED_OP = torch.ops.deepseek_fast.fused_conv_packed.default
_INT8_OP = torch.ops.deepseek_fast.fused_conv_int8.default
_INT8_PACKED_OP = torch.ops.deepseek_fast.fused_conv_int8_packed.default
_POOL_OP = torch.ops.deepseek_fast.pool2d.default
_LRN_OP = torch.ops.deepseek_fast.local_response_norm.default
PACK_OP = torch.ops.deepseek_fast.fused_conv_pack.default
register(
    "fused_conv",
    *("fused_conv", "fused_conv_int8", "pool2d", "local_response_norm"),
    on_host=("fused_conv_pack",),
    refused={
        "fused_conv_packed": "use fused_conv with the plain weight",
        "fused_conv_int8_packed": "use fused_conv_int8 with the plain weight",
    },
)


def fused_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    activation: str = "none",
    activation_params: Sequence[float] = (),
    residual: Tensor | None = None,
    residual_at: str = "before",
    max_pool: Any = None,
    algorithm: str = "direct",
) -> Tensor:
    """max_pool(act(conv2d(x, weight) + bias (+ residual)) (+ residual)) in one pass; takes F.conv2d's arguments.

    x: (N, C, H, W) or (C, H, W), float32 or bfloat16, read where it is if channels or the pixels of a row lie side by
    side. weight: (F, C / groups, R, S), bias: (F,), of x's dtype; a weight (F, C / groups, S) makes it conv1d of x
    (N, C, L) or (C, L). The weight is packed on each call; nn.FusedConv2d packs it once.
    stride, dilation: an integer or one a dimension. padding: "same", "valid", an integer, one a dimension or (top,
    left, bottom, right). activation: those of fused_matmul, or leaky_relu, clip, hardsigmoid with activation_params
    (slope,), (smallest, largest), (alpha, beta). residual: the convolution's shape and x's dtype, added "before" or
    "after" the activation. max_pool: (kernel, stride, padding, ceil_mode) or the first of them, as F.max_pool2d has it.
    algorithm: "direct", or "winograd" for float32, a 3x3 weight of one group, stride and dilation 1: fewer products,
    but an error that all 36 values of a tile of x have a part in, and NaN in all of a tile where one is not finite.
    Returns (N, F, P, Q) of x's dtype, channels_last where x or weight is.
    Raises ValueError for shapes and names, TypeError for dtypes. Differentiable in all four tensors, once.
    Numerics: sums and all that follows in float32, one rounding at the end, then the pool; an image's result does not
    depend on the layout, the other images or the number of threads.

    >>> x, weight = torch.randn(1, 3, 224, 224), torch.randn(64, 3, 7, 7)
    >>> deepseek_fast.fused_conv(x, weight, None, 2, 3, activation="relu", max_pool=(3, 2, 1)).shape
    torch.Size([1, 64, 56, 56])

    Source: kernels/fused_conv/README.md.
    """
    op = "fused_conv"
    _check_types(op, {"x": x, "weight": weight}, {"bias": bias, "residual": residual}, activation, residual_at, groups)
    window, pool = _conv.windows(op, weight.shape, stride, padding, dilation, max_pool)
    params = _conv.numbers(op, "activation_params", activation_params)
    _conv.check_name(op, "algorithm", algorithm)
    options = (*window, groups, activation, params)
    if not _linear.needs_grad(x, weight, bias, residual):
        return _call(_OP, x, weight, bias, *options, residual, residual_at, pool, algorithm)
    device = _linear.autocast_device(x)
    if torch.is_autocast_enabled(device):
        x, weight, bias, residual = (_linear.autocast(t, meta.FLOATS, device) for t in (x, weight, bias, residual))
    with torch.autocast(device, enabled=False):
        return _call(grad.FusedConv.apply, x, weight, bias, *options, residual, residual_at, pool, algorithm)


def fused_conv_pack(weight: Tensor, groups: int = 1, *, algorithm: str = "direct") -> Tensor:
    """A weight of fused_conv or fused_conv_int8 as its kernels read it: 1-D uint8, opaque, never to be saved.

    weight: (F, C / groups, R, S) or (F, C / groups, S), float32, bfloat16 or int8, of any strides. algorithm: that of
    fused_conv, which is what a packed weight is packed for.
    Raises ValueError for shapes and groups, TypeError for dtypes.

    >>> deepseek_fast.fused_conv_pack(torch.randn(64, 3, 7, 7)).dtype
    torch.uint8
    """
    op = "fused_conv_pack"
    _check_types(op, {"weight": weight}, {}, "none", "before", groups)
    _conv.check_name(op, "algorithm", algorithm)
    return _call(PACK_OP, weight.detach(), groups, algorithm)


def fused_conv_packed(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    weight_shape: Sequence[int],
    activation: str = "none",
    activation_params: Sequence[float] = (),
    residual: Tensor | None = None,
    residual_at: str = "before",
    max_pool: Any = None,
    channels_last: bool = False,
) -> Tensor:
    """fused_conv with a weight of weight_shape that fused_conv_pack packed; without gradients.

    channels_last: the result is so, even where x is not: the weight's part in F.conv2d's rule.
    """
    op = "fused_conv_packed"
    _check_types(op, {"x": x, "packed": packed}, {"bias": bias, "residual": residual}, activation, residual_at, groups)
    window, pool = _conv.windows(op, weight_shape, stride, padding, dilation, max_pool)
    params = _conv.numbers(op, "activation_params", activation_params)
    options = (list(weight_shape), *window, groups, activation, params)
    return call_packed(x, packed, bias, *options, residual, residual_at, pool, channels_last)


def call_packed(x: Tensor, packed: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    """The packed operator with options in its own numbers."""
    return _call(_PACKED_OP, x, packed, bias, *options)  # type: ignore[no-any-return]


def fused_conv_int8(
    x: Tensor,
    weight: Tensor,
    x_scale: float,
    x_zero_point: int,
    weight_scale: Tensor,
    y_scale: float,
    y_zero_point: int,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    activation: str = "none",
    activation_params: Sequence[float] = (),
    residual: Tensor | None = None,
    residual_scale: float = 1.0,
    residual_zero_point: int = 0,
    residual_at: str = "before",
    max_pool: Any = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """fused_conv of 8-bit numbers, as ONNX's QLinearConv: a number is (code - zero_point) * scale.

    x: uint8 or int8, in fused_conv's shapes. weight: int8 with zero point 0, at most 65,793 values a filter.
    weight_scale: (F,) or one value, float32. bias: (F,) int32, of scale x_scale * weight_scale. residual: of out_dtype
    (x's dtype where that is None), with a scale and a zero point of its own. The other options are fused_conv's.
    Returns (N, F, P, Q) of out_dtype. Raises ValueError for shapes, scales and names, TypeError for dtypes.
    Numerics: exact sums in int32; then float32, each operation rounded, half to even: the same bits on every CPU.

    >>> x, weight = torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.ones(4, 3, 3, 3, dtype=torch.int8)
    >>> deepseek_fast.fused_conv_int8(x, weight, 0.1, 128, torch.ones(4), 0.2, 0).shape
    torch.Size([1, 4, 6, 6])

    Source: kernels/fused_conv/README.md.
    """
    op = "fused_conv_int8"
    required = {"x": x, "weight": weight, "weight_scale": weight_scale}
    _check_types(op, required, {"bias": bias, "residual": residual}, activation, residual_at, groups)
    _conv.check_quantization(op, x_scale, x_zero_point, y_scale, y_zero_point, residual_scale, residual_zero_point)
    window, pool = _conv.windows(op, weight.shape, stride, padding, dilation, max_pool)
    params = _conv.numbers(op, "activation_params", activation_params)
    of_y = (*window, groups, x.dtype if out_dtype is None else out_dtype, activation, params)
    added = (residual, residual_scale, residual_zero_point, residual_at)
    scales = (x_scale, x_zero_point, weight_scale.detach(), y_scale, y_zero_point)
    return _call(_INT8_OP, x, weight, *scales, bias, *of_y, *added, pool)


def fused_conv_int8_packed(
    x: Tensor,
    packed: Tensor,
    x_scale: float,
    x_zero_point: int,
    weight_scale: Tensor,
    y_scale: float,
    y_zero_point: int,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    weight_shape: Sequence[int],
    activation: str = "none",
    activation_params: Sequence[float] = (),
    residual: Tensor | None = None,
    residual_scale: float = 1.0,
    residual_zero_point: int = 0,
    residual_at: str = "before",
    max_pool: Any = None,
    out_dtype: torch.dtype | None = None,
    channels_last: bool = False,
) -> Tensor:
    """fused_conv_int8 with a weight of weight_shape that fused_conv_pack packed.

    channels_last: the result is so, even where x is not: the weight's part in F.conv2d's rule.

    >>> x, weight = torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.ones(4, 3, 3, 3, dtype=torch.int8)
    >>> packed, scales = deepseek_fast.fused_conv_pack(weight), (0.1, 128, torch.ones(4), 0.2, 0)
    >>> deepseek_fast.fused_conv_int8_packed(x, packed, *scales, weight_shape=weight.shape).shape
    torch.Size([1, 4, 6, 6])
    """
    op = "fused_conv_int8_packed"
    required = {"x": x, "packed": packed, "weight_scale": weight_scale}
    _check_types(op, required, {"bias": bias, "residual": residual}, activation, residual_at, groups)
    _conv.check_quantization(op, x_scale, x_zero_point, y_scale, y_zero_point, residual_scale, residual_zero_point)
    window, pool = _conv.windows(op, weight_shape, stride, padding, dilation, max_pool)
    params = _conv.numbers(op, "activation_params", activation_params)
    of_y = (list(weight_shape), *window, groups, x.dtype if out_dtype is None else out_dtype, activation, params)
    added = (residual, residual_scale, residual_zero_point, residual_at)
    scales = (x_scale, x_zero_point, weight_scale.detach(), y_scale, y_zero_point)
    return _call(_INT8_PACKED_OP, x, packed, *scales, bias, *of_y, *added, pool, channels_last)


def pool2d(
    x: Tensor,
    kernel: Any,
    stride: Any = None,
    padding: Any = 0,
    *,
    kind: str = "max",
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """The largest value or the mean of every window: F.max_pool2d or F.avg_pool2d.

    x: (N, C, H, W) or (C, H, W), float32, bfloat16, of the largest value uint8 and int8 too. kernel, stride (None: the
    kernel): an integer or (rows, columns). padding: those, or (top, left, bottom, right), at most half the kernel.
    kind: "max" (NaN where a window has one) or "average"; count_include_pad: its padding counts as zeros.
    Returns (N, C, P, Q) of x's dtype, channels_last where x is. Differentiable once.
    Raises ValueError for shapes and names, TypeError for dtypes. Numerics: the mean's sum in float32.

    >>> deepseek_fast.pool2d(torch.randn(1, 64, 112, 112), 3, 2, 1).shape
    torch.Size([1, 64, 56, 56])

    Source: kernels/fused_conv/README.md.
    """
    op = "pool2d"
    _linear.check_tensors(op, x=x)
    if x is None:
        raise TypeError(f"{op}: x must be a tensor; got NoneType")
    _conv.check_name(op, "kind", kind)
    window = _conv.pool_window(op, _conv.POOL_ARGS, 2, kernel, stride, padding, ceil_mode)
    if _linear.needs_grad(x):
        return _call(grad.Pool.apply, x, window, kind, bool(count_include_pad))
    return _call(_POOL_OP, x, window, kind, bool(count_include_pad))


def local_response_norm(x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    """x / (k + alpha / size * the sum of x^2 over size channels around each)^beta: F.local_response_norm.

    x: (N, C, H, W) or (N, C, L), float32 or bfloat16. size: size // 2 channels before and (size - 1) // 2 after, as
    torch has it (ONNX's LRN has them the other way around, which is the same for odd sizes).
    Returns x's shape and dtype, channels_last where x is. Differentiable once.
    Raises ValueError for shapes and sizes, TypeError for dtypes.
    Numerics: float32, one rounding at the end; beta 0.5, 0.75 and 1 by square roots, any other by powf, which is slow.

    >>> deepseek_fast.local_response_norm(torch.randn(1, 96, 55, 55), 5).shape
    torch.Size([1, 96, 55, 55])

    Source: kernels/fused_conv/README.md.
    """
    op = "local_response_norm"
    _linear.check_tensors(op, x=x)
    if x is None:
        raise TypeError(f"{op}: x must be a tensor; got NoneType")
    _conv.check_lrn(op, size, alpha, beta, k)
    if _linear.needs_grad(x):
        return _call(grad.LocalResponseNorm.apply, x, size, alpha, beta, k)
    return _call(_LRN_OP, x, size, alpha, beta, k)


def _check_types(
    op: str, required: dict[str, Any], optional: dict[str, Any], activation: Any, residual_at: Any, groups: Any
) -> None:
    """What torch's own sentences, of several lines, would refuse."""
    for arg, tensor in required.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: {arg} must be a tensor; got {type(tensor).__name__}")
    _linear.check_tensors(op, **optional)
    _conv.check_options(op, activation, residual_at, groups)


def _call(compiled: Any, *args: Any) -> Any:
    """compiled(...), with a failed check as ValueError or TypeError."""
    try:
        return compiled(*args)
    except RuntimeError as error:
        text = str(error)
        if " must " not in text or "; got " not in text or "this build" in text:
            raise
        raise (TypeError if "; got dtype " in text else ValueError)(text) from None


_linear.register_autocast("fused_conv", dtypes=meta.FLOATS)
_linear.register_autocast("fused_conv_packed", dtypes=meta.FLOATS)
