#include "csrc/gemm/vec_neon.h"
#include "kernels/fused_matmul/cpu_body.h"

namespace dsf::fused_matmul {
const Kernel fused_matmul_f32_nt_neon = run_f32;
const Kernel fused_matmul_bf16_nt_neon = run_bf16;
const Kernel fused_matmul_f16_nt_neon = run_f16;
}  // namespace dsf::fused_matmul
