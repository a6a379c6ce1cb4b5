#include "csrc/gemm/vec_scalar.h"
#include "kernels/fp8_matmul/cpu_body.h"

namespace dsf::fp8_matmul {
const Kernel fp8_matmul_f8_nt_scalar = KERNEL;
}  // namespace dsf::fp8_matmul
