// The scales of blocks of x, by the rule of csrc/gemm/quantize.h.
#pragma once
#include <cstdint>
#include <cstring>

#include "csrc/gemm/quantize.h"

namespace dsf::int4_matmul {
namespace {

// x_scale and inverse of LANES blocks, from the bits of their largest magnitudes.
template <class V>
[[gnu::always_inline]] inline void scales_of_blocks(typename V::i32 bits, float* scale, float* inverse) {
  constexpr int32_t FIRST_NOT_FINITE = 0x7F800000;
  int32_t smallest_bits;
  std::memcpy(&smallest_bits, &SMALLEST_AMAX, 4);
  const auto most = V::f32_of_bits(bits), limit = V::set1(INT8_LIMIT);
  const auto inverses = V::select_below(bits, smallest_bits, V::zero_i32(), V::bits_of(V::div(limit, most)));
  V::store(inverse, V::f32_of_bits(V::select_below(bits, FIRST_NOT_FINITE, inverses, V::zero_i32())));
  const auto nan = V::bits_of(V::set1(__builtin_nanf("")));
  V::store(scale, V::f32_of_bits(V::select_below(bits, FIRST_NOT_FINITE, V::bits_of(V::div(most, limit)), nan)));
}

}  // namespace
}  // namespace dsf::int4_matmul
