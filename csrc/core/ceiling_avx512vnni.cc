// Contract: ceiling.h. VPDPBUSD on 64 pairs of u8 and s8.
#include "csrc/core/ceiling_loop.h"

#include <immintrin.h>

namespace dsf {

#define DSF_INT8_DOT(k) "vpdpbusd %0, %1, %%zmm" #k "\n"
void ceiling_int8_dot_avx512vnni(int64_t rounds) {
  const __m512i a = _mm512_set1_epi8(3);
  const __m512i b = _mm512_set1_epi8(5);
  DSF_CEILING_LOOP(rounds, DSF_INT8_DOT, a, b);
}

}  // namespace dsf
