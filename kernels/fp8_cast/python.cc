// The NumPy door of fp8_cast and its family. NumPy has no FP4 of two values a byte: such codes are uint8 arrays.
#include <algorithm>

#include "csrc/python/adapter.h"
#include "csrc/python/variants.h"
#include "kernels/fp8_cast/door.h"

namespace dsf::python_door {
namespace {

constexpr const char* FP4 = "float4_e2m1fn_x2";

// The name of a dtype, of ml_dtypes, NumPy, or given as text.
std::string name_of(const py::object& dtype) {
  return std::string(py::str(py::hasattr(dtype, "__name__") ? dtype.attr("__name__")
                             : py::hasattr(dtype, "name")   ? dtype.attr("name")
                                                            : dtype));
}

py::array new_array(const std::string& name, const std::vector<int64_t>& sizes) {
  static const char* const OF_NUMPY[] = {"float32", "float16", "int8", "int32", "uint8"};
  const std::string found = name == FP4 ? "uint8" : name;
  const bool numpy = std::find(std::begin(OF_NUMPY), std::end(OF_NUMPY), found) != std::end(OF_NUMPY);
  const py::object type = py::module_::import(numpy ? "numpy" : "ml_dtypes").attr(found.c_str());
  return py::array(py::dtype::from_args(type), sizes);
}

void present(const Operand& operand) {
  if (!operand.present)
    throw py::type_error(std::string(operand.op) + ": " + operand.arg + " must be a NumPy array; got NoneType");
}

// (rows, columns), or None where there may be no block.
void set_block(const char* op, const py::object& block, bool or_none, CastOptions* options) {
  options->plain = or_none && block.is_none();
  if (options->plain) return;
  try {
    const auto [rows, columns] = block.cast<std::pair<int64_t, int64_t>>();
    options->block_rows = rows;
    options->block_cols = columns;
  } catch (const py::cast_error&) {
    throw py::value_error(std::string(op) + ": block must be two positive numbers, or -1 for all; got " +
                          std::string(py::repr(block)));
  }
}

const char* scale_name(const CastArgs& args) {
  if (args.layout == ScaleLayout::packed) return "int32";
  return args.kind == ScaleKind::ue8m0 ? "float8_e8m0fnu" : args.kind == ScaleKind::e4m3 ? "float8_e4m3fn" : "float32";
}

// times: again and again, for benchmarks.
void run(const CastArgs& args, int64_t times = 1) {
  const py::gil_scoped_release unlocked;
  Context context{};
  context.num_threads = 1;
  const Memory workspace("fp8_cast", dsf_fp8_cast_workspace_bytes(&context, &args));
  context.workspace = workspace.data();
  for (int64_t i = 0; i < times; ++i) dsf_fp8_cast(&context, &args);
}

// With strides in elements, over memory that reaches as far.
py::array new_array(const std::string& name, const ScaleShape& shape) {
  int64_t values = 1;
  for (size_t d = 0; d < shape.sizes.size(); ++d) values += (shape.sizes[d] - 1) * shape.strides[d];
  if (std::find(shape.sizes.begin(), shape.sizes.end(), 0) != shape.sizes.end()) return new_array(name, shape.sizes);
  const py::array memory = new_array(name, {values});
  std::vector<int64_t> strides = shape.strides;
  for (int64_t& stride : strides) stride *= memory.itemsize();
  return py::array(memory.dtype(), shape.sizes, strides, memory.data(), memory);
}

py::tuple cast(const char* op, CastSource source, CastOptions options, const py::object& dtype,
               const py::object& x_array, const py::object& weight_array, const py::object& given_array,
               const py::object& tensor_scale_array, double eps = 0, int64_t times = 1) {
  Operand x(op, "x", x_array), weight(op, "weight", weight_array), given(op, "scale", given_array);
  Operand tensor_scale(op, "tensor_scale", tensor_scale_array);
  present(x);
  if (source == CastSource::rms_norm) present(weight);
  const std::string format = name_of(dtype);
  CastCall call = cast_call(op, source, options, dtype_of(format), format.c_str());
  call.eps = float(eps);
  CastArgs args = checked_cast<Operand>(&call, x, &weight, &given, &tensor_scale, raise);
  const ScaleShape shape = scale_shape_of(call, &args);
  std::vector<int64_t> sizes(call.x.sizes, call.x.sizes + call.x.ndim);
  sizes.back() = call.dtype == Dtype::f4e2m1x2 ? args.K / 2 : args.K;
  const py::array codes = new_array(format, sizes), scale = new_array(scale_name(args), shape);
  args.codes = const_cast<void*>(codes.data());
  args.scale = const_cast<void*>(scale.data());
  run(args, times);
  return py::make_tuple(codes, given.present ? given_array : py::object(scale));
}

py::tuple fp8_cast_repeated(const py::object& x, const py::object& block, const py::object& dtype,
                            const py::object& scale, const std::string& mode, bool saturate,
                            const std::string& out_layout, const py::object& tensor_scale, const std::string& rounding,
                            int64_t seed, int64_t times) {
  CastOptions options{0, 0, false, "f32", mode, saturate, out_layout, rounding, seed};
  set_block("fp8_cast", block, true, &options);
  const bool is_text = py::isinstance<py::str>(scale);
  if (is_text) options.scale = scale.cast<std::string>();
  return cast("fp8_cast", CastSource::x, options, dtype, x, py::none(), is_text ? py::none() : scale, tensor_scale, 0,
              times);
}

py::tuple silu_mul_cast(const py::object& x, const py::object& block, const py::object& dtype, const std::string& scale,
                        const std::string& mode, const std::string& out_layout, const py::object& tensor_scale,
                        const std::string& rounding, int64_t seed) {
  CastOptions options{0, 0, false, scale, mode, true, out_layout, rounding, seed};
  set_block("silu_mul_cast", block, false, &options);
  return cast("silu_mul_cast", CastSource::silu_mul, options, dtype, x, py::none(), py::none(), tensor_scale);
}

py::tuple rms_norm_cast(const py::object& x, const py::object& weight, double eps, const py::object& block,
                        const py::object& dtype, const std::string& scale, const std::string& mode,
                        const std::string& out_layout, const py::object& tensor_scale, const std::string& rounding,
                        int64_t seed) {
  CastOptions options{0, 0, false, scale, mode, true, out_layout, rounding, seed};
  set_block("rms_norm_cast", block, false, &options);
  return cast("rms_norm_cast", CastSource::rms_norm, options, dtype, x, weight, py::none(), tensor_scale, eps);
}

py::tuple fp8_cast_transposed(const py::object& x_array, const py::object& block, const py::object& dtype,
                              const std::string& scale, const std::string& mode, bool saturate) {
  constexpr const char* OP = "fp8_cast_transposed";
  CastOptions options{0, 0, false, scale, mode, saturate, "row", "nearest", 0};
  set_block(OP, block, false, &options);
  Operand x(OP, "x", x_array);
  present(x);
  const std::string format = name_of(dtype);
  CastCall call = cast_call(OP, CastSource::x, options, dtype_of(format), format.c_str());
  call.pair = true;
  CastArgs args = checked_cast<Operand>(&call, x, nullptr, nullptr, nullptr, raise);
  const ScaleShape shape = scale_shape_of(call, &args);
  const int64_t down = args.M / args.block_cols + (args.M % args.block_cols != 0);
  const py::array codes = new_array(format, {args.M, args.K}), codes_t = new_array(format, {args.K, args.M});
  const py::array scales = new_array(scale_name(args), shape.sizes),
                  scales_t = new_array(scale_name(args), {args.K, down});
  args.codes = const_cast<void*>(codes.data());
  args.scale = const_cast<void*>(scales.data());
  args.codes_t = const_cast<void*>(codes_t.data());
  args.scale_t = const_cast<void*>(scales_t.data());
  run(args);
  return py::make_tuple(codes, scales, codes_t, scales_t);
}

py::array fp8_amax(const py::object& x_array, const py::object& block) {
  constexpr const char* OP = "fp8_amax";
  CastOptions options{0, 0, false, "f32", "deepgemm", true, "row", "nearest", 0};
  set_block(OP, block, false, &options);
  Operand x(OP, "x", x_array);
  present(x);
  CastCall call = cast_call(OP, CastSource::x, options, Dtype::f8e4m3, "float8_e4m3fn");
  call.amax_only = true;
  CastArgs args = checked_cast<Operand>(&call, x, nullptr, nullptr, nullptr, raise);
  const ScaleShape shape = scale_shape_of(call, &args);
  const py::array amax = new_array("float32", shape.sizes);
  args.scale = const_cast<void*>(amax.data());
  run(args);
  return amax;
}

// fp4: codes are bytes of two values.
py::array fp8_dequantize_repeated(const py::object& codes_array, const py::object& scale_array, const py::object& block,
                                  const py::object& dtype, const py::object& tensor_scale_array, int64_t times) {
  constexpr const char* OP = "fp8_dequantize";
  CastOptions options{-1, -1, false, "", "", false, "", "", 0};
  set_block(OP, block, true, &options);
  Operand codes(OP, "codes", codes_array), scale(OP, "scale", scale_array);
  Operand tensor_scale(OP, "tensor_scale", tensor_scale_array);
  present(codes);
  const std::string name = name_of(dtype);
  DequantizeArgs args;
  const auto check = [&] {
    DequantizeCall call{codes.view,     scale.get(),  options.block_rows, options.block_cols,
                        dtype_of(name), name.c_str(), tensor_scale.get()};
    if (call.codes.dtype == Dtype::u8) call.codes.dtype = Dtype::f4e2m1x2;
    Problem problem;
    if (!dsf_fp8_dequantize_check(&call, &args, &problem)) raise(problem);
  };
  check();
  bool copied = codes.make_rows();
  if (scale.present && (scale.view.ndim != 2 || !scale.whole)) copied |= scale.make_rows();
  if (copied) check();
  std::vector<int64_t> sizes(codes.view.sizes, codes.view.sizes + codes.view.ndim);
  sizes.back() = args.K;
  const py::array y = new_array(name, sizes);
  args.y = const_cast<void*>(y.data());
  {
    const py::gil_scoped_release unlocked;
    Context context{};
    context.num_threads = 1;
    for (int64_t i = 0; i < times; ++i) dsf_fp8_dequantize(&context, &args);
  }
  return y;
}

py::tuple fp8_cast(const py::object& x, const py::object& block, const py::object& dtype, const py::object& scale,
                   const std::string& mode, bool saturate, const std::string& out_layout,
                   const py::object& tensor_scale, const std::string& rounding, int64_t seed) {
  return fp8_cast_repeated(x, block, dtype, scale, mode, saturate, out_layout, tensor_scale, rounding, seed, 1);
}

py::array fp8_dequantize(const py::object& codes, const py::object& scale, const py::object& block,
                         const py::object& dtype, const py::object& tensor_scale) {
  return fp8_dequantize_repeated(codes, scale, block, dtype, tensor_scale, 1);
}

py::tuple int8_cast(const py::object& x_array) {
  Operand x("int8_cast", "x", x_array);
  present(x);
  Int8CastArgs args;
  const auto check = [&] {
    Problem problem;
    if (!dsf_int8_cast_check(&x.view, &args, &problem)) raise(problem);
  };
  check();
  if (x.make_rows()) check();
  std::vector<int64_t> sizes(x.view.sizes, x.view.sizes + x.view.ndim);
  const py::array q = new_array("int8", sizes);
  sizes.back() = 1;
  const py::array scale = new_array("float32", sizes);
  args.q = static_cast<int8_t*>(const_cast<void*>(q.data()));
  args.scale = static_cast<float*>(const_cast<void*>(scale.data()));
  {
    const py::gil_scoped_release unlocked;
    Context context{};
    context.num_threads = 1;
    dsf_int8_cast(&context, &args);
  }
  return py::make_tuple(q, scale);
}

}  // namespace

void bind_fp8_cast(py::module_& module, py::dict& variants) {
  const auto block = py::arg("block") = py::make_tuple(1, 128);
  const auto dtype = py::arg("dtype") = "float8_e4m3fn";
  const auto scale = py::arg("scale") = "f32";
  const auto mode = py::arg("mode") = "deepgemm";
  const auto saturate = py::arg("saturate") = true;
  const auto out_layout = py::arg("out_layout") = "row";
  const auto tensor_scale = py::arg("tensor_scale") = py::none();
  const auto rounding = py::arg("rounding") = "nearest";
  const auto seed = py::arg("seed") = 0;
  module.def("fp8_cast", &fp8_cast, py::arg("x"), py::kw_only(), block, dtype, scale, mode, saturate, out_layout,
             tensor_scale, rounding, seed);
  module.def("silu_mul_cast", &silu_mul_cast, py::arg("x"), py::kw_only(), block, dtype, scale, mode, out_layout,
             tensor_scale, rounding, seed);
  module.def("rms_norm_cast", &rms_norm_cast, py::arg("x"), py::arg("weight"), py::kw_only(), py::arg("eps") = 1e-6,
             block, dtype, scale, mode, out_layout, tensor_scale, rounding, seed);
  module.def("fp8_cast_transposed", &fp8_cast_transposed, py::arg("x"), py::kw_only(), block, dtype, scale, mode,
             saturate);
  module.def("fp8_amax", &fp8_amax, py::arg("x"), py::kw_only(), block);
  module.def("fp8_dequantize", &fp8_dequantize, py::arg("codes"), py::arg("scale") = py::none(), py::kw_only(), block,
             py::arg("dtype") = "float32", tensor_scale);
  // The kernel alone, so many times: for benchmarks.
  module.def("fp8_cast_repeated", &fp8_cast_repeated, py::arg("x"), py::kw_only(), block, dtype, scale, mode, saturate,
             out_layout, tensor_scale, rounding, seed, py::arg("times"));
  module.def("fp8_dequantize_repeated", &fp8_dequantize_repeated, py::arg("codes"), py::arg("scale") = py::none(),
             py::kw_only(), block, py::arg("dtype") = "float32", tensor_scale, py::arg("times"));
  module.def("int8_cast", &int8_cast, py::arg("x"));
  variants["fp8_cast"] = variants_of(dsf_fp8_cast_variant);
}

}  // namespace dsf::python_door
