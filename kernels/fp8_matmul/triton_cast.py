"""The cast of x in blocks of 1 x 128, with the bits of the CPU's: ref.cast_rows."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepseek_fast.gpu.codes import encode_fp8
from deepseek_fast.gpu.launch import launch

STEP = 128  # values that share a scale
ROWS = 16  # of a program: 2048 values, 16 a thread in two loads of 16 bytes (bfloat16)


def cast_rows(x: Tensor, native: bool) -> tuple[Tensor, Tensor]:
    """x (M, K) as codes of e4m3fn (M, K) and scales (M, ceil(K / 128)), whose memory goes down the rows.

    native: the chip converts float32 to e4m3fn; half to even and saturating, as encode_fp8 does.
    """
    M, K = x.shape
    steps = -(-K // STEP)
    codes = x.new_empty((M, K), dtype=torch.float8_e4m3fn)
    scale = x.new_empty((steps, M), dtype=torch.float32).t()
    launch(
        _cast_rows, (-(-M // ROWS) * steps,), x, codes if native else codes.view(torch.uint8), scale, M, K,
        x.stride(0), scale.stride(1), ROWS=ROWS, STEP=STEP, NATIVE=native, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    return codes, scale


@triton.jit(do_not_specialize=["M", "scale_k"])
def _cast_rows(x, codes, scale, M, K, x_stride, scale_k, ROWS: tl.constexpr, STEP: tl.constexpr, NATIVE: tl.constexpr):
    parts = tl.cdiv(M, ROWS)  # of a step: programs that follow each other
    m = tl.program_id(0) % parts * ROWS + tl.arange(0, ROWS)
    step = tl.program_id(0) // parts
    k = step * STEP + tl.arange(0, STEP)
    rows, inside = m.to(tl.int64)[:, None], (m < M)[:, None] & (k < K)[None, :]
    v = tl.load(x + rows * x_stride + k[None, :], inside, 0.0).to(tl.float32)
    # amax = max(|x|, 1e-4), NaN where there is one: as integers NaN's bits are the largest
    bits = v.to(tl.uint32, bitcast=True) & 0x7FFFFFFF
    amax = tl.max(bits.to(tl.int32, bitcast=True), 1).to(tl.float32, bitcast=True)
    amax = tl.where(amax < 1e-4, 1e-4, amax)
    # x_scale = amax / 448, x_q = e4m3fn(x * (1 / x_scale))
    x_scale = tl.div_rn(amax, 448.0)
    scaled = v * tl.div_rn(1.0, x_scale)[:, None]
    code = scaled.to(tl.float8e4nv) if NATIVE else encode_fp8(scaled)
    tl.store(codes + rows * K + k[None, :], code, inside)
    tl.store(scale + m + step.to(tl.int64) * scale_k, x_scale, m < M)
