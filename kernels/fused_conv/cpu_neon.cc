#include "csrc/gemm/vec_neon.h"
#include "kernels/fused_conv/cpu_body.h"

namespace dsf::fused_conv {
const Kernel fused_conv_f32_neon = KERNEL<Dtype::f32>;
const Kernel fused_conv_bf16_neon = KERNEL<Dtype::bf16>;
const Kernel fused_conv_u8_neon = KERNEL<Dtype::u8>;
const Kernel fused_conv_s8_neon = KERNEL<Dtype::i8>;
}  // namespace dsf::fused_conv
