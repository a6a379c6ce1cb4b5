#include "csrc/gemm/vec_avx512.h"
#include "kernels/block_sparse_attention/cpu_body.h"

namespace dsf::block_sparse_attention {
const Kernel block_sparse_attention_f32_avx512 = KERNEL<Dtype::f32>;
const Kernel block_sparse_attention_bf16_avx512 = KERNEL<Dtype::bf16>;
const Kernel block_sparse_attention_f16_avx512 = KERNEL<Dtype::f16>;
}  // namespace dsf::block_sparse_attention
