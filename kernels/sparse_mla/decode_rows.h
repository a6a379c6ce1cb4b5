// Tokens of the FP8 caches as rows of bf16: number = code * scale, rounded once.
#pragma once
#include <cstring>

#include "csrc/gemm/epilogue.h"
#include "csrc/gemm/fp8.h"
#include "kernels/sparse_mla/cpu_kernels.h"

namespace dsf::sparse_mla {
namespace {

// A token: its codes, scales in f32, what shares one, and its numbers in bf16.
struct Token {
  const uint8_t* codes;
  const uint8_t* kept;  // bf16, of any alignment
  float scales[MAX_SCALES];
  int64_t coded, tile, kept_numbers;
};

// 2^(code - 127); 255 is NaN.
inline float scale_of_e8m0(uint8_t code) {
  constexpr uint32_t SUBNORMAL = 0x00400000, NAN_BITS = 0x7FC00000;
  const uint32_t bits = code == 255 ? NAN_BITS : code == 0 ? SUBNORMAL : uint32_t(code) << 23;
  float scale;
  std::memcpy(&scale, &bits, 4);
  return scale;
}

inline Token token_of(CacheLayout layout, const void* data, const void* scales) {
  const auto* bytes = static_cast<const uint8_t*>(data);
  Token token{};
  if (layout == CacheLayout::v32) {
    token = {bytes, bytes + 512 + 16, {}, 512, 128, 64};
    std::memcpy(token.scales, bytes + 512, 16);
  } else {
    token = {bytes, bytes + 448, {}, 448, 64, 64};
    for (int i = 0; i < 7; ++i) token.scales[i] = scale_of_e8m0(static_cast<const uint8_t*>(scales)[i]);
  }
  return token;
}

#ifdef __AVX512VBMI__
// 64 codes times a scale that is a power of two: the exponents are added, where all stays exact and normal.
struct CodesTimesPower {
  static constexpr Fp8Bytes<Dtype::f8e4m3> TABLE{};
  const __m512i low0 = _mm512_load_si512(TABLE.low), low1 = _mm512_load_si512(TABLE.low + 64);
  const __m512i high0 = _mm512_load_si512(TABLE.high), high1 = _mm512_load_si512(TABLE.high + 64);
  const __m512i sign = _mm512_set1_epi8(char(0x80)), size = _mm512_set1_epi8(0x7F);
  // Ahead of what VPUNPCK does in each 128 bits.
  const __m512i for_words = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);

  // False where a code is NaN; power: the scale's exponent, in bits of bf16.
  [[gnu::always_inline]] bool store(const uint8_t* codes, int power, uint16_t* numbers) const {
    const __m512i code = _mm512_permutexvar_epi64(for_words, _mm512_loadu_si512(codes));
    if (_mm512_cmpeq_epi8_mask(_mm512_and_si512(code, size), size)) [[unlikely]]
      return false;
    const __m512i low = _mm512_permutex2var_epi8(low0, code, low1);
    const __m512i magnitude = _mm512_permutex2var_epi8(high0, code, high1);
    const __m512i high = _mm512_ternarylogic_epi32(magnitude, code, sign, 0xF8);  // magnitude | (code & sign)
    const __m512i added = _mm512_set1_epi16(short(power));
    DSF_UNROLL
    for (int half = 0; half < 2; ++half) {
      const __m512i word = half ? _mm512_unpackhi_epi8(low, high) : _mm512_unpacklo_epi8(low, high);
      const __mmask32 is_not_zero = _mm512_test_epi16_mask(word, _mm512_set1_epi16(0x7FFF));
      _mm512_storeu_si512(numbers + 32 * half, _mm512_mask_add_epi16(word, is_not_zero, word, added));
    }
    return true;
  }
};

// The exponent of a scale that keeps all codes normal numbers; false for any other scale.
inline bool power_of(float scale, int* power) {
  uint32_t bits;
  std::memcpy(&bits, &scale, 4);
  *power = (int(bits >> 23) - 127) * 128;
  return !(bits & 0x7FFFFF) && scale >= 0x1p-100f && scale <= 0x1p100f;
}
#endif

template <class V>
inline void decode_tile(const uint8_t* codes, int64_t n, float scale, uint16_t* numbers) {
  const auto factor = V::set1(scale);
  for (int64_t i = 0; i < n; i += V::LANES) {
    const auto product = V::mul(fp8_to_f32<V, Dtype::f8e4m3>(V::load_u8(codes + i)), factor);
    V::store_bf16_n(numbers + i, product, V::LANES);
  }
}

template <class V>
inline void decode_token(CacheLayout layout, const void* data, const void* scales, uint16_t* numbers) {
  const Token token = token_of(layout, data, scales);
#ifdef __AVX512VBMI__
  const CodesTimesPower fast;
#endif
  for (int64_t begin = 0; begin < token.coded; begin += token.tile) {
    const float scale = token.scales[begin / token.tile];
    const uint8_t* codes = token.codes + begin;
    int64_t done = 0;
#ifdef __AVX512VBMI__
    int power;
    if (power_of(scale, &power)) [[likely]]
      while (done < token.tile && fast.store(codes + done, power, numbers + begin + done)) done += 64;
#endif
    decode_tile<V>(codes + done, token.tile - done, scale, numbers + begin + done);
  }
  std::memcpy(numbers + token.coded, token.kept, size_t(token.kept_numbers) * 2);
}

}  // namespace
}  // namespace dsf::sparse_mla
