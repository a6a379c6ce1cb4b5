#include "csrc/gemm/vec_avx2.h"
#include "kernels/fused_conv/cpu_body.h"

namespace dsf::fused_conv {
const Kernel fused_conv_u8_avxvnni = KERNEL<Dtype::u8>;
const Kernel fused_conv_s8_avxvnni = KERNEL<Dtype::i8>;
}  // namespace dsf::fused_conv
