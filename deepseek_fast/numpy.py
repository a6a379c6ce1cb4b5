"""The operators on NumPy arrays, without torch: the same kernels, the same bits, on the caller's thread.

bfloat16 arrays are ml_dtypes.bfloat16. Arguments, results and errors are those of the functions of the same name in
deepseek_fast, with arrays for tensors.
"""

from deepseek_fast import _load

_native = _load.native()
fused_matmul = _native.fused_matmul
int8_matmul = _native.int8_matmul
int8_quantize_weight = _native.int8_quantize_weight

__all__ = ["fused_matmul", "int8_matmul", "int8_quantize_weight"]
