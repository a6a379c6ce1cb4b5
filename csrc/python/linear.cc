#include "csrc/python/linear.h"

#include "csrc/gemm/linear_door.h"

namespace dsf::python_door {

py::array run_linear(const LinearRoom& room, const LinearArrays& arrays) {
  Operand x(room.op, "x", arrays.x), weight(room.op, room.weight_arg, arrays.weight);
  Operand scale(room.op, "scale", arrays.scale), zeros(room.op, "zeros", arrays.zeros);
  Operand bias(room.op, "bias", arrays.bias);
  Operand residual(room.op, "residual", arrays.residual);
  for (const Operand* operand : {&x, &weight})
    if (!operand->present)
      throw py::type_error(std::string(room.op) + ": " + operand->arg + " must be a NumPy array; got NoneType");

  LinearCall call{};
  call.weight.block_n = arrays.block_n;
  call.weight.block_k = arrays.block_k;
  call.weight.in_features = arrays.in_features;
  call.weight.gated = arrays.gated;
  call.out_features = -1;
  call.activation = arrays.activation.c_str();
  call.activations = arrays.activations.c_str();
  LinearArgs args = checked_args<Operand>(room, {x, weight, scale, zeros, bias, residual}, &call, raise);

  std::vector<py::ssize_t> sizes(x.view.sizes, x.view.sizes + x.view.ndim);
  sizes.back() = args.N;
  py::array y(x.array.dtype(), sizes);
  args.y = y.mutable_data();
  args.y_stride = args.N;
  {
    const py::gil_scoped_release unlocked;
    Context context{};
    context.num_threads = 1;
    // Packed whole, as a session's weight: bench.instructions counts what dsf_<room> does and no packing.
    const Memory packed(room.op, room.packed_bytes(&call.weight));
    room.pack(&context, &call.weight, packed.data());
    args.packed = packed.data();
    const Memory workspace(room.op, room.workspace_bytes(&context, &args));
    context.workspace = workspace.data();
    room.run(&context, &args);
  }
  return y;
}

}  // namespace dsf::python_door
