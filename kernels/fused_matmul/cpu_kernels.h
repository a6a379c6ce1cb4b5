// The kernels behind cpu.h: pure functions over a range of work, one per row of variants.inc.
#pragma once
#include "kernels/fused_matmul/cpu.h"

namespace dsf::fused_matmul {

struct Kernel {
  // Rows [m_begin, m_end) of the output columns of one panel.
  void (*run)(const LinearArgs& args, int64_t m_begin, int64_t m_end, int64_t panel);
  WidenX widen;  // f16: run reads x as f32; else null
};

#define DSF_VARIANT(isa, dtype, kernel) extern const Kernel kernel;
#include "kernels/fused_matmul/variants.inc"
#undef DSF_VARIANT

}  // namespace dsf::fused_matmul
