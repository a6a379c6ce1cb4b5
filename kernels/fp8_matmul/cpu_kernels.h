// The kernels behind cpu.h: pure functions over a range of work, one set per row of variants.inc.
#pragma once
#include "kernels/fp8_matmul/cpu.h"

namespace dsf::fp8_matmul {

// x in FP8 and its scales. The numbers are written as bf16, which holds every one of either format; rows of K values.
struct CastRows {
  uint16_t* values;
  float* scale;
  int64_t scale_stride;  // steps of 128 values a row
};

struct Kernel {
  // Rows [m_begin, m_end) of the output columns of one panel.
  void (*run)(const LinearArgs& args, int64_t m_begin, int64_t m_end, int64_t panel);
  WidenX widen;  // x of f16, for run
  // activations = "fp8": casts rows [m_begin, m_end) of x; then those rows of one panel.
  void (*cast)(const LinearArgs& args, int64_t m_begin, int64_t m_end, const CastRows& rows);
  void (*run_cast)(const LinearArgs& args, const CastRows& rows, int64_t m_begin, int64_t m_end, int64_t panel);
};

#define DSF_VARIANT(isa, dtype, kernel) extern const Kernel kernel;
#include "kernels/fp8_matmul/variants.inc"
#undef DSF_VARIANT

}  // namespace dsf::fp8_matmul
