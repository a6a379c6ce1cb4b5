#include "csrc/gemm/block_scale.h"

#include <cstdio>
#include <cstring>

namespace dsf {
namespace {

// The f32 bits of an e8m0 code: an exponent without sign and mantissa, whose 0 is 2^-127 and whose 0xFF is NaN.
uint32_t bits_of_e8m0(uint8_t code) {
  if (code == 0) return 1u << 22;
  return code == 0xFF ? 0x7FC00000u : uint32_t{code} << 23;
}

}  // namespace

float scale_value(const TensorView& scale, int64_t row, int64_t column) {
  const int64_t i = row * dsf_row_stride(&scale) + column;
  float value;
  if (scale.dtype == Dtype::f32) {
    std::memcpy(&value, static_cast<const char*>(scale.data) + i * 4, sizeof value);
  } else {
    const uint32_t bits = bits_of_e8m0(static_cast<const uint8_t*>(scale.data)[i]);
    std::memcpy(&value, &bits, sizeof value);
  }
  return value;
}

void dsf_block_error(const char* op, const char* got, Problem* problem) {
  value_error(problem, op, "block", "be two positive numbers, the second a multiple of 32, or -1 for all", got);
}

bool check_block(const char* op, Block block, Problem* problem) {
  const auto [n, k] = block;
  if ((n == -1 || n > 0) && (k == -1 || (k > 0 && k % SMALLEST_BLOCK_K == 0))) return true;
  char got[64];
  std::snprintf(got, sizeof got, "(%lld, %lld)", static_cast<long long>(n), static_cast<long long>(k));
  dsf_block_error(op, got, problem);
  return false;
}

bool check_scale(const char* op, const char* arg, const TensorView& scale, int64_t N, int64_t K, Block block,
                 Problem* problem) {
  if (scale.dtype != Dtype::f32 && scale.dtype != Dtype::f8e8m0)
    return dtype_error(problem, op, arg, "be float32 or float8_e8m0fnu", scale);
  const int64_t rows = num_blocks(N, block.n), columns = num_blocks(K, block.k);
  if (scale.ndim == 2 && scale.sizes[0] == rows && scale.sizes[1] == columns) return true;
  char rule[96];
  std::snprintf(rule, sizeof rule, "have shape (%lld, %lld), one value a block", static_cast<long long>(rows),
                static_cast<long long>(columns));
  return shape_error(problem, op, arg, rule, scale);
}

bool check_scale_values(const char* op, const char* arg, const TensorView& scale, Problem* problem) {
  if (!scale.data || dsf_row_stride(&scale) < 0) return true;
  for (int64_t row = 0; row < scale.sizes[0]; ++row)
    for (int64_t column = 0; column < scale.sizes[1]; ++column) {
      const float value = scale_value(scale, row, column);
      uint32_t bits;  // compared as integers, a subnormal number is above zero for callers who flush it, too
      std::memcpy(&bits, &value, sizeof bits);
      if (bits > 0 && bits < 0x7F800000u) continue;
      char got[96];
      std::snprintf(got, sizeof got, "%g at (%lld, %lld)", double(value), static_cast<long long>(row),
                    static_cast<long long>(column));
      return value_error(problem, op, arg, "be finite and above zero", got);
    }
  return true;
}

}  // namespace dsf
