// The loop of a ceiling probe, in assembly so that the compiler neither drops nor spills any of it.
#pragma once
#include "csrc/core/ceiling.h"

// STEP(k) is the text of one multiply-add into accumulator register k; %0 and %1 are its inputs.
#define DSF_TWELVE(STEP) \
  STEP(0) STEP(1) STEP(2) STEP(3) STEP(4) STEP(5) STEP(6) STEP(7) STEP(8) STEP(9) STEP(10) STEP(11)

// a and b: vectors that stay in registers. Registers 0 to 11 accumulate, register 12 is for products.
#ifdef __aarch64__
#define DSF_CEILING_LOOP(rounds, STEP, a, b)         \
  for (int64_t round = 0; round < (rounds); ++round) \
  asm volatile(DSF_TWELVE(STEP)                      \
               :                                     \
               : "w"(a), "w"(b)                      \
               : "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "v12")
#else
#define DSF_CEILING_LOOP(rounds, STEP, a, b)                                                                       \
  for (int64_t round = 0; round < (rounds); ++round)                                                               \
  asm volatile(DSF_TWELVE(STEP)                                                                                    \
               :                                                                                                   \
               : "x"(a), "x"(b)                                                                                    \
               : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", \
                 "xmm12")
#endif

static_assert(dsf::CEILING_UNROLL == 12);
