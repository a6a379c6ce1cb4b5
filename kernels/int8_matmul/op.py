"""int8_matmul in torch: the public functions and their Meta kernels."""

from typing import Any

import torch
from torch import Tensor

from deepseek_fast import _linear, _load
from deepseek_fast.gpu.register import register

_load.load_torch()
register(
    "int8_matmul",
    "int8_matmul",
    "int8_quantize_weight",
    refused={name: "use int8_matmul with the plain weight" for name in ("int8_matmul_pack", "int8_matmul_packed")},
)
_OP = torch.ops.deepseek_fast.int8_matmul.default
_PACKED_OP = torch.ops.deepseek_fast.int8_matmul_packed.default
_QUANTIZE_OP = torch.ops.deepseek_fast.int8_quantize_weight.default
PACK_OP = torch.ops.deepseek_fast.int8_matmul_pack.default

SCHEMES = ("int8", "float")
MAX_K = 131071  # columns whose int8 sums fit int32: 127 * 128 * K < 2^31


def int8_quantize_weight(w: Tensor) -> tuple[Tensor, Tensor]:
    """Quantizes a weight to int8, symmetrically, with one scale per output channel.

    w: (N, K) float32, bfloat16 or float16. Returns q: (N, K) int8 in [-127, 127] and scale: (N,) float32, so that
    q * scale[:, None] is w to within scale / 2. A row of zeros has scale 0; a row with NaN or inf has scale NaN.
    Raises ValueError for a shape that is not (N, K), TypeError for other dtypes.
    Numerics: scale = amax / 127, q = round_half_even(w * (127 / amax)), each operation rounded to float32.

    >>> q, scale = deepseek_fast.int8_quantize_weight(torch.randn(1536, 384))
    >>> q.shape, scale.shape
    (torch.Size([1536, 384]), torch.Size([1536]))

    Source: kernels/int8_matmul/README.md.
    """
    return _linear.call(_QUANTIZE_OP, _check_quantize, w.detach() if isinstance(w, Tensor) else w)  # type: ignore[no-any-return]


def int8_matmul(
    x: Tensor,
    q: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    residual: Tensor | None = None,
    activations: str = "int8",
    gated: bool = False,
) -> Tensor:
    """act(x @ (q * scale).T + bias) + residual with an int8 weight.

    x: (..., K) float32, bfloat16 or float16. q: (N, K) int8 and scale: (N,) float32 from int8_quantize_weight; q is
    packed on each call, nn.Int8Linear packs it once. bias: (N,), residual: the output's shape or one element, both of
    x's dtype. activation: none, relu, relu6, gelu, gelu_tanh, silu, hardswish, sigmoid or tanh. activations: "int8"
    quantizes each row of x with its own scale (W8A8; K <= 131071), "float" leaves x as it is (W8A16).
    gated: the weight has 2 N rows, bias and scale with it; the first N outputs, through the activation, multiply the
    last N (SwiGLU: gate_up_proj, then silu_and_mul). Returns (..., N) of x's dtype; has no gradient.
    Raises ValueError for shapes and names, TypeError for dtypes.
    Numerics: "int8" gives the same bits on every CPU, number of threads and runtime; a row with NaN or inf gives NaN.

    >>> q, scale = deepseek_fast.int8_quantize_weight(torch.randn(1536, 384))
    >>> deepseek_fast.int8_matmul(torch.randn(8, 64, 384), q, scale, activation="gelu").shape
    torch.Size([8, 64, 1536])

    Source: kernels/int8_matmul/README.md.
    """
    options = {"activation": activation, "residual": residual, "activations": activations, "gated": gated}
    if _linear.needs_grad(x, bias, residual):
        check(x, q, scale, bias, **options)  # type: ignore[arg-type]
        return _linear.without_gradient(_OP, options, x, q, scale, bias, name="int8_matmul")  # type: ignore[no-any-return]
    return _linear.call(_OP, check, x, q, scale, bias, **options)  # type: ignore[no-any-return]


def int8_matmul_packed(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    out_features: int,
    activation: str = "none",
    residual: Tensor | None = None,
    activations: str = "int8",
    gated: bool = False,
) -> Tensor:
    """int8_matmul with a weight packed by torch.ops.deepseek_fast.int8_matmul_pack."""
    options = {
        "out_features": out_features,
        "activation": activation,
        "residual": residual,
        "activations": activations,
        "gated": gated,
    }
    if _linear.needs_grad(x, bias, residual):
        return _linear.without_gradient(_PACKED_OP, options, x, packed, scale, bias, name="int8_matmul")  # type: ignore[no-any-return]
    return _PACKED_OP(x, packed, scale, bias, **options)  # type: ignore[no-any-return]


def check(
    x: Tensor,
    q: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    residual: Tensor | None = None,
    activations: str = "int8",
    gated: bool = False,
) -> None:
    op = "int8_matmul"
    _linear.check_tensors(op, x=x, q=q, scale=scale, bias=bias, residual=residual)
    _linear.check_x(op, x)
    if q.dtype != torch.int8:
        _linear.dtype_error(op, "q", "be int8", q)
    _linear.check_matrix(op, "q", q, x.shape[-1])
    _linear.check_gated(op, "q", q, gated)
    _check_scale(op, scale, q.shape[0])
    _linear.check_rest(op, x, _linear.out_features_of(q.shape[0], gated), bias, residual, activation, gated)
    _linear.check_choice(op, "activations", activations, SCHEMES)
    if activations == "int8" and q.shape[1] > MAX_K:
        _linear.shape_error(op, "q", f"have at most {MAX_K} columns for activations 'int8'", q)


def _check_scale(op: str, scale: Tensor, out_features: Any) -> None:
    if scale.dtype != torch.float32:
        _linear.dtype_error(op, "scale", "be float32", scale)
    if scale.dim() != 1 or scale.shape[0] != out_features:
        _linear.shape_error(op, "scale", f"have shape ({out_features},)", scale)


def _check_quantize(w: Tensor) -> None:
    _linear.check_tensors("int8_quantize_weight", w=w)
    _linear.check_float("int8_quantize_weight", "w", w)
    if w.dim() != 2:
        _linear.shape_error("int8_quantize_weight", "w", "have 2 dimensions", w)


@torch.library.register_fake("deepseek_fast::int8_matmul")
def _(
    x: Tensor,
    q: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    residual: Tensor | None = None,
    activations: str = "int8",
    gated: bool = False,
) -> Tensor:
    check(x, q, scale, bias, activation=activation, residual=residual, activations=activations, gated=gated)
    return _linear.new_output(x, _linear.out_features_of(q.shape[0], gated))


@torch.library.register_fake("deepseek_fast::int8_matmul_packed")
def _(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    out_features: int,
    activation: str = "none",
    residual: Tensor | None = None,
    activations: str = "int8",
    gated: bool = False,
) -> Tensor:
    op = "int8_matmul_packed"
    _linear.check_x(op, x)
    _check_scale(op, scale, 2 * out_features if gated else out_features)
    _linear.check_rest(op, x, out_features, bias, residual, activation, gated)
    _linear.check_choice(op, "activations", activations, SCHEMES)
    if activations == "int8" and x.shape[-1] > MAX_K:
        raise ValueError(f"{op}: packed must have at most {MAX_K} columns for activations 'int8'; got {x.shape[-1]}")
    return _linear.new_output(x, out_features)


@torch.library.register_fake("deepseek_fast::int8_matmul_pack")
def _(q: Tensor, *, gated: bool = False) -> Tensor:
    # As csrc/gemm/packed.h lays it out: a header of 64 bytes, an int32 per row, panels of 64 rows, quads of K.
    N, K = q.shape
    padded_N = _linear.padded_rows(N, gated)
    return q.new_empty(64 + padded_N * 4 + padded_N * ((K + 3) // 4 * 4), dtype=torch.uint8)


@torch.library.register_fake("deepseek_fast::int8_quantize_weight")
def _(w: Tensor) -> tuple[Tensor, Tensor]:
    _check_quantize(w)
    return w.new_empty(w.shape, dtype=torch.int8), w.new_empty(w.shape[0], dtype=torch.float32)


_linear.register_autocast("int8_matmul", keep=("scale",))
_linear.register_autocast("int8_matmul_packed", keep=("scale",))
