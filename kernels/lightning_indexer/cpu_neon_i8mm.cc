#include "csrc/gemm/vec_neon.h"

#include "csrc/gemm/fp8_neon.h"
#include "kernels/lightning_indexer/cpu_body.h"

namespace dsf::lightning_indexer {
const Kernel lightning_indexer_f8e4m3_neon_i8mm = KERNEL;
}  // namespace dsf::lightning_indexer
