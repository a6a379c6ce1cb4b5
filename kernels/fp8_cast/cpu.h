// fp8_cast and its family: numbers to FP8, FP4 or int8 with a scale per block, and back.
//
//   codes = encode(x * factor)    or, of modes v3, v32 and vllm, encode(x / scale)
//   y     = code * scale          one rounding to y's dtype; with a tensor scale code * (tensor_scale * scale)
//
// x (M, K) f32, bf16 or f16, widened exactly; everything in f32, each operation rounded to nearest even, subnormals
// kept whatever the caller's thread flushes. The rules that make a scale of a block's amax are in scale_rules.h, the
// formats and their NaN, infinities and overflow in encode.h; ref.py says the same in torch. Codes and scales have the
// same bits on every ISA level, and depend neither on the number of threads nor on other blocks.
//
//   x       rows of K contiguous values at x_stride, outer dimensions folded into M; alignment of the element type
//   codes   (M, K), contiguous, a byte each; f4e2m1x2: two each, K even
//   scale   (row_blocks, col_blocks) at strides of its own; f32, e8m0 or e4m3 bytes, or e8m0 four to an int32
// A block is block_rows x block_cols values, smaller at the ends. Outputs overlap nothing. Any M, K whose byte counts
// fit int64; M or K of 0 writes nothing.
#pragma once
#include <cstdint>

#include "csrc/core/api.h"
#include "csrc/core/check.h"
#include "csrc/core/context.h"
#include "csrc/core/isa.h"
#include "csrc/core/tensor_view.h"

namespace dsf {

// How a scale follows from amax: the code bases that users compare with, then the four roundings of OCP MX (torchao).
#define DSF_CAST_MODES(entry)                                                                                      \
  entry(v3) entry(v32) entry(deepgemm) entry(tilekernels) entry(vllm) entry(te) entry(torchao) entry(torchao_ceil) \
      entry(torchao_even) entry(torchao_rceil)
#define DSF_ENTRY(name) name,
enum class CastMode : int32_t { DSF_CAST_MODES(DSF_ENTRY) };
#undef DSF_ENTRY
enum class ScaleKind : int32_t { f32, ue8m0, e4m3 };
enum class ScaleLayout : int32_t { row, column, tma, packed };
// What is cast: x, silu(x[:, :K]) * x[:, K:], or x / rms(x) * norm_weight.
enum class CastSource : int32_t { x, silu_mul, rms_norm };

// A call as a door sees it. Text and views outlive the call.
struct CastCall {
  const char* op;  // in sentences
  CastSource source;
  TensorView x;
  const TensorView* norm_weight;  // rms_norm
  float eps;
  const char* dtype_name;
  Dtype dtype;                     // of the codes
  int32_t plain;                   // no block: neither amax nor scales
  int64_t block_rows, block_cols;  // -1: all
  const char* scale;               // "f32", "ue8m0", "e4m3"
  const TensorView* given;         // the caller's scales, or null
  const char* mode;
  int32_t saturate;
  const char* layout;              // "row", "column", "tma", "packed"
  const TensorView* tensor_scale;  // one f32, or null
  const char* rounding;            // "nearest", "stochastic"
  int64_t seed;
  int32_t pair;       // and x^T alike
  int32_t amax_only;  // no codes, and amax as f32 for scales
};

struct CastArgs {
  CastSource source;
  Dtype x_dtype, dtype;
  CastMode mode;
  ScaleKind kind;
  ScaleLayout layout;
  int32_t plain, has_given, saturate, stochastic, amax_only;
  uint64_t seed;
  int64_t M, K;
  const void* x;
  int64_t x_stride;
  const void* norm_weight;  // (K), x's dtype
  float eps;
  int64_t block_rows, block_cols, row_blocks, col_blocks;
  float tensor_scale;
  int32_t has_tensor_scale;
  TensorView given;
  int32_t mx;       // blocks of 32, whose scales TransformerEngine makes by another rule
  int64_t leading;  // dimensions of x that the scale's shape repeats; 0: it has two dimensions
  // Set by the door:
  void* codes;
  void* scale;
  int64_t scale_row_stride, scale_col_stride;  // in elements
  void* codes_t;                               // the transposed pair, or null: (K, M)
  void* scale_t;                               // (K, row blocks of block_cols rows), contiguous
};

// Back to numbers.
struct DequantizeCall {
  TensorView codes;
  const TensorView* scale;  // null: the numbers as they are
  int64_t block_rows, block_cols;
  Dtype dtype;  // of y
  const char* dtype_name;
  const TensorView* tensor_scale;
};

struct DequantizeArgs {
  Dtype code_dtype, dtype;
  int64_t M, K;  // of y
  const void* codes;
  int64_t codes_stride;  // bytes between rows
  int32_t has_scale;
  TensorView scale;
  int64_t block_rows, block_cols, row_blocks, col_blocks;
  float tensor_scale;
  int32_t has_tensor_scale;
  void* y;  // (M, K), contiguous
};

struct Int8CastArgs {
  Dtype dtype;
  int64_t M, K;
  const void* x;
  int64_t x_stride;
  int8_t* q;     // (M, K), contiguous
  float* scale;  // (M)
};

extern "C" {
// Each fills *args, all but the outputs. Returns 1, or 0 and *problem.
DSF_API int32_t dsf_fp8_cast_check(const CastCall* call, CastArgs* args, Problem* problem);
DSF_API int32_t dsf_fp8_dequantize_check(const DequantizeCall* call, DequantizeArgs* args, Problem* problem);
DSF_API int32_t dsf_int8_cast_check(const TensorView* x, Int8CastArgs* args, Problem* problem);

// Sizes of the scale, as many as the result says (at most ndim of x, at least 2), and its strides in elements.
DSF_API int64_t dsf_fp8_cast_scale_shape(const CastCall* call, const CastArgs* args, int64_t* sizes, int64_t* strides);

// Bytes of context->workspace; -1 where that overflows.
DSF_API int64_t dsf_fp8_cast_workspace_bytes(const Context* context, const CastArgs* args);
DSF_API void dsf_fp8_cast(const Context* context, const CastArgs* args);
DSF_API void dsf_fp8_dequantize(const Context* context, const DequantizeArgs* args);
DSF_API void dsf_int8_cast(const Context* context, const Int8CastArgs* args);

// Rows of variants.inc: the i-th one's level and name, -1 and null past the end.
DSF_API int32_t dsf_fp8_cast_variant(int32_t i, const char** name);
}
}  // namespace dsf
