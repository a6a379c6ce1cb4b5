"""Inside kernels: the activations of deepseek_fast._activations, on float32, by name.

Within the bound of kernels/fused_matmul/ref.py; NaN stays NaN, infinity gives the limits.
"""

import triton
import triton.language as tl


@triton.jit
def activate(z, NAME: tl.constexpr):
    if NAME == "relu":
        return tl.where(z < 0, 0.0, z)
    elif NAME == "relu6":
        return tl.where(z < 0, 0.0, tl.where(z > 6, 6.0, z))
    elif NAME == "gelu":
        return gelu(z)
    elif NAME == "gelu_tanh":
        a = tl.abs(z)
        inner = 1.5957691216057308 * (a + 0.044715 * a * a * a)  # 2 sqrt(2 / pi)
        return _less(z, a, inner)
    elif NAME == "silu":
        a = tl.abs(z)
        return _less(z, a, a)
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
        p = -5.70498733e-03 * s + 2.0639088e-02
        p = p * s - 5.37397154e-02
        p = p * s + 1.33314416e-01
        p = p * s - 3.33332807e-01
        e = exp_negative(-2 * a)
        size = tl.where(a < 0.625, a + a * s * p, 1.0 - 2.0 * tl.div_rn(e, 1.0 + e))
        return tl.where(z < 0, -size, tl.where(z == 0, z, size))
    else:
        return z


@triton.jit
def gelu(z):
    """z * erfc(-z / sqrt 2) / 2, as max(z, 0) - |z| erfc(|z| / sqrt 2) / 2: free of cancellation."""
    a = tl.abs(z)
    half = 0.5 - 0.5 * tl.erf(a * 0.7071067811865476)
    return tl.where(a < 10, tl.where(z < 0, 0.0, z) - a * half, tl.where(z < 0, 0.0, z))


@triton.jit
def _less(z, a, u):
    """max(z, 0) - a / (1 + exp(u)); 0 from u = 87 on, where infinities would meet."""
    e = tl.exp(-u)
    rest = tl.where(u < 87, a * (e / (1.0 + e)), 0.0)
    return tl.where(z != z, z, tl.where(z < 0, 0.0, z) - rest)


@triton.jit
def exp_negative(x):
    """exp(x) for x <= 0 within 2 ULP, 0 below -87; ln 2 comes off in two parts (Cody and Waite), the first exactly."""
    x = tl.where(x < -87, -87.0, x)
    n = tl.floor(x * 1.44269504 + 0.5)
    r = (x - n * 0.693145751953125) - n * 1.42860682030941723e-6
    p = 1.381459879e-03 * r + 8.368716575e-03
    p = p * r + 4.166838899e-02
    p = p * r + 1.666652113e-01
    p = p * r + 4.999999404e-01
    p = p * r + 1.0
    p = p * r + 1.0
    return p * ((n.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
