#include "csrc/gemm/vec_neon.h"
#include "kernels/int8_matmul/cpu_body.h"

namespace dsf::int8_matmul {
const Kernel int8_matmul_s8_nt_neon_dotprod = kernel_of<TileInt8Dot<Vec, int8_t>>;
}  // namespace dsf::int8_matmul
