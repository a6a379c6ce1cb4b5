"""Inside kernels: the activations of deepseek_fast._activations, on float32, by name.

Within the bound of kernels/fused_matmul/ref.py; NaN stays NaN, infinity gives the limits. What the bound has room for,
u = 2^-24, on a chip, where ex2.approx errs by up to 4 u of its result and rcp.approx by an ULP:

    silu, gelu_tanh   a share q = 1 / (1 + exp(v)) <= 1/2 of |z|, v >= 0. exp's error, (4 + 1.3 v) u, counts q (1 - q):
                      at most 1.2 u, and v's own, for gelu_tanh 4 u v at most, as much again; 1 + exp q u, rcp u / 2,
                      the last sum (1 - q) u, and where nothing is contracted the product q u: 3.6 u of 4 in all
    gelu              a share h(a) <= 1/2 of |z|: exp's error counts h, 2 u at most; its exponent's roundings 0.4 u,
                      the fit 0.1 u, the last two operations u: 3.5 u
    sigmoid, tanh     relative to the result, so that exp is a polynomial, as on the CPU
"""

import triton
import triton.language as tl

from deepseek_fast.gpu.numbers import INTERPRET


@triton.jit
def activate(z, NAME: tl.constexpr):
    if NAME == "relu":
        return tl.where(z < 0, 0.0, z)
    elif NAME == "relu6":
        return tl.where(z < 0, 0.0, tl.where(z > 6, 6.0, z))
    elif NAME == "gelu":
        return gelu(z)
    elif NAME == "gelu_tanh":
        a = _smaller(tl.abs(z), 10.0)  # beyond, the share is below 2^-125
        v = 1.5957691216057308 * tl.fma(0.044715 * a * a, a, a)  # 2 sqrt(2 / pi)
        return tl.fma(-a, falling_sigmoid(v), tl.maximum(z, 0.0))
    elif NAME == "silu":
        a = _smaller(tl.abs(z), 87.0)
        return tl.fma(-a, falling_sigmoid(a), tl.maximum(z, 0.0))
    elif NAME == "hardswish":
        clamped = tl.where(z + 3 < 0, 0.0, tl.where(z + 3 > 6, 6.0, z + 3))
        return tl.where(z <= -3, 0.0, tl.where(z >= 3, z, z * tl.div_rn(clamped, 6.0)))
    elif NAME == "sigmoid":
        a = tl.abs(z)
        e = exp_negative(-a)
        share = tl.where(z >= 0, 1.0, e)
        return tl.div_rn(share, 1.0 + e)
    elif NAME == "tanh":
        a = tl.abs(z)
        s = a * a
        # (tanh(a) / a - 1) / s on [0, 0.625]: the polynomial of csrc/gemm/activation.h
        p = tl.fma(s, -5.70498733e-03, 2.0639088e-02)
        p = tl.fma(p, s, -5.37397154e-02)
        p = tl.fma(p, s, 1.33314416e-01)
        p = tl.fma(p, s, -3.33332807e-01)
        e = exp_negative(-2 * a)
        size = tl.where(a < 0.625, a + a * s * p, 1.0 - 2.0 * tl.div_rn(e, 1.0 + e))
        return tl.where(z < 0, -size, tl.where(z == 0, z, size))
    else:
        return z


@triton.jit
def gelu(z):
    """z * erfc(-z / sqrt 2) / 2, as max(z, 0) - a h(a), a = |z|, h(a) = erfc(a / sqrt 2) / 2: free of cancellation.

    log2 h(a) + 1 is a polynomial without a constant: a minimax fit of the absolute error of h on [0, 5.6], 8.0e-9;
    from there on it falls, to -129 at 10.
    """
    a = _smaller(tl.abs(z), 10.0)
    p = tl.fma(a, -2.83505468579798e-06, 3.93791136269769e-05)
    p = tl.fma(p, a, -0.000186185824470928)
    p = tl.fma(p, a, -0.00013692541849087)
    p = tl.fma(p, a, 0.0070634087803688)
    p = tl.fma(p, a, -0.0524961723236918)
    p = tl.fma(p, a, -0.459208198108148)
    p = tl.fma(p, a, -1.15110520519126)
    return tl.fma(-a, exp2(tl.fma(p, a, -1.0)), tl.maximum(z, 0.0))


@triton.jit
def falling_sigmoid(v):
    """1 / (1 + exp(v)) for 0 <= v <= 88."""
    return reciprocal(1.0 + exp2(v * 1.4426950408889634))


@triton.jit
def exp2(x):
    """2^x within a relative 2^-22; 0 below 2^-126."""
    if INTERPRET:
        return tl.exp2(x)
    else:
        return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)


@triton.jit
def reciprocal(x):
    """1 / x within an ULP, for x from 1 to 2^126."""
    if INTERPRET:
        return 1.0 / x
    else:
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)


@triton.jit
def _smaller(x, limit):
    return tl.minimum(x, limit, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def exp_negative(x):
    """exp(x) for x <= 0 within 2 ULP, 0 below -87; ln 2 comes off in two parts (Cody and Waite), the first exactly."""
    x = tl.where(x < -87, -87.0, x)
    n = tl.floor(x * 1.44269504 + 0.5)
    r = (x - n * 0.693145751953125) - n * 1.42860682030941723e-6
    p = tl.fma(r, 1.381459879e-03, 8.368716575e-03)
    p = tl.fma(p, r, 4.166838899e-02)
    p = tl.fma(p, r, 1.666652113e-01)
    p = tl.fma(p, r, 4.999999404e-01)
    p = tl.fma(p, r, 1.0)
    p = tl.fma(p, r, 1.0)
    return p * ((n.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
