// The NumPy door of int8_matmul.
#include "csrc/python/linear.h"
#include "csrc/python/variants.h"
#include "kernels/int8_matmul/cpu.h"

namespace dsf::python_door {
namespace {

py::array int8_matmul(const py::object& x, const py::object& q, const py::object& scale, const py::object& bias,
                      const std::string& activation, const py::object& residual, const std::string& activations,
                      bool gated) {
  if (scale.is_none()) throw py::type_error("int8_matmul: scale must be a NumPy array; got NoneType");
  return run_linear(*dsf_int8_matmul_room(), {x, q, scale, bias, residual, activation, activations, gated});
}

py::tuple int8_quantize_weight(const py::object& w) {
  Operand rows("int8_quantize_weight", "w", w);
  if (!rows.present) throw py::type_error("int8_quantize_weight: w must be a NumPy array; got NoneType");
  Problem problem;
  if (!dsf_int8_quantize_weight_check(&rows.view, &problem)) raise(problem);
  rows.make_rows();
  const int64_t N = rows.view.sizes[0], K = rows.view.sizes[1];
  py::array_t<int8_t> q({N, K});
  py::array_t<float> scale(N);
  int8_t* codes = q.mutable_data();
  float* scales = scale.mutable_data();
  {
    const py::gil_scoped_release unlocked;
    Context context{};
    context.num_threads = 1;
    dsf_int8_quantize_weight(&context, rows.view.dtype, rows.view.data, dsf_row_stride(&rows.view), N, K, codes,
                             scales);
  }
  return py::make_tuple(q, scale);
}

}  // namespace

void bind_int8_matmul(py::module_& module, py::dict& variants) {
  module.def("int8_matmul", &int8_matmul, py::arg("x"), py::arg("q"), py::arg("scale"), py::arg("bias") = py::none(),
             py::kw_only(), py::arg("activation") = "none", py::arg("residual") = py::none(),
             py::arg("activations") = "int8", py::arg("gated") = false);
  module.def("int8_quantize_weight", &int8_quantize_weight, py::arg("w"));
  variants["int8_matmul"] = variants_of(dsf_int8_matmul_variant);
}

}  // namespace dsf::python_door
