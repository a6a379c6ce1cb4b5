// From torch's stable tensors to the core's views and contexts.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "csrc/core/check.h"
#include "csrc/core/context.h"

namespace dsf::torch_door {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The view borrows the tensor's sizes and strides: it lives no longer than the tensor.
TensorView view_of(const Tensor& tensor);
// The tensor itself where its memory is rows of contiguous values at one distance, else a contiguous copy.
Tensor as_rows(const Tensor& tensor);
// Throws the sentence; Python turns it into a ValueError or TypeError.
[[noreturn]] void raise(const Problem& problem);
void check_cpu(const char* op, const char* arg, const Tensor& tensor);

Tensor new_tensor(const std::vector<int64_t>& sizes, ScalarType dtype);

// torch's own threads, and scratch memory for one call.
class CallContext {
 public:
  CallContext();
  void reserve(int64_t bytes);
  const Context* get() const { return &context_; }

 private:
  Context context_;
  std::unique_ptr<void, decltype(&std::free)> workspace_{nullptr, &std::free};
};

}  // namespace dsf::torch_door
