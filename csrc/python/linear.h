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
};

py::array run_linear(const LinearRoom& room, const LinearArrays& arrays);

}  // namespace dsf::python_door
