// Contract: ceiling.h. SSE2 forms: 4 f32 lanes, 8 int16 lanes; a multiply-add takes two instructions. Of aarch64, what
// the compiler makes of the same loops: 4 f32 lanes, 4 int16 lanes.
#include "csrc/core/ceiling_loop.h"

#ifndef __aarch64__
#include <emmintrin.h>
#endif

namespace dsf {

#ifdef __aarch64__
typedef float f32x4 __attribute__((vector_size(16)));
typedef int16_t s16x8 __attribute__((vector_size(16)));
typedef uint64_t u64x2 __attribute__((vector_size(16)));

#define DSF_FMA_F32(k) "fmul v12.4s, %0.4s, %1.4s\n fadd v" #k ".4s, v" #k ".4s, v12.4s\n"
void ceiling_fma_f32_scalar(int64_t rounds) {
  const f32x4 a = {1.0f, 1.0f, 1.0f, 1.0f}, b = a / 2;
  DSF_CEILING_LOOP(rounds, DSF_FMA_F32, a, b);
}

#define DSF_INT8_DOT(k) "smlal v" #k ".4s, %0.4h, %1.4h\n"
void ceiling_int8_dot_scalar(int64_t rounds) {
  const s16x8 a = {3, 3, 3, 3, 3, 3, 3, 3}, b = a + 2;
  DSF_CEILING_LOOP(rounds, DSF_INT8_DOT, a, b);
}

uint64_t ceiling_read_scalar(const void* data, int64_t bytes) {
  const char* from = static_cast<const char*>(data);
  u64x2 fold[4] = {};
  for (int64_t at = 0; at < bytes; at += 64) {
    for (int64_t part = 0; part < 4; ++part) {
      u64x2 value;
      __builtin_memcpy(&value, from + at + 16 * part, sizeof value);
      fold[part] ^= value;
    }
  }
  const u64x2 all = fold[0] ^ fold[1] ^ fold[2] ^ fold[3];
  return all[0] ^ all[1];
}
#else

#define DSF_FMA_F32(k) "movaps %0, %%xmm12\n mulps %1, %%xmm12\n addps %%xmm12, %%xmm" #k "\n"
void ceiling_fma_f32_scalar(int64_t rounds) {
  const __m128 a = _mm_set1_ps(1.0f);
  const __m128 b = _mm_set1_ps(0.5f);
  DSF_CEILING_LOOP(rounds, DSF_FMA_F32, a, b);
}

#define DSF_INT8_DOT(k) "movdqa %0, %%xmm12\n pmaddwd %1, %%xmm12\n paddd %%xmm12, %%xmm" #k "\n"
void ceiling_int8_dot_scalar(int64_t rounds) {
  const __m128i a = _mm_set1_epi16(3);
  const __m128i b = _mm_set1_epi16(5);
  DSF_CEILING_LOOP(rounds, DSF_INT8_DOT, a, b);
}

uint64_t ceiling_read_scalar(const void* data, int64_t bytes) {
  const char* from = static_cast<const char*>(data);
  __m128i fold[4];
  for (__m128i& part : fold) part = _mm_setzero_si128();
  for (int64_t at = 0; at < bytes; at += 64) {
    for (int64_t part = 0; part < 4; ++part) {
      fold[part] = _mm_xor_si128(fold[part], _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + at + 16 * part)));
    }
  }
  const __m128i all = _mm_xor_si128(_mm_xor_si128(fold[0], fold[1]), _mm_xor_si128(fold[2], fold[3]));
  return static_cast<uint64_t>(_mm_cvtsi128_si64(_mm_xor_si128(all, _mm_unpackhi_epi64(all, all))));
}
#endif

}  // namespace dsf
