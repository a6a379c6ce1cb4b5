// Contract: ceiling.h. SDOT on 16 pairs of s8.
#include "csrc/core/ceiling_loop.h"

#include <arm_neon.h>

namespace dsf {

#define DSF_INT8_DOT(k) "sdot v" #k ".4s, %0.16b, %1.16b\n"
void ceiling_int8_dot_neon_dotprod(int64_t rounds) {
  const int8x16_t a = vdupq_n_s8(3);
  const int8x16_t b = vdupq_n_s8(5);
  DSF_CEILING_LOOP(rounds, DSF_INT8_DOT, a, b);
}

}  // namespace dsf
