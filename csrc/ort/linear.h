// The ONNX Runtime door of the linear rooms.
#pragma once
#include "csrc/gemm/linear.h"
#include "csrc/ort/custom_op.h"

namespace dsf::ort_door {

// A node: inputs X, weight, scale where it has one, then optional bias and residual; attributes activation and, with a
// scale, activations.
struct LinearNode {
  const char* name;
  const LinearRoom* room;
  bool has_scale;
};

// One operator for every type that X may have in a model; a wrong type too, so that it meets the room's own check.
void add_linear(OpList& ops, const LinearNode& node);

}  // namespace dsf::ort_door
