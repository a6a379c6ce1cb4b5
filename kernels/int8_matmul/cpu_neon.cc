#include "csrc/gemm/tile_int8_neon.h"
#include "csrc/gemm/vec_neon.h"
#include "kernels/int8_matmul/cpu_body.h"

namespace dsf::int8_matmul {
const Kernel int8_matmul_s8_nt_neon = kernel_of<TileInt8Pairs<Vec>>;
}  // namespace dsf::int8_matmul
