// From NumPy arrays to the core's views and contexts.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "csrc/core/check.h"
#include "csrc/core/context.h"

namespace dsf::python_door {

namespace py = pybind11;

// An array as the kernels read it: its memory where that is aligned rows of contiguous values, else a contiguous copy.
struct Rows {
  py::array array;
  std::string dtype_name;
  std::vector<int64_t> sizes, strides;
  TensorView view{};

  // Raises TypeError where value is no array; None gives an absent one, whose get() is null.
  Rows(const char* op, const char* arg, const py::object& value);
  Rows(const Rows&) = delete;
  const TensorView* get() const { return present ? &view : nullptr; }

  bool present = false;
};

// Raises the problem as ValueError, TypeError or RuntimeError.
[[noreturn]] void raise(const Problem& problem);

using Memory = std::unique_ptr<void, decltype(&std::free)>;
// 64-byte aligned; raises RuntimeError where there is none.
Memory allocate(const char* op, int64_t bytes);

}  // namespace dsf::python_door
