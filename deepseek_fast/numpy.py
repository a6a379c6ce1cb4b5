"""The operators on NumPy arrays, without torch: the same kernels, the same bits, on the caller's thread.

bfloat16 and float8 arrays are those of ml_dtypes. Arguments, results and errors are those of the functions of the same
name in deepseek_fast, with arrays for tensors.
"""

from deepseek_fast import _load

_native = _load.native()
fp8_amax = _native.fp8_amax
fp8_cast = _native.fp8_cast
fp8_cast_transposed = _native.fp8_cast_transposed
fp8_dequantize = _native.fp8_dequantize
fp8_matmul = _native.fp8_matmul
fp8_quantize_weight = _native.fp8_quantize_weight
fused_matmul = _native.fused_matmul
int4_matmul = _native.int4_matmul
int4_quantize_weight = _native.int4_quantize_weight
int8_cast = _native.int8_cast
int8_matmul = _native.int8_matmul
int8_quantize_weight = _native.int8_quantize_weight
rms_norm_cast = _native.rms_norm_cast
silu_mul_cast = _native.silu_mul_cast

__all__ = [
    "fp8_amax",
    "fp8_cast",
    "fp8_cast_transposed",
    "fp8_dequantize",
    "fp8_matmul",
    "fp8_quantize_weight",
    "fused_matmul",
    "int4_matmul",
    "int4_quantize_weight",
    "int8_cast",
    "int8_matmul",
    "int8_quantize_weight",
    "rms_norm_cast",
    "silu_mul_cast",
]
