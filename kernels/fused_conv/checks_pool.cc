// The checks of pool2d, and those of windows and sizes that fused_conv shares with it.
#include "kernels/fused_conv/checks.h"

#include "csrc/gemm/packed.h"

namespace dsf {
namespace fused_conv {

bool count_elements(const int64_t (&sizes)[4], int64_t* elements) {
  int64_t of_image = 1;
  for (int64_t d = 1; d < 4; ++d)
    if (!checked_mul(of_image, sizes[d], &of_image)) return false;
  return checked_mul(of_image, sizes[0], elements) && of_image <= LARGEST && *elements <= LARGEST;
}

Layout place(const View4& view, Strides* strides) {
  const TensorView plain{nullptr, Dtype::other, "", 4, view.sizes, view.strides};
  const auto layout = Layout(dsf_conv_layout(&plain));
  const int64_t C = view.sizes[1], H = view.sizes[2], W = view.sizes[3];
  *strides = {view.strides[0], view.strides[1], view.strides[2], view.strides[3]};
  if (layout == Layout::neither) return layout;
  const bool pixels = layout == Layout::pixels;
  if (pixels && C == 1) strides->c = 1;
  if (W == 1) strides->w = pixels ? C : 1;
  if (H == 1) strides->h = W * strides->w;
  if (!pixels && C == 1) strides->c = H * strides->h;
  if (view.sizes[0] == 1) strides->n = pixels ? H * strides->h : C * strides->c;
  return layout;
}

bool check_has_kernel(const char* op, const TensorView& x, Problem* problem) {
  if (has_kernel(x.dtype)) return true;
  dtype_error(problem, op, "x", "have a dtype that this build has kernels for", x);
  problem->fault = Fault::runtime;
  return false;
}

bool check_steps(const char* op, const char* arg, const char* rule, Pair steps, Problem* problem) {
  if (steps.h >= 1 && steps.w >= 1 && steps.h <= LARGEST_STEP && steps.w <= LARGEST_STEP) return true;
  return value_error(problem, op, arg, rule, Numbers{steps.h, steps.w}.text);
}

bool check_padding(const char* op, const char* arg, const char* rule, const Padding& padding, Problem* problem) {
  for (const int64_t side : {padding.top, padding.left, padding.bottom, padding.right})
    if (side < 0 || side > LARGEST_STEP)
      return value_error(problem, op, arg, rule,
                         Numbers{padding.top, padding.left, padding.bottom, padding.right}.text);
  return true;
}

int64_t places(int64_t size, int64_t before, int64_t after, int64_t kernel, int64_t stride, bool ceil_mode) {
  const int64_t room = size + before + after - kernel + (ceil_mode ? stride - 1 : 0);
  int64_t count = (room < 0 ? -((-room + stride - 1) / stride) : room / stride) + 1;
  if (ceil_mode && (count - 1) * stride >= size + before) --count;
  return count;
}

bool check_pool_window(const char* op, bool is_own, const Window& pool, int64_t H, int64_t W, int64_t* out_h,
                       int64_t* out_w, Problem* problem) {
  const auto arg = [&](const char* own) { return is_own ? own : "max_pool"; };
  const auto rule = [&](const char* own, const char* other) { return is_own ? own : other; };
  const Padding& pad = pool.padding;
  if (!check_steps(op, arg("kernel"), rule("be from 1 to 2^24", "have a kernel from 1 to 2^24"), pool.kernel, problem))
    return false;
  if (!check_steps(op, arg("stride"), rule("be from 1 to 2^24", "have a stride from 1 to 2^24"), pool.stride, problem))
    return false;
  if (!check_padding(op, arg("padding"), rule("be from 0 to 2^24", "have padding from 0 to 2^24"), pad, problem))
    return false;
  if (pool.dilation.h != 1 || pool.dilation.w != 1)
    return value_error(problem, op, arg("dilation"), rule("be 1", "have a dilation of 1"),
                       Numbers{pool.dilation.h, pool.dilation.w}.text);
  const Pair &k = pool.kernel, &s = pool.stride;
  if (2 * pad.top > k.h || 2 * pad.bottom > k.h || 2 * pad.left > k.w || 2 * pad.right > k.w)
    return value_error(
        problem, op, arg("padding"),
        Rule("%s at most half the kernel %s", rule("be", "have padding of"), Numbers{k.h, k.w}.text).text,
        Numbers{pad.top, pad.left, pad.bottom, pad.right}.text);
  *out_h = places(H, pad.top, pad.bottom, k.h, s.h, pool.ceil_mode);
  *out_w = places(W, pad.left, pad.right, k.w, s.w, pool.ceil_mode);
  if (*out_h >= 1 && *out_w >= 1) return true;
  const Rule fits("%s %s, as what is pooled has with its padding", rule("be at most", "have a kernel of at most"),
                  Numbers{H + pad.top + pad.bottom, W + pad.left + pad.right}.text);
  return value_error(problem, op, arg("kernel"), fits.text, Numbers{k.h, k.w}.text);
}

bool check_output(const char* op, const TensorView& x, Dtype dtype, const int64_t (&sizes)[4], Problem* problem) {
  int64_t elements;
  if (!count_elements(sizes, &elements))
    return shape_error(problem, op, "x", "give an output of at most 2^58 elements", x);
  if (!dsf_fits_memory(elements * value_bytes(dtype)))
    return shape_error(problem, op, "x", "give an output that fits into memory", x);
  return true;
}

}  // namespace fused_conv

int32_t dsf_conv_layout(const TensorView* view) {
  const int64_t C = view->sizes[1], W = view->sizes[3];
  if (!view->strides) return int32_t(C == 1 ? Layout::pixels : Layout::planes);
  if (C == 1 || view->strides[1] == 1) return int32_t(Layout::pixels);
  return int32_t(W == 1 || view->strides[3] == 1 ? Layout::planes : Layout::neither);
}

int32_t dsf_pool2d_check(const PoolCall* call, PoolArgs* args, Problem* problem) {
  using namespace fused_conv;
  constexpr const char* KINDS[] = {"max", "average"};
  *problem = Problem{};
  *args = PoolArgs{};
  const TensorView& x = call->x;
  const int32_t kind = chosen(call->op, "kind", KINDS, call->kind, problem);
  if (kind < 0) return 0;
  const bool average = kind == 1, is_float = x.dtype == Dtype::f32 || x.dtype == Dtype::bf16;
  if (!is_float && (average || !is_8_bits(x.dtype)))
    return dtype_error(problem, call->op, "x", average ? BE_FLOAT_OR_BF16 : "be float32, bfloat16, uint8 or int8", x);
  if (x.ndim != 3 && x.ndim != 4) return shape_error(problem, call->op, "x", "have 3 or 4 dimensions", x);
  const View4 view = view4(x, 2);
  for (int64_t d = 1; d < 4; ++d)
    if (view.sizes[d] < 1) return shape_error(problem, call->op, "x", "be empty in no dimension but the batch's", x);
  int64_t elements;
  if (!count_elements(view.sizes, &elements))
    return shape_error(problem, call->op, "x", "have at most 2^58 elements", x);
  args->dtype = x.dtype;
  args->average = average;
  args->count_include_pad = call->count_include_pad;
  args->window = call->window;
  args->N = view.sizes[0], args->C = view.sizes[1], args->H = view.sizes[2], args->W = view.sizes[3];
  args->x = x.data;
  args->x_layout = place(view, &args->x_strides);
  if (!check_pool_window(call->op, true, call->window, args->H, args->W, &args->out_h, &args->out_w, problem)) return 0;
  const int64_t y[4] = {args->N, args->C, args->out_h, args->out_w};
  return check_output(call->op, x, x.dtype, y, problem) && check_has_kernel(call->op, x, problem);
}

}  // namespace dsf
