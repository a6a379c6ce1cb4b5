// The NumPy door of the linear rooms: one thread, no torch.
#pragma once
#include "csrc/gemm/linear.h"
#include "csrc/python/adapter.h"

namespace dsf::python_door {

struct LinearArrays {
  const py::object& x;
  const py::object& weight;
  const py::object& scale;  // None for a room without
  const py::object& bias;
  const py::object& residual;
  std::string activation;
  std::string activations;
  bool gated;
  int64_t block_n = -1;  // of a room with blocks of scales
  int64_t block_k = -1;
  py::object zeros = py::none();  // of a room with zero points
  int64_t in_features = -1;       // of a room whose weight holds two values a byte
};

py::array run_linear(const LinearRoom& room, const LinearArrays& arrays);

}  // namespace dsf::python_door
