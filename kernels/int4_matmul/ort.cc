// Int4Matmul(X, Q, S, Z?, B?, R?; activation, compute, group_size, in_features): Q and Z uint8, S float, T = float,
// bfloat16 or float16 for X, B and R.
#include "csrc/ort/linear.h"
#include "kernels/int4_matmul/cpu.h"

namespace dsf::ort_door {

void register_int4_matmul(OpList& ops) { add_linear(ops, {"Int4Matmul", dsf_int4_matmul_room(), true, "int8", true}); }

}  // namespace dsf::ort_door
