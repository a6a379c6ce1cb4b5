// The NumPy door of fused_conv, pool2d and local_response_norm, for deepseek_fast/numpy.py, which turns windows into
// numbers.
#include <pybind11/stl.h>

#include "csrc/python/adapter.h"
#include "csrc/python/variants.h"
#include "kernels/fused_conv/door.h"

namespace dsf::python_door {
namespace {

using Numbers = std::vector<int64_t>;

void present(const Operand& operand) {
  if (!operand.present)
    throw py::type_error(std::string(operand.op) + ": " + operand.arg + " must be a NumPy array; got NoneType");
}

// With strides in elements, over memory without gaps.
py::array new_array(const py::dtype& dtype, const ResultShape& shape) {
  int64_t values = 1;
  for (const int64_t size : shape.sizes) values *= size;
  const py::array memory(dtype, std::vector<int64_t>{values});
  std::vector<int64_t> strides = shape.strides;
  for (int64_t& stride : strides) stride *= memory.itemsize();
  return py::array(dtype, shape.sizes, strides, memory.data(), memory);
}

struct ConvArrays {
  const py::object& x;
  const py::object& weight;  // plain or packed
  const py::object& bias;
  const py::object& residual;
  const py::object& weight_scale;
};

py::array run(ConvRequest* request, const ConvArrays& arrays, const py::object& out_dtype) {
  ConvCall& call = request->call;
  Operand x(call.op, "x", arrays.x), weight(call.op, call.weight_is_packed ? "packed" : "weight", arrays.weight);
  Operand bias(call.op, "bias", arrays.bias), residual(call.op, "residual", arrays.residual);
  Operand weight_scale(call.op, "weight_scale", arrays.weight_scale);
  present(x);
  present(weight);
  const Operand given(call.op, "x", arrays.x);
  ConvArgs args = checked_conv<Operand>(&call, {x, weight, bias, residual, weight_scale}, raise);
  ConvCall as_given = call;
  if (given.whole) as_given.x = given.view;
  const ResultShape shape = shape_of_result(call, result_layout(as_given), &args);
  const py::array y = new_array(out_dtype.is_none() ? x.array.dtype() : py::dtype::from_args(out_dtype), shape);
  args.y = const_cast<void*>(y.data());
  {
    const py::gil_scoped_release unlocked;
    Context context{};
    context.num_threads = 1;
    Memory workspace;
    run_conv(&context, call, &args, [&](int64_t bytes) {
      workspace = Memory(call.op, bytes);
      context.workspace = workspace.data();
    });
  }
  return y;
}

py::array fused_conv(const py::object& x, const py::object& weight, const py::object& bias, Numbers stride,
                     Numbers padding, Numbers dilation, int64_t groups, std::string activation,
                     std::vector<double> params, const py::object& residual, std::string residual_at, Numbers max_pool,
                     std::string algorithm) {
  ConvRequest request("fused_conv", false,
                      options_of(stride, padding, dilation, groups, activation, params, residual_at, max_pool, {},
                                 std::move(algorithm)),
                      raise);
  return run(&request, {x, weight, bias, residual, py::none()}, py::none());
}

py::array fused_conv_packed(const py::object& x, const py::object& packed, const py::object& bias, Numbers weight_shape,
                            Numbers stride, Numbers padding, Numbers dilation, int64_t groups, std::string activation,
                            std::vector<double> params, const py::object& residual, std::string residual_at,
                            Numbers max_pool) {
  ConvRequest request(
      "fused_conv_packed", true,
      options_of(stride, padding, dilation, groups, activation, params, residual_at, max_pool, std::move(weight_shape)),
      raise);
  return run(&request, {x, packed, bias, residual, py::none()}, py::none());
}

py::array fused_conv_pack(const py::object& weight_array, int64_t groups, const std::string& algorithm) {
  Operand weight("fused_conv_pack", "weight", weight_array);
  present(weight);
  if (!weight.whole) weight.make_rows();
  const ConvWeight given{weight.view, groups, algorithm.c_str()};
  Problem problem;
  if (!dsf_fused_conv_pack_check(&given, &problem)) raise(problem);
  const fused_conv::View4 full = fused_conv::view4(weight.view, weight.view.ndim - 2);
  const ConvWeight plain{fused_conv::view_of(full, weight.view), groups, algorithm.c_str()};
  const py::array packed(py::dtype("uint8"), Numbers{dsf_fused_conv_packed_bytes(&plain)});
  const py::gil_scoped_release unlocked;
  Context context{};
  context.num_threads = 1;
  dsf_fused_conv_pack(&context, &plain, const_cast<void*>(packed.data()));
  return packed;
}

// quantization: all but y's dtype.
py::array run_int8(ConvRequest* request, const ConvArrays& arrays, ConvQuantization quantization,
                   const py::object& out_dtype) {
  const char* op = request->call.op;
  const Operand scale(op, "weight_scale", arrays.weight_scale), x(op, "x", arrays.x);
  present(x);
  present(scale);
  const py::dtype dtype = out_dtype.is_none() ? x.array.dtype() : py::dtype::from_args(out_dtype);
  quantization.y_dtype = dtype_of(py::str(dtype.attr("name")));
  request->quantize(quantization);
  return run(request, arrays, dtype);
}

py::array fused_conv_int8(const py::object& x, const py::object& weight, double x_scale, int64_t x_zero_point,
                          const py::object& weight_scale, double y_scale, int64_t y_zero_point, const py::object& bias,
                          Numbers stride, Numbers padding, Numbers dilation, int64_t groups, std::string activation,
                          std::vector<double> params, const py::object& residual, double residual_scale,
                          int64_t residual_zero_point, std::string residual_at, Numbers max_pool,
                          const py::object& out_dtype) {
  ConvRequest request("fused_conv_int8", false,
                      options_of(stride, padding, dilation, groups, activation, params, residual_at, max_pool), raise);
  return run_int8(&request, {x, weight, bias, residual, weight_scale},
                  {x_scale, y_scale, residual_scale, x_zero_point, y_zero_point, residual_zero_point, {}}, out_dtype);
}

py::array fused_conv_int8_packed(const py::object& x, const py::object& packed, double x_scale, int64_t x_zero_point,
                                 const py::object& weight_scale, double y_scale, int64_t y_zero_point,
                                 const py::object& bias, Numbers weight_shape, Numbers stride, Numbers padding,
                                 Numbers dilation, int64_t groups, std::string activation, std::vector<double> params,
                                 const py::object& residual, double residual_scale, int64_t residual_zero_point,
                                 std::string residual_at, Numbers max_pool, const py::object& out_dtype) {
  ConvRequest request(
      "fused_conv_int8_packed", true,
      options_of(stride, padding, dilation, groups, activation, params, residual_at, max_pool, std::move(weight_shape)),
      raise);
  return run_int8(&request, {x, packed, bias, residual, weight_scale},
                  {x_scale, y_scale, residual_scale, x_zero_point, y_zero_point, residual_zero_point, {}}, out_dtype);
}

template <class Op>
py::array run_alone(typename Op::Call call, const py::object& x_array) {
  Operand x(call.op, "x", x_array);
  const Operand given(call.op, "x", x_array);
  present(x);
  typename Op::Args args = checked<Op>(&call, &x, raise);
  if (given.whole) call.x = given.view;
  const ResultShape shape = shape_of_result(call, &args);
  const py::array y = new_array(x.array.dtype(), shape);
  args.y = const_cast<void*>(y.data());
  const py::gil_scoped_release unlocked;
  Context context{};
  context.num_threads = 1;
  const Memory workspace(call.op, Op::workspace_bytes(&context, &args));
  context.workspace = workspace.data();
  Op::run(&context, &args);
  return y;
}

py::array pool2d(const py::object& x, Numbers window, const std::string& kind, bool count_include_pad) {
  return run_alone<Pool2d>(pool_call(window, kind, count_include_pad, raise), x);
}

py::array local_response_norm(const py::object& x, int64_t size, double alpha, double beta, double k) {
  return run_alone<LocalResponseNorm>(lrn_call(size, alpha, beta, k), x);
}

}  // namespace

void bind_fused_conv(py::module_& module, py::dict& variants) {
  module.def("fused_conv", &fused_conv);
  module.def("fused_conv_packed", &fused_conv_packed);
  module.def("fused_conv_pack", &fused_conv_pack);
  module.def("fused_conv_int8", &fused_conv_int8);
  module.def("fused_conv_int8_packed", &fused_conv_int8_packed);
  module.def("pool2d", &pool2d);
  module.def("local_response_norm", &local_response_norm);
  variants["fused_conv"] = variants_of(dsf_fused_conv_variant);
}

}  // namespace dsf::python_door
