// From NumPy arrays to the core's views and contexts.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "csrc/core/check.h"
#include "csrc/core/context.h"
#include "csrc/core/memory.h"

namespace dsf::python_door {

namespace py = pybind11;

// By NumPy's name of it.
Dtype dtype_of(const std::string& name);

// An argument of a function: an array, or None.
struct Operand {
  Operand(const char* op, const char* arg, const py::object& value);  // raises TypeError where value is no array
  Operand(const Operand&) = delete;
  // Copies where the memory is not aligned rows of contiguous values at one distance; returns whether it did.
  bool make_rows();
  // Copies where the memory is not aligned or not contiguous.
  bool make_contiguous();
  const TensorView* get() const { return present ? &view : nullptr; }

  const char* op;
  const char* arg;
  bool present = false;
  py::array array;
  TensorView view{};
  bool whole = true;  // aligned, with strides that are multiples of the value's size: else view's mean nothing

 private:
  void read();
  bool copy();
  std::string dtype_name;
  std::vector<int64_t> sizes, strides;
};

// Raises the problem as ValueError, TypeError or RuntimeError.
[[noreturn]] void raise(const Problem& problem);

}  // namespace dsf::python_door
