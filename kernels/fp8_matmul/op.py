"""fp8_matmul in torch: the public functions and their Meta kernels."""

import math
from typing import Any

import torch
from torch import Tensor

from deepseek_fast import _linear, _load
from deepseek_fast.gpu.register import register

_load.load_torch()
_INSTEAD = "use fp8_matmul with the plain weight"
register(
    "fp8_matmul",
    "fp8_matmul",
    "fp8_scaled_mm",
    on_host=("fp8_quantize_weight",),
    refused={"fp8_matmul_pack": _INSTEAD, "fp8_matmul_packed": _INSTEAD},
)
_OP = torch.ops.deepseek_fast.fp8_matmul.default
_PACKED_OP = torch.ops.deepseek_fast.fp8_matmul_packed.default
_PACK_OP = torch.ops.deepseek_fast.fp8_matmul_pack.default
_QUANTIZE_OP = torch.ops.deepseek_fast.fp8_quantize_weight.default

SCHEMES = ("float", "fp8")
WEIGHT_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)
SCALE_DTYPES = (torch.float32, torch.float8_e8m0fnu)
STEP = 128  # most values of k that one sum takes before it is scaled
SMALLEST_BLOCK_K = 32


def fp8_quantize_weight(
    w: Tensor, *, block: tuple[int, int] = (128, 128), dtype: torch.dtype = torch.float8_e4m3fn
) -> tuple[Tensor, Tensor]:
    """Quantizes a weight to FP8 with one scale per block, as DeepSeek's checkpoints have it.

    w: (N, K) float32, bfloat16 or float16, finite. block: rows and columns that share a scale, the columns a multiple
    of 32; -1 for all, so that (1, -1) is a scale per row and (-1, -1) one in all. dtype: float8_e4m3fn or float8_e5m2.
    Returns weight: (N, K) of dtype and scale: (ceil(N / rows), ceil(K / columns)) float32, above zero, so that
    weight * scale is w to within half a step of the format.
    Raises ValueError for shapes, blocks, NaN and inf, TypeError for dtypes.
    Numerics: scale = max(amax, 1e-4) / largest, weight = w * (1 / scale) rounded half to even, each operation rounded
    to float32; largest is 448, for float8_e5m2 57344.

    >>> weight, scale = deepseek_fast.fp8_quantize_weight(torch.randn(1536, 384))
    >>> weight.shape, scale.shape
    (torch.Size([1536, 384]), torch.Size([12, 3]))

    Source: kernels/fp8_matmul/README.md; DeepGEMM deep_gemm/utils/math.py, per_block_cast_to_fp8.
    """
    op = "fp8_quantize_weight"
    block_n, block_k = as_block(op, block)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{op}: dtype must be float8_e4m3fn or float8_e5m2; got {dtype!r}")
    w = w.detach() if isinstance(w, Tensor) else w
    return _linear.call(_QUANTIZE_OP, _check_quantize, w, block_n=block_n, block_k=block_k, dtype=dtype)  # type: ignore[no-any-return]


def fp8_matmul(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    block: tuple[int, int] = (128, 128),
    activation: str = "none",
    residual: Tensor | None = None,
    activations: str = "float",
    gated: bool = False,
) -> Tensor:
    """act(x @ (weight * scale).T + bias) + residual with an FP8 weight that stays one byte a value.

    x: (..., K) float32, bfloat16 or float16. weight: (N, K) float8_e4m3fn or float8_e5m2, any codes; it is packed on
    each call, nn.Fp8Linear packs it once. block: rows and columns of weight that share a scale, the columns a multiple
    of 32; -1 for all. scale: (ceil(N / rows), ceil(K / columns)) float32 or float8_e8m0fnu, finite and above zero,
    always of two dimensions: (N, 1) with block=(1, -1) is a scale per row, (1, 1) with (-1, -1) one in all.
    bias: (N,), residual: the output's shape or one element, both of x's dtype.
    activation: none, relu, relu6, gelu, gelu_tanh, silu, hardswish, sigmoid or tanh. activations: "float" leaves x as
    it is, "fp8" casts it to float8_e4m3fn in blocks of 1 x 128 first, as DeepGEMM does. Returns (..., N) of x's dtype;
    has no gradient.
    gated: the weight has 2 N rows, bias and scale with it; the first N outputs, through the activation, multiply the
    last N (SwiGLU: gate_up_proj, then silu_and_mul).
    Raises ValueError for shapes, blocks, scales and names, TypeError for dtypes.
    Numerics: every code is decoded exactly; products and sums in float32, scaled once per 128 values of k or less.

    >>> weight, scale = deepseek_fast.fp8_quantize_weight(torch.randn(1536, 384))
    >>> deepseek_fast.fp8_matmul(torch.randn(8, 64, 384), weight, scale, activation="gelu").shape
    torch.Size([8, 64, 1536])

    Source: kernels/fp8_matmul/README.md; DeepGEMM fp8_gemm_nt.
    """
    block_n, block_k = as_block("fp8_matmul", block)
    options = {
        "block_n": block_n,
        "block_k": block_k,
        "activation": activation,
        "residual": residual,
        "activations": activations,
        "gated": gated,
    }
    if _linear.needs_grad(x, bias, residual):
        check(x, weight, scale, bias, **options)  # type: ignore[arg-type]
        return _linear.without_gradient(_OP, options, x, weight, scale, bias, name="fp8_matmul")  # type: ignore[no-any-return]
    return _linear.call(_OP, check, x, weight, scale, bias, **options)  # type: ignore[no-any-return]


def fp8_matmul_packed(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None = None,
    *,
    out_features: int,
    activation: str = "none",
    residual: Tensor | None = None,
    activations: str = "float",
    gated: bool = False,
) -> Tensor:
    """fp8_matmul with a weight and its scale packed by `pack`."""
    options = {
        "out_features": out_features,
        "activation": activation,
        "residual": residual,
        "activations": activations,
        "gated": gated,
    }
    if _linear.needs_grad(x, bias, residual):
        return _linear.without_gradient(_PACKED_OP, options, x, packed, bias, name="fp8_matmul")  # type: ignore[no-any-return]
    return _PACKED_OP(x, packed, bias, **options)  # type: ignore[no-any-return]


def pack(weight: Tensor, scale: Tensor, block: tuple[int, int], *, gated: bool = False) -> Tensor:
    """The opaque form of a weight and its scale that fp8_matmul_packed takes, (bytes,) uint8."""
    block_n, block_k = as_block("fp8_matmul_pack", block)
    options = {"block_n": block_n, "block_k": block_k, "gated": gated}
    return _linear.call(_PACK_OP, _check_pack, weight, scale, **options)  # type: ignore[no-any-return]


def as_block(op: str, block: Any) -> tuple[int, int]:
    """Two integers; anything else is refused in the words of the check of their values."""
    if (
        not isinstance(block, (tuple, list))
        or len(block) != 2
        or any(isinstance(size, bool) or not isinstance(size, int) for size in block)
    ):
        _block_error(op, block)
    return block[0], block[1]


def check(
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
) -> None:
    op = "fp8_matmul"
    _linear.check_tensors(op, x=x, weight=weight, scale=scale, bias=bias, residual=residual)
    _linear.check_x(op, x)
    _check_weight_dtype(op, weight)
    _linear.check_matrix(op, "weight", weight, x.shape[-1])
    _linear.check_gated(op, "weight", weight, gated)
    _check_block(op, block_n, block_k)
    check_scale(op, "scale", scale, weight.shape[0], weight.shape[1], (block_n, block_k))
    _linear.check_rest(op, x, _linear.out_features_of(weight.shape[0], gated), bias, residual, activation, gated)
    _linear.check_choice(op, "activations", activations, SCHEMES)


def _check_pack(weight: Tensor, scale: Tensor, *, block_n: int = 128, block_k: int = 128, gated: bool = False) -> None:
    op = "fp8_matmul_pack"
    _linear.check_tensors(op, weight=weight, scale=scale)
    _check_weight_dtype(op, weight)
    _check_block(op, block_n, block_k)
    if weight.dim() != 2:
        _linear.shape_error(op, "weight", "have 2 dimensions", weight)
    _linear.check_gated(op, "weight", weight, gated)
    check_scale(op, "scale", scale, weight.shape[0], weight.shape[1], (block_n, block_k))


def _check_quantize(
    w: Tensor, *, block_n: int = 128, block_k: int = 128, dtype: torch.dtype = torch.float8_e4m3fn
) -> None:
    op = "fp8_quantize_weight"
    _linear.check_tensors(op, w=w)
    _linear.check_float(op, "w", w)
    if w.dim() != 2:
        _linear.shape_error(op, "w", "have 2 dimensions", w)
    _check_block(op, block_n, block_k)
    if dtype not in WEIGHT_DTYPES:
        raise TypeError(f"{op}: dtype must be float8_e4m3fn or float8_e5m2; got {_linear.dtype_name(dtype)}")


def _check_weight_dtype(op: str, weight: Tensor) -> None:
    if weight.dtype not in WEIGHT_DTYPES:
        _linear.dtype_error(op, "weight", "be float8_e4m3fn or float8_e5m2", weight)


def _check_block(op: str, block_n: int, block_k: int) -> None:
    rows = block_n == -1 or block_n > 0
    columns = block_k == -1 or (block_k > 0 and block_k % SMALLEST_BLOCK_K == 0)
    if not (rows and columns):
        _block_error(op, (block_n, block_k))


def _block_error(op: str, got: Any) -> None:
    rule = "be two positive numbers, the second a multiple of 32, or -1 for all"
    raise ValueError(f"{op}: block must {rule}; got {got!r}")


def check_scale(op: str, arg: str, scale: Tensor, N: Any, K: Any, block: tuple[int, int]) -> None:
    if scale.dtype not in SCALE_DTYPES:
        _linear.dtype_error(op, arg, "be float32 or float8_e8m0fnu", scale)
    shape = num_blocks(N, block[0]), num_blocks(K, block[1])
    if scale.dim() != 2 or scale.shape[0] != shape[0] or scale.shape[1] != shape[1]:
        _linear.shape_error(op, arg, f"have shape ({shape[0]}, {shape[1]}), one value a block", scale)


def num_blocks(size: Any, block: int) -> Any:
    return 1 if block < 0 else (size + block - 1) // block


@torch.library.register_fake("deepseek_fast::fp8_matmul")
def _(
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
    options: dict[str, Any] = {"activation": activation, "residual": residual, "activations": activations}
    check(x, weight, scale, bias, block_n=block_n, block_k=block_k, gated=gated, **options)
    return _linear.new_output(x, _linear.out_features_of(weight.shape[0], gated))


@torch.library.register_fake("deepseek_fast::fp8_matmul_packed")
def _(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None = None,
    *,
    out_features: int,
    activation: str = "none",
    residual: Tensor | None = None,
    activations: str = "float",
    gated: bool = False,
) -> Tensor:
    op = "fp8_matmul_packed"
    _linear.check_x(op, x)
    _linear.check_rest(op, x, out_features, bias, residual, activation, gated)
    _linear.check_choice(op, "activations", activations, SCHEMES)
    return _linear.new_output(x, out_features)


@torch.library.register_fake("deepseek_fast::fp8_matmul_pack")
def _(weight: Tensor, scale: Tensor, *, block_n: int = 128, block_k: int = 128, gated: bool = False) -> Tensor:
    _check_pack(weight, scale, block_n=block_n, block_k=block_k, gated=gated)
    # As csrc/gemm/packed.h lays it out: a header of 64 bytes, panels of 64 rows, quads of K, an f32 per row and step.
    N, K = weight.shape
    step = STEP if block_k < 0 else math.gcd(block_k, STEP)
    return weight.new_empty(
        64 + _linear.padded_rows(N, gated) * ((K + 3) // 4 * 4 + (K + step - 1) // step * 4), dtype=torch.uint8
    )


@torch.library.register_fake("deepseek_fast::fp8_quantize_weight")
def _(w: Tensor, *, block_n: int = 128, block_k: int = 128, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    _check_quantize(w, block_n=block_n, block_k=block_k, dtype=dtype)
    N, K = w.shape
    return w.new_empty((N, K), dtype=dtype), w.new_empty(
        (num_blocks(N, block_n), num_blocks(K, block_k)), dtype=torch.float32
    )


_linear.register_autocast("fp8_matmul", keep=("weight", "scale"))
_linear.register_autocast("fp8_matmul_packed")
