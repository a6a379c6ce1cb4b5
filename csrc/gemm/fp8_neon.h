// Fp8Decoder of Advanced SIMD: 16 codes at a time, the two bytes of their bf16 numbers apart.
// A normal number's bytes come from shifts; TBX, which leaves a lane alone where its index is past the table, puts
// those of the first 16 magnitudes (zero and the subnormals among them) in their place. Of the last 16 (infinity and
// NaN) only the high byte is another: the low one is their mantissa, and a bit of the exponent that is set in both
// formats.
#pragma once
#include <arm_neon.h>

#include "csrc/gemm/fp8.h"

namespace dsf {
namespace {

template <Dtype dtype>
struct Fp8Decoder<Vec, dtype> {
  using F = Fp8<dtype>;
  static constexpr Fp8Bytes<dtype> TABLE{};
  static constexpr int LAST = 0x70;  // first magnitude of the second table
  static_assert((1 << F::MANTISSA) <= 16 && F::FIRST_SPECIAL >= LAST);
  const uint8x16_t first_low = vld1q_u8(TABLE.low), first_high = vld1q_u8(TABLE.high);
  const uint8x16_t last_high = vld1q_u8(TABLE.high + LAST);

  [[gnu::always_inline]] void pairs(const char* codes, int32x4_t* first, int32x4_t* second) const {
    decode(vld1q_u8(reinterpret_cast<const uint8_t*>(codes)), first, second);
  }
  // Of quads that lie side by side, column after column.
  [[gnu::always_inline]] void of_quads(int32x4_t quads, int32x4_t* first, int32x4_t* second) const {
    const uint16x8_t pairs = vreinterpretq_u16_s32(quads);
    const uint16x8_t apart =
        vcombine_u16(vget_low_u16(vuzp1q_u16(pairs, pairs)), vget_low_u16(vuzp2q_u16(pairs, pairs)));
    decode(vreinterpretq_u8_u16(apart), first, second);
  }

 private:
  [[gnu::always_inline]] void decode(uint8x16_t code, int32x4_t* first, int32x4_t* second) const {
    const uint8x16_t magnitude = vandq_u8(code, vdupq_n_u8(0x7F)), from_last = vsubq_u8(magnitude, vdupq_n_u8(LAST));
    // bits = (magnitude << (7 - MANTISSA)) + ((127 - BIAS) << 7)
    uint8x16_t low = vshlq_n_u8(magnitude, 7 - F::MANTISSA);
    uint8x16_t high = vaddq_u8(vshrq_n_u8(magnitude, F::MANTISSA + 1), vdupq_n_u8((127 - F::BIAS) >> 1));
    static_assert((127 - F::BIAS) % 2 == 0);  // the exponents' difference is a whole number of the high byte
    low = vqtbx1q_u8(low, first_low, magnitude);
    high = vqtbx1q_u8(vqtbx1q_u8(high, first_high, magnitude), last_high, from_last);
    high = vbslq_u8(vdupq_n_u8(0x80), code, high);  // the sign
    *first = vreinterpretq_s32_u8(vzip1q_u8(low, high));
    *second = vreinterpretq_s32_u8(vzip2q_u8(low, high));
  }
};

}  // namespace
}  // namespace dsf
