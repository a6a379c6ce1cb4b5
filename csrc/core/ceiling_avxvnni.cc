// Contract: ceiling.h. VEX VPDPBUSD on 32 pairs of u8 and s8.
#include "csrc/core/ceiling_loop.h"

#include <immintrin.h>

namespace dsf {

#define DSF_INT8_DOT(k) "%{vex%} vpdpbusd %0, %1, %%ymm" #k "\n"
void ceiling_int8_dot_avxvnni(int64_t rounds) {
  const __m256i a = _mm256_set1_epi8(3);
  const __m256i b = _mm256_set1_epi8(5);
  DSF_CEILING_LOOP(rounds, DSF_INT8_DOT, a, b);
}

}  // namespace dsf
