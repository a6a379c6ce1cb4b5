// One number of a CUDA thread, with the members of the CPU's vectors (csrc/gemm/vec_scalar.h) that shared steps use:
// what is written once for vectors of any width serves kernels too. Compiled without contraction, with IEEE division.
#pragma once
#include <cstdint>

#include "csrc/core/api.h"

namespace dsf::cuda {
namespace {

struct Lane {
  static constexpr int LANES = 1;
  using f32 = float;
  using i32 = int32_t;

  DSF_HOST_DEVICE static f32 set1(float v) { return v; }
  DSF_HOST_DEVICE static i32 set1_i32(int32_t v) { return v; }
  DSF_HOST_DEVICE static i32 zero_i32() { return 0; }
  DSF_HOST_DEVICE static i32 bits_of(f32 v) { return __builtin_bit_cast(int32_t, v); }
  DSF_HOST_DEVICE static f32 f32_of_bits(i32 v) { return __builtin_bit_cast(float, v); }
  DSF_HOST_DEVICE static f32 abs(f32 v) { return f32_of_bits(bits_of(v) & 0x7FFFFFFF); }
  DSF_HOST_DEVICE static f32 min_limit(f32 v, float limit) { return v > limit ? limit : v; }  // keeps NaN
  DSF_HOST_DEVICE static f32 madd(f32 a, f32 b, f32 c) { return a * b + c; }
  DSF_HOST_DEVICE static i32 and_bits(i32 a, int32_t b) { return a & b; }
  DSF_HOST_DEVICE static i32 or_bits(i32 a, i32 b) { return a | b; }
  DSF_HOST_DEVICE static i32 plus_i32(i32 a, i32 b) { return int32_t(uint32_t(a) + uint32_t(b)); }
  DSF_HOST_DEVICE static i32 add_i32(i32 a, int32_t b) { return plus_i32(a, b); }
  // a where v < limit, as integers, else b.
  DSF_HOST_DEVICE static i32 select_below(i32 v, int32_t limit, i32 a, i32 b) { return v < limit ? a : b; }
  template <int count>
  DSF_HOST_DEVICE static i32 shift_left(i32 v) {
    return int32_t(uint32_t(v) << count);
  }
  template <int count>
  DSF_HOST_DEVICE static i32 shift_right(i32 v) {
    return int32_t(uint32_t(v) >> count);
  }
};

}  // namespace
}  // namespace dsf::cuda
