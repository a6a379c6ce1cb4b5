// pool2d: max and mean pooling of a tensor in either layout.
#include "csrc/gemm/packed.h"
#include "kernels/fused_conv/plan.h"
#include "kernels/fused_conv/windows.h"

namespace dsf {
namespace {

using namespace fused_conv;

constexpr int64_t CHANNELS = 64;  // of planes, turned into pixels at a time

struct PoolPlan {
  int64_t channels, channel_blocks;  // of a task
  int64_t rows, row_blocks;          // of y, of a task
  int64_t chunk;                     // rows of y at a time
  int64_t tasks, slots;
  int64_t x_bytes, y_bytes;  // of one slot
  int64_t slot_bytes() const { return x_bytes + y_bytes; }
};

Range x_rows(const PoolArgs& args, Range out) {
  const Window& w = args.window;
  return inside(rows_under(out, w.kernel.h, w.stride.h, w.dilation.h, w.padding.top), args.H);
}

PoolPlan plan_of(const Context& context, const PoolArgs& args) {
  PoolPlan plan{};
  const int64_t value = value_bytes(args.dtype);
  const bool x_planes = args.x_layout == Layout::planes, y_planes = args.y_layout == Layout::planes;
  plan.channels = x_planes || y_planes ? least(args.C, CHANNELS) : args.C;
  plan.channel_blocks = divide_up(args.C, plan.channels);
  const int64_t others = args.N * plan.channel_blocks;
  const int64_t blocks = least(args.out_h, divide_up(tasks_wanted(context), others));
  plan.rows = divide_up(args.out_h, blocks);
  plan.row_blocks = divide_up(args.out_h, plan.rows);
  plan.chunk = plan.rows;
  if (x_planes || y_planes)
    plan.chunk = most(1, least(plan.rows, RESULT_BYTES / (args.W * args.window.stride.h * plan.channels * value + 1)));
  plan.tasks = others * plan.row_blocks;
  plan.slots = slots_of(context, plan.tasks);
  const int64_t kernel_rows = (args.window.kernel.h - 1) * args.window.dilation.h + 1;
  const int64_t h_rows = least(args.H, (plan.chunk - 1) * args.window.stride.h + kernel_rows);
  if (x_planes) plan.x_bytes = round_up(h_rows * args.W * plan.channels * value, CACHE_LINE);
  if (y_planes) plan.y_bytes = round_up(plan.chunk * args.out_w * plan.channels * value, CACHE_LINE);
  return plan;
}

// Rows `out` and channels `c` of image n.
void pool_chunk(const PoolArgs& args, const Kernel& kernel, int64_t n, Range c, Range out, char* x_memory,
                char* y_memory) {
  const int64_t value = value_bytes(args.dtype), channels = c.end - c.begin;
  const Strides &xs = args.x_strides, &ys = args.y_strides;
  const auto x_at = [&](int64_t h) {
    return static_cast<const char*>(args.x) + (n * xs.n + c.begin * xs.c + h * xs.h) * value;
  };
  const auto y_at = [&](int64_t h) {
    return static_cast<char*>(args.y) + (n * ys.n + c.begin * ys.c + h * ys.h) * value;
  };
  PoolBlock block{};
  block.out = out;
  block.channels = channels;
  block.x = {x_at(0), 0, xs.h, xs.w};
  if (args.x_layout == Layout::planes) {
    const Range h = x_rows(args, out);
    for (int64_t i = h.begin; i < h.end; ++i)
      kernel.to_pixels(x_at(i), xs.c, channels, args.W, x_memory + (i - h.begin) * args.W * channels * value, channels);
    block.x = {x_memory, h.begin, args.W * channels, channels};
  }
  const bool y_planes = args.y_layout == Layout::planes;
  block.y = y_planes ? y_memory : y_at(out.begin);
  block.y_stride_h = y_planes ? args.out_w * channels : ys.h;
  block.y_stride_w = y_planes ? channels : ys.w;
  kernel.pool({args.window, args.H, args.W, args.out_w, args.average, args.count_include_pad}, block);
  if (!y_planes) return;
  for (int64_t i = out.begin; i < out.end; ++i)
    kernel.to_planes(y_memory + (i - out.begin) * args.out_w * channels * value, channels, channels, args.out_w,
                     y_at(i), ys.c);
}

}  // namespace

int64_t dsf_pool2d_workspace_bytes(const Context* context, const PoolArgs* args) {
  if (args->N == 0 || args->C == 0) return 0;
  const PoolPlan plan = plan_of(*context, *args);
  return plan.slots * plan.slot_bytes();
}

void dsf_pool2d(const Context* context, const PoolArgs* args) {
  if (args->N == 0 || args->C == 0) return;
  const PoolPlan plan = plan_of(*context, *args);
  const Kernel& kernel = kernel_of(args->dtype);
  const auto run = [&](char* memory, Range tasks) {
    for (int64_t task = tasks.begin; task < tasks.end; ++task) {
      const int64_t rows = task % plan.row_blocks, block = task / plan.row_blocks % plan.channel_blocks;
      const Range c = {block * plan.channels, least(args->C, (block + 1) * plan.channels)};
      const int64_t last = least(args->out_h, (rows + 1) * plan.rows);
      for (int64_t row = rows * plan.rows; row < last; row += plan.chunk)
        pool_chunk(*args, kernel, task / (plan.row_blocks * plan.channel_blocks), c,
                   {row, least(last, row + plan.chunk)}, memory, memory + plan.x_bytes);
    }
  };
  for_each_slot(*context, plan.slots, plan.tasks, static_cast<char*>(context->workspace), plan.slot_bytes(), run);
}

}  // namespace dsf
