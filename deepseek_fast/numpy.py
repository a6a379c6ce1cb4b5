"""The operators on NumPy arrays, without torch: the same kernels, the same bits, on the caller's thread.

bfloat16 and float8 arrays are those of ml_dtypes. Arguments, results and errors are those of the functions of the same
name in deepseek_fast, with arrays for tensors.
"""

from deepseek_fast import _load

_native = _load.native()
fp8_matmul = _native.fp8_matmul
fp8_quantize_weight = _native.fp8_quantize_weight
fused_matmul = _native.fused_matmul
int4_matmul = _native.int4_matmul
int4_quantize_weight = _native.int4_quantize_weight
int8_matmul = _native.int8_matmul
int8_quantize_weight = _native.int8_quantize_weight

__all__ = [
    "fp8_matmul",
    "fp8_quantize_weight",
    "fused_matmul",
    "int4_matmul",
    "int4_quantize_weight",
    "int8_matmul",
    "int8_quantize_weight",
]
