// From torch's CUDA tensors to kernels: their view, new results on their device, torch's current stream.
#pragma once
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <vector>

#include "csrc/core/check.h"

namespace dsf::cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The view borrows the tensor's sizes and strides; its data is null, as a check on the host may not read it.
TensorView view_of(const Tensor& tensor);
// Uninitialized, on x's device.
Tensor new_tensor(const Tensor& x, const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides,
                  ScalarType dtype);
// Throws where this torch has no CUDA.
void* current_stream(const Tensor& x);

}  // namespace dsf::cuda
