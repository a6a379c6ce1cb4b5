// Fp8Matmul(X, W, S, B?, R?; activation, activations, block): W float8e4m3fn or float8e5m2, S float.
#include "csrc/ort/linear.h"
#include "kernels/fp8_matmul/cpu.h"

namespace dsf::ort_door {

void register_fp8_matmul(OpList& ops) { add_linear(ops, {"Fp8Matmul", dsf_fp8_matmul_room(), true, "float"}); }

}  // namespace dsf::ort_door
