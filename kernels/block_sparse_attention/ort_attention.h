// What the nodes of this room share: their inputs as door.h takes them, and attributes of two numbers.
#pragma once
#include <cmath>
#include <limits>

#include "csrc/ort/custom_op.h"

namespace dsf::ort_door {
namespace {

constexpr int64_t DEFAULT_BLOCK = 128;  // tokens, of the attribute block_size

// An input as door.h takes it. What ONNX Runtime gives is contiguous.
struct InputTensor {
  std::optional<Tensor> tensor;
  TensorView view{};
  static constexpr bool whole = true;

  const TensorView* get() const { return is_here ? &view : nullptr; }
  bool make_contiguous() { return false; }
  void leave_out() { is_here = false; }

  bool is_here = false;
};

inline std::vector<int64_t> two_numbers(const char* op, const Node& node, const char* name,
                                        const std::vector<int64_t>& fallback) {
  std::vector<int64_t> found = node.attribute(name, fallback);
  if (found.size() == 2) return found;
  Problem problem{Fault::value, {}};
  std::snprintf(problem.sentence, sizeof problem.sentence, "%s: %s must be 2 numbers; got %.80s", op, name,
                node.tuple_text(name).c_str());
  fail(node.runtime, problem);
}

// NaN stands for the default.
inline std::optional<double> scale_of(const Node& node) {
  const float scale = node.attribute("scale", std::numeric_limits<float>::quiet_NaN());
  return std::isnan(scale) ? std::nullopt : std::optional<double>(scale);
}

}  // namespace
}  // namespace dsf::ort_door
