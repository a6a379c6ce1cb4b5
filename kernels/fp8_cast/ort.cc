#include "csrc/ort/custom_op.h"
namespace dsf::ort_door {
void register_fp8_cast(OpList&) {}
}  // namespace dsf::ort_door
