#include "csrc/gemm/vec_avx2.h"
#include "kernels/int8_matmul/cpu_body.h"

namespace dsf::int8_matmul {
const Kernel int8_matmul_s8_nt_avxvnni = kernel_of<TileInt8Dot<Vec>>;
}  // namespace dsf::int8_matmul
