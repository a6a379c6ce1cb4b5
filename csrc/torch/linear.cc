#include "csrc/torch/linear.h"

namespace dsf::torch_door {
namespace {

// An optional tensor as the kernels read it, with its view.
struct OptionalRows {
  std::optional<Tensor> rows;
  TensorView view{};

  OptionalRows(const char* op, const char* arg, const std::optional<Tensor>& tensor) {
    if (!tensor) return;
    check_cpu(op, arg, *tensor);
    rows = as_rows(*tensor);
    view = view_of(*rows);
  }
  const TensorView* get() const { return rows ? &view : nullptr; }
};

Tensor pack(const LinearRoom& room, const TensorView& weight) {
  const int64_t N = weight.sizes[0], K = weight.sizes[1];
  const Tensor packed = new_tensor({room.packed_bytes(weight.dtype, N, K)}, ScalarType::Byte);
  const CallContext context;
  room.pack(context.get(), weight.dtype, weight.data, dsf_row_stride(&weight), N, K, packed.mutable_data_ptr());
  return packed;
}

}  // namespace

Tensor run_linear(const LinearRoom& room, const LinearTensors& tensors) {
  check_cpu(room.op, "x", tensors.x);
  check_cpu(room.op, tensors.weight_is_packed ? "packed" : room.weight_arg, tensors.weight);
  const Tensor x = as_rows(tensors.x);
  const Tensor weight = as_rows(tensors.weight);
  const OptionalRows scale(room.op, "scale", tensors.scale);
  const OptionalRows bias(room.op, "bias", tensors.bias);
  const OptionalRows residual(room.op, "residual", tensors.residual);

  LinearCall call{};
  call.x = view_of(x);
  call.weight = view_of(weight);
  call.weight_is_packed = tensors.weight_is_packed;
  call.out_features = tensors.out_features;
  call.scale = scale.get();
  call.bias = bias.get();
  call.residual = residual.get();
  call.activation = tensors.activation.c_str();
  call.activations = tensors.activations.c_str();
  LinearArgs args;
  Problem problem;
  if (!room.check(&call, &args, &problem)) raise(problem);

  std::vector<int64_t> sizes(call.x.sizes, call.x.sizes + call.x.ndim);
  sizes.back() = args.N;
  const Tensor y = new_tensor(sizes, x.scalar_type());
  args.y = y.mutable_data_ptr();
  args.y_stride = args.N;

  CallContext context;
  Tensor packed;
  if (!tensors.weight_is_packed) {
    packed = pack(room, call.weight);
    args.packed = packed.const_data_ptr();
  }
  context.reserve(room.workspace_bytes(context.get(), &args));
  room.run(context.get(), &args);
  return y;
}

Tensor pack_linear(const LinearRoom& room, const Tensor& weight) {
  check_cpu((std::string(room.op) + "_pack").c_str(), room.weight_arg, weight);
  const Tensor rows = as_rows(weight);
  const TensorView view = view_of(rows);
  Problem problem;
  if (!room.pack_check(&view, &problem)) raise(problem);
  return pack(room, view);
}

}  // namespace dsf::torch_door
