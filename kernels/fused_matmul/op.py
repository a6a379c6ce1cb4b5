"""fused_matmul in torch: the public function, its Meta kernels, gradient and autocast rule."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from deepseek_fast import _linear, _load
from deepseek_fast.gpu.register import register

_load.load_torch()
register(
    "fused_matmul",
    "fused_matmul",
    refused={name: "use fused_matmul with the plain weight" for name in ("fused_matmul_pack", "fused_matmul_packed")},
)
_OP = torch.ops.deepseek_fast.fused_matmul.default
_PACKED_OP = torch.ops.deepseek_fast.fused_matmul_packed.default
PACK_OP = torch.ops.deepseek_fast.fused_matmul_pack.default


def fused_matmul(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    residual: Tensor | None = None,
    gated: bool = False,
) -> Tensor:
    """act(x @ weight.T + bias) + residual in one pass; takes the arguments of torch.nn.functional.linear.

    x: (..., K) float32, bfloat16 or float16. weight: (N, K), bias: (N,), both of x's dtype; the weight is packed on
    each call, nn.FusedLinear packs it once. activation: none, relu, relu6, gelu, gelu_tanh, silu, hardswish, sigmoid or
    tanh. residual: the output's shape or one element, x's dtype, added after the activation.
    gated: weight is (2 N, K) and bias (2 N,); the first N outputs, through the activation, multiply the last N, as in
    SwiGLU: gate_up_proj, then silu_and_mul. Returns (..., N) of x's dtype.
    Raises ValueError for shapes and names, TypeError for dtypes. Differentiable in all four tensors, once.
    Numerics: sums and epilogue in float32, one rounding at the end; a row's result does not depend on the other rows
    or on the number of threads.

    >>> x, weight = torch.randn(8, 64, 384), torch.randn(1536, 384)
    >>> deepseek_fast.fused_matmul(x, weight, activation="gelu").shape
    torch.Size([8, 64, 1536])

    Source: kernels/fused_matmul/README.md.
    """
    if _linear.needs_grad(x, weight, bias, residual):
        device = _linear.autocast_device(x)
        if torch.is_autocast_enabled(device):
            x, weight, bias, residual = (
                _linear.autocast(value, device=device) for value in (x, weight, bias, residual)
            )
        check(x, weight, bias, activation, residual, gated)
        with torch.autocast(device, enabled=False):
            return _Differentiable.apply(x, weight, bias, activation, residual, gated)  # type: ignore[no-any-return,no-untyped-call]
    options = {"activation": activation, "residual": residual, "gated": gated}
    return _linear.call(_OP, _check_keywords, x, weight, bias, **options)  # type: ignore[no-any-return]


def fused_matmul_packed(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None = None,
    *,
    out_features: int,
    activation: str = "none",
    residual: Tensor | None = None,
    gated: bool = False,
) -> Tensor:
    """fused_matmul with a weight packed by torch.ops.deepseek_fast.fused_matmul_pack; without gradients."""
    return _PACKED_OP(  # type: ignore[no-any-return]
        x, packed, bias, out_features=out_features, activation=activation, residual=residual, gated=gated
    )


def check(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, residual: Tensor | None, gated: bool = False
) -> None:
    op = "fused_matmul"
    _linear.check_tensors(op, x=x, weight=weight, bias=bias, residual=residual)
    _linear.check_x(op, x)
    if weight.dtype != x.dtype:
        _linear.dtype_error(op, "weight", f"have x's dtype {_linear.dtype_name(x.dtype)}", weight)
    _linear.check_matrix(op, "weight", weight, x.shape[-1])
    _linear.check_gated(op, "weight", weight, gated)
    out_features = _linear.out_features_of(weight.shape[0], gated)
    _linear.check_rest(op, x, out_features, bias, residual, activation, gated)


def _check_keywords(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    residual: Tensor | None = None,
    gated: bool = False,
) -> None:
    check(x, weight, bias, activation, residual, gated)


@torch.library.register_fake("deepseek_fast::fused_matmul")
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    residual: Tensor | None = None,
    gated: bool = False,
) -> Tensor:
    check(x, weight, bias, activation, residual, gated)
    return _linear.new_output(x, _linear.out_features_of(weight.shape[0], gated))


@torch.library.register_fake("deepseek_fast::fused_matmul_packed")
def _(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None = None,
    *,
    out_features: int,
    activation: str = "none",
    residual: Tensor | None = None,
    gated: bool = False,
) -> Tensor:
    _linear.check_x("fused_matmul_packed", x)
    _linear.check_rest("fused_matmul_packed", x, out_features, bias, residual, activation, gated)
    return _linear.new_output(x, out_features)


@torch.library.register_fake("deepseek_fast::fused_matmul_pack")
def _(weight: Tensor, *, gated: bool = False) -> Tensor:
    return weight.new_empty(_packed_bytes(weight, gated), dtype=torch.uint8)


def _packed_bytes(weight: Tensor, gated: bool) -> Any:
    """As csrc/gemm/packed.h lays a weight out: a header of 64 bytes, panels of 64 rows, pairs of bf16."""
    N, K = weight.shape
    group = 2 if weight.dtype == torch.bfloat16 else 1
    return 64 + _linear.padded_rows(N, gated) * ((K + group - 1) // group * group) * weight.element_size()


_linear.register_autocast("fused_matmul")


class _Differentiable(torch.autograd.Function):
    """Saves the inputs, not the sums: the backward pass computes x @ weight.T + bias again where it needs it."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        activation: str,
        residual: Tensor | None,
        gated: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.activation, ctx.gated = activation, gated
        ctx.residual_shape = None if residual is None else residual.shape
        return _OP(x, weight, bias, activation=activation, residual=residual, gated=gated)  # type: ignore[no-any-return]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> Any:  # type: ignore[override]
        with torch.autocast(
            _linear.autocast_device(grad_y), enabled=False
        ):  # the inputs are in autocast's dtype already
            return _backward(ctx, grad_y)


def _backward(ctx: Any, grad_y: Tensor) -> Any:
    x, weight, bias = ctx.saved_tensors
    grad_residual = grad_y
    if ctx.residual_shape is not None and ctx.residual_shape != grad_y.shape:
        grad_residual = grad_y.sum().reshape(ctx.residual_shape)
    activate, activate_backward = FUNCTIONS[ctx.activation]
    grad_z = grad_y
    if ctx.gated:
        gate, up = _OP(x, weight, bias).chunk(2, -1)
        grad_z = torch.cat([activate_backward(grad_y * up, gate), grad_y * activate(gate)], -1)
    elif ctx.activation != "none":
        grad_z = activate_backward(grad_y, _OP(x, weight, bias))
    grad_x = grad_z @ weight if ctx.needs_input_grad[0] else None
    grad_rows = grad_z.reshape(-1, weight.shape[0])
    grad_weight = grad_rows.T @ x.reshape(-1, weight.shape[1]) if ctx.needs_input_grad[1] else None
    grad_bias = grad_rows.sum(0) if bias is not None else None
    return grad_x, grad_weight, grad_bias, None, grad_residual if ctx.residual_shape is not None else None, None


_ATEN = torch.ops.aten
# activation: act(z), and its backward pass from (gradient, z)
FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "none": (lambda z: z, lambda grad, z: grad),
    "relu": (torch.relu, lambda grad, z: _ATEN.threshold_backward(grad, z, 0)),
    "relu6": (F.relu6, lambda grad, z: _ATEN.hardtanh_backward(grad, z, 0, 6)),
    "gelu": (F.gelu, lambda grad, z: _ATEN.gelu_backward(grad, z)),
    "gelu_tanh": (
        lambda z: F.gelu(z, approximate="tanh"),
        lambda grad, z: _ATEN.gelu_backward(grad, z, approximate="tanh"),
    ),
    "silu": (F.silu, lambda grad, z: _ATEN.silu_backward(grad, z)),
    "hardswish": (F.hardswish, lambda grad, z: _ATEN.hardswish_backward(grad, z)),
    "sigmoid": (torch.sigmoid, lambda grad, z: _ATEN.sigmoid_backward(grad, z.sigmoid())),
    "tanh": (torch.tanh, lambda grad, z: _ATEN.tanh_backward(grad, z.tanh())),
}
