#include "csrc/python/adapter.h"

namespace dsf::python_door {

Dtype dtype_of(const std::string& name) {
  if (name == "float32") return Dtype::f32;
  if (name == "bfloat16") return Dtype::bf16;  // ml_dtypes
  if (name == "float16") return Dtype::f16;
  if (name == "int8") return Dtype::i8;
  if (name == "uint8") return Dtype::u8;
  if (name == "float8_e4m3fn") return Dtype::f8e4m3;
  if (name == "float8_e5m2") return Dtype::f8e5m2;
  if (name == "float8_e4m3fnuz") return Dtype::f8e4m3fnuz;
  if (name == "float8_e5m2fnuz") return Dtype::f8e5m2fnuz;
  if (name == "float8_e8m0fnu") return Dtype::f8e8m0;
  if (name == "float4_e2m1fn_x2") return Dtype::f4e2m1x2;  // by name alone: NumPy has no such type
  if (name == "int32") return Dtype::i32;
  if (name == "int64") return Dtype::i64;
  return Dtype::other;
}

Operand::Operand(const char* op, const char* arg, const py::object& value) : op(op), arg(arg) {
  if (value.is_none()) return;
  if (!py::isinstance<py::array>(value))
    throw py::type_error(std::string(op) + ": " + arg + " must be a NumPy array; got " +
                         std::string(py::str(py::type::of(value).attr("__name__"))));
  present = true;
  array = py::reinterpret_borrow<py::array>(value);
  read();
}

void Operand::read() {
  const py::dtype dtype = array.dtype();
  // Byte-swapped values are none of our dtypes: their name is ">f4".
  dtype_name = dtype.attr("isnative").cast<bool>() ? py::str(dtype.attr("name")) : py::str(dtype);
  sizes.assign(array.shape(), array.shape() + array.ndim());
  strides.clear();
  whole = array.attr("flags").attr("aligned").cast<bool>();
  const py::ssize_t value_bytes = array.itemsize() ? array.itemsize() : 1;  // empty strings have none
  for (py::ssize_t d = 0; d < array.ndim(); ++d) {
    whole = whole && array.strides(d) % value_bytes == 0;
    strides.push_back(array.strides(d) / value_bytes);
  }
  view = {const_cast<void*>(array.data()), dtype_of(dtype_name), dtype_name.c_str(),
          int64_t(array.ndim()),           sizes.data(),         strides.data()};
}

bool Operand::make_rows() { return present && !(whole && (view.ndim == 0 || dsf_row_stride(&view) >= 0)) && copy(); }

bool Operand::make_contiguous() { return present && !(whole && is_contiguous(view)) && copy(); }

bool Operand::copy() {
  if (!dsf_fits_memory(array.size() * 4))
    throw std::runtime_error(std::string(op) + ": " + arg +
                             " must fit into memory once more, as contiguous rows; got too many elements");
  array =
      py::module_::import("numpy").attr("require")(array, py::none(), "CA").cast<py::array>();  // contiguous, aligned
  read();
  return true;
}

void raise(const Problem& problem) {
  if (problem.fault == Fault::type) throw py::type_error(problem.sentence);
  if (problem.fault == Fault::value) throw py::value_error(problem.sentence);
  throw std::runtime_error(problem.sentence);
}

}  // namespace dsf::python_door
