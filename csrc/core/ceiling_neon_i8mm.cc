// Contract: ceiling.h. SMMLA, 2 x 8 times 8 x 2 of s8; BFDOT on 8 pairs of bf16.
#include "csrc/core/ceiling_loop.h"

#include <arm_neon.h>

namespace dsf {

#define DSF_INT8_DOT(k) "smmla v" #k ".4s, %0.16b, %1.16b\n"
void ceiling_int8_dot_neon_i8mm(int64_t rounds) {
  const int8x16_t a = vdupq_n_s8(3);
  const int8x16_t b = vdupq_n_s8(5);
  DSF_CEILING_LOOP(rounds, DSF_INT8_DOT, a, b);
}

#define DSF_BF16_DOT(k) "bfdot v" #k ".4s, %0.8h, %1.8h\n"
void ceiling_bf16_dot_neon_i8mm(int64_t rounds) {
  const int16x8_t a = vdupq_n_s16(0x3f80);  // 1.0 in bf16
  const int16x8_t b = vdupq_n_s16(0x3f00);  // 0.5 in bf16
  DSF_CEILING_LOOP(rounds, DSF_BF16_DOT, a, b);
}

}  // namespace dsf
