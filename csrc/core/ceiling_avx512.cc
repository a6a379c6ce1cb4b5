// Contract: ceiling.h. VFMADD231PS on 16 f32 lanes; exact int8 products through VPMADDWD on 32 int16 lanes.
#include "csrc/core/ceiling_loop.h"

#include <immintrin.h>

namespace dsf {

#define DSF_FMA_F32(k) "vfmadd231ps %0, %1, %%zmm" #k "\n"
void ceiling_fma_f32_avx512(int64_t rounds) {
  const __m512 a = _mm512_set1_ps(1.0f);
  const __m512 b = _mm512_set1_ps(0.5f);
  DSF_CEILING_LOOP(rounds, DSF_FMA_F32, a, b);
}

#define DSF_INT8_DOT(k) "vpmaddwd %0, %1, %%zmm12\n vpaddd %%zmm12, %%zmm" #k ", %%zmm" #k "\n"
void ceiling_int8_dot_avx512(int64_t rounds) {
  const __m512i a = _mm512_set1_epi16(3);
  const __m512i b = _mm512_set1_epi16(5);
  DSF_CEILING_LOOP(rounds, DSF_INT8_DOT, a, b);
}

uint64_t ceiling_read_avx512(const void* data, int64_t bytes) {
  const char* from = static_cast<const char*>(data);
  __m512i fold[4];
  for (__m512i& part : fold) part = _mm512_setzero_si512();
  for (int64_t at = 0; at < bytes; at += 256) {
    for (int64_t part = 0; part < 4; ++part) {
      fold[part] = _mm512_xor_si512(fold[part], _mm512_loadu_si512(from + at + 64 * part));
    }
  }
  const __m512i all = _mm512_xor_si512(_mm512_xor_si512(fold[0], fold[1]), _mm512_xor_si512(fold[2], fold[3]));
  alignas(64) uint64_t lanes[8];
  _mm512_store_si512(lanes, all);
  return lanes[0] ^ lanes[1] ^ lanes[2] ^ lanes[3] ^ lanes[4] ^ lanes[5] ^ lanes[6] ^ lanes[7];
}

}  // namespace dsf
