// The NumPy door of fused_matmul.
#include "csrc/python/linear.h"
#include "csrc/python/variants.h"
#include "kernels/fused_matmul/cpu.h"

namespace dsf::python_door {
namespace {

py::array fused_matmul(const py::object& x, const py::object& weight, const py::object& bias,
                       const std::string& activation, const py::object& residual, bool gated) {
  return run_linear(*dsf_fused_matmul_room(), {x, weight, py::none(), bias, residual, activation, "", gated});
}

}  // namespace

void bind_fused_matmul(py::module_& module, py::dict& variants) {
  module.def("fused_matmul", &fused_matmul, py::arg("x"), py::arg("weight"), py::arg("bias") = py::none(),
             py::kw_only(), py::arg("activation") = "none", py::arg("residual") = py::none(), py::arg("gated") = false);
  variants["fused_matmul"] = variants_of(dsf_fused_matmul_variant);
}

}  // namespace dsf::python_door
