// The torch door of the linear rooms: tensors in, checked arguments, one call of the room.
#pragma once
#include "csrc/gemm/linear.h"
#include "csrc/torch/adapter.h"

namespace dsf::torch_door {

struct LinearTensors {
  const Tensor& x;
  const Tensor& weight;  // (N, K), or packed
  const std::optional<Tensor>& scale;
  const std::optional<Tensor>& bias;
  const std::optional<Tensor>& residual;
  std::string activation;
  std::string activations;  // "" for a room without
  bool weight_is_packed;
  int64_t out_features;  // packed only
};

Tensor run_linear(const LinearRoom& room, const LinearTensors& tensors);

// The packed form of a weight (N, K), a uint8 tensor.
Tensor pack_linear(const LinearRoom& room, const Tensor& weight);

}  // namespace dsf::torch_door
