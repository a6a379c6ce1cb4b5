#include "csrc/gemm/vec_scalar.h"
#include "kernels/fused_conv/cpu_body.h"

namespace dsf::fused_conv {
const Kernel fused_conv_f32_scalar = KERNEL<Dtype::f32>;
const Kernel fused_conv_bf16_scalar = KERNEL<Dtype::bf16>;
const Kernel fused_conv_u8_scalar = KERNEL<Dtype::u8>;
const Kernel fused_conv_s8_scalar = KERNEL<Dtype::i8>;
}  // namespace dsf::fused_conv
