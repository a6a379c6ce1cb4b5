// Contract: ceiling.h. VDPBF16PS on 32 pairs of bf16.
#include "csrc/core/ceiling_loop.h"

#include <immintrin.h>

namespace dsf {

#define DSF_BF16_DOT(k) "vdpbf16ps %0, %1, %%zmm" #k "\n"
void ceiling_bf16_dot_avx512bf16(int64_t rounds) {
  const __m512i a = _mm512_set1_epi16(0x3f80);  // 1.0 in bf16
  const __m512i b = _mm512_set1_epi16(0x3f00);  // 0.5 in bf16
  DSF_CEILING_LOOP(rounds, DSF_BF16_DOT, a, b);
}

}  // namespace dsf
