#include "csrc/gemm/vec_neon.h"
#include "kernels/fused_conv/cpu_body.h"

namespace dsf::fused_conv {
const Kernel fused_conv_bf16_neon_i8mm = KERNEL<Dtype::bf16>;
}  // namespace dsf::fused_conv
