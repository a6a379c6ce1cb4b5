// How a door with strided tensors checks a call, before anything is copied and again where something was; how any runs
// it.
#pragma once
#include "csrc/core/memory.h"
#include "csrc/gemm/linear.h"

namespace dsf {

// Operand has `view`, `get()` (null where absent) and `make_rows()` (true where it copied).
template <class Operand>
struct LinearOperands {
  Operand &x, &weight, &scale, &zeros, &bias, &residual;
};

// raise(problem) throws.
template <class Operand, class Raise>
LinearArgs checked_args(const LinearRoom& room, const LinearOperands<Operand>& operands, LinearCall* call,
                        const Raise& raise) {
  LinearArgs args;
  const auto check = [&] {
    call->x = operands.x.view;
    call->weight.values = operands.weight.view;
    call->weight.scale = operands.scale.get();
    call->weight.zeros = operands.zeros.get();
    call->bias = operands.bias.get();
    call->residual = operands.residual.get();
    Problem problem;
    if (!room.check(call, &args, &problem)) raise(problem);
  };
  check();
  bool copied = false;
  for (Operand* operand :
       {&operands.x, &operands.weight, &operands.scale, &operands.zeros, &operands.bias, &operands.residual})
    copied |= operand->make_rows();
  if (copied) check();
  return args;
}

// Runs a checked call. plain: the weight, or null where args->packed holds it.
inline void run_checked(const LinearRoom& room, Context context, LinearArgs* args, const LinearWeight* plain) {
  Memory packed;
  if (plain && !room.run_plain) {
    packed = Memory(room.op, room.packed_bytes(plain));
    room.pack(&context, plain, packed.data());
    args->packed = packed.data();
    plain = nullptr;
  }
  const Memory workspace(
      room.op, plain ? room.plain_workspace_bytes(&context, args, plain) : room.workspace_bytes(&context, args));
  context.workspace = workspace.data();
  if (plain)
    room.run_plain(&context, args, plain);
  else
    room.run(&context, args);
}

}  // namespace dsf
