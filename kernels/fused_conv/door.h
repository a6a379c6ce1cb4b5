// How a door with strided tensors checks a convolution or a pool, copies what has neither layout, and finds how the
// result lies in memory.
#pragma once
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "csrc/core/memory.h"
#include "kernels/fused_conv/view.h"

namespace dsf {

// Options as every door has them, in numbers: deepseek_fast/_conv.py makes them of what users write.
struct ConvOptions {
  std::vector<int64_t> stride, padding, dilation;  // rows, columns; top, left, bottom, right; rows, columns
  int64_t groups;
  std::string activation;
  std::vector<double> params;
  std::string residual_at;
  std::vector<int64_t> max_pool;      // none, or kernel, stride, padding, ceil_mode: 9 numbers
  std::vector<int64_t> weight_shape;  // of a packed weight
  std::string algorithm = "direct";   // of a plain one
};

// Takes the lists and texts out of its arguments.
inline ConvOptions options_of(std::vector<int64_t>& stride, std::vector<int64_t>& padding,
                              std::vector<int64_t>& dilation, int64_t groups, std::string& activation,
                              std::vector<double>& params, std::string& residual_at, std::vector<int64_t>& max_pool,
                              std::vector<int64_t> weight_shape = {}, std::string algorithm = "direct") {
  return {std::move(stride),       std::move(padding),  std::move(dilation),    groups,
          std::move(activation),   std::move(params),   std::move(residual_at), std::move(max_pool),
          std::move(weight_shape), std::move(algorithm)};
}

struct ConvQuantization {
  double x_scale, y_scale, residual_scale;
  int64_t x_zero_point, y_zero_point, residual_zero_point;
  Dtype y_dtype;
};

// A zero point that is no int32 stays outside every range.
inline void set_quantization(ConvCall* call, const ConvQuantization& q) {
  const auto narrow = [](int64_t value) { return value == int32_t(value) ? int32_t(value) : INT32_MAX; };
  call->x_scale = float(q.x_scale), call->y_scale = float(q.y_scale), call->residual_scale = float(q.residual_scale);
  call->x_zero_point = narrow(q.x_zero_point), call->y_zero_point = narrow(q.y_zero_point);
  call->residual_zero_point = narrow(q.residual_zero_point);
  call->y_dtype = q.y_dtype;
}

// A list of another length than it has to have. raise(problem) throws.
template <class Raise>
void check_length(const char* op, const char* arg, const std::vector<int64_t>& list, size_t length,
                  const Raise& raise) {
  if (list.size() == length) return;
  Problem problem{Fault::value, {}};
  std::snprintf(problem.sentence, sizeof problem.sentence, "%s: %s must be %zu numbers; got %zu of them", op, arg,
                length, list.size());
  raise(problem);
}

// A call, and the memory that it points to.
class ConvRequest {
 public:
  template <class Raise>
  ConvRequest(const char* op, bool weight_is_packed, ConvOptions options, const Raise& raise)
      : options_(std::move(options)), params_(options_.params.begin(), options_.params.end()) {
    check_length(op, "stride", options_.stride, 2, raise);
    check_length(op, "padding", options_.padding, 4, raise);
    check_length(op, "dilation", options_.dilation, 2, raise);
    if (!options_.max_pool.empty()) check_length(op, "max_pool", options_.max_pool, 9, raise);
    call.op = op;
    call.weight_is_packed = weight_is_packed;
    call.stride = {options_.stride[0], options_.stride[1]};
    call.dilation = {options_.dilation[0], options_.dilation[1]};
    const std::vector<int64_t>& pad = options_.padding;
    call.padding = {pad[0], pad[1], pad[2], pad[3]};
    call.groups = options_.groups;
    call.algorithm = options_.algorithm.c_str();
    call.activation = options_.activation.c_str();
    call.params = params_.data();
    call.num_params = int64_t(params_.size());
    call.residual_at = options_.residual_at.c_str();
    call.has_pool = !options_.max_pool.empty();
    if (call.has_pool) call.pool = window_of(options_.max_pool);
    call.weight_shape = options_.weight_shape.data();
    call.weight_ndim = int64_t(options_.weight_shape.size());
  }
  ConvRequest(const ConvRequest&) = delete;

  void quantize(const ConvQuantization& q) { set_quantization(&call, q); }

  static Window window_of(const std::vector<int64_t>& n) {
    return {{n[0], n[1]}, {n[2], n[3]}, {1, 1}, {n[4], n[5], n[6], n[7]}, n[8] != 0};
  }

  ConvCall call{};

 private:
  ConvOptions options_;
  std::vector<float> params_;
};

// Operand has `view`, `whole` (its strides count values), `get()` (null where absent) and `make_rows()` (true where it
// copied, to contiguous memory).
template <class Operand>
struct ConvOperands {
  Operand &x, &weight, &bias, &residual, &weight_scale;
};

// raise(problem) throws.
template <class Operand, class Raise>
ConvArgs checked_conv(ConvCall* call, const ConvOperands<Operand>& operands, const Raise& raise) {
  ConvArgs args;
  const auto check = [&] {
    call->x = operands.x.view;
    call->weight = operands.weight.view;
    call->bias = operands.bias.get();
    call->residual = operands.residual.get();
    call->weight_scale = operands.weight_scale.get();
    Problem problem;
    if (!dsf_fused_conv_check(call, &args, &problem)) raise(problem);
  };
  if (operands.weight_scale.get() && operands.weight_scale.view.dtype == Dtype::f32)
    operands.weight_scale.make_rows();  // the check reads its values
  check();
  bool copied = operands.bias.make_rows();
  if (!operands.weight.whole) copied |= operands.weight.make_rows();
  if (!operands.x.whole || args.x_layout == Layout::neither) copied |= operands.x.make_rows();
  if (args.residual && (!operands.residual.whole || args.residual_layout == Layout::neither))
    copied |= operands.residual.make_rows();
  if (copied) check();
  return args;
}

// Dimensions that x's users count: 2, or 1 of a weight of three dimensions.
inline int64_t spatial_of(const ConvCall& call) {
  return (call.weight_is_packed ? call.weight_ndim : call.weight.ndim) - 2;
}

// torch's rule: channels side by side where x has them so, or the weight.
inline Layout result_layout(const ConvCall& call) {
  const int64_t spatial = spatial_of(call);
  const bool x_has = fused_conv::is_channels_last(fused_conv::view4(call.x, spatial), call.x.ndim == spatial + 2);
  const bool weight_has =
      !call.weight_is_packed && fused_conv::is_channels_last(fused_conv::view4(call.weight, spatial), true);
  return x_has || weight_has ? Layout::pixels : Layout::planes;
}

struct ResultShape {
  std::vector<int64_t> sizes, strides;
};

// Of (N, C, H, W), without the N or the H that x's users do not have.
inline ResultShape result_shape(Layout layout, int64_t N, int64_t C, int64_t H, int64_t W, bool has_n, bool has_h,
                                Strides* strides) {
  *strides = fused_conv::strides_of(layout, C, H, W);
  ResultShape shape;
  const auto add = [&](int64_t size, int64_t stride) {
    shape.sizes.push_back(size);
    shape.strides.push_back(stride);
  };
  if (has_n) add(N, strides->n);
  add(C, strides->c);
  if (has_h) add(H, strides->h);
  add(W, strides->w);
  return shape;
}

// And tells args.
inline ResultShape shape_of_result(const ConvCall& call, Layout layout, ConvArgs* args) {
  args->y_layout = layout;
  const int64_t spatial = spatial_of(call);
  return result_shape(layout, args->N, args->F, args->out_h, args->out_w, call.x.ndim == spatial + 2, spatial == 2,
                      &args->y_strides);
}
inline ResultShape shape_of_result(const PoolCall& call, PoolArgs* args) {
  const bool has_n = call.x.ndim == 4;
  const bool pixels = fused_conv::is_channels_last(fused_conv::view4(call.x, 2), has_n);
  args->y_layout = pixels ? Layout::pixels : Layout::planes;
  return result_shape(args->y_layout, args->N, args->C, args->out_h, args->out_w, has_n, true, &args->y_strides);
}
inline ResultShape shape_of_result(const LrnCall& call, LrnArgs* args) {
  const bool pixels = fused_conv::is_channels_last(fused_conv::view4(call.x, call.x.ndim - 2), true);
  args->y_layout = pixels ? Layout::pixels : Layout::planes;
  return result_shape(args->y_layout, args->N, args->C, args->H, args->W, true, call.x.ndim == 4, &args->y_strides);
}

// What pool2d and local_response_norm, operators of x alone, call.
struct Pool2d {
  using Call = PoolCall;
  using Args = PoolArgs;
  static constexpr auto check = dsf_pool2d_check;
  static constexpr auto workspace_bytes = dsf_pool2d_workspace_bytes;
  static constexpr auto run = dsf_pool2d;
};
struct LocalResponseNorm {
  using Call = LrnCall;
  using Args = LrnArgs;
  static constexpr auto check = dsf_lrn_check;
  static constexpr auto workspace_bytes = dsf_lrn_workspace_bytes;
  static constexpr auto run = dsf_lrn;
};

// Calls without their x. window: kernel, stride, padding and ceil_mode, 9 numbers. raise(problem) throws.
template <class Raise>
PoolCall pool_call(const std::vector<int64_t>& window, const std::string& kind, bool count_include_pad,
                   const Raise& raise) {
  constexpr const char* OP = "pool2d";
  check_length(OP, "window", window, 9, raise);
  return {OP, {}, kind.c_str(), ConvRequest::window_of(window), count_include_pad};
}
inline LrnCall lrn_call(int64_t size, double alpha, double beta, double k) {
  return {"local_response_norm", {}, size, size / 2, float(alpha), float(beta), float(k)};
}

// Op: Pool2d or LocalResponseNorm; x: as ConvOperands has it.
template <class Op, class Operand, class Raise>
typename Op::Args checked(typename Op::Call* call, Operand* x, const Raise& raise) {
  typename Op::Args args;
  const auto check = [&] {
    call->x = x->view;
    Problem problem;
    if (!Op::check(call, &args, &problem)) raise(problem);
  };
  check();
  if ((!x->whole || args.x_layout == Layout::neither) && x->make_rows()) check();
  return args;
}

// Runs a checked call; a plain weight is packed first. reserve(bytes) gives context its workspace.
template <class Lend>
void run_conv(const Context* context, const ConvCall& call, ConvArgs* args, const Lend& reserve) {
  if (args->N == 0) return;
  Memory packed;
  if (!call.weight_is_packed) {
    const fused_conv::View4 full = fused_conv::view4(call.weight, spatial_of(call));
    const ConvWeight weight{fused_conv::view_of(full, call.weight), call.groups, call.algorithm};
    packed = Memory(call.op, dsf_fused_conv_packed_bytes(&weight));
    dsf_fused_conv_pack(context, &weight, packed.data());
    args->packed = packed.data();
  }
  reserve(dsf_fused_conv_workspace_bytes(context, args));
  dsf_fused_conv(context, args);
}

}  // namespace dsf
