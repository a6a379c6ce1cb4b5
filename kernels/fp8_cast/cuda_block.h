// What a thread does with its values of a block: the CPU's own rules (scale_rules.h, encode.h), one number at a time,
// so that codes and scales have the same bits. For the host too: tests/test_cuda_block.py runs these functions there.
#pragma once
#include "csrc/cuda/lane.h"
#include "kernels/fp8_cast/encode.h"
#include "kernels/fp8_cast/scale_rules.h"

namespace dsf::fp8_cast {

// A launch of the kernels in cuda_sm80.cu: blocks of one row and BLOCK columns.
struct CudaCast {
  const void* x;   // (M, K), rows at x_stride elements
  uint8_t* codes;  // (M, K), contiguous
  void* scale;     // (M, col_blocks) f32, or e8m0 bytes, at its strides
  int64_t M, K, col_blocks, x_stride, scale_row_stride, scale_col_stride;
  Dtype x_dtype, dtype;  // of x: f32, bf16, f16; of codes: f8e4m3, f8e5m2
  ScaleRule rule;
  int32_t divide, ignore_nan, saturate;
};

// Of cuda_sm80.cu; M and K above 0. Returns CUDA's words for what went wrong, or null.
int64_t cuda_cast_most_blocks();
const char* cuda_cast(const CudaCast& cast, void* stream);

namespace {

inline constexpr int CUDA_BLOCK = 128;  // columns that share a scale

// The bits of |v| as amax counts them: NaN is above all, or below.
DSF_HOST_DEVICE inline uint32_t size_bits(float v, bool ignore_nan) {
  const uint32_t bits = bits_from(v) & 0x7FFFFFFFu;
  return ignore_nan && bits > INF_BITS ? 0 : bits;
}

struct BlockScale {
  float scale, factor;
  uint8_t code;
};

DSF_HOST_DEVICE inline BlockScale scale_of(const ScaleRule& rule, uint32_t amax_bits) {
  BlockScale block{};
  if (rule.kind == ScaleKind::f32)
    scales_f32(rule, 1, &amax_bits, &block.scale, &block.factor);
  else
    scales_ue8m0(rule, 1, &amax_bits, &block.scale, &block.factor, &block.code);
  return block;
}

template <Dtype format>
DSF_HOST_DEVICE inline uint8_t code_of(const CudaCast& cast, float x, float factor) {
  using C = Format<format>;
  const float v = cast.divide ? x / factor : x * factor;
  const float limit = cast.saturate ? C::F::LARGEST : C::OVERFLOW_SIZE;
  const int32_t code = nearest_code<cuda::Lane, format>(v, limit);
  return uint8_t(with_sign_and_nan<cuda::Lane, format>(code, v, x, true));
}

}  // namespace
}  // namespace dsf::fp8_cast
