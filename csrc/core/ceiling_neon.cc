// Contract: ceiling.h. FMLA on 4 f32 lanes; exact int8 products, two to an int16, of which pairs are summed in int32.
#include "csrc/core/ceiling_loop.h"

#include <arm_neon.h>

namespace dsf {

#define DSF_FMA_F32(k) "fmla v" #k ".4s, %0.4s, %1.4s\n"
void ceiling_fma_f32_neon(int64_t rounds) {
  const float32x4_t a = vdupq_n_f32(1.0f);
  const float32x4_t b = vdupq_n_f32(0.5f);
  DSF_CEILING_LOOP(rounds, DSF_FMA_F32, a, b);
}

#define DSF_INT8_DOT(k) "smull v12.8h, %0.8b, %1.8b\n smlal v12.8h, %0.8b, %1.8b\n sadalp v" #k ".4s, v12.8h\n"
void ceiling_int8_dot_neon(int64_t rounds) {
  const int8x16_t a = vdupq_n_s8(3);
  const int8x16_t b = vdupq_n_s8(5);
  DSF_CEILING_LOOP(rounds, DSF_INT8_DOT, a, b);
}

}  // namespace dsf
