"""The gradients of fused_conv, pool2d and local_response_norm: what a backward pass needs is computed again, by torch's
own operators."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from deepseek_fast.kernels.fused_conv import meta
from deepseek_fast.kernels.fused_matmul.op import FUNCTIONS

_OP = torch.ops.deepseek_fast.fused_conv.default
_POOL_OP = torch.ops.deepseek_fast.pool2d.default
_LRN_OP = torch.ops.deepseek_fast.local_response_norm.default
_ATEN = torch.ops.aten


class FusedConv(torch.autograd.Function):
    """Saves the inputs: the convolution runs again where an activation or a pool stands between it and y."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: int,
        activation: str,
        params: Any,
        residual: Tensor | None,
        residual_at: str,
        max_pool: Any,
        algorithm: str,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias, residual)
        ctx.window = (stride, padding, dilation, groups)
        ctx.rest = (activation, params, residual_at, max_pool)
        after = (activation, params, residual, residual_at, max_pool)
        return _OP(x, weight, bias, stride, padding, dilation, groups, *after, algorithm)  # type: ignore[no-any-return]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> Any:  # type: ignore[override]
        x, weight, bias, residual = ctx.saved_tensors
        activation, params, residual_at, max_pool = ctx.rest
        before = residual if residual_at == "before" else None
        grad_a = grad_z = grad_y
        if activation != "none" or max_pool:
            z = _OP(x, weight, bias, *ctx.window, "none", [], before, "before", [])
            if max_pool:
                a = activate(z, activation, params)
                a = a + residual if residual is not None and residual_at == "after" else a
                spatial = weight.dim() - 2
                grad_a = grad_z = _as4(max_backward, spatial, a.dim() == spatial + 2, grad_y, a, window=max_pool)
            grad_z = activate_backward(grad_a, z, activation, params)
        needs = (ctx.needs_input_grad[0], ctx.needs_input_grad[1], bias is not None and ctx.needs_input_grad[2])
        grads = _conv_backward(needs, grad_z, x, weight, *ctx.window)
        grad_residual = None if residual is None else grad_z if residual_at == "before" else grad_a
        return (*grads, *[None] * 6, grad_residual, None, None, None)


class Pool(torch.autograd.Function):
    """Saves x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, window: Any, kind: str, count_include_pad: bool) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x)
        ctx.options = (window, kind, count_include_pad)
        return _POOL_OP(x, window, kind, count_include_pad)  # type: ignore[no-any-return]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> Any:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        window, kind, count_include_pad = ctx.options
        options = {"window": window} | ({} if kind == "max" else {"count_include_pad": count_include_pad})
        backward = max_backward if kind == "max" else average_backward
        return _as4(backward, 2, x.dim() == 4, grad_y, x, **options), None, None, None


class LocalResponseNorm(torch.autograd.Function):
    """Saves x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x)
        ctx.options = (size, alpha, beta, k)
        return _LRN_OP(x, size, alpha, beta, k)  # type: ignore[no-any-return]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> Any:  # type: ignore[override]
        return lrn_backward(grad_y, ctx.saved_tensors[0], *ctx.options), None, None, None, None


def _as4(function: Any, spatial: int, has_n: bool, *tensors: Tensor, **options: Any) -> Any:
    """function of tensors as (N, C, H, W), and its result in their own dimensions again."""
    full = []
    for tensor in tensors:
        tensor = tensor.unsqueeze(-2) if spatial == 1 else tensor
        full.append(tensor if has_n else tensor.unsqueeze(0))
    result = function(*full, **options)
    result = result if has_n else result.squeeze(0)
    return result.squeeze(-2) if spatial == 1 else result


def _conv_backward(
    needs: Any, grad_z: Tensor, x: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    if not any(needs):
        return None, None, None
    spatial = weight.dim() - 2
    has_n = x.dim() == spatial + 2
    full_x, full_grad = (t.unsqueeze(-2) if spatial == 1 else t for t in (x, grad_z))
    full_weight = weight.unsqueeze(-2) if spatial == 1 else weight
    full_x, full_grad = (full_x, full_grad) if has_n else (full_x.unsqueeze(0), full_grad.unsqueeze(0))
    top, left, bottom, right = padding
    sides = (left, right, top, bottom)
    even = top == bottom and left == right
    padded = full_x if even else F.pad(full_x, sides)
    inside = [top, left] if even else [0, 0]
    window = (stride, inside, dilation, False, [0, 0], groups, list(needs))
    grad_x, grad_weight, grad_bias = _ATEN.convolution_backward(
        full_grad, padded, full_weight, [weight.shape[0]], *window
    )
    if grad_x is not None:
        grad_x = grad_x if even else F.pad(grad_x, [-side for side in sides])
        grad_x = grad_x.reshape(x.shape)
    return grad_x, None if grad_weight is None else grad_weight.reshape(weight.shape), grad_bias


def _exact_sides(x: Tensor, window: Any) -> tuple[list[Any], list[Any], list[Any]]:
    """kernel, stride, and the padding (negative: what no window reaches) after which every window is whole."""
    kernel, stride, (top, left, bottom, right), ceil_mode = window[:2], window[2:4], window[4:8], window[8]
    rows = meta.places(x.shape[-2], top, bottom, kernel[0], stride[0], ceil_mode)
    columns = meta.places(x.shape[-1], left, right, kernel[1], stride[1], ceil_mode)
    down = (rows - 1) * stride[0] + kernel[0] - top - x.shape[-2]
    across = (columns - 1) * stride[1] + kernel[1] - left - x.shape[-1]
    return kernel, stride, [left, across, top, down]


def max_backward(grad_y: Tensor, x: Tensor, window: Any) -> Tensor:
    """Of the largest value of each window: its first place gets the gradient."""
    kernel, stride, sides = _exact_sides(x, window)
    padded = F.pad(x, sides, value=-torch.inf)
    pool = (kernel, stride, [0, 0], [1, 1], False)
    _, places = _ATEN.max_pool2d_with_indices(padded, *pool)
    grad = _ATEN.max_pool2d_with_indices_backward(grad_y, padded, *pool, places)
    return F.pad(grad, [-side for side in sides])


def average_backward(grad_y: Tensor, x: Tensor, window: Any, count_include_pad: bool) -> Tensor:
    kernel, stride, sides = _exact_sides(x, window)
    padded = F.pad(x, sides)
    count = _lengths(x, window, 0, count_include_pad)[:, None] * _lengths(x, window, 1, count_include_pad)
    pool = (kernel, stride, [0, 0], False, True, 1)
    grad = _ATEN.avg_pool2d_backward(grad_y / count.to(grad_y.dtype), padded, *pool)
    return F.pad(grad, [-side for side in sides])


def _lengths(x: Tensor, window: Any, dim: int, count_include_pad: bool) -> Tensor:
    """How many rows (dim 0) or columns of x, or also of its padding, each window has."""
    kernel, stride, before, after = window[dim], window[2 + dim], window[4 + dim], window[6 + dim]
    size = x.shape[dim - 2]
    count = meta.places(size, before, after, kernel, stride, window[8])
    first = torch.arange(count, device=x.device) * stride - before
    end = first + kernel
    if count_include_pad:
        return end.clamp_max(size + after) - first
    return end.clamp_max(size) - first.clamp_min(0)


def lrn_backward(grad_y: Tensor, x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """With y = x / d^beta: grad / d^beta - 2 beta alpha / size * x * (the sum of grad * y / d over the neighbors that
    have x in their windows)."""
    before, after = size // 2, (size - 1) // 2
    grad, values = grad_y.float(), x.float()
    d = k + alpha / size * _channel_sums(values * values, before, after)
    own = grad * d.pow(-beta)
    theirs = _channel_sums(own * values / d, after, before)
    return (own - 2 * beta * alpha / size * values * theirs).to(x.dtype)


def _channel_sums(values: Tensor, before: int, after: int) -> Tensor:
    """Sums over channels c - before to c + after."""
    padded = F.pad(values, (0, 0) * (values.dim() - 2) + (before, after))
    return padded.unfold(1, before + 1 + after, 1).sum(-1)


def activate(z: Tensor, activation: str, params: Any) -> Tensor:
    if activation == "leaky_relu":
        return F.leaky_relu(z, params[0] if params else 0.01)
    if activation == "clip":
        return z.clamp_min(params[0]).clamp_max(params[1])
    if activation == "hardsigmoid":
        alpha, beta = params or (1 / 6, 0.5)
        return (alpha * z + beta).clamp(0, 1)
    return FUNCTIONS[activation][0](z)


def activate_backward(grad: Tensor, z: Tensor, activation: str, params: Any) -> Tensor:
    """From (gradient, z)."""
    if activation == "leaky_relu":
        return _ATEN.leaky_relu_backward(grad, z, params[0] if params else 0.01, False)  # type: ignore[no-any-return]
    if activation == "clip":
        return torch.where((z >= params[0]) & (z <= params[1]), grad, 0)
    if activation == "hardsigmoid":
        alpha, beta = params or (1 / 6, 0.5)
        inner = alpha * z + beta
        return torch.where((inner > 0) & (inner < 1), alpha * grad, 0)
    return FUNCTIONS[activation][1](grad, z)
