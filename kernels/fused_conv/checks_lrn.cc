// The check of local_response_norm.
#include "csrc/gemm/packed.h"
#include "kernels/fused_conv/checks.h"

namespace dsf {

int32_t dsf_lrn_check(const LrnCall* call, LrnArgs* args, Problem* problem) {
  using namespace fused_conv;
  *problem = Problem{};
  *args = LrnArgs{};
  const TensorView& x = call->x;
  if (x.dtype != Dtype::f32 && x.dtype != Dtype::bf16) return dtype_error(problem, call->op, "x", BE_FLOAT_OR_BF16, x);
  if (x.ndim != 3 && x.ndim != 4) return shape_error(problem, call->op, "x", "have 3 or 4 dimensions", x);
  const View4 view = view4(x, x.ndim - 2);
  for (int64_t d = 1; d < 4; ++d)
    if (view.sizes[d] < 1) return shape_error(problem, call->op, "x", "be empty in no dimension but the batch's", x);
  int64_t elements;
  if (!count_elements(view.sizes, &elements))
    return shape_error(problem, call->op, "x", "have at most 2^58 elements", x);
  if (call->size < 1 || call->size > LARGEST_STEP)
    return value_error(problem, call->op, "size", "be from 1 to 2^24", Numbers{call->size}.text);
  args->dtype = x.dtype;
  args->N = view.sizes[0], args->C = view.sizes[1], args->H = view.sizes[2], args->W = view.sizes[3];
  const auto of_x = [&](int64_t neighbors) { return neighbors < args->C ? neighbors : args->C - 1; };
  args->before = of_x(call->before);
  args->after = of_x(call->size - 1 - call->before);
  args->scale = float(double(call->alpha) / double(call->size));
  args->beta = call->beta;
  args->k = call->k;
  args->x = x.data;
  args->x_layout = place(view, &args->x_strides);
  return check_output(call->op, x, x.dtype, view.sizes, problem) && check_has_kernel(call->op, x, problem);
}

}  // namespace dsf
