// Numbers of 64 codes at a time with AVX-512 VBMI. What is left of a block goes through cpu_body.h's way.
#pragma once
#include "kernels/fp8_cast/encode_steps.h"

namespace dsf::fp8_cast {
namespace {

#if defined(__AVX512VBMI__)
// Numbers of 64 codes: two lookups of 128 entries make the low and the high byte of the bf16 that each code is.
template <Dtype format>
struct Numbers64 {
  static constexpr Fp8Bytes<format> TABLE{};
  const __m512i low0 = _mm512_load_si512(TABLE.low), low1 = _mm512_load_si512(TABLE.low + 64);
  const __m512i high0 = _mm512_load_si512(TABLE.high), high1 = _mm512_load_si512(TABLE.high + 64);
  const __m512i sign = _mm512_set1_epi8(char(0x80));
  // Ahead of what VPUNPCK does in each 128 bits: once for bytes to words, twice to the upper halves of dwords.
  const __m512i for_words = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
  const __m512i for_dwords = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);

  // bf16, as pairs of bytes in the order of the codes where they were permuted before.
  [[gnu::always_inline]] void words(__m512i code, __m512i (&word)[2]) const {
    __m512i low = _mm512_permutex2var_epi8(low0, code, low1);
    __m512i high = _mm512_permutex2var_epi8(high0, code, high1);
    high = _mm512_ternarylogic_epi32(high, code, sign, 0xF8);  // high | (code & sign)
    if constexpr (Format<format>::FNUZ) {
      const __mmask64 nan = _mm512_cmpeq_epi8_mask(code, sign);
      low = _mm512_mask_mov_epi8(low, nan, _mm512_set1_epi8(char(0xC0)));
      high = _mm512_mask_mov_epi8(high, nan, _mm512_set1_epi8(0x7F));
    }
    word[0] = _mm512_unpacklo_epi8(low, high);
    word[1] = _mm512_unpackhi_epi8(low, high);
  }
  [[gnu::always_inline]] void store_bf16(const uint8_t* codes, uint16_t* y) const {
    __m512i word[2];
    words(_mm512_permutexvar_epi64(for_words, _mm512_loadu_si512(codes)), word);
    _mm512_storeu_si512(y, word[0]);
    _mm512_storeu_si512(y + 32, word[1]);
  }
  [[gnu::always_inline]] void f32(const uint8_t* codes, __m512 (&number)[4]) const {
    __m512i word[2];
    words(_mm512_permutexvar_epi32(for_dwords, _mm512_loadu_si512(codes)), word);
    const __m512i zero = _mm512_setzero_si512();
    DSF_UNROLL
    for (int h = 0; h < 2; ++h) {
      number[2 * h] = _mm512_castsi512_ps(_mm512_unpacklo_epi16(zero, word[h]));
      number[2 * h + 1] = _mm512_castsi512_ps(_mm512_unpackhi_epi16(zero, word[h]));
    }
  }
};

// Products that are no subnormal numbers, which VCVTNE2PS2BF16 would take for zeros: the smallest code is 2^-17.
inline bool has_normal_products(float factor) { return factor >= 0x1p-100f; }

template <Dtype dtype>
[[gnu::always_inline]] inline void store64(void* y, int64_t i, const __m512 (&number)[4], bool normal) {
#ifdef __AVX512BF16__
  if (dtype == Dtype::bf16 && normal) {
    DSF_UNROLL
    for (int h = 0; h < 2; ++h)
      _mm512_storeu_si512(static_cast<uint16_t*>(y) + i + 32 * h,
                          __m512i(_mm512_cvtne2ps_pbh(number[2 * h + 1], number[2 * h])));
    return;
  }
#endif
  DSF_UNROLL
  for (int q = 0; q < 4; ++q) store_value<Vec, dtype>(y, i + 16 * q, number[q], 16);
}

// As many values from the first on as whole steps hold, of blocks that are multiples of a step, all or none.
template <Dtype dtype, Dtype format>
inline int64_t decode_steps(const uint8_t* codes, int64_t n, int64_t block, const float* factors, void* y) {
  int64_t i = 0;
  if constexpr (!Format<format>::FP4) {
    if (block < n && block % STEP) return 0;
    const Numbers64<format> numbers;
    if (dtype == Dtype::bf16 && !factors) {
      for (; i + STEP <= n; i += STEP) numbers.store_bf16(codes + i, static_cast<uint16_t*>(y) + i);
      return i;
    }
    for (int64_t end = 0; end < n;) {
      end = n - end < block ? n : end + block;
      const float value = factors ? *factors++ : 1.0f;
      const __m512 factor = _mm512_set1_ps(value);
      const bool normal = has_normal_products(value);
      for (; i + STEP <= end; i += STEP) {
        __m512 number[4];
        numbers.f32(codes + i, number);
        DSF_UNROLL
        for (int q = 0; q < 4; ++q) number[q] = _mm512_mul_ps(number[q], factor);
        store64<dtype>(y, i, number, normal);
      }
    }
  }
  return i;
}

#else
template <Dtype dtype, Dtype format>
inline int64_t decode_steps(const uint8_t*, int64_t, int64_t, const float*, void*) {
  return 0;
}
#endif

}  // namespace
}  // namespace dsf::fp8_cast
