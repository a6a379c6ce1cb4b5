// f32 to the codes of a format, as many at a time as a vector has lanes. ref.py: encode().
//
// The rounding is one multiply-add, whose product is exact. With e the power of two at or below |v|, not below the
// smallest normal number, the sum |v| + e * 2^KEPT has its last bit where the format has its own: hardware rounds |v|
// to nearest even there, normal and subnormal numbers alike, and leaves how many such units it is in the low bits and e
// in the exponent field.
#pragma once
#include "csrc/core/api.h"
#include "csrc/gemm/fp8.h"
#include "kernels/fp8_cast/cpu_kernels.h"

namespace dsf::fp8_cast {
namespace {

inline constexpr int32_t F32_SIGN = int32_t(0x80000000), F32_EXPONENT = 0x7F800000;

template <Dtype format>
struct Format {
  using F = Fp8<format>;
  static constexpr bool FNUZ = format == Dtype::f8e4m3fnuz || format == Dtype::f8e5m2fnuz;
  static constexpr bool FP4 = format == Dtype::f4e2m1x2;
  static constexpr int KEPT = 23 - F::MANTISSA;              // bits of an f32's mantissa that round away
  static constexpr int32_t MIN_EXPONENT = 128 - F::BIAS;     // of the smallest normal number, as in an f32
  static constexpr int32_t MIN_NORMAL = MIN_EXPONENT << 23;  // its bits
  static constexpr int32_t OFFSET = (MIN_EXPONENT + KEPT) << F::MANTISSA;  // of the sum's fields over the code
  static constexpr int32_t SIGN_SHIFT = FP4 ? 28 : 24, SIGN = FP4 ? 0x8 : 0x80;
  static constexpr int32_t MAX_CODE = FNUZ ? 0x7F : FP4 ? 0x7 : F::FIRST_SPECIAL - 1;
  static constexpr int32_t NAN_CODE = FNUZ ? 0x80 : FP4 ? 0x7 : 0x7F;
  // What sizes above the largest are cut to: itself, or the code after it, which is NaN or infinity.
  static constexpr float OVERFLOW_SIZE = format == Dtype::f8e4m3       ? 480.0f
                                         : format == Dtype::f8e4m3fnuz ? 256.0f
                                         : FP4                         ? 6.0f
                                                                       : 65536.0f;
};

// Code without sign of |v|, rounded to nearest even and cut to limit; anything for NaN.
template <class V, Dtype format>
[[gnu::always_inline]] DSF_HOST_DEVICE inline typename V::i32 nearest_code(typename V::f32 v, float limit) {
  using C = Format<format>;
  const auto size = V::min_limit(V::abs(v), limit);
  auto exponent = V::and_bits(V::bits_of(size), F32_EXPONENT);
  exponent = V::select_below(exponent, C::MIN_NORMAL, V::set1_i32(C::MIN_NORMAL), exponent);
  const auto sum = V::bits_of(V::madd(V::f32_of_bits(exponent), V::set1(float(1 << C::KEPT)), size));
  const auto units = V::and_bits(sum, 0xFFFF);
  const auto fields = V::template shift_left<C::F::MANTISSA>(V::template shift_right<23>(sum));
  return V::add_i32(V::plus_i32(units, fields), -C::OFFSET);
}

// DeepGEMM's FP4: how many of the midpoints lie below |v|, so that a midpoint goes down; NaN lies above all.
template <class V>
[[gnu::always_inline]] inline typename V::i32 midpoints_below(typename V::f32 v) {
  constexpr int32_t MIDPOINTS[] = {0x3E800000, 0x3F400000, 0x3FA00000, 0x3FE00000, 0x40200000, 0x40600000, 0x40A00000};
  const auto size = V::bits_of(V::abs(v));
  auto code = V::zero_i32();
  DSF_UNROLL
  for (const int32_t midpoint : MIDPOINTS)  // 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5
    code = V::plus_i32(code, V::select_below(size, midpoint + 1, V::zero_i32(), V::set1_i32(1)));
  return code;
}

// Code without sign of |v|, rounded up with the probability of the part that is cut off: random holds 32 bits a lane.
template <class V, Dtype format>
[[gnu::always_inline]] inline typename V::i32 stochastic_code(typename V::f32 v, typename V::i32 random) {
  using C = Format<format>;
  constexpr int FRACTION = 24;  // bits of the part of a subnormal number's unit that is kept
  constexpr int32_t TO_UNITS = (254 - C::MIN_EXPONENT + C::F::MANTISSA + FRACTION) << 23;  // 2^24 / unit
  const auto size = V::min_limit(V::abs(v), C::F::LARGEST);
  const auto bits = V::bits_of(size);
  const auto up = V::plus_i32(bits, V::template shift_right<32 - C::KEPT>(random));
  const auto normal = V::add_i32(V::template shift_right<C::KEPT>(up), -((C::MIN_EXPONENT - 1) << C::F::MANTISSA));
  // Only lanes of subnormal numbers count: the others may not convert.
  const auto small = V::f32_of_bits(V::select_below(bits, C::MIN_NORMAL, bits, V::zero_i32()));
  const auto units = V::truncate(V::mul(small, f32_of<V>(TO_UNITS)));
  const auto subnormal = V::template shift_right<FRACTION>(V::plus_i32(units, V::template shift_right<8>(random)));
  const auto code = V::select_below(bits, C::MIN_NORMAL, subnormal, normal);
  return V::select_below(code, C::MAX_CODE, code, V::set1_i32(C::MAX_CODE));
}

// code with NaN where v is NaN, and x's sign: v may be a NaN of any sign, made of inf * 0.
template <class V, Dtype format>
[[gnu::always_inline]] DSF_HOST_DEVICE inline typename V::i32 with_sign_and_nan(typename V::i32 code, typename V::f32 v,
                                                                                typename V::f32 x, bool sign_of_zero) {
  using C = Format<format>;
  const auto size = V::bits_of(V::abs(v));
  const auto sign = V::and_bits(V::template shift_right<C::SIGN_SHIFT>(V::bits_of(x)), C::SIGN);
  auto with_sign = V::or_bits(code, sign);
  if (C::FNUZ || !sign_of_zero) with_sign = V::select_below(code, 1, code, with_sign);
  auto nan = V::set1_i32(C::NAN_CODE);
  if (!C::FNUZ && sign_of_zero) nan = V::or_bits(nan, sign);
  return V::select_below(size, F32_EXPONENT + 1, with_sign, nan);
}

// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers, as easy as 1, 2, 3; SC 2011): word i % 4 of the
// block that i / 4 counts, for n values of i from first on, a multiple of 4.
inline void random_words(uint64_t seed, uint64_t first, int n, uint32_t* words) {
  constexpr uint32_t MULTIPLIER[] = {0xD2511F53u, 0xCD9E8D57u}, WEYL[] = {0x9E3779B9u, 0xBB67AE85u};
  for (int i = 0; i < n; i += 4) {
    const uint64_t block = (first + uint64_t(i)) / 4;
    uint32_t c[4] = {uint32_t(block), uint32_t(block >> 32), 0, 0}, key[2] = {uint32_t(seed), uint32_t(seed >> 32)};
    for (int round = 0; round < 10; ++round) {
      const uint64_t p = uint64_t(MULTIPLIER[0]) * c[0], q = uint64_t(MULTIPLIER[1]) * c[2];
      const uint32_t next[] = {uint32_t(q >> 32) ^ c[1] ^ key[0], uint32_t(q), uint32_t(p >> 32) ^ c[3] ^ key[1],
                               uint32_t(p)};
      for (int w = 0; w < 4; ++w) c[w] = next[w];
      key[0] += WEYL[0];
      key[1] += WEYL[1];
    }
    for (int w = 0; w < 4; ++w) words[i + w] = c[w];
  }
}

}  // namespace
}  // namespace dsf::fp8_cast
