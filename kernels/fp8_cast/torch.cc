// The torch operators of fp8_cast and its family. Meta kernels are beside the public functions in op.py.
#include "csrc/torch/adapter.h"
#include "kernels/fp8_cast/door.h"

namespace dsf::torch_door {
namespace {

using MaybeTensor = std::optional<Tensor>;

ScalarType scale_type(const CastArgs& args) {
  if (args.layout == ScaleLayout::packed) return ScalarType::Int;
  if (args.kind == ScaleKind::ue8m0) return ScalarType::Float8_e8m0fnu;
  return args.kind == ScaleKind::e4m3 ? ScalarType::Float8_e4m3fn : ScalarType::Float;
}

// Sizes of the codes: x's, with as many values in the last dimension as are cast, two of FP4 to an element.
std::vector<int64_t> code_sizes(const CastCall& call, const CastArgs& args) {
  std::vector<int64_t> sizes(call.x.sizes, call.x.sizes + call.x.ndim);
  sizes.back() = call.dtype == Dtype::f4e2m1x2 ? args.K / 2 : args.K;
  return sizes;
}

void run(const CastArgs& args) {
  CallContext context;
  context.reserve("fp8_cast", dsf_fp8_cast_workspace_bytes(context.get(), &args));
  dsf_fp8_cast(context.get(), &args);
}

std::tuple<Tensor, Tensor> cast(CastCall call, ScalarType dtype, const Tensor& x_tensor,
                                const MaybeTensor& weight_tensor, const MaybeTensor& given_tensor,
                                const MaybeTensor& tensor_scale_tensor) {
  Operand x(call.op, "x", x_tensor), weight(call.op, "weight", weight_tensor);
  Operand given(call.op, "scale", given_tensor), tensor_scale(call.op, "tensor_scale", tensor_scale_tensor);
  CastArgs args = checked_cast<Operand>(&call, x, &weight, &given, &tensor_scale, raise);
  const ScaleShape shape = scale_shape_of(call, &args);
  const Tensor codes = new_tensor(code_sizes(call, args), dtype);
  const Tensor scale = new_tensor(shape.sizes, shape.strides, scale_type(args));
  args.codes = codes.mutable_data_ptr();
  args.scale = scale.mutable_data_ptr();
  run(args);
  return {codes, scale};
}

std::tuple<Tensor, Tensor> fp8_cast(const Tensor& x, const MaybeTensor& given, const MaybeTensor& tensor_scale,
                                    int64_t block_rows, int64_t block_cols, bool plain, ScalarType dtype,
                                    std::string scale, std::string mode, bool saturate, std::string layout,
                                    std::string rounding, int64_t seed) {
  const CastOptions options{block_rows,        block_cols,          plain, std::move(scale), std::move(mode), saturate,
                            std::move(layout), std::move(rounding), seed};
  return cast(cast_call("fp8_cast", CastSource::x, options, dtype_of(dtype), name_of(dtype)), dtype, x, std::nullopt,
              given, tensor_scale);
}

std::tuple<Tensor, Tensor> silu_mul_cast(const Tensor& x, const MaybeTensor& tensor_scale, int64_t block_rows,
                                         int64_t block_cols, ScalarType dtype, std::string scale, std::string mode,
                                         std::string layout, std::string rounding, int64_t seed) {
  const CastOptions options{block_rows,        block_cols,          false, std::move(scale), std::move(mode), true,
                            std::move(layout), std::move(rounding), seed};
  return cast(cast_call("silu_mul_cast", CastSource::silu_mul, options, dtype_of(dtype), name_of(dtype)), dtype, x,
              std::nullopt, std::nullopt, tensor_scale);
}

std::tuple<Tensor, Tensor> rms_norm_cast(const Tensor& x, const Tensor& weight, const MaybeTensor& tensor_scale,
                                         double eps, int64_t block_rows, int64_t block_cols, ScalarType dtype,
                                         std::string scale, std::string mode, std::string layout, std::string rounding,
                                         int64_t seed) {
  const CastOptions options{block_rows,        block_cols,          false, std::move(scale), std::move(mode), true,
                            std::move(layout), std::move(rounding), seed};
  CastCall call = cast_call("rms_norm_cast", CastSource::rms_norm, options, dtype_of(dtype), name_of(dtype));
  call.eps = float(eps);
  return cast(call, dtype, x, weight, std::nullopt, tensor_scale);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> fp8_cast_transposed(const Tensor& x_tensor, int64_t block_rows,
                                                               int64_t block_cols, ScalarType dtype, std::string scale,
                                                               std::string mode, bool saturate) {
  constexpr const char* OP = "fp8_cast_transposed";
  const CastOptions options{block_rows, block_cols, false, std::move(scale), std::move(mode), saturate,
                            "row",      "nearest",  0};
  CastCall call = cast_call(OP, CastSource::x, options, dtype_of(dtype), name_of(dtype));
  call.pair = true;
  Operand x(OP, "x", x_tensor);
  CastArgs args = checked_cast<Operand>(&call, x, nullptr, nullptr, nullptr, raise);
  const ScaleShape shape = scale_shape_of(call, &args);
  const int64_t down = args.M / args.block_cols + (args.M % args.block_cols != 0);
  const Tensor codes = new_tensor({args.M, args.K}, dtype), codes_t = new_tensor({args.K, args.M}, dtype);
  const Tensor scales = new_tensor(shape.sizes, scale_type(args)),
               scales_t = new_tensor({args.K, down}, scale_type(args));
  args.codes = codes.mutable_data_ptr();
  args.scale = scales.mutable_data_ptr();
  args.codes_t = codes_t.mutable_data_ptr();
  args.scale_t = scales_t.mutable_data_ptr();
  run(args);
  return {codes, scales, codes_t, scales_t};
}

Tensor fp8_amax(const Tensor& x_tensor, int64_t block_rows, int64_t block_cols) {
  constexpr const char* OP = "fp8_amax";
  const CastOptions options{block_rows, block_cols, false, "f32", "deepgemm", true, "row", "nearest", 0};
  CastCall call = cast_call(OP, CastSource::x, options, Dtype::f8e4m3, "float8_e4m3fn");
  call.amax_only = true;
  Operand x(OP, "x", x_tensor);
  CastArgs args = checked_cast<Operand>(&call, x, nullptr, nullptr, nullptr, raise);
  const ScaleShape shape = scale_shape_of(call, &args);
  const Tensor amax = new_tensor(shape.sizes, ScalarType::Float);
  args.scale = amax.mutable_data_ptr();
  run(args);
  return amax;
}

Tensor fp8_dequantize(const Tensor& codes_tensor, const MaybeTensor& scale_tensor,
                      const MaybeTensor& tensor_scale_tensor, int64_t block_rows, int64_t block_cols,
                      ScalarType dtype) {
  constexpr const char* OP = "fp8_dequantize";
  Operand codes(OP, "codes", codes_tensor), scale(OP, "scale", scale_tensor);
  Operand tensor_scale(OP, "tensor_scale", tensor_scale_tensor);
  DequantizeArgs args;
  const auto check = [&] {
    const DequantizeCall call{codes.view,      scale.get(),    block_rows,        block_cols,
                              dtype_of(dtype), name_of(dtype), tensor_scale.get()};
    Problem problem;
    if (!dsf_fp8_dequantize_check(&call, &args, &problem)) raise(problem);
  };
  check();
  bool copied = codes.make_rows();
  if (scale.get() && scale.view.ndim != 2) copied |= scale.make_rows();
  if (copied) check();
  std::vector<int64_t> sizes(codes.view.sizes, codes.view.sizes + codes.view.ndim);
  sizes.back() = args.K;
  const Tensor y = new_tensor(sizes, dtype);
  args.y = y.mutable_data_ptr();
  const CallContext context;
  dsf_fp8_dequantize(context.get(), &args);
  return y;
}

std::tuple<Tensor, Tensor> int8_cast(const Tensor& x_tensor) {
  Operand x("int8_cast", "x", x_tensor);
  Int8CastArgs args;
  const auto check = [&] {
    Problem problem;
    if (!dsf_int8_cast_check(&x.view, &args, &problem)) raise(problem);
  };
  check();
  if (x.make_rows()) check();
  std::vector<int64_t> sizes(x.view.sizes, x.view.sizes + x.view.ndim);
  const Tensor q = new_tensor(sizes, ScalarType::Char);
  sizes.back() = 1;
  const Tensor scale = new_tensor(sizes, ScalarType::Float);
  args.q = static_cast<int8_t*>(q.mutable_data_ptr());
  args.scale = static_cast<float*>(scale.mutable_data_ptr());
  const CallContext context;
  dsf_int8_cast(context.get(), &args);
  return {q, scale};
}

}  // namespace
}  // namespace dsf::torch_door

STABLE_TORCH_LIBRARY_FRAGMENT(deepseek_fast, library) {
  // Positional: a keyword costs a call 0.2 us.
  library.def(
      "fp8_cast(Tensor x, Tensor? given, Tensor? tensor_scale, int block_rows, int block_cols, bool plain, ScalarType "
      "dtype, str scale=\"f32\", str mode=\"deepgemm\", bool saturate=True, str layout=\"row\", str "
      "rounding=\"nearest\", int seed=0) -> (Tensor, Tensor)");
  library.def(
      "silu_mul_cast(Tensor x, Tensor? tensor_scale, int block_rows, int block_cols, ScalarType dtype, str "
      "scale=\"f32\", str mode=\"deepgemm\", str layout=\"row\", str rounding=\"nearest\", int seed=0) -> (Tensor, "
      "Tensor)");
  library.def(
      "rms_norm_cast(Tensor x, Tensor weight, Tensor? tensor_scale, float eps, int block_rows, int block_cols, "
      "ScalarType dtype, str scale=\"f32\", str mode=\"deepgemm\", str layout=\"row\", str rounding=\"nearest\", int "
      "seed=0) -> (Tensor, Tensor)");
  library.def(
      "fp8_cast_transposed(Tensor x, int block_rows, int block_cols, ScalarType dtype, str scale=\"f32\", str "
      "mode=\"deepgemm\", bool saturate=True) -> (Tensor, Tensor, Tensor, Tensor)");
  library.def("fp8_amax(Tensor x, int block_rows, int block_cols) -> Tensor");
  library.def(
      "fp8_dequantize(Tensor codes, Tensor? scale, Tensor? tensor_scale, int block_rows, int block_cols, ScalarType "
      "dtype) -> Tensor");
  library.def("int8_cast(Tensor x) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(deepseek_fast, CPU, library) {
  library.impl("fp8_cast", TORCH_BOX(&dsf::torch_door::fp8_cast));
  library.impl("silu_mul_cast", TORCH_BOX(&dsf::torch_door::silu_mul_cast));
  library.impl("rms_norm_cast", TORCH_BOX(&dsf::torch_door::rms_norm_cast));
  library.impl("fp8_cast_transposed", TORCH_BOX(&dsf::torch_door::fp8_cast_transposed));
  library.impl("fp8_amax", TORCH_BOX(&dsf::torch_door::fp8_amax));
  library.impl("fp8_dequantize", TORCH_BOX(&dsf::torch_door::fp8_dequantize));
  library.impl("int8_cast", TORCH_BOX(&dsf::torch_door::int8_cast));
}
