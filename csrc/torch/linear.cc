#include "csrc/torch/linear.h"

#include "csrc/gemm/linear_door.h"

namespace dsf::torch_door {
namespace {

Tensor pack(const LinearRoom& room, const TensorView& weight) {
  const int64_t N = weight.sizes[0], K = weight.sizes[1];
  const Tensor packed = new_tensor({room.packed_bytes(weight.dtype, N, K)}, ScalarType::Byte);
  const CallContext context;
  room.pack(context.get(), weight.dtype, weight.data, dsf_row_stride(&weight), N, K, packed.mutable_data_ptr());
  return packed;
}

}  // namespace

Tensor run_linear(const LinearRoom& room, const LinearTensors& tensors) {
  Operand x(room.op, "x", tensors.x);
  Operand weight(room.op, tensors.weight_is_packed ? "packed" : room.weight_arg, tensors.weight);
  Operand scale(room.op, "scale", tensors.scale), bias(room.op, "bias", tensors.bias);
  Operand residual(room.op, "residual", tensors.residual);

  LinearCall call{};
  call.weight_is_packed = tensors.weight_is_packed;
  call.out_features = tensors.out_features;
  call.activation = tensors.activation.c_str();
  call.activations = tensors.activations.c_str();
  LinearArgs args = checked_args<Operand>(room, {x, weight, scale, bias, residual}, &call, raise);

  std::vector<int64_t> sizes(call.x.sizes, call.x.sizes + call.x.ndim);
  sizes.back() = args.N;
  const Tensor y = new_tensor(sizes, x.tensor->scalar_type());
  args.y = y.mutable_data_ptr();
  args.y_stride = args.N;

  CallContext context;
  Tensor packed;
  if (!tensors.weight_is_packed) {
    packed = pack(room, call.weight);
    args.packed = packed.const_data_ptr();
  }
  context.reserve(room.op, room.workspace_bytes(context.get(), &args));
  room.run(context.get(), &args);
  return y;
}

Tensor pack_linear(const LinearRoom& room, const Tensor& weight) {
  const std::string op = std::string(room.op) + "_pack";
  Operand rows(op.c_str(), room.weight_arg, weight);
  Problem problem;
  if (!room.pack_check(&rows.view, &problem)) raise(problem);
  rows.make_rows();
  return pack(room, rows.view);
}

}  // namespace dsf::torch_door
