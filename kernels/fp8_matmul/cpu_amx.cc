#include "csrc/gemm/vec_avx512.h"
#include "kernels/fp8_matmul/cpu_body.h"

namespace dsf::fp8_matmul {
const Kernel fp8_matmul_f8_nt_amx = KERNEL;
}  // namespace dsf::fp8_matmul
