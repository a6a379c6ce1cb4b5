#include "csrc/gemm/vec_avx512.h"
#include "kernels/fp8_cast/cpu_body.h"

namespace dsf::fp8_cast {
const Kernel fp8_cast_f32_avx512 = kernel_of<Dtype::f32>;
const Kernel fp8_cast_bf16_avx512 = kernel_of<Dtype::bf16>;
const Kernel fp8_cast_f16_avx512 = kernel_of<Dtype::f16>;
}  // namespace dsf::fp8_cast
