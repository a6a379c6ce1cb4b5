// The kernels behind cpu.h: pure functions over a range of work, one per row of variants.inc.
#pragma once
#include "kernels/fused_matmul/cpu.h"

namespace dsf::fused_matmul {

// Rows [m_begin, m_end) of the output columns of one panel.
using Kernel = void (*)(const LinearArgs& args, int64_t m_begin, int64_t m_end, int64_t panel);

#define DSF_VARIANT(isa, dtype, kernel) extern const Kernel kernel;
#include "kernels/fused_matmul/variants.inc"
#undef DSF_VARIANT

}  // namespace dsf::fused_matmul
