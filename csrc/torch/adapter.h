// From torch's stable tensors to the core's views and contexts.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <string>
#include <vector>

#include "csrc/core/check.h"
#include "csrc/core/context.h"
#include "csrc/core/memory.h"

namespace dsf::torch_door {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Dtype dtype_of(ScalarType type);
// As torch's users write it: "float32".
const char* name_of(ScalarType type);
// The view borrows the tensor's sizes and strides: it lives no longer than the tensor.
TensorView view_of(const Tensor& tensor);
// Throws the sentence; Python turns it into a ValueError or TypeError.
[[noreturn]] void raise(const Problem& problem);

// Thrown by new_tensor, in place of the first result, and by end_if_only_checked, while a call is only checked (see
// dsf_torch_only_check).
inline constexpr const char* CHECKED = "deepseek_fast: checked";

// An argument of an operator: a tensor on the CPU, or none. While a call is only checked a tensor on any device, of
// which the checks see shape, strides and dtype, but no values: its data is null.
struct Operand {
  Operand(const char* op, const char* arg, const std::optional<Tensor>& tensor);
  // Copies where the memory is not rows of contiguous values at one distance; returns whether it did.
  bool make_rows();
  // Copies where the memory is not contiguous.
  bool make_contiguous();
  const TensorView* get() const { return tensor ? &view : nullptr; }

  static constexpr bool whole = true;  // strides count values

  const char* op;
  const char* arg;
  std::optional<Tensor> tensor;
  TensorView view{};

 private:
  bool copy();
};

// For an operator without a result of its own, after its checks: ends a call that is only checked.
void end_if_only_checked();

Tensor new_tensor(const std::vector<int64_t>& sizes, ScalarType dtype);
Tensor new_tensor(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, ScalarType dtype);

// torch's own threads, and scratch memory for one call.
class CallContext {
 public:
  CallContext();
  void reserve(const char* op, int64_t bytes);
  const Context* get() const { return &context_; }

 private:
  Context context_;
  Memory workspace_;
};

}  // namespace dsf::torch_door
