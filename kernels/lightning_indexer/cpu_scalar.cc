#include "csrc/gemm/vec_scalar.h"

#include "kernels/lightning_indexer/cpu_body.h"

namespace dsf::lightning_indexer {
const Kernel lightning_indexer_f8e4m3_scalar = KERNEL;
}  // namespace dsf::lightning_indexer
