#include "csrc/python/linear.h"

namespace dsf::python_door {

py::array run_linear(const LinearRoom& room, const LinearArrays& arrays) {
  const Rows x(room.op, "x", arrays.x), weight(room.op, room.weight_arg, arrays.weight);
  if (!x.present) throw py::type_error(std::string(room.op) + ": x must be a NumPy array; got NoneType");
  if (!weight.present)
    throw py::type_error(std::string(room.op) + ": " + room.weight_arg + " must be a NumPy array; got NoneType");
  const Rows scale(room.op, "scale", arrays.scale), bias(room.op, "bias", arrays.bias);
  const Rows residual(room.op, "residual", arrays.residual);

  LinearCall call{};
  call.x = x.view;
  call.weight = weight.view;
  call.out_features = -1;
  call.scale = scale.get();
  call.bias = bias.get();
  call.residual = residual.get();
  call.activation = arrays.activation.c_str();
  call.activations = arrays.activations.c_str();
  LinearArgs args;
  Problem problem;
  if (!room.check(&call, &args, &problem)) raise(problem);

  std::vector<py::ssize_t> sizes(x.sizes.begin(), x.sizes.end());
  sizes.back() = args.N;
  py::array y(x.array.dtype(), sizes);
  args.y = y.mutable_data();
  args.y_stride = args.N;
  {
    const py::gil_scoped_release unlocked;
    Context context{};
    context.num_threads = 1;
    const Memory packed = allocate(room.op, room.packed_bytes(weight.view.dtype, args.N, args.K));
    room.pack(&context, weight.view.dtype, weight.view.data, dsf_row_stride(&weight.view), args.N, args.K,
              packed.get());
    args.packed = packed.get();
    const Memory workspace = allocate(room.op, room.workspace_bytes(&context, &args));
    context.workspace = workspace.get();
    room.run(&context, &args);
  }
  return y;
}

}  // namespace dsf::python_door
