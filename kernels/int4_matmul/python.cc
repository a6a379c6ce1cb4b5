// The NumPy door of int4_matmul.
#include "csrc/python/linear.h"
#include "csrc/python/variants.h"
#include "kernels/int4_matmul/cpu.h"

namespace dsf::python_door {
namespace {

py::array int4_matmul(const py::object& x, const py::object& q, const py::object& scale, const py::object& zeros,
                      const py::object& bias, int64_t group_size, int64_t in_features, const std::string& activation,
                      const py::object& residual, const std::string& compute, bool gated) {
  if (scale.is_none()) throw py::type_error("int4_matmul: scale must be a NumPy array; got NoneType");
  return run_linear(*dsf_int4_matmul_room(),
                    {x, q, scale, bias, residual, activation, compute, gated, 1, group_size, zeros, in_features});
}

py::tuple int4_quantize_weight(const py::object& w, int64_t group_size, bool symmetric) {
  Operand rows("int4_quantize_weight", "w", w);
  if (!rows.present) throw py::type_error("int4_quantize_weight: w must be a NumPy array; got NoneType");
  Problem problem;
  if (!dsf_int4_quantize_weight_check(&rows.view, group_size, &problem)) raise(problem);
  rows.make_rows();
  const int64_t N = rows.view.sizes[0], K = rows.view.sizes[1], groups = dsf_int4_groups(K, group_size);
  py::array_t<uint8_t> q({N, (K + 1) / 2}), zeros({N, groups});
  py::array_t<float> scale({N, groups});
  const Int4Weight target{q.mutable_data(), scale.mutable_data(), zeros.mutable_data()};
  bool done = false;
  {
    const py::gil_scoped_release unlocked;
    Context context{};
    context.num_threads = 1;
    done = dsf_int4_quantize_weight(&context, &rows.view, group_size, symmetric, &target, &problem);
  }
  if (!done) raise(problem);
  if (symmetric) return py::make_tuple(q, scale);
  return py::make_tuple(q, scale, zeros);
}

}  // namespace

void bind_int4_matmul(py::module_& module, py::dict& variants) {
  module.def("int4_matmul", &int4_matmul, py::arg("x"), py::arg("q"), py::arg("scale"), py::arg("zeros") = py::none(),
             py::arg("bias") = py::none(), py::kw_only(), py::arg("group_size") = 32, py::arg("in_features") = -1,
             py::arg("activation") = "none", py::arg("residual") = py::none(), py::arg("compute") = "int8",
             py::arg("gated") = false);
  module.def("int4_quantize_weight", &int4_quantize_weight, py::arg("w"), py::kw_only(), py::arg("group_size") = 32,
             py::arg("symmetric") = true);
  variants["int4_matmul"] = variants_of(dsf_int4_matmul_variant);
}

}  // namespace dsf::python_door
