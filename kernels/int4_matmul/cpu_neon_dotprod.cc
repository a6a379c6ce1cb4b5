#include "csrc/gemm/vec_neon.h"
#include "kernels/int4_matmul/cpu_body.h"

namespace dsf::int4_matmul {
const Kernel int4_matmul_u4_nt_neon_dotprod = KERNEL;
}  // namespace dsf::int4_matmul
