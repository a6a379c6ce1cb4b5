// One value of a float tensor as f32, for code outside the kernels: exact, whatever flags the caller's thread has set.
#pragma once
#include <cstdint>
#include <cstring>

#include "csrc/core/tensor_view.h"

namespace dsf {
namespace {

inline float float_of_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline float float_of_f16(uint16_t bits) {
  constexpr uint32_t FIRST_NORMAL = 0x400, FIRST_NOT_FINITE = 0x7C00, REBIAS = 112u << 23;  // 127 - 15
  const uint32_t size = bits & 0x7FFFu, sign = uint32_t(bits & 0x8000u) << 16;
  if (size >= FIRST_NOT_FINITE) return float_of_bits(((size << 13) + 2 * REBIAS) | sign);
  if (size >= FIRST_NORMAL) return float_of_bits(((size << 13) + REBIAS) | sign);
  const float magnitude = float(size) * 0x1p-24f;
  return sign ? -magnitude : magnitude;
}

// values[i] of a dtype that is_float() holds for.
inline float float_at(Dtype dtype, const void* values, int64_t i) {
  if (dtype == Dtype::f32) return static_cast<const float*>(values)[i];
  const uint16_t bits = static_cast<const uint16_t*>(values)[i];
  return dtype == Dtype::f16 ? float_of_f16(bits) : float_of_bits(uint32_t(bits) << 16);
}

}  // namespace
}  // namespace dsf
