"""What the linear rooms' kernels share: rows of x and y, and the end of a tile, scaled sums -> y.

y = act(z) + residual, or gated act(z) * up + residual; z = sums + bias; float32, rounded once to y's dtype
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepseek_fast.gpu.activation import activate
from deepseek_fast.gpu.numbers import round_to

NO_RESIDUAL, MATRIX, ONE_VALUE = 0, 1, 2
DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def as_rows(x: Tensor) -> Tensor:
    """(M, K), rows of contiguous values: a view where x's memory is that, a copy where not."""
    rows = x.reshape(-1, x.shape[-1]) if x.numel() else x.new_empty(x.shape[:-1].numel(), x.shape[-1])
    return rows if rows.shape[-1] <= 1 or rows.stride(-1) == 1 else rows.contiguous()


@dataclass(frozen=True)
class End:
    """The arguments of `finish`: its pointers with strides, and its constants."""

    y: Tensor  # (M, N)
    bias: Tensor | None
    residual: Tensor | None  # (M, N) or one value
    constants: dict[str, object]

    @property
    def residual_stride(self) -> int:
        return self.residual.stride(0) if self.residual is not None and self.residual.dim() == 2 else 0


def end_of(
    x: Tensor,
    N: int,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    gated: bool,
    dtype: torch.dtype | None = None,
) -> End:
    """y, of x's outer dimensions folded into M, new, in dtype or x's; the caller gives it x's dimensions back."""
    M = x.shape[:-1].numel()
    y = x.new_empty((M, N), dtype=dtype or x.dtype)
    form = NO_RESIDUAL
    if residual is not None:
        one = tuple(residual.shape) != (*x.shape[:-1], N)
        form = ONE_VALUE if one else MATRIX
        residual = residual.reshape(1) if one else as_rows(residual)
    constants = {"ACTIVATION": activation, "GATED": gated, "HAS_BIAS": bias is not None, "RESIDUAL": form}
    return End(y, None if bias is None else bias.contiguous(), residual, constants)


@triton.jit
def finish(
    sums, up, y, y_stride, bias, residual, residual_stride, m, n, M, N,
    ACTIVATION: tl.constexpr, GATED: tl.constexpr, HAS_BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    """Ends a tile and stores it: rows m, columns n of y (both int vectors; int64 rows); sums and up float32.

    up: the other factor's sums where GATED; bias has its values from N on.
    """
    inside = (m < M)[:, None] & (n < N)[None, :]
    z = sums + _bias(bias, n, n < N, HAS_BIAS)[None, :]
    z = activate(z, ACTIVATION)
    if GATED:
        z = z * (up + _bias(bias, N + n, n < N, HAS_BIAS)[None, :])
    if RESIDUAL == 1:
        z += tl.load(residual + m.to(tl.int64)[:, None] * residual_stride + n[None, :], inside, 0.0).to(tl.float32)
    elif RESIDUAL == 2:
        z += tl.load(residual).to(tl.float32)
    else:
        z += 0.0  # -0 becomes +0, as in the ONNX function body
    at = y + m.to(tl.int64)[:, None] * y_stride + n[None, :]
    tl.store(at, round_to(z, y.dtype.element_ty), inside)


@triton.jit
def _bias(bias, n, inside, HAS_BIAS: tl.constexpr):
    if HAS_BIAS:
        return tl.load(bias + n, inside, 0.0).to(tl.float32)
    else:
        return tl.zeros_like(n).to(tl.float32)
