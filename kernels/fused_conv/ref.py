"""The meaning of fused_conv, pool2d and local_response_norm in float64, and the a-priori bounds that every kernel must
stay inside.

fused_conv: y = max_pool(act(conv(x, weight) + bias (+ residual)) (+ residual))
ref_int8.py has the int8 form.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from deepseek_fast import _conv
from deepseek_fast.kernels.fused_matmul import ref as linear

U, F32_MAX = linear.U, linear.F32_MAX
F32_MIN_NORMAL, F32_MIN_SUBNORMAL = linear.F32_MIN_NORMAL, linear.F32_MIN_SUBNORMAL
DEFAULTS = {"leaky_relu": (0.01,), "hardsigmoid": (1 / 6, 0.5)}


def fused_conv_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    activation: str = "none",
    activation_params: Any = (),
    residual: Tensor | None = None,
    residual_at: str = "before",
    max_pool: Any = None,
    algorithm: str = "direct",
) -> Tensor:
    """y in float64, not rounded to x's dtype."""
    z = conv(x.double(), weight.double(), stride, padding, dilation, groups)
    if bias is not None:
        z = z + bias.double().reshape(-1, *[1] * (weight.dim() - 2))
    if residual is not None and residual_at == "before":
        z = z + residual.double()
    y = activate(z, activation, activation_params)
    if residual is not None and residual_at == "after":
        y = y + residual.double()
    return pooled(y, weight.dim() - 2, max_pool)


def conv(x: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int) -> Tensor:
    """The sums, in the tensors' dtype: torch's convolution of a padded x, with padding on every side by itself."""
    steps, (top, left, bottom, right), spread = _conv.window("ref", weight.shape[2:], stride, padding, dilation)
    if weight.dim() == 3:
        return conv(x.unsqueeze(-2), weight.unsqueeze(-2), steps, (top, left, bottom, right), spread, groups).squeeze(
            -2
        )
    return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, None, steps, 0, spread, groups)


def activate(z: Tensor, activation: str, activation_params: Any = ()) -> Tensor:
    """act(z) of z in float64, parameters as the f32 that a kernel has; NaN stays NaN."""
    params = [torch.tensor(float(p)).double().item() for p in activation_params or DEFAULTS.get(activation, ())]
    if activation == "leaky_relu":
        return torch.where(z < 0, params[0] * z, z)
    if activation == "clip":
        return z.clamp_min(params[0]).clamp_max(params[1])
    if activation == "hardsigmoid":
        return (params[0] * z + params[1]).clamp(0, 1)
    return linear.activate(z, activation)


def pooled(y: Tensor, spatial: int, max_pool: Any, outside: float = -math.inf) -> Tensor:
    """The largest value of each window; `outside` takes part where nothing else does."""
    if max_pool is None:
        return y
    k_h, k_w, s_h, s_w, *pads, ceil_mode = _conv.pool("ref", spatial, max_pool)
    if spatial == 1:
        y = y.unsqueeze(-2)
    windows = windows_of(y, (k_h, k_w), (s_h, s_w), pads, bool(ceil_mode), outside)
    largest = windows.flatten(-2).amax(-1)  # NaN where one is
    return largest.squeeze(-2) if spatial == 1 else largest


def windows_of(
    x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], pads: Any, ceil_mode: bool, outside: float
) -> Tensor:
    """(..., rows of the result, its columns, *kernel): each window's values, `outside` where it leaves x."""
    top, left, bottom, right = pads
    rows = _places(x.shape[-2], top, bottom, kernel[0], stride[0], ceil_mode)
    columns = _places(x.shape[-1], left, right, kernel[1], stride[1], ceil_mode)
    down = (rows - 1) * stride[0] + kernel[0] - top - x.shape[-2]  # may cut what no window reaches
    across = (columns - 1) * stride[1] + kernel[1] - left - x.shape[-1]
    padded = F.pad(x, (left, across, top, down), value=outside)
    return padded.unfold(-2, kernel[0], stride[0]).unfold(-2, kernel[1], stride[1])


def _places(size: int, before: int, after: int, kernel: int, stride: int, ceil_mode: bool) -> int:
    """How many windows: with ceil_mode those that end outside count, if they begin inside x or before it."""
    count = (size + before + after - kernel + (stride - 1 if ceil_mode else 0)) // stride + 1
    return count - 1 if ceil_mode and (count - 1) * stride >= size + before else count


def pool2d_ref(
    x: Tensor,
    kernel: Any,
    stride: Any = None,
    padding: Any = 0,
    *,
    kind: str = "max",
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """Of the average in float64; the largest value in x's dtype."""
    names = ("kernel", "stride", "padding", "ceil_mode")
    k_h, k_w, s_h, s_w, *pads, _ = _conv.pool_window("ref", names, 2, kernel, stride, padding, ceil_mode)
    if kind == "max":
        return pooled(x.double(), 2, (kernel, stride, padding, ceil_mode)).to(x.dtype)
    return _sums(x.double(), (k_h, k_w), (s_h, s_w), pads, ceil_mode) / _divisors(
        x, (k_h, k_w), (s_h, s_w), pads, ceil_mode, count_include_pad
    )


def _sums(x: Tensor, kernel: Any, stride: Any, pads: Any, ceil_mode: bool) -> Tensor:
    return windows_of(x, kernel, stride, pads, ceil_mode, 0.0).flatten(-2).sum(-1)


def _divisors(x: Tensor, kernel: Any, stride: Any, pads: Any, ceil_mode: bool, count_include_pad: bool) -> Tensor:
    """How many values each window has: those inside x, or also its padding, but never what is beyond that."""
    top, left, bottom, right = pads
    inside = torch.ones(x.shape[-2:], dtype=torch.float64)
    if not count_include_pad:
        return _sums(inside, kernel, stride, pads, ceil_mode)
    padded = F.pad(inside, (left, right, top, bottom), value=1.0)
    rows = _places(x.shape[-2], top, bottom, kernel[0], stride[0], ceil_mode)
    columns = _places(x.shape[-1], left, right, kernel[1], stride[1], ceil_mode)
    beyond = (columns * stride[1] + kernel[1], rows * stride[0] + kernel[0])  # at least as far as the last window
    whole = F.pad(padded, (0, beyond[0], 0, beyond[1]))
    counts = whole.unfold(-2, kernel[0], stride[0]).unfold(-2, kernel[1], stride[1]).flatten(-2).sum(-1)
    return counts[:rows, :columns]


def lrn_ref(
    x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0, *, before: int | None = None
) -> Tensor:
    """In float64, of alpha, beta and k as the f32 that a kernel has. before: channels of a window before its own,
    size // 2 as torch has it, or another number."""
    alpha, beta, k = (torch.tensor(float(number)).double().item() for number in (alpha, beta, k))
    return x.double() / (k + alpha / size * _window_sums(x.double().square(), size, before)) ** beta


def _window_sums(values: Tensor, size: int, before: int | None) -> Tensor:
    before = size // 2 if before is None else before
    padded = F.pad(values, (0, 0) * (values.dim() - 2) + (before, size - 1 - before))
    return padded.unfold(1, size, 1).sum(-1)


# --- bounds -----------------------------------------------------------------------------------------------------------


def bound(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    activation: str = "none",
    activation_params: Any = (),
    residual: Tensor | None = None,
    residual_at: str = "before",
    max_pool: Any = None,
    algorithm: str = "direct",
) -> Tensor:
    """Largest |kernel - fused_conv_ref| per output, float64; inf where f32 sums may overflow on the way.

    One rounding each for + bias and + residual; the activation carries an error by its Lipschitz constant and adds its
    own; of values that are each within their bounds the largest is within the largest bound.
    """
    window = (stride, padding, dilation, groups)
    z = conv(x.double(), weight.double(), *window)
    of_sums = winograd_bound if algorithm == "winograd" else conv_bound
    error = of_sums(x, weight, *window)
    if bias is not None:
        z = z + bias.double().reshape(-1, *[1] * (weight.dim() - 2))
        error = error + U * (z.abs() + error)
    if residual is not None and residual_at == "before":
        z = z + residual.double()
        error = error + U * (z.abs() + error)
    error = activation_bound(z, error, activation, activation_params)
    y = activate(z, activation, activation_params)
    if residual is not None and residual_at == "after":
        y = y + residual.double()
        error = error + U * (y.abs() + error)
    if x.dtype != torch.float32:
        error = error + linear.half_ulp(y.abs() + error, x.dtype)
    error = torch.where(error.isnan(), math.inf, error)
    return pooled(error, weight.dim() - 2, max_pool, outside=0.0)


def conv_bound(x: Tensor, weight: Tensor, *window: Any) -> Tensor:
    """Error of the sums, before the bias: linear.matmul_bound's, with as many taps as a filter has for K.

    A tap outside x is an exact zero. bf16 taps are summed in pairs of channels where the level has the instruction;
    the order is another one then, which the bound allows, and an odd channel's partner is zero.
    """
    K = math.prod(weight.shape[1:])
    x_abs, weight_abs = x.double().abs(), weight.double().abs()
    magnitude = conv(x_abs, weight_abs, *window)
    error = (K + 2) * U / (1 - (K + 2) * U) * magnitude + K * F32_MIN_SUBNORMAL
    if x.dtype == torch.bfloat16:
        ones = torch.ones_like(weight_abs)
        factors = conv(x_abs, ones, *window) + weight_abs.flatten(1).sum(1).reshape(-1, *[1] * (weight.dim() - 2))
        error = error + F32_MIN_NORMAL * (factors + K)
    return torch.where(magnitude + error > F32_MAX, math.inf, error)


# F(4x4, 3x3) at the points 0, 1, -1, 2, -2 and infinity, of d (6x6) of x and g (3x3): A^T (B^T d B * G g G^T) A.
_B_T = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_G = ((6, 0, 0), (-4, -4, -4), (-4, 4, -4), (1, 2, 4), (1, -2, 4), (0, 0, 24))  # over 24
_A_T = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))


def winograd_bound(x: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int) -> Tensor:
    """|A^T| ((C + 24) u sum over c of (|G||g||G^T|) (|B^T||d||B|)) |A|, as winograd.h derives it.

    Tiles begin at every fourth column, and at any row: before a pool they follow the rows that are worked on at a time.
    """
    _, (top, left, *_), _ = _conv.window("ref", (3, 3), stride, padding, dilation)
    C, out = x.shape[-3], conv(x.double(), weight.double(), stride, padding, dilation, groups)
    P, Q = out.shape[-2:]
    b_t, g_m, a_t = (torch.tensor(m).double().abs() for m in (_B_T, _G, _A_T))
    u = torch.einsum("ir,fcrs,js->fcij", g_m / 24, weight.double().abs(), g_m / 24)
    columns, rows = (Q + 3) // 4, (P + 6) // 4
    worst = torch.zeros_like(out)
    for before in range(4):  # rows of the first tile that lie above y
        sides = (left, columns * 4 + 2 - x.shape[-1] - left, top + before, rows * 4 + 2 - x.shape[-2] - top - before)
        tiles = F.pad(x.double().abs(), sides).unfold(-2, 6, 4).unfold(-2, 6, 4)
        v = torch.einsum("ih,...chw,jw->...cij", b_t, tiles.movedim(-5, -3), b_t)
        sums = torch.einsum("...cij,fcij->...fij", v, u) * (C + 24) * U
        values = torch.einsum("pi,...fij,qj->...fpq", a_t, sums, a_t)  # (..., rows, columns, F, 4, 4)
        whole = values.movedim(-3, -5).transpose(-3, -2).flatten(-2).flatten(-3, -2)
        worst = torch.maximum(worst, whole[..., before : before + P, :Q])
    return worst + 9 * C * F32_MIN_SUBNORMAL * 2**12


def activation_bound(z: Tensor, error: Tensor, activation: str, activation_params: Any = ()) -> Tensor:
    """Error of act(z), from that of z."""
    params = [abs(float(p)) for p in activation_params or DEFAULTS.get(activation, ())]
    if activation == "leaky_relu":  # one rounding of slope * z
        return max(1.0, params[0]) * error + U * params[0] * (z.abs() + error) + F32_MIN_SUBNORMAL
    if activation == "clip":
        return error
    if activation == "hardsigmoid":  # alpha * z + beta, rounded twice or once; the limits are exact
        carried = params[0] * error
        size = params[0] * (z.abs() + error) + params[1]
        return (carried + 2 * U * size + F32_MIN_SUBNORMAL).clamp_max(1.0)
    return linear.activation_bound(z, error, activation)


def pool2d_bound(x: Tensor, kernel: Any, stride: Any = None, padding: Any = 0, **options: Any) -> Tensor:
    """Of an average: K - 1 additions, a division, one rounding to x's dtype. The largest value is exact."""
    y = pool2d_ref(x, kernel, stride, padding, **options)
    if options.get("kind", "max") == "max":
        return torch.zeros_like(y, dtype=torch.float64)
    size = pool2d_ref(x.abs(), kernel, stride, padding, **options)
    k_h, k_w = _conv.pair("ref", "kernel", kernel, 2)
    n = k_h * k_w + 2
    error = n * U / (1 - n * U) * size + F32_MIN_SUBNORMAL
    if x.dtype != torch.float32:
        error = error + linear.half_ulp(y.abs() + error, x.dtype)
    return error


def lrn_bound(
    x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0, *, before: int | None = None
) -> Tensor:
    """Error of d = k + alpha / size * sum: a rounding of each square and n - 1 additions of n values, one of alpha /
    size, one of the FMA, and squares too small for f32. y is monotone in d, so that its ends are y's. Then the power,
    by two roots and a product 3.5 roundings, by powf less than 2, the division, and the rounding to x's dtype.
    """
    alpha, beta, k = (torch.tensor(float(number)).double().item() for number in (alpha, beta, k))
    n = min(size, 2 * x.shape[1] - 1)
    sums = _window_sums(x.double().square(), size, before)
    d = k + alpha / size * sums
    error = abs(alpha) / size * (_gamma(n + 1) * sums + n * F32_MIN_SUBNORMAL)
    error = error + U * (d.abs() + error) + F32_MIN_SUBNORMAL
    y = x.double() / d**beta
    ends = [(x.double() / (d + side * error) ** beta - y).abs() for side in (-1, 1)]
    carried = torch.maximum(*ends)
    error = torch.where((d - error > 0) & (sums < F32_MAX / 2), carried, math.inf)
    error = error + _gamma(5) * (y.abs() + error) + F32_MIN_SUBNORMAL
    if x.dtype != torch.float32:
        error = error + linear.half_ulp(y.abs() + error, x.dtype)
    return torch.where(error.isnan(), math.inf, error)


def _gamma(n: int) -> float:
    return n * U / (1 - n * U)
