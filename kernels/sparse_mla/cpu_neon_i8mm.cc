#include "csrc/gemm/vec_neon.h"
#include "kernels/sparse_mla/cpu_body.h"

namespace dsf::sparse_mla {
const Kernel sparse_mla_bf16_neon_i8mm = kernel_of<Dtype::bf16>;
}  // namespace dsf::sparse_mla
