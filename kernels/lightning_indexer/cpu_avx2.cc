#include "csrc/gemm/vec_avx2.h"

#include "kernels/lightning_indexer/cpu_body.h"

namespace dsf::lightning_indexer {
const Kernel lightning_indexer_f8e4m3_avx2 = KERNEL;
}  // namespace dsf::lightning_indexer
