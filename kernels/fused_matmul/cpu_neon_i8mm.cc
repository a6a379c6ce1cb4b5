#include "csrc/gemm/vec_neon.h"
#include "kernels/fused_matmul/cpu_body.h"

namespace dsf::fused_matmul {
const Kernel fused_matmul_bf16_nt_neon_i8mm = run_bf16;
}  // namespace dsf::fused_matmul
