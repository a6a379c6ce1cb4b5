// The NumPy door of fp8_matmul.
#include "csrc/python/linear.h"
#include "csrc/python/variants.h"
#include "kernels/fp8_matmul/cpu.h"

namespace dsf::python_door {
namespace {

// Two integers; anything else is refused in the words of the check of their values.
Block block_from(const char* op, const py::object& block) {
  try {
    const auto [n, k] = block.cast<std::pair<int64_t, int64_t>>();
    return {n, k};
  } catch (const py::cast_error&) {
    Problem problem;
    dsf_block_error(op, std::string(py::repr(block)).c_str(), &problem);
    raise(problem);
  }
}

// The name of an FP8 dtype of ml_dtypes, given as such or by name.
std::string format_from(const char* op, const py::object& dtype) {
  const std::string name(py::str(py::hasattr(dtype, "__name__") ? dtype.attr("__name__") : dtype));
  if (name == "float8_e4m3fn" || name == "float8_e5m2") return name;
  throw py::type_error(std::string(op) + ": dtype must be float8_e4m3fn or float8_e5m2; got " + name);
}

py::array fp8_matmul(const py::object& x, const py::object& weight, const py::object& scale, const py::object& bias,
                     const py::object& block, const std::string& activation, const py::object& residual,
                     const std::string& activations, bool gated) {
  if (scale.is_none()) throw py::type_error("fp8_matmul: scale must be a NumPy array; got NoneType");
  const auto [n, k] = block_from("fp8_matmul", block);
  return run_linear(*dsf_fp8_matmul_room(), {x, weight, scale, bias, residual, activation, activations, gated, n, k});
}

py::tuple fp8_quantize_weight(const py::object& w, const py::object& block, const py::object& dtype) {
  constexpr const char* OP = "fp8_quantize_weight";
  Operand rows(OP, "w", w);
  if (!rows.present) throw py::type_error(std::string(OP) + ": w must be a NumPy array; got NoneType");
  const Block sizes = block_from(OP, block);
  const std::string format = format_from(OP, dtype);
  Problem problem;
  if (!dsf_fp8_quantize_weight_check(&rows.view, &sizes, dtype_of(format), &problem)) raise(problem);
  rows.make_rows();
  const int64_t N = rows.view.sizes[0], K = rows.view.sizes[1];
  const py::array codes(py::dtype::from_args(py::module_::import("ml_dtypes").attr(format.c_str())), {N, K});
  const py::array_t<float> scale({num_blocks(N, sizes.n), num_blocks(K, sizes.k)});
  auto* codes_data = static_cast<uint8_t*>(const_cast<void*>(codes.data()));
  auto* scale_data = const_cast<float*>(scale.data());
  bool done;
  {
    const py::gil_scoped_release unlocked;
    Context context{};
    context.num_threads = 1;
    done = dsf_fp8_quantize_weight(&context, &rows.view, &sizes, dtype_of(format), codes_data, scale_data, &problem);
  }
  if (!done) raise(problem);
  return py::make_tuple(codes, scale);
}

}  // namespace

void bind_fp8_matmul(py::module_& module, py::dict& variants) {
  module.def("fp8_matmul", &fp8_matmul, py::arg("x"), py::arg("weight"), py::arg("scale"), py::arg("bias") = py::none(),
             py::kw_only(), py::arg("block") = py::make_tuple(128, 128), py::arg("activation") = "none",
             py::arg("residual") = py::none(), py::arg("activations") = "float", py::arg("gated") = false);
  module.def("fp8_quantize_weight", &fp8_quantize_weight, py::arg("w"), py::kw_only(),
             py::arg("block") = py::make_tuple(128, 128), py::arg("dtype") = "float8_e4m3fn");
  variants["fp8_matmul"] = variants_of(dsf_fp8_matmul_variant);
}

}  // namespace dsf::python_door
