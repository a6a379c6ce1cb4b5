#include "csrc/gemm/vec_avx512.h"
#include "kernels/fused_conv/cpu_body.h"

namespace dsf::fused_conv {
const Kernel fused_conv_u8_avx512vnni = KERNEL<Dtype::u8>;
const Kernel fused_conv_s8_avx512vnni = KERNEL<Dtype::i8>;
}  // namespace dsf::fused_conv
