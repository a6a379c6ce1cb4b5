#include "csrc/gemm/vec_neon.h"
#include "kernels/block_sparse_attention/cpu_body.h"

namespace dsf::block_sparse_attention {
const Kernel block_sparse_attention_f32_neon = KERNEL<Dtype::f32>;
const Kernel block_sparse_attention_bf16_neon = KERNEL<Dtype::bf16>;
const Kernel block_sparse_attention_f16_neon = KERNEL<Dtype::f16>;
}  // namespace dsf::block_sparse_attention
