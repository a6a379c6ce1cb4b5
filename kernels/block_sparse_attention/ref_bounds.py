"""How far a kernel of block_sparse_attention may be from ref.py: a-priori bounds, element by element, in float64.

u = 2^-24, gamma(n) = n u / (1 - n u). What cpu.h's order of arithmetic costs, for one query with n keys in T steps:

score   e = |scale| (gamma(D + 2) sum|q||k|) + u |scale * dot|, and one rounding of + token_bias
weight  exp(z - m) has the relative error d = e + u (M - z) + 3 u (1 + T): the difference is rounded once, exp is
        within 3 u; a step that raises the maximum multiplies by exp(old - new), rounded alike. The distances to the
        maxima of the steps add up to M - z, M the last maximum, so that u (M - z) covers them all. Numerator and
        denominator use the same m, whose own error cancels.
sums    gamma(n + 2 T + 2) in the numerator (a rounding a key, one a rescaling, one for the reference), and bf16 rounds
        a weight once, 2^-8; gamma(n + 2 T + 6) in the denominator, whose 16 partial sums are added in the end.
out     with a = (1 + d)(1 + sums) - 1 of the numerator and b of the denominator
          |err| <= (sum p a |v| + |out| sum p b) / (1 - sum p b),   then 3 u of the division, half an ULP of the store
lse     sum p b / (1 - sum p b) + 4 u (1 + log n) + u |lse|
A weight below 2^-126 may be 0, against a denominator of at least 1. VDPBF16PS and BFDOT read subnormals as 0.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deepseek_fast.kernels.block_sparse_attention import ref
from deepseek_fast.kernels.block_sparse_attention.ref_masks import KEY_STEP, pair
from deepseek_fast.kernels.fused_matmul import ref as linear

U, F32_MIN_NORMAL, F32_MIN_SUBNORMAL = linear.U, linear.F32_MIN_NORMAL, linear.F32_MIN_SUBNORMAL
EXP_ERROR = 3 * U  # relative; csrc/gemm/activation.h's exp is within 1 ULP
LOG_ERROR = 4 * U  # of log(l), relative to 1 + log(l)
WEIGHT_ROUNDING = {torch.bfloat16: 2.0**-8}  # of a weight that VDPBF16PS multiplies; others stay f32
WEIGHT_LEAST: dict[torch.dtype, float] = {}  # absolute error of a rounded weight, where above that of f32's subnormals


@contextlib.contextmanager
def of_tensor_cores() -> Iterator[None]:
    """The bounds of a GPU's kernels: they round weights to float16, too, whose subnormals are 2^-24 apart."""
    WEIGHT_ROUNDING[torch.float16], WEIGHT_LEAST[torch.float16] = 2.0**-11, 2.0**-25
    try:
        yield
    finally:
        del WEIGHT_ROUNDING[torch.float16], WEIGHT_LEAST[torch.float16]


class Forward(NamedTuple):
    """What the bounds of forward and backward share; z and the like are (B, H, S_q, S_k)."""

    seen: Tensor
    z: Tensor
    e_z: Tensor
    out: Tensor
    e_out: Tensor  # before the store
    lse: Tensor
    e_lse: Tensor


def bound(*, return_lse: bool = False, **inputs: Any) -> Any:
    """Largest |kernel - block_sparse_attention_ref|: of out, or of (out, lse)."""
    state = forward(inputs)
    dtype = inputs["q"].dtype
    e_out = stored(state.out, state.e_out, dtype)
    return (e_out, state.e_lse) if return_lse else e_out


def forward(inputs: dict[str, Any]) -> Forward:
    q, k, v, bias = inputs["q"], inputs["k"], inputs["v"], inputs.get("token_bias")
    size_k = pair(inputs.get("block_size", KEY_STEP))[1]
    blocks = -(-k.shape[2] // size_k) + len(inputs.get("cu_seqlens_q", ()))
    steps = -(-blocks // max(KEY_STEP // size_k, 1)) * -(-size_k // KEY_STEP) + k.shape[2] // KEY_STEP + 1
    sink = ref.of_heads(inputs.get("sink_logits"))
    return attention_error(q, k, v, ref.seen_of(inputs), inputs.get("scale"), bias, sink, steps)


def attention_error(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    seen: Tensor,
    scale: float | None,
    token_bias: Tensor | None,
    sink: Tensor | None,
    steps: int,
) -> Forward:
    """ref.attention and how far a kernel of so many steps may be from it."""
    z = ref.scores(q, k, seen, scale, token_bias)
    e_z = score_error(q, k, seen, scale, token_bias)
    out, lse = ref.attention(q, k, v, seen, scale, token_bias, sink)
    e_out, e_lse = softmax_error(z, e_z, ref.values(v, seen), out, lse, steps, q.dtype, sink)
    return Forward(seen, z, e_z, out, e_out, lse, e_lse)


def score_error(
    q: Tensor, k: Tensor, seen: Tensor, scale: float | None, token_bias: Tensor | None, k_error: Tensor | None = None
) -> Tensor:
    """e of every score that counts. k_error: of k itself, for every head of q."""
    factor, q_abs, k_abs = abs(ref.scale_of(q, scale)), q.double().abs(), ref.per_head(k, q.shape[1]).abs()
    e = dot_error(q_abs, k_abs if k_error is None else k_abs + k_error, q.dtype)
    if k_error is not None:
        e = e + q_abs @ k_error.transpose(-1, -2)
    z = ref.scores(q, k, seen, scale, None).abs()
    e = factor * e
    e = e + U * (z + e) + F32_MIN_SUBNORMAL
    if token_bias is not None:
        z = ref.scores(q, k, seen, scale, token_bias).abs()
        e = e + U * (z + e)
    return torch.where(z.isinf(), 0.0, e)


def dot_error(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Error of a @ b^T, magnitudes given, summed in one chain: fused_matmul's."""
    K = a.shape[-1]
    e = gamma(K + 2) * (a @ b.transpose(-1, -2)) + K * F32_MIN_SUBNORMAL
    if dtype == torch.bfloat16:
        e = e + F32_MIN_NORMAL * (a.sum(-1, keepdim=True) + b.sum(-1)[..., None, :] + K)
    return e


def softmax_error(
    z: Tensor,
    e_z: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    steps: int,
    dtype: torch.dtype,
    sink: Tensor | None = None,
    v_error: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(of out before it is stored, of lse) from the errors of the scores and of v (B, H, S_k, D_v)."""
    count = z.isfinite().sum(-1, keepdim=True).double()
    if z.shape[-1] == 0:
        return torch.zeros_like(out), torch.zeros_like(lse)
    p = ref.weights(z, lse)
    e_lse = denominator_error(z, e_z, p, count, steps)
    e_lse = e_lse / (1 - e_lse) + LOG_ERROR * (1 + count[..., 0].clamp_min(1).log()) + U * lse.abs()
    e_lse = torch.where(lse.isinf(), 0.0, torch.where(e_lse < 0.5, e_lse, math.inf))

    if sink is not None:  # a last key of its own, without a value
        column = sink.double()[..., None].expand(*z.shape[:-1], 1)
        z, e_z = torch.cat([z, column], -1), torch.cat([e_z, torch.zeros_like(column)], -1)
        v = torch.nn.functional.pad(v, (0, 0, 0, 1))
        v_error = None if v_error is None else torch.nn.functional.pad(v_error, (0, 0, 0, 1))
        p = ref.weights(z, z.logsumexp(-1))
        count, steps = count + 1, steps + 1
    n = torch.minimum(count, torch.tensor(float(steps)))
    d = weight_error(z, e_z, n)
    a = (1 + d) * (1 + gamma(count + 2 * n + 2)) * (1 + WEIGHT_ROUNDING.get(dtype, 0.0)) - 1
    v_abs = v.abs() if v_error is None else v.abs() + v_error
    numerator = (p * a) @ v_abs if v_error is None else (p * a) @ v_abs + p @ v_error
    flushed = ((p > 0).double() @ v_abs) + (2 + count if dtype == torch.bfloat16 else 1)
    numerator = numerator + 2 * WEIGHT_LEAST.get(dtype, F32_MIN_NORMAL) * flushed
    b = denominator_error(z, e_z, p, count, steps)[..., None]
    e_out = (numerator + out.abs() * b) / (1 - b)
    e_out = torch.where(b < 0.5, e_out + 3 * U * (out.abs() + e_out) + F32_MIN_SUBNORMAL, math.inf)
    nothing = lse.isneginf() if sink is None else lse.isneginf() | sink.isposinf()
    return torch.where(nothing[..., None], 0.0, e_out), e_lse


def denominator_error(z: Tensor, e_z: Tensor, p: Tensor, count: Tensor, steps: int) -> Tensor:
    """sum p b of each query."""
    n = torch.minimum(count, torch.tensor(float(steps)))
    b = (1 + weight_error(z, e_z, n)) * (1 + gamma(count + 2 * n + 6)) - 1
    return (p * b).sum(-1)


def weight_error(z: Tensor, e_z: Tensor, steps: Tensor) -> Tensor:
    """d of each weight; 0 where there is none."""
    top = z.amax(-1, keepdim=True) + 2 * e_z.amax(-1, keepdim=True)
    d = e_z + U * (top - z) + EXP_ERROR * (1 + steps)
    return torch.where(z.isfinite(), torch.expm1(d), 0.0)


def stored(value: Tensor, error: Tensor, dtype: torch.dtype) -> Tensor:
    """One rounding to dtype more."""
    return error if dtype == torch.float32 else error + linear.half_ulp(value.abs() + error, dtype)


def gamma(n: Any) -> Any:
    return n * U / (1 - n * U)


def backward_bound(dout: Tensor, *, dlse: Tensor | None = None, **inputs: Any) -> ref.Gradients:
    """Largest |kernel - block_sparse_attention_backward_ref|, reading out and lse as forward stored them."""
    q, k, v, scale = inputs["q"], inputs["k"], inputs["v"], inputs.get("scale")
    state, sink = forward(inputs), inputs.get("sink_logits")
    group = q.shape[1] // k.shape[1]
    errors = gradient_error(dout, q, k, v, state, dlse, scale, ref.of_heads(sink), group)
    got = ref.block_sparse_attention_backward_ref(dout, dlse=dlse, **inputs)
    dk, dv = (ref.over_group(e, k.shape[1]) for e in (errors.dk, errors.dv))
    dsink = None
    if errors.dsink_logits is not None:
        f, delta = ref.share_of_keys(state.lse, ref.of_heads(sink)), (dout.double() * state.out).sum(-1)
        count = q.shape[0] * q.shape[2] + 4
        dsink = (errors.dsink_logits + gamma(count) * ((1 - f) * delta.abs() + errors.dsink_logits)).sum((0, 2))
    pairs = ((got.dq, errors.dq), (got.dk, dk), (got.dv, dv))
    return ref.Gradients(*(stored(g, e, q.dtype) for g, e in pairs), dsink)  # type: ignore[call-arg]


def gradient_error(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Forward,
    dlse: Tensor | None,
    scale: float | None,
    sink: Tensor | None,
    group: int,
) -> ref.Gradients:
    """Error of ref.gradients before the store; a chain of dk, dv is `group` times as long as its queries.

    p       exp(z - lse): e_z + e_lse + u |z - lse| + 3 u; bf16 rounds f p for dv
    f       1 / (1 + exp(sink - lse)): (e_lse + u |sink - lse| + 3 u) (1 - f) + 3 u
    dp      a dot product of D_v; delta one of dout and the stored out, whose error and half ULP it carries
    dz      p (f dp - shift): the errors of all; bf16 rounds it for dq and dk
    sums    gamma(n + 2) of n products, for dk and dv over the queries of the group's heads
    """
    dtype, factor = q.dtype, abs(ref.scale_of(q, scale))
    rounding, least = WEIGHT_ROUNDING.get(dtype, 0.0), WEIGHT_LEAST.get(dtype, F32_MIN_NORMAL)
    do, lse = dout.double(), torch.where(state.lse.isinf(), 0.0, state.lse)
    p, f = ref.weights(state.z, state.lse), ref.share_of_keys(state.lse, sink)
    d = state.e_z + (state.e_lse + EXP_ERROR)[..., None] + U * torch.where(p > 0, lse[..., None] - state.z, 0.0).abs()
    e_p = p * torch.expm1(d) + torch.where(state.seen, F32_MIN_NORMAL, 0.0)
    e_f = torch.zeros_like(f) if sink is None else share_error(f, lse, state.e_lse, sink)

    delta = (do * state.out).sum(-1)
    e_out = stored(state.out, state.e_out, dtype)
    e_delta = (do.abs() * e_out).sum(-1) + gamma(v.shape[-1] + 2) * (do.abs() * (state.out.abs() + e_out)).sum(-1)
    dlse_abs = torch.zeros_like(delta) if dlse is None else dlse.double().abs()
    shift = f * delta if dlse is None else f * delta - dlse.double()
    e_shift = f * e_delta + e_f * (delta.abs() + e_delta) + 2 * U * ((f * (delta.abs() + e_delta)) + dlse_abs)
    f, e_f, shift, e_shift = f[..., None], e_f[..., None], shift[..., None], e_shift[..., None]
    v_seen = ref.values(v, state.seen)
    dp, e_dp = do @ v_seen.transpose(-1, -2), dot_error(do.abs(), v_seen.abs(), dtype)
    gap = f * dp - shift
    e_gap = f * e_dp + (e_f + U * f) * (dp.abs() + e_dp) + e_shift
    e_gap = e_gap + U * (gap.abs() + e_gap)
    dz = torch.where(state.seen, p * gap, 0.0).abs()
    e_dz = (p + e_p) * e_gap + e_p * gap.abs()
    e_dz = torch.where(state.seen, e_dz + (U + rounding) * (dz + e_dz) + least, 0.0)
    w = f * p
    e_w = f * e_p + e_f * (p + e_p)
    e_w = e_w + (U + rounding) * (w + e_w) + torch.where(state.seen, WEIGHT_LEAST.get(dtype, 0.0), 0.0)

    across, across_e, down, down_e = (t.transpose(-1, -2) for t in (dz, e_dz, w, e_w))
    rounded = factor * (1 + 2 * U)  # one rounding of * scale
    e_dq = rounded * product_error(dz, e_dz, ref.keys(k, state.seen).abs(), dtype) + F32_MIN_SUBNORMAL
    e_dk = rounded * product_error(across, across_e, ref.queries(q, state.seen).abs(), dtype, group) + F32_MIN_SUBNORMAL
    e_dv = product_error(down, down_e, do.abs(), dtype, group)
    e_dsink = None
    if sink is not None:
        e_dsink = ((1 - f) + e_f)[..., 0] * e_delta + e_f[..., 0] * delta.abs() + 2 * U * delta.abs()
    dq_abs, dk_abs = factor * dz @ ref.keys(k, state.seen).abs(), factor * across @ ref.queries(q, state.seen).abs()
    return ref.Gradients(e_dq + 2 * U * dq_abs, e_dk + 2 * U * dk_abs, e_dv, e_dsink)


def share_error(f: Tensor, lse: Tensor, e_lse: Tensor, sink: Tensor) -> Tensor:
    """Absolute error of f, which is that of 1 - f, too."""
    distance = (sink.double() - lse).abs()
    carried = torch.where(distance.isinf(), 0.0, torch.expm1(e_lse + U * distance + EXP_ERROR))
    return f * (1 - f) * carried + 3 * U * f + F32_MIN_NORMAL


def product_error(a: Tensor, e_a: Tensor, b: Tensor, dtype: torch.dtype, group: int = 1) -> Tensor:
    """Error of a @ b, a with its error, summed in one chain that goes on through the heads of a group."""
    n = a.shape[-1]
    error = e_a @ b + gamma(n * group + 2) * ((a + e_a) @ b) + n * F32_MIN_SUBNORMAL
    if dtype == torch.bfloat16:
        error = error + F32_MIN_NORMAL * ((a + e_a).sum(-1, keepdim=True) + b.sum(-2, keepdim=True) + n)
    return error
