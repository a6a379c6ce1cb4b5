#include "csrc/gemm/vec_avx512.h"
#include "kernels/int8_matmul/cpu_body.h"

namespace dsf::int8_matmul {
const Kernel int8_matmul_s8_nt_amx = kernel_of<AmxTileInt8<Vec>>;
}  // namespace dsf::int8_matmul
