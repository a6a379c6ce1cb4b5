// FusedMatmul(X, W, B?, R?; activation): T = float, bfloat16 or float16 for all of them.
#include "csrc/ort/linear.h"
#include "kernels/fused_matmul/cpu.h"

namespace dsf::ort_door {

void register_fused_matmul(OpList& ops) { add_linear(ops, {"FusedMatmul", dsf_fused_matmul_room(), false, ""}); }

}  // namespace dsf::ort_door
