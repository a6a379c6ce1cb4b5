// The torch operators of fused_conv, pool2d and local_response_norm. Meta kernels are in meta.py, the public functions
// in op.py.
#include "csrc/torch/adapter.h"
#include "kernels/fused_conv/door.h"

namespace dsf::torch_door {
namespace {

using MaybeTensor = std::optional<Tensor>;
using Numbers = std::vector<int64_t>;

struct ConvTensors {
  const Tensor& x;
  const Tensor& weight;  // plain or packed
  const MaybeTensor& bias;
  const MaybeTensor& residual;
  const MaybeTensor& weight_scale;
};

Tensor run(ConvRequest* request, const ConvTensors& tensors, ScalarType y_dtype, bool channels_last = false) {
  ConvCall& call = request->call;
  Operand x(call.op, "x", tensors.x), weight(call.op, call.weight_is_packed ? "packed" : "weight", tensors.weight);
  Operand bias(call.op, "bias", tensors.bias), residual(call.op, "residual", tensors.residual);
  Operand weight_scale(call.op, "weight_scale", tensors.weight_scale);
  const TensorView given = x.view;
  ConvArgs args = checked_conv<Operand>(&call, {x, weight, bias, residual, weight_scale}, raise);
  ConvCall as_given = call;
  as_given.x = given;
  const ResultShape shape = shape_of_result(call, channels_last ? Layout::pixels : result_layout(as_given), &args);
  const Tensor y = new_tensor(shape.sizes, shape.strides, y_dtype);
  args.y = y.mutable_data_ptr();
  CallContext context;
  run_conv(context.get(), call, &args, [&](int64_t bytes) { context.reserve(call.op, bytes); });
  return y;
}

Tensor fused_conv(const Tensor& x, const Tensor& weight, const MaybeTensor& bias, Numbers stride, Numbers padding,
                  Numbers dilation, int64_t groups, std::string activation, std::vector<double> activation_params,
                  const MaybeTensor& residual, std::string residual_at, Numbers max_pool, std::string algorithm) {
  ConvRequest request("fused_conv", false,
                      options_of(stride, padding, dilation, groups, activation, activation_params, residual_at,
                                 max_pool, {}, std::move(algorithm)),
                      raise);
  return run(&request, {x, weight, bias, residual, std::nullopt}, x.scalar_type());
}

Tensor fused_conv_packed(const Tensor& x, const Tensor& packed, const MaybeTensor& bias, Numbers weight_shape,
                         Numbers stride, Numbers padding, Numbers dilation, int64_t groups, std::string activation,
                         std::vector<double> activation_params, const MaybeTensor& residual, std::string residual_at,
                         Numbers max_pool, bool channels_last) {
  ConvRequest request("fused_conv_packed", true,
                      options_of(stride, padding, dilation, groups, activation, activation_params, residual_at,
                                 max_pool, std::move(weight_shape)),
                      raise);
  return run(&request, {x, packed, bias, residual, std::nullopt}, x.scalar_type(), channels_last);
}

Tensor fused_conv_pack(const Tensor& weight_tensor, int64_t groups, std::string algorithm) {
  const Operand weight("fused_conv_pack", "weight", weight_tensor);
  const ConvWeight given{weight.view, groups, algorithm.c_str()};
  Problem problem;
  if (!dsf_fused_conv_pack_check(&given, &problem)) raise(problem);
  const fused_conv::View4 full = fused_conv::view4(weight.view, weight.view.ndim - 2);
  const ConvWeight plain{fused_conv::view_of(full, weight.view), groups, algorithm.c_str()};
  const Tensor packed = new_tensor({dsf_fused_conv_packed_bytes(&plain)}, ScalarType::Byte);
  const CallContext context;
  dsf_fused_conv_pack(context.get(), &plain, packed.mutable_data_ptr());
  return packed;
}

Tensor fused_conv_int8(const Tensor& x, const Tensor& weight, double x_scale, int64_t x_zero_point,
                       const Tensor& weight_scale, double y_scale, int64_t y_zero_point, const MaybeTensor& bias,
                       Numbers stride, Numbers padding, Numbers dilation, int64_t groups, ScalarType out_dtype,
                       std::string activation, std::vector<double> activation_params, const MaybeTensor& residual,
                       double residual_scale, int64_t residual_zero_point, std::string residual_at, Numbers max_pool) {
  ConvRequest request(
      "fused_conv_int8", false,
      options_of(stride, padding, dilation, groups, activation, activation_params, residual_at, max_pool), raise);
  request.quantize(
      {x_scale, y_scale, residual_scale, x_zero_point, y_zero_point, residual_zero_point, dtype_of(out_dtype)});
  return run(&request, {x, weight, bias, residual, weight_scale}, out_dtype);
}

Tensor fused_conv_int8_packed(const Tensor& x, const Tensor& packed, double x_scale, int64_t x_zero_point,
                              const Tensor& weight_scale, double y_scale, int64_t y_zero_point, const MaybeTensor& bias,
                              Numbers weight_shape, Numbers stride, Numbers padding, Numbers dilation, int64_t groups,
                              ScalarType out_dtype, std::string activation, std::vector<double> activation_params,
                              const MaybeTensor& residual, double residual_scale, int64_t residual_zero_point,
                              std::string residual_at, Numbers max_pool, bool channels_last) {
  ConvRequest request("fused_conv_int8_packed", true,
                      options_of(stride, padding, dilation, groups, activation, activation_params, residual_at,
                                 max_pool, std::move(weight_shape)),
                      raise);
  request.quantize(
      {x_scale, y_scale, residual_scale, x_zero_point, y_zero_point, residual_zero_point, dtype_of(out_dtype)});
  return run(&request, {x, packed, bias, residual, weight_scale}, out_dtype, channels_last);
}

template <class Op>
Tensor run_alone(typename Op::Call call, const Tensor& x_tensor) {
  Operand x(call.op, "x", x_tensor);
  const TensorView given = x.view;
  typename Op::Args args = checked<Op>(&call, &x, raise);
  call.x = given;
  const ResultShape shape = shape_of_result(call, &args);
  const Tensor y = new_tensor(shape.sizes, shape.strides, x_tensor.scalar_type());
  args.y = y.mutable_data_ptr();
  CallContext context;
  context.reserve(call.op, Op::workspace_bytes(context.get(), &args));
  Op::run(context.get(), &args);
  return y;
}

Tensor pool2d(const Tensor& x, Numbers window, std::string kind, bool count_include_pad) {
  return run_alone<Pool2d>(pool_call(window, kind, count_include_pad, raise), x);
}

Tensor local_response_norm(const Tensor& x, int64_t size, double alpha, double beta, double k) {
  return run_alone<LocalResponseNorm>(lrn_call(size, alpha, beta, k), x);
}

}  // namespace
}  // namespace dsf::torch_door

STABLE_TORCH_LIBRARY_FRAGMENT(deepseek_fast, library) {
  // Positional: a keyword costs a call 0.2 us. max_pool: none, or kernel, stride, padding, ceil_mode in 9 numbers.
  library.def(
      "fused_conv(Tensor x, Tensor weight, Tensor? bias, SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt "
      "groups, str activation=\"none\", float[] activation_params=[], Tensor? residual=None, str "
      "residual_at=\"before\", SymInt[] max_pool=[], str algorithm=\"direct\") -> Tensor");
  library.def(
      "fused_conv_packed(Tensor x, Tensor packed, Tensor? bias, SymInt[] weight_shape, SymInt[] stride, SymInt[] "
      "padding, SymInt[] dilation, SymInt groups, str activation=\"none\", float[] activation_params=[], Tensor? "
      "residual=None, str residual_at=\"before\", SymInt[] max_pool=[], bool channels_last=False) -> Tensor");
  library.def("fused_conv_pack(Tensor weight, SymInt groups=1, str algorithm=\"direct\") -> Tensor");
  library.def(
      "fused_conv_int8(Tensor x, Tensor weight, float x_scale, int x_zero_point, Tensor weight_scale, float y_scale, "
      "int y_zero_point, Tensor? bias, SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups, ScalarType "
      "out_dtype, str activation=\"none\", float[] activation_params=[], Tensor? residual=None, float "
      "residual_scale=1.0, int residual_zero_point=0, str residual_at=\"before\", SymInt[] max_pool=[]) -> Tensor");
  library.def(
      "fused_conv_int8_packed(Tensor x, Tensor packed, float x_scale, int x_zero_point, Tensor weight_scale, float "
      "y_scale, int y_zero_point, Tensor? bias, SymInt[] weight_shape, SymInt[] stride, SymInt[] padding, SymInt[] "
      "dilation, SymInt groups, ScalarType out_dtype, str activation=\"none\", float[] activation_params=[], Tensor? "
      "residual=None, float residual_scale=1.0, int residual_zero_point=0, str residual_at=\"before\", SymInt[] "
      "max_pool=[], bool channels_last=False) -> Tensor");
  library.def("pool2d(Tensor x, SymInt[] window, str kind=\"max\", bool count_include_pad=True) -> Tensor");
  library.def("local_response_norm(Tensor x, SymInt size, float alpha=0.0001, float beta=0.75, float k=1.0) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(deepseek_fast, CPU, library) {
  library.impl("fused_conv", TORCH_BOX(&dsf::torch_door::fused_conv));
  library.impl("fused_conv_packed", TORCH_BOX(&dsf::torch_door::fused_conv_packed));
  library.impl("fused_conv_pack", TORCH_BOX(&dsf::torch_door::fused_conv_pack));
  library.impl("fused_conv_int8", TORCH_BOX(&dsf::torch_door::fused_conv_int8));
  library.impl("fused_conv_int8_packed", TORCH_BOX(&dsf::torch_door::fused_conv_int8_packed));
  library.impl("pool2d", TORCH_BOX(&dsf::torch_door::pool2d));
  library.impl("local_response_norm", TORCH_BOX(&dsf::torch_door::local_response_norm));
}
