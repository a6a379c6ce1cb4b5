"""One compiled kernel, the same numbers in PyTorch and ONNX Runtime.

Importing the package imports neither torch nor onnxruntime: a name loads what it needs when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from deepseek_fast._version import __version__

if TYPE_CHECKING:
    from deepseek_fast import checkpoints, importers, nn, numpy, onnx, ort, quantization
    from deepseek_fast._load import isa, set_max_isa, supported_isas
    from deepseek_fast.gpu.tune import tune
    from deepseek_fast.kernels.block_sparse_attention.nsa import native_sparse_attention
    from deepseek_fast.kernels.block_sparse_attention.op import block_sparse_attention, flex_block_lists
    from deepseek_fast.kernels.block_sparse_attention.op_builders import (
        block_lists,
        local_log_blocks,
        sliding_window_blocks,
        top_k_blocks,
    )
    from deepseek_fast.kernels.fp8_cast.op import (
        fp8_amax,
        fp8_cast,
        fp8_cast_transposed,
        fp8_dequantize,
        int8_cast,
        rms_norm_cast,
        silu_mul_cast,
    )
    from deepseek_fast.kernels.fp8_matmul.op import fp8_matmul, fp8_quantize_weight
    from deepseek_fast.kernels.fp8_matmul.scaled_mm import fp8_scaled_mm
    from deepseek_fast.kernels.fused_conv.op import (
        fused_conv,
        fused_conv_int8,
        fused_conv_int8_packed,
        fused_conv_pack,
        fused_conv_packed,
        local_response_norm,
        pool2d,
    )
    from deepseek_fast.kernels.fused_matmul.op import fused_matmul
    from deepseek_fast.kernels.int4_matmul.op import int4_matmul, int4_quantize_weight
    from deepseek_fast.kernels.int8_matmul.op import int8_matmul, int8_quantize_weight
    from deepseek_fast.kernels.lightning_indexer.op import (
        fp8_mqa_logits,
        fp8_paged_mqa_logits,
        lightning_indexer,
        lightning_indexer_paged,
        topk_indices,
    )
    from deepseek_fast.kernels.sparse_mla.op import (
        mla_cache_empty,
        mla_cache_read,
        mla_cache_write,
        sparse_mla,
        sparse_mla_decode,
    )

# Public name -> the module that defines it; a module of the package stands for itself.
_HOMES = {
    "block_lists": "deepseek_fast.kernels.block_sparse_attention.op_builders",
    "block_sparse_attention": "deepseek_fast.kernels.block_sparse_attention.op",
    "flex_block_lists": "deepseek_fast.kernels.block_sparse_attention.op",
    "fp8_amax": "deepseek_fast.kernels.fp8_cast.op",
    "fp8_cast": "deepseek_fast.kernels.fp8_cast.op",
    "fp8_cast_transposed": "deepseek_fast.kernels.fp8_cast.op",
    "fp8_dequantize": "deepseek_fast.kernels.fp8_cast.op",
    "fp8_matmul": "deepseek_fast.kernels.fp8_matmul.op",
    "fp8_mqa_logits": "deepseek_fast.kernels.lightning_indexer.op",
    "fp8_paged_mqa_logits": "deepseek_fast.kernels.lightning_indexer.op",
    "fp8_quantize_weight": "deepseek_fast.kernels.fp8_matmul.op",
    "fp8_scaled_mm": "deepseek_fast.kernels.fp8_matmul.scaled_mm",
    "fused_conv": "deepseek_fast.kernels.fused_conv.op",
    "fused_conv_int8": "deepseek_fast.kernels.fused_conv.op",
    "fused_conv_int8_packed": "deepseek_fast.kernels.fused_conv.op",
    "fused_conv_pack": "deepseek_fast.kernels.fused_conv.op",
    "fused_conv_packed": "deepseek_fast.kernels.fused_conv.op",
    "fused_matmul": "deepseek_fast.kernels.fused_matmul.op",
    "int4_matmul": "deepseek_fast.kernels.int4_matmul.op",
    "int4_quantize_weight": "deepseek_fast.kernels.int4_matmul.op",
    "int8_cast": "deepseek_fast.kernels.fp8_cast.op",
    "int8_matmul": "deepseek_fast.kernels.int8_matmul.op",
    "int8_quantize_weight": "deepseek_fast.kernels.int8_matmul.op",
    "isa": "deepseek_fast._load",
    "lightning_indexer": "deepseek_fast.kernels.lightning_indexer.op",
    "lightning_indexer_paged": "deepseek_fast.kernels.lightning_indexer.op",
    "local_log_blocks": "deepseek_fast.kernels.block_sparse_attention.op_builders",
    "local_response_norm": "deepseek_fast.kernels.fused_conv.op",
    "mla_cache_empty": "deepseek_fast.kernels.sparse_mla.op",
    "mla_cache_read": "deepseek_fast.kernels.sparse_mla.op",
    "mla_cache_write": "deepseek_fast.kernels.sparse_mla.op",
    "native_sparse_attention": "deepseek_fast.kernels.block_sparse_attention.nsa",
    "pool2d": "deepseek_fast.kernels.fused_conv.op",
    "rms_norm_cast": "deepseek_fast.kernels.fp8_cast.op",
    "set_max_isa": "deepseek_fast._load",
    "silu_mul_cast": "deepseek_fast.kernels.fp8_cast.op",
    "sliding_window_blocks": "deepseek_fast.kernels.block_sparse_attention.op_builders",
    "sparse_mla": "deepseek_fast.kernels.sparse_mla.op",
    "sparse_mla_decode": "deepseek_fast.kernels.sparse_mla.op",
    "supported_isas": "deepseek_fast._load",
    "top_k_blocks": "deepseek_fast.kernels.block_sparse_attention.op_builders",
    "topk_indices": "deepseek_fast.kernels.lightning_indexer.op",
    "tune": "deepseek_fast.gpu.tune",
}
_MODULES = ("checkpoints", "importers", "nn", "numpy", "onnx", "ort", "quantization")

__all__ = [
    "__version__",
    "block_lists",
    "block_sparse_attention",
    "checkpoints",
    "flex_block_lists",
    "fp8_amax",
    "fp8_cast",
    "fp8_cast_transposed",
    "fp8_dequantize",
    "fp8_matmul",
    "fp8_mqa_logits",
    "fp8_paged_mqa_logits",
    "fp8_quantize_weight",
    "fp8_scaled_mm",
    "fused_conv",
    "fused_conv_int8",
    "fused_conv_int8_packed",
    "fused_conv_pack",
    "fused_conv_packed",
    "fused_matmul",
    "importers",
    "int4_matmul",
    "int4_quantize_weight",
    "int8_cast",
    "int8_matmul",
    "int8_quantize_weight",
    "isa",
    "lightning_indexer",
    "lightning_indexer_paged",
    "local_log_blocks",
    "local_response_norm",
    "mla_cache_empty",
    "mla_cache_read",
    "mla_cache_write",
    "native_sparse_attention",
    "nn",
    "numpy",
    "onnx",
    "ort",
    "pool2d",
    "quantization",
    "rms_norm_cast",
    "set_max_isa",
    "silu_mul_cast",
    "sliding_window_blocks",
    "sparse_mla",
    "sparse_mla_decode",
    "supported_isas",
    "top_k_blocks",
    "topk_indices",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"deepseek_fast.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'deepseek_fast' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
