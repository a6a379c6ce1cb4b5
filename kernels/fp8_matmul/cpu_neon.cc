#include "csrc/gemm/vec_neon.h"

#include "csrc/gemm/fp8_neon.h"
#include "kernels/fp8_matmul/cpu_body.h"

namespace dsf::fp8_matmul {
const Kernel fp8_matmul_f8_nt_neon = KERNEL;
}  // namespace dsf::fp8_matmul
