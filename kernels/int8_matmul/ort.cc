// Int8Matmul(X, Q, S, B?, R?; activation, activations): Q int8, S float, T = float, bfloat16 or float16 for X, B and R.
#include "csrc/ort/linear.h"
#include "kernels/int8_matmul/cpu.h"

namespace dsf::ort_door {

void register_int8_matmul(OpList& ops) { add_linear(ops, {"Int8Matmul", dsf_int8_matmul_room(), true, "int8"}); }

}  // namespace dsf::ort_door
