#include "csrc/gemm/vec_avx2.h"
#include "kernels/fp8_cast/cpu_body.h"

namespace dsf::fp8_cast {
const Kernel fp8_cast_f32_avx2 = kernel_of<Dtype::f32>;
const Kernel fp8_cast_bf16_avx2 = kernel_of<Dtype::bf16>;
const Kernel fp8_cast_f16_avx2 = kernel_of<Dtype::f16>;
}  // namespace dsf::fp8_cast
