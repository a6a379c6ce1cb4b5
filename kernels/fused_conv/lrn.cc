// local_response_norm: strips of pixels of a tensor in either layout.
#include <cstring>

#include "csrc/gemm/packed.h"
#include "kernels/fused_conv/plan.h"
#include "kernels/fused_conv/windows.h"

namespace dsf {
namespace {

using namespace fused_conv;

constexpr int64_t SQUARES_BYTES = 16 << 10;  // of a strip: they stay in L1, 32 KiB or more
constexpr int64_t PLANE_PIXELS = 32;         // of planes at least so many at a time, two cache lines of each

struct LrnPlan {
  LrnRule rule;
  int64_t rows, row_pixels;  // of an image; rows that lie one after the other count as one
  int64_t pixels, strips;    // of a strip; strips of a row
  int64_t slots;
  int64_t squares_bytes, x_bytes, y_bytes;  // of one slot
  int64_t tasks(const LrnArgs& args) const { return args.N * rows * strips; }
  int64_t slot_bytes() const { return squares_bytes + x_bytes + y_bytes; }
};

LrnPlan plan_of(const Context& context, const LrnArgs& args) {
  LrnPlan plan{};
  plan.rule = {args.before, args.after, args.scale, args.k, args.beta};
  const bool joined = args.x_strides.h == args.W * args.x_strides.w && args.y_strides.h == args.W * args.y_strides.w;
  plan.rows = joined ? 1 : args.H;
  plan.row_pixels = joined ? args.H * args.W : args.W;
  const bool x_planes = args.x_layout == Layout::planes, y_planes = args.y_layout == Layout::planes;
  const int64_t row_bytes = squares_row(plan.rule, args.C) * int64_t(sizeof(float));
  const int64_t wanted = most(SQUARES_BYTES / row_bytes, x_planes || y_planes ? PLANE_PIXELS : 1);
  plan.pixels = least(plan.row_pixels, wanted);
  plan.strips = divide_up(plan.row_pixels, plan.pixels);
  plan.slots = slots_of(context, plan.tasks(args));
  plan.squares_bytes = round_up(plan.pixels * row_bytes, CACHE_LINE);
  const int64_t strip_bytes = round_up(plan.pixels * args.C * value_bytes(args.dtype), CACHE_LINE);
  plan.x_bytes = x_planes ? strip_bytes : 0;
  plan.y_bytes = y_planes ? strip_bytes : 0;
  return plan;
}

// Pixels `strip` of one row.
void norm_strip(const LrnArgs& args, const LrnPlan& plan, const Kernel& kernel, int64_t n, int64_t row, Range strip,
                char* memory) {
  const int64_t value = value_bytes(args.dtype), pixels = strip.end - strip.begin;
  const auto offset = [&](const Strides& s) { return (n * s.n + row * s.h + strip.begin * s.w) * value; };
  const char* x = static_cast<const char*>(args.x) + offset(args.x_strides);
  char* y = static_cast<char*>(args.y) + offset(args.y_strides);
  char *x_memory = memory + plan.squares_bytes, *y_memory = x_memory + plan.x_bytes;
  LrnBlock block{pixels, args.C, x, args.x_strides.w, y, args.y_strides.w, reinterpret_cast<float*>(memory)};
  if (args.x_layout == Layout::planes) {
    kernel.to_pixels(x, args.x_strides.c, args.C, pixels, x_memory, args.C);
    block.x = x_memory, block.x_stride = args.C;
  }
  const bool y_planes = args.y_layout == Layout::planes;
  if (y_planes) block.y = y_memory, block.y_stride = args.C;
  kernel.lrn(plan.rule, block);
  if (y_planes) kernel.to_planes(y_memory, args.C, args.C, pixels, y, args.y_strides.c);
}

}  // namespace

int64_t dsf_lrn_workspace_bytes(const Context* context, const LrnArgs* args) {
  if (args->N == 0) return 0;
  const LrnPlan plan = plan_of(*context, *args);
  return plan.slots * plan.slot_bytes();
}

void dsf_lrn(const Context* context, const LrnArgs* args) {
  if (args->N == 0) return;
  const LrnPlan plan = plan_of(*context, *args);
  const Kernel& kernel = kernel_of(args->dtype);
  const auto run = [&](char* memory, Range tasks) {
    std::memset(memory, 0, size_t(plan.squares_bytes));
    for (int64_t task = tasks.begin; task < tasks.end; ++task) {
      const int64_t first = task % plan.strips * plan.pixels, row = task / plan.strips;
      norm_strip(*args, plan, kernel, row / plan.rows, row % plan.rows,
                 {first, least(plan.row_pixels, first + plan.pixels)}, memory);
    }
  };
  for_each_slot(*context, plan.slots, plan.tasks(*args), static_cast<char*>(context->workspace), plan.slot_bytes(),
                run);
}

}  // namespace dsf
