#include "csrc/gemm/vec_avx2.h"
#include "kernels/fused_matmul/cpu_body.h"

namespace dsf::fused_matmul {
const Kernel fused_matmul_f32_nt_avx2 = run_f32;
const Kernel fused_matmul_bf16_nt_avx2 = run_bf16;
const Kernel fused_matmul_f16_nt_avx2 = run_f16;
}  // namespace dsf::fused_matmul
