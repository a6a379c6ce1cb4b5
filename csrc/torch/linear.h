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
  bool gated;
  int64_t block_n = -1;  // of a room with blocks of scales
  int64_t block_k = -1;
  const std::optional<Tensor>* zeros = nullptr;  // of a room with zero points
  int64_t in_features = -1;                      // of a room whose weight holds two values a byte
};

Tensor run_linear(const LinearRoom& room, const LinearTensors& tensors);

// The packed form of a weight (N, K), a uint8 tensor; with its scale and zero points where the room packs those too.
Tensor pack_linear(const LinearRoom& room, const Tensor& weight, bool gated, const std::optional<Tensor>& scale = {},
                   int64_t block_n = -1, int64_t block_k = -1, const std::optional<Tensor>& zeros = {},
                   int64_t in_features = -1);

}  // namespace dsf::torch_door
