#include "csrc/gemm/vec_neon.h"
#include "kernels/block_sparse_attention/cpu_body.h"

namespace dsf::block_sparse_attention {
const Kernel block_sparse_attention_bf16_neon_i8mm = KERNEL<Dtype::bf16>;
}  // namespace dsf::block_sparse_attention
