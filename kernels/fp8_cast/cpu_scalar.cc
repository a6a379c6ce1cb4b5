#include "csrc/gemm/vec_scalar.h"
#include "kernels/fp8_cast/cpu_body.h"

namespace dsf::fp8_cast {
const Kernel fp8_cast_f32_scalar = kernel_of<Dtype::f32>;
const Kernel fp8_cast_bf16_scalar = kernel_of<Dtype::bf16>;
const Kernel fp8_cast_f16_scalar = kernel_of<Dtype::f16>;
}  // namespace dsf::fp8_cast
