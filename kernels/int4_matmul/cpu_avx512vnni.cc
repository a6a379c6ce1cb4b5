#include "csrc/gemm/vec_avx512.h"
#include "kernels/int4_matmul/cpu_body.h"

namespace dsf::int4_matmul {
const Kernel int4_matmul_u4_nt_avx512vnni = KERNEL;
}  // namespace dsf::int4_matmul
