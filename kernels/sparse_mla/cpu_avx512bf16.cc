#include "csrc/gemm/vec_avx512.h"
#include "kernels/sparse_mla/cpu_body.h"

namespace dsf::sparse_mla {
const Kernel sparse_mla_f32_avx512bf16 = kernel_of<Dtype::f32>;
const Kernel sparse_mla_bf16_avx512bf16 = kernel_of<Dtype::bf16>;
const Kernel sparse_mla_f16_avx512bf16 = kernel_of<Dtype::f16>;
}  // namespace dsf::sparse_mla
