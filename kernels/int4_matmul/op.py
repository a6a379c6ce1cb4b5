"""int4_matmul in torch: the public functions and their Meta kernels."""

from typing import Any

import torch
from torch import Tensor

from deepseek_fast import _linear, _load
from deepseek_fast.gpu.register import register

_load.load_torch()
register(
    "int4_matmul",
    "int4_matmul",
    on_host=("int4_quantize_weight",),
    refused={
        "int4_matmul_packed": "use int4_matmul with the plain weight",
        "int4_matmul_pack": "use int4_matmul with the plain weight, which GPU kernels read as it is",
    },
)
_OP = torch.ops.deepseek_fast.int4_matmul.default
_PACKED_OP = torch.ops.deepseek_fast.int4_matmul_packed.default
_QUANTIZE_OP = torch.ops.deepseek_fast.int4_quantize_weight.default
_PACK_OP = torch.ops.deepseek_fast.int4_matmul_pack.default

COMPUTE = ("int8", "float")
GROUP_SIZES = (32, 64, 128, -1)
WHOLE_ROW_BLOCK = 128  # values of k that a packed block holds where one scale serves the whole row


def int4_quantize_weight(w: Tensor, *, group_size: int = 32, symmetric: bool = True) -> tuple[Tensor, ...]:
    """Quantizes a weight to 4 bits with a scale, and perhaps a zero point, per row and group of columns.

    w: (N, K) float32, bfloat16 or float16, finite. group_size: 32, 64, 128, or -1 for one group a row.
    Returns q: (N, ceil(K / 2)) uint8, two codes a byte, and scale: (N, groups) float32; with symmetric=False also
    zeros: (N, groups) uint8. (code - zero) * scale is w to within scale / 2, zero being 8 where symmetric; values there
    near minus the group's largest are within scale. A group of zeros has scale 1.
    Raises ValueError for shapes, group sizes, NaN and inf, TypeError for other dtypes.
    Numerics: symmetric scale = m / -8, m being the value of largest magnitude, as ggml's Q4_0 (12 % less RMS error on
    Gaussian weights than amax / 7); else (max - min) / 15 with 0 in the range. Codes round half to even.

    >>> q, scale = deepseek_fast.int4_quantize_weight(torch.randn(1536, 384), group_size=32)
    >>> q.shape, scale.shape
    (torch.Size([1536, 192]), torch.Size([1536, 12]))

    Source: kernels/int4_matmul/README.md.
    """
    w = w.detach() if isinstance(w, Tensor) else w
    q, scale, zeros = _linear.call(_QUANTIZE_OP, _check_quantize, w, group_size=group_size, symmetric=symmetric)
    return (q, scale) if symmetric else (q, scale, zeros)


def int4_matmul(
    x: Tensor,
    q: Tensor,
    scale: Tensor,
    zeros: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    group_size: int = 32,
    in_features: int = -1,
    activation: str = "none",
    residual: Tensor | None = None,
    compute: str = "int8",
    gated: bool = False,
) -> Tensor:
    """act(x @ ((q - zeros) * scale).T + bias) + residual with a 4-bit weight, scaled by row and group of columns.

    x: (..., K) float32, bfloat16 or float16. q: (N, ceil(K / 2)) uint8, the code of even k in the low nibble; it is
    packed on each call, nn.Int4Linear packs it once. scale: (N, groups) float32, finite. zeros: (N, groups) uint8 up to
    15, or None for 8 everywhere. bias: (N,), residual: the output's shape or one element, both of x's dtype.
    group_size: 32, 64, 128, or -1 for one group a row. in_features: K, where it is odd; -1 for two values a byte.
    activation: none, relu, relu6, gelu, gelu_tanh, silu, hardswish, sigmoid or tanh. compute: "int8" quantizes x to
    int8 by row and group (W4A8), "float" leaves x as it is (W4A16). Returns (..., N) of x's dtype; has no gradient.
    gated: the weight has 2 N rows, bias and scale with it; the first N outputs, through the activation, multiply the
    last N (SwiGLU: gate_up_proj, then silu_and_mul).
    Raises ValueError for shapes, values and names, TypeError for dtypes.
    Numerics: "int8" gives the same bits on every CPU, number of threads and runtime; a row with NaN or inf gives NaN.

    >>> q, scale = deepseek_fast.int4_quantize_weight(torch.randn(1536, 384))
    >>> deepseek_fast.int4_matmul(torch.randn(8, 64, 384), q, scale, activation="gelu").shape
    torch.Size([8, 64, 1536])

    Source: kernels/int4_matmul/README.md.
    """
    options = {
        "group_size": group_size,
        "in_features": in_features,
        "activation": activation,
        "residual": residual,
        "compute": compute,
        "gated": gated,
    }
    if _linear.needs_grad(x, bias, residual):
        check(x, q, scale, zeros, bias, **options)  # type: ignore[arg-type]
        return _linear.without_gradient(_OP, options, x, q, scale, zeros, bias, name="int4_matmul")  # type: ignore[no-any-return]
    return _linear.call(_OP, check, x, q, scale, zeros, bias, **options)  # type: ignore[no-any-return]


def int4_matmul_packed(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None = None,
    *,
    out_features: int,
    activation: str = "none",
    residual: Tensor | None = None,
    compute: str = "int8",
    gated: bool = False,
) -> Tensor:
    """int4_matmul with a weight packed, scale and zeros with it, by int4_matmul_pack."""
    options = {
        "out_features": out_features,
        "activation": activation,
        "residual": residual,
        "compute": compute,
        "gated": gated,
    }
    if _linear.needs_grad(x, bias, residual):
        return _linear.without_gradient(_PACKED_OP, options, x, packed, bias, name="int4_matmul")  # type: ignore[no-any-return]
    return _PACKED_OP(x, packed, bias, **options)  # type: ignore[no-any-return]


def int4_matmul_pack(
    q: Tensor,
    scale: Tensor,
    zeros: Tensor | None = None,
    *,
    group_size: int = 32,
    in_features: int = -1,
    gated: bool = False,
) -> Tensor:
    """The opaque form of a weight that int4_matmul_packed takes, (bytes,) uint8; of this version, never to be saved."""
    options = {"group_size": group_size, "in_features": in_features, "gated": gated}
    return _linear.call(_PACK_OP, _check_pack, q, scale, zeros, **options)  # type: ignore[no-any-return]


def check(
    x: Tensor,
    q: Tensor,
    scale: Tensor,
    zeros: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    group_size: int = 32,
    in_features: int = -1,
    activation: str = "none",
    residual: Tensor | None = None,
    compute: str = "int8",
    gated: bool = False,
) -> None:
    op = "int4_matmul"
    _linear.check_tensors(op, x=x, q=q, scale=scale, zeros=zeros, bias=bias, residual=residual)
    _linear.check_x(op, x)
    K = _check_q(op, q, in_features)
    if x.shape[-1] != K:
        raise ValueError(f"{op}: q must hold {x.shape[-1]} values a row, as x's last dimension; got {K}")
    _check_group_size(op, group_size)
    _check_scale_and_zeros(op, q.shape[0], num_groups(K, group_size), scale, zeros)
    _linear.check_gated(op, "q", q, gated)
    _linear.check_rest(op, x, _linear.out_features_of(q.shape[0], gated), bias, residual, activation, gated)
    _linear.check_choice(op, "compute", compute, COMPUTE)


def num_groups(K: Any, group_size: int) -> Any:
    return 1 if group_size < 0 else (K + group_size - 1) // group_size


def _check_q(op: str, q: Tensor, in_features: Any) -> Any:
    """Returns K."""
    if q.dtype != torch.uint8:
        _linear.dtype_error(op, "q", "be uint8", q)
    if q.dim() != 2:
        _linear.shape_error(op, "q", "have 2 dimensions", q)
    whole = q.shape[1] * 2
    if in_features == -1:
        return whole
    if in_features < -1:
        raise ValueError(f"{op}: in_features must be at least -1; got {in_features}")
    if in_features != whole and (whole == 0 or in_features != whole - 1):
        choices = f"-1, {whole - 1} or {whole}" if whole else "-1 or 0"
        raise ValueError(f"{op}: in_features must be {choices} for {q.shape[1]} columns of q; got {in_features}")
    return in_features


def _check_group_size(op: str, group_size: int) -> None:
    if group_size not in GROUP_SIZES:
        raise ValueError(f"{op}: group_size must be one of 32, 64, 128, -1; got {group_size}")


def _check_scale_and_zeros(op: str, N: Any, groups: Any, scale: Tensor, zeros: Tensor | None) -> None:
    if scale.dtype != torch.float32:
        _linear.dtype_error(op, "scale", "be float32", scale)
    _check_group_shape(op, "scale", N, groups, scale)
    if zeros is not None:
        if zeros.dtype != torch.uint8:
            _linear.dtype_error(op, "zeros", "be uint8", zeros)
        _check_group_shape(op, "zeros", N, groups, zeros)


def _check_group_shape(op: str, arg: str, N: Any, groups: Any, values: Tensor) -> None:
    if values.dim() != 2 or values.shape[0] != N or values.shape[1] != groups:
        _linear.shape_error(op, arg, f"have shape ({N}, {groups}), one value a group", values)


def _check_pack(
    q: Tensor,
    scale: Tensor,
    zeros: Tensor | None = None,
    *,
    group_size: int = 32,
    in_features: int = -1,
    gated: bool = False,
) -> Any:
    """Returns K."""
    op = "int4_matmul_pack"
    _linear.check_tensors(op, q=q, scale=scale, zeros=zeros)
    K = _check_q(op, q, in_features)
    _check_group_size(op, group_size)
    _linear.check_gated(op, "q", q, gated)
    _check_scale_and_zeros(op, q.shape[0], num_groups(K, group_size), scale, zeros)
    return K


def _check_quantize(w: Tensor, *, group_size: int = 32, symmetric: bool = True) -> None:
    op = "int4_quantize_weight"
    _linear.check_tensors(op, w=w)
    _linear.check_float(op, "w", w)
    if w.dim() != 2:
        _linear.shape_error(op, "w", "have 2 dimensions", w)
    _check_group_size(op, group_size)


@torch.library.register_fake("deepseek_fast::int4_matmul")
def _(
    x: Tensor,
    q: Tensor,
    scale: Tensor,
    zeros: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    group_size: int = 32,
    in_features: int = -1,
    activation: str = "none",
    residual: Tensor | None = None,
    compute: str = "int8",
    gated: bool = False,
) -> Tensor:
    options = {"activation": activation, "residual": residual, "compute": compute, "gated": gated}
    check(x, q, scale, zeros, bias, group_size=group_size, in_features=in_features, **options)  # type: ignore[arg-type]
    return _linear.new_output(x, _linear.out_features_of(q.shape[0], gated))


@torch.library.register_fake("deepseek_fast::int4_matmul_packed")
def _(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None = None,
    *,
    out_features: int,
    activation: str = "none",
    residual: Tensor | None = None,
    compute: str = "int8",
    gated: bool = False,
) -> Tensor:
    op = "int4_matmul_packed"
    _linear.check_x(op, x)
    _linear.check_rest(op, x, out_features, bias, residual, activation, gated)
    _linear.check_choice(op, "compute", compute, COMPUTE)
    return _linear.new_output(x, out_features)


@torch.library.register_fake("deepseek_fast::int4_matmul_pack")
def _(
    q: Tensor,
    scale: Tensor,
    zeros: Tensor | None = None,
    *,
    group_size: int = 32,
    in_features: int = -1,
    gated: bool = False,
) -> Tensor:
    # As csrc/gemm/packed.h lays it out: a header of 64 bytes; panels of 64 rows: steps of 8 values of K in 4 bytes, and
    # for each block of K a scale and perhaps a zero point.
    K = _check_pack(q, scale, zeros, group_size=group_size, in_features=in_features, gated=gated)
    padded_N = _linear.padded_rows(q.shape[0], gated)
    blocks = num_groups(K, WHOLE_ROW_BLOCK if group_size < 0 else group_size)
    block_bytes = 4 if zeros is None else 5
    return q.new_empty(64 + padded_N * ((K + 7) // 8 * 4 + blocks * block_bytes), dtype=torch.uint8)


@torch.library.register_fake("deepseek_fast::int4_quantize_weight")
def _(w: Tensor, *, group_size: int = 32, symmetric: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    _check_quantize(w, group_size=group_size)
    N, K = w.shape
    groups = num_groups(K, group_size)
    scale = w.new_empty((N, groups), dtype=torch.float32)
    return w.new_empty((N, (K + 1) // 2), dtype=torch.uint8), scale, w.new_empty((N, groups), dtype=torch.uint8)


_linear.register_autocast("int4_matmul", keep=("scale",))
_linear.register_autocast("int4_matmul_packed")
