// The ONNX Runtime door of the linear rooms.
#pragma once
#include "csrc/gemm/linear.h"
#include "csrc/ort/custom_op.h"

namespace dsf::ort_door {

// A node: inputs X, weight, scale where it has one, then optional bias and residual; attributes activation, gated and,
// with a scale, activations. A room that packs its scale also has the attribute block, two integers. An int4 node has
// optional zero points after its scale, and the attributes compute, group_size and in_features in place of the last
// two.
struct LinearNode {
  const char* name;
  const LinearRoom* room;
  bool has_scale;
  const char* activations;  // without the attribute
  bool is_int4 = false;
};

// One operator for every type that X may have in a model; a wrong type too, so that it meets the room's own check.
void add_linear(OpList& ops, const LinearNode& node);

}  // namespace dsf::ort_door
