// How a room declares an ONNX Runtime operator: an OpSpec says its names, types and shapes, a Kernel does its work.
// kernels/<op>/ort.cc defines `void dsf::ort_door::register_<op>(OpList&)`; module.cc calls it for every room.
#pragma once
#include <functional>
#include <memory>

#include "csrc/ort/session.h"

namespace dsf::ort_door {

// One node of one session. Several runs may compute at the same time, so nothing in it changes after its creation.
class Kernel {
 public:
  virtual ~Kernel() = default;
  virtual void compute(const Call& call) const = 0;
};

struct Input {
  ONNXTensorElementDataType type;  // UNDEFINED: any
  bool optional;
};

// Operators of one name may differ in their types only: ONNX Runtime chooses by them.
struct OpSpec {
  const char* name;
  std::vector<Input> inputs;
  std::vector<ONNXTensorElementDataType> outputs;  // UNDEFINED: infer says it, from the node's attributes
  std::function<std::unique_ptr<Kernel>(const Node&)> create;
  std::function<void(const Shapes&)> infer;  // sets outputs' types and shapes; what it throws is ignored: unknown
};
using OpList = std::vector<OpSpec>;

// An OpSpec in the form that ONNX Runtime reads. Sessions keep pointers to it: it has to outlive them.
struct CustomOp : OrtCustomOp {
  CustomOp(const Runtime& runtime, OpSpec spec);
  CustomOp(const CustomOp&) = delete;

  const Runtime& runtime;
  const OpSpec spec;
};

}  // namespace dsf::ort_door
