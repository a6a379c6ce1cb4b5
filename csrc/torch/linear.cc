#include "csrc/torch/linear.h"

#include "csrc/gemm/linear_door.h"

namespace dsf::torch_door {
namespace {

Tensor pack(const LinearRoom& room, const LinearWeight& weight) {
  const Tensor packed = new_tensor({room.packed_bytes(&weight)}, ScalarType::Byte);
  const CallContext context;
  room.pack(context.get(), &weight, packed.mutable_data_ptr());
  return packed;
}

}  // namespace

Tensor run_linear(const LinearRoom& room, const LinearTensors& tensors) {
  Operand x(room.op, "x", tensors.x);
  Operand weight(room.op, tensors.weight_is_packed ? "packed" : room.weight_arg, tensors.weight);
  Operand scale(room.op, "scale", tensors.scale), bias(room.op, "bias", tensors.bias);
  Operand zeros(room.op, "zeros", tensors.zeros ? *tensors.zeros : std::nullopt);
  Operand residual(room.op, "residual", tensors.residual);

  LinearCall call{};
  call.weight.block_n = tensors.block_n;
  call.weight.block_k = tensors.block_k;
  call.weight.in_features = tensors.in_features;
  call.weight.gated = tensors.gated;
  call.weight_is_packed = tensors.weight_is_packed;
  call.out_features = tensors.out_features;
  call.activation = tensors.activation.c_str();
  call.activations = tensors.activations.c_str();
  LinearArgs args = checked_args<Operand>(room, {x, weight, scale, zeros, bias, residual}, &call, raise);

  std::vector<int64_t> sizes(call.x.sizes, call.x.sizes + call.x.ndim);
  sizes.back() = args.N;
  const Tensor y = new_tensor(sizes, x.tensor->scalar_type());
  args.y = y.mutable_data_ptr();
  args.y_stride = args.N;

  const CallContext context;
  run_checked(room, *context.get(), &args, tensors.weight_is_packed ? nullptr : &call.weight);
  return y;
}

Tensor pack_linear(const LinearRoom& room, const Tensor& weight, bool gated, const std::optional<Tensor>& scale,
                   int64_t block_n, int64_t block_k, const std::optional<Tensor>& zeros, int64_t in_features) {
  const std::string op = std::string(room.op) + "_pack";
  Operand values(op.c_str(), room.weight_arg, weight), scales(op.c_str(), "scale", scale);
  Operand zero_points(op.c_str(), "zeros", zeros);
  Problem problem;
  const auto checked = [&] {
    const LinearWeight found{values.view, scales.get(), block_n, block_k, zero_points.get(), in_features, gated};
    if (!room.pack_check(&found, &problem)) raise(problem);
    return found;
  };
  LinearWeight found = checked();
  if (values.make_rows() | scales.make_rows() | zero_points.make_rows()) found = checked();
  return pack(room, found);
}

}  // namespace dsf::torch_door
