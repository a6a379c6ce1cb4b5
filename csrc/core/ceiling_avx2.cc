// Contract: ceiling.h. VFMADD231PS on 8 f32 lanes; exact int8 products through VPMADDWD on 16 int16 lanes.
#include "csrc/core/ceiling_loop.h"

#include <immintrin.h>

namespace dsf {

#define DSF_FMA_F32(k) "vfmadd231ps %0, %1, %%ymm" #k "\n"
void ceiling_fma_f32_avx2(int64_t rounds) {
  const __m256 a = _mm256_set1_ps(1.0f);
  const __m256 b = _mm256_set1_ps(0.5f);
  DSF_CEILING_LOOP(rounds, DSF_FMA_F32, a, b);
}

#define DSF_INT8_DOT(k) "vpmaddwd %0, %1, %%ymm12\n vpaddd %%ymm12, %%ymm" #k ", %%ymm" #k "\n"
void ceiling_int8_dot_avx2(int64_t rounds) {
  const __m256i a = _mm256_set1_epi16(3);
  const __m256i b = _mm256_set1_epi16(5);
  DSF_CEILING_LOOP(rounds, DSF_INT8_DOT, a, b);
}

uint64_t ceiling_read_avx2(const void* data, int64_t bytes) {
  const char* from = static_cast<const char*>(data);
  __m256i fold[4];
  for (__m256i& part : fold) part = _mm256_setzero_si256();
  for (int64_t at = 0; at < bytes; at += 128) {
    for (int64_t part = 0; part < 4; ++part) {
      fold[part] =
          _mm256_xor_si256(fold[part], _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + at + 32 * part)));
    }
  }
  const __m256i all = _mm256_xor_si256(_mm256_xor_si256(fold[0], fold[1]), _mm256_xor_si256(fold[2], fold[3]));
  const __m128i half = _mm_xor_si128(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
  return static_cast<uint64_t>(_mm_cvtsi128_si64(_mm_xor_si128(half, _mm_unpackhi_epi64(half, half))));
}

}  // namespace dsf
