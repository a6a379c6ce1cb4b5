"""The operators on NumPy arrays, without torch: the same kernels, the same bits, on the caller's thread.

bfloat16 and float8 arrays are those of ml_dtypes. Arguments, results and errors are those of the functions of the same
name in deepseek_fast, with arrays for tensors.
"""

from collections.abc import Sequence
from typing import Any

from deepseek_fast import _attention, _conv, _load

_native = _load.native()
block_lists = _native.block_lists
fp8_amax = _native.fp8_amax
fp8_cast = _native.fp8_cast
fp8_cast_transposed = _native.fp8_cast_transposed
fp8_dequantize = _native.fp8_dequantize
fp8_matmul = _native.fp8_matmul
fp8_mqa_logits = _native.fp8_mqa_logits
fp8_paged_mqa_logits = _native.fp8_paged_mqa_logits
fp8_quantize_weight = _native.fp8_quantize_weight
fused_matmul = _native.fused_matmul
int4_matmul = _native.int4_matmul
int4_quantize_weight = _native.int4_quantize_weight
int8_cast = _native.int8_cast
int8_matmul = _native.int8_matmul
int8_quantize_weight = _native.int8_quantize_weight
lightning_indexer = _native.lightning_indexer
lightning_indexer_paged = _native.lightning_indexer_paged
mla_cache_read = _native.mla_cache_read
mla_cache_write = _native.mla_cache_write
rms_norm_cast = _native.rms_norm_cast
silu_mul_cast = _native.silu_mul_cast
sparse_mla = _native.sparse_mla
sparse_mla_backward = _native.sparse_mla_backward
sparse_mla_decode = _native.sparse_mla_decode
topk_indices = _native.topk_indices


def fused_conv(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    activation: str = "none",
    activation_params: Sequence[float] = (),
    residual: Any = None,
    residual_at: str = "before",
    max_pool: Any = None,
    algorithm: str = "direct",
) -> Any:
    """deepseek_fast.fused_conv; x is (N, C, H, W) in any memory order, which the result's follows."""
    op = "fused_conv"
    window, pool = _conv.windows(op, getattr(weight, "shape", ()), stride, padding, dilation, max_pool)
    params = _options(op, activation, activation_params, residual_at, groups)
    _conv.check_name(op, "algorithm", algorithm)
    options = (*window, groups, activation, params, residual, residual_at, pool, algorithm)
    return _native.fused_conv(x, weight, bias, *options)


def fused_conv_pack(weight: Any, groups: int = 1, *, algorithm: str = "direct") -> Any:
    """deepseek_fast.fused_conv_pack."""
    _conv.check_integer("fused_conv_pack", "groups", groups)
    _conv.check_name("fused_conv_pack", "algorithm", algorithm)
    return _native.fused_conv_pack(weight, groups, algorithm)


def fused_conv_packed(
    x: Any,
    packed: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    weight_shape: Sequence[int],
    activation: str = "none",
    activation_params: Sequence[float] = (),
    residual: Any = None,
    residual_at: str = "before",
    max_pool: Any = None,
) -> Any:
    """fused_conv with a weight of weight_shape that fused_conv_pack packed."""
    op = "fused_conv_packed"
    window, pool = _conv.windows(op, weight_shape, stride, padding, dilation, max_pool)
    params = _options(op, activation, activation_params, residual_at, groups)
    options = (list(weight_shape), *window, groups, activation, params)
    return _native.fused_conv_packed(x, packed, bias, *options, residual, residual_at, pool)


def fused_conv_int8(
    x: Any,
    weight: Any,
    x_scale: float,
    x_zero_point: int,
    weight_scale: Any,
    y_scale: float,
    y_zero_point: int,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    activation: str = "none",
    activation_params: Sequence[float] = (),
    residual: Any = None,
    residual_scale: float = 1.0,
    residual_zero_point: int = 0,
    residual_at: str = "before",
    max_pool: Any = None,
    out_dtype: Any = None,
) -> Any:
    """deepseek_fast.fused_conv_int8; out_dtype: as NumPy takes a dtype."""
    op = "fused_conv_int8"
    _conv.check_quantization(op, x_scale, x_zero_point, y_scale, y_zero_point, residual_scale, residual_zero_point)
    window, pool = _conv.windows(op, getattr(weight, "shape", ()), stride, padding, dilation, max_pool)
    params = _options(op, activation, activation_params, residual_at, groups)
    quantized = (x_scale, x_zero_point, weight_scale, y_scale, y_zero_point)
    added = (residual, residual_scale, residual_zero_point, residual_at)
    options = (*window, groups, activation, params, *added, pool, out_dtype)
    return _native.fused_conv_int8(x, weight, *quantized, bias, *options)


def fused_conv_int8_packed(
    x: Any,
    packed: Any,
    x_scale: float,
    x_zero_point: int,
    weight_scale: Any,
    y_scale: float,
    y_zero_point: int,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    weight_shape: Sequence[int],
    activation: str = "none",
    activation_params: Sequence[float] = (),
    residual: Any = None,
    residual_scale: float = 1.0,
    residual_zero_point: int = 0,
    residual_at: str = "before",
    max_pool: Any = None,
    out_dtype: Any = None,
) -> Any:
    """fused_conv_int8 with a weight of weight_shape that fused_conv_pack packed."""
    op = "fused_conv_int8_packed"
    _conv.check_quantization(op, x_scale, x_zero_point, y_scale, y_zero_point, residual_scale, residual_zero_point)
    window, pool = _conv.windows(op, weight_shape, stride, padding, dilation, max_pool)
    params = _options(op, activation, activation_params, residual_at, groups)
    quantized = (x_scale, x_zero_point, weight_scale, y_scale, y_zero_point)
    added = (residual, residual_scale, residual_zero_point, residual_at)
    options = (list(weight_shape), *window, groups, activation, params, *added, pool, out_dtype)
    return _native.fused_conv_int8_packed(x, packed, *quantized, bias, *options)


def pool2d(
    x: Any,
    kernel: Any,
    stride: Any = None,
    padding: Any = 0,
    *,
    kind: str = "max",
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Any:
    """deepseek_fast.pool2d; the result's memory order follows x's."""
    op = "pool2d"
    _conv.check_name(op, "kind", kind)
    window = _conv.pool_window(op, _conv.POOL_ARGS, 2, kernel, stride, padding, ceil_mode)
    return _native.pool2d(x, window, kind, bool(count_include_pad))


def local_response_norm(x: Any, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Any:
    """deepseek_fast.local_response_norm; the result's memory order follows x's."""
    op = "local_response_norm"
    _conv.check_lrn(op, size, alpha, beta, k)
    return _native.local_response_norm(x, size, alpha, beta, k)


def block_sparse_attention(
    q: Any,
    k: Any,
    v: Any,
    block_mask: Any = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    window: Any = None,
    sinks: int | None = None,
    enable_gqa: bool = True,
    return_lse: bool = False,
    block_size: Any = _attention.BLOCK,
    token_bias: Any = None,
    sink_logits: Any = None,
    q_offset: Any = 0,
    cu_seqlens_q: Any = None,
    cu_seqlens_k: Any = None,
) -> Any:
    """deepseek_fast.block_sparse_attention; block_mask is a boolean array or lists, flex_block_lists' four too."""
    op = "block_sparse_attention"
    options = _attention.options(op, scale, is_causal, window, sinks, enable_gqa, block_size, q_offset)
    kept, row_offsets, columns, tables, bits = _attention.mask_parts(op, block_mask)
    masks = (kept, row_offsets, columns, token_bias, sink_logits, cu_seqlens_q, cu_seqlens_k, tables, bits)
    out, lse = _native.block_sparse_attention((q, k, v, *masks), options)
    return (out, lse) if return_lse else out


def sliding_window_blocks(
    S_q: int,
    S_k: int,
    window: Any,
    *,
    block_size: Any = _attention.BLOCK,
    is_causal: bool = False,
    sinks: int | None = None,
    q_offset: Any = 0,
) -> Any:
    """deepseek_fast.sliding_window_blocks."""
    op = "sliding_window_blocks"
    numbers = _attention.pattern(op, S_q, S_k, block_size, is_causal, q_offset)
    return _native.block_pattern(op, False, [*numbers, *_attention.window_and_sinks(op, window, sinks)])


def local_log_blocks(
    S_q: int,
    S_k: int,
    *,
    block_size: Any = _attention.BLOCK,
    local: int = 2,
    first: int = 1,
    is_causal: bool = True,
    q_offset: Any = 0,
) -> Any:
    """deepseek_fast.local_log_blocks."""
    op = "local_log_blocks"
    numbers = _attention.pattern(op, S_q, S_k, block_size, is_causal, q_offset)
    _attention.check_integers(op, local=local, first=first)
    return _native.block_pattern(op, True, [*numbers, local, first])


def top_k_blocks(
    q: Any,
    k: Any,
    num_blocks: int,
    *,
    block_size: Any = _attention.BLOCK,
    scale: float | None = None,
    first: int = 1,
    local: int = 1,
    is_causal: bool = False,
    q_offset: Any = 0,
) -> Any:
    """deepseek_fast.top_k_blocks."""
    op = "top_k_blocks"
    _attention.check_integers(op, num_blocks=num_blocks, first=first, local=local)
    scale, is_causal, *_, offset, at_end, _, block_q, block_k = _attention.options(
        op, scale, is_causal, None, None, True, block_size, q_offset
    )
    return _native.top_k_blocks(q, k, scale, [num_blocks, first, local, is_causal, offset, at_end, block_q, block_k])


def _options(op: str, activation: Any, activation_params: Any, residual_at: Any, groups: Any) -> list[float]:
    _conv.check_options(op, activation, residual_at, groups)
    return _conv.numbers(op, "activation_params", activation_params)


__all__ = [
    "block_lists",
    "block_sparse_attention",
    "fp8_amax",
    "fp8_cast",
    "fp8_cast_transposed",
    "fp8_dequantize",
    "fp8_matmul",
    "fp8_mqa_logits",
    "fp8_paged_mqa_logits",
    "fp8_quantize_weight",
    "fused_conv",
    "fused_conv_int8",
    "fused_conv_int8_packed",
    "fused_conv_pack",
    "fused_conv_packed",
    "fused_matmul",
    "int4_matmul",
    "int4_quantize_weight",
    "int8_cast",
    "int8_matmul",
    "int8_quantize_weight",
    "lightning_indexer",
    "lightning_indexer_paged",
    "local_log_blocks",
    "local_response_norm",
    "pool2d",
    "rms_norm_cast",
    "silu_mul_cast",
    "sliding_window_blocks",
    "top_k_blocks",
    "topk_indices",
]
