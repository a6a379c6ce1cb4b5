#include "csrc/gemm/vec_avx512.h"

#include "kernels/lightning_indexer/cpu_body.h"

namespace dsf::lightning_indexer {
const Kernel lightning_indexer_f8e4m3_avx512 = KERNEL;
}  // namespace dsf::lightning_indexer
