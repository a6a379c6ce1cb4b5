#include "csrc/python/adapter.h"

namespace dsf::python_door {
namespace {

Dtype dtype_of(const std::string& name) {
  if (name == "float32") return Dtype::f32;
  if (name == "bfloat16") return Dtype::bf16;  // ml_dtypes
  if (name == "int8") return Dtype::i8;
  if (name == "uint8") return Dtype::u8;
  return Dtype::other;
}

}  // namespace

Rows::Rows(const char* op, const char* arg, const py::object& value) {
  if (value.is_none()) return;
  if (!py::isinstance<py::array>(value))
    throw py::type_error(std::string(op) + ": " + arg + " must be a NumPy array; got " +
                         std::string(py::str(py::type::of(value).attr("__name__"))));
  present = true;
  array = py::reinterpret_borrow<py::array>(value);
  dtype_name = py::str(array.dtype().attr("name"));
  const auto read = [this] {
    sizes.assign(array.shape(), array.shape() + array.ndim());
    strides.clear();
    bool whole = array.attr("flags").attr("aligned").cast<bool>();
    for (py::ssize_t d = 0; d < array.ndim(); ++d) {
      whole = whole && array.strides(d) % array.itemsize() == 0;
      strides.push_back(array.strides(d) / array.itemsize());
    }
    view = {const_cast<void*>(array.data()), dtype_of(dtype_name), dtype_name.c_str(),
            int64_t(array.ndim()),           sizes.data(),         strides.data()};
    return whole;
  };
  const bool native = array.dtype().attr("isnative").cast<bool>();
  if (!native) dtype_name = py::str(array.dtype());  // byte-swapped: no dtype of ours
  if (!read() || (view.ndim > 0 && dsf_row_stride(&view) < 0)) {
    array = py::module_::import("numpy").attr("ascontiguousarray")(array).cast<py::array>();
    read();
  }
}

void raise(const Problem& problem) {
  if (problem.fault == Fault::type) throw py::type_error(problem.sentence);
  if (problem.fault == Fault::value) throw py::value_error(problem.sentence);
  throw std::runtime_error(problem.sentence);
}

Memory allocate(const char* op, int64_t bytes) {
  constexpr size_t ALIGNMENT = 64;
  void* memory = bytes < 0 ? nullptr : std::aligned_alloc(ALIGNMENT, (size_t(bytes) / ALIGNMENT + 1) * ALIGNMENT);
  if (!memory)
    throw std::runtime_error(std::string(op) + ": workspace must fit into memory; got " + std::to_string(bytes) +
                             " bytes");
  return {memory, &std::free};
}

}  // namespace dsf::python_door
