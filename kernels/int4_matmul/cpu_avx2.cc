#include "csrc/gemm/vec_avx2.h"
#include "kernels/int4_matmul/cpu_body.h"

namespace dsf::int4_matmul {
const Kernel int4_matmul_u4_nt_avx2 = KERNEL;
}  // namespace dsf::int4_matmul
