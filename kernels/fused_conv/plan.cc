#include "kernels/fused_conv/plan.h"

#include "csrc/gemm/packed.h"
#include "kernels/fused_conv/windows.h"

namespace dsf::fused_conv {
namespace {

// What a limit of bytes holds of something, at least one of it and at most all.
int64_t that_fit(int64_t limit, int64_t bytes, int64_t all) {
  return most(1, least(all, bytes > 0 ? limit / bytes : all));
}

int64_t weight_bytes_of_channel(const ConvArgs& args, Path path) {
  if (path == Path::winograd) return args.C * WINOGRAD_POINTS * 4;
  return args.C / args.groups * args.R * args.S * value_bytes(args.dtype);
}

// Channels of y that a block has: whole panels, or whole groups.
int64_t block_f(const ConvArgs& args, Path path) {
  if (path == Path::depthwise || path == Path::grouped) return args.F;
  if (path == Path::winograd) return args.F;  // all of them read x transformed once
  const int64_t unit = args.groups == 1 ? PANEL_F : args.F / args.groups;
  const int64_t units = divide_up(args.F, unit);
  const int64_t fitting = that_fit(WEIGHT_BYTES, unit * weight_bytes_of_channel(args, path), units);
  return least(args.F, unit * divide_up(units, divide_up(units, fitting)));
}

}  // namespace

Range conv_rows(const ConvArgs& args, Range out) {
  if (!args.has_pool) return out;
  const Window& pool = args.pool;
  const Range rows = rows_under(out, pool.kernel.h, pool.stride.h, pool.dilation.h, pool.padding.top);
  if (!args.winograd) return {most(0, rows.begin), least(args.P, rows.end)};
  // Whole tiles at places of their own, or the bits would depend on the cut.
  return {most(0, rows.begin) / WINOGRAD_OUT * WINOGRAD_OUT,
          least(args.P, round_up(least(args.P, rows.end), WINOGRAD_OUT))};
}

Range x_rows(const ConvArgs& args, Range p) {
  return inside(rows_under(p, args.R, args.stride.h, args.dilation.h, args.padding.top), args.H);
}

int64_t stem_row_values(const ConvArgs& args) {
  return (args.dilation.w == 1 ? (args.Q - 1) * args.stride.w + args.S : args.Q * args.S) * args.C;
}

Plan plan_of(const Context& context, const ConvArgs& args) {
  Plan plan{};
  plan.path = args.winograd ? Path::winograd : path_of(args.F, args.C / args.groups, args.S, args.groups);
  const bool stem = plan.path == Path::stem, pools = args.has_pool != 0;
  plan.copies_x = stem || args.x_layout == Layout::planes;
  plan.copies_residual = args.residual && args.residual_layout == Layout::planes;
  plan.copies_y = pools || args.y_layout == Layout::planes;
  plan.block_f = block_f(args, plan.path);
  plan.f_blocks = divide_up(args.F, plan.block_f);
  plan.f_per_task = plan.copies_x && !pools ? plan.f_blocks : 1;

  const int64_t x_value = value_bytes(args.dtype), y_value = value_bytes(args.y_dtype);
  const int64_t x_row = (stem ? stem_row_values(args) : args.W * args.C) * x_value;
  const int64_t result_row = args.Q * plan.block_f * y_value;
  const int64_t rows_a_row = pools ? args.pool.stride.h : 1;  // of the convolution, for one more of y
  plan.chunk_rows = args.out_h;
  if (plan.copies_x) plan.chunk_rows = that_fit(X_BYTES, x_row * rows_a_row * args.stride.h, plan.chunk_rows);
  const int64_t result_bytes = args.winograd ? WINOGRAD_RESULT_BYTES : RESULT_BYTES;
  if (plan.copies_y) plan.chunk_rows = that_fit(result_bytes, result_row * rows_a_row, plan.chunk_rows);
  if (plan.copies_residual)
    plan.chunk_rows = that_fit(RESULT_BYTES, args.Q * args.F * y_value * rows_a_row, plan.chunk_rows);

  const int64_t others = args.N * (plan.f_blocks / plan.f_per_task);
  plan.block_rows = divide_up(args.out_h, least(args.out_h, divide_up(tasks_wanted(context), others)));
  if (plan.path == Path::winograd && !pools) {  // whole tiles
    plan.block_rows = round_up(plan.block_rows, WINOGRAD_OUT);
    plan.chunk_rows = most(WINOGRAD_OUT, plan.chunk_rows / WINOGRAD_OUT * WINOGRAD_OUT);
  }
  plan.row_blocks = divide_up(args.out_h, plan.block_rows);
  plan.chunk_rows = least(plan.chunk_rows, plan.block_rows);
  plan.tasks = others * plan.row_blocks;
  plan.slots = slots_of(context, plan.tasks);

  const Range p = conv_rows(args, {0, plan.chunk_rows});
  const int64_t kernel_rows = pools ? (args.pool.kernel.h - 1) * args.pool.dilation.h + 1 : 1;
  const int64_t beside = pools && args.winograd ? 2 * (WINOGRAD_OUT - 1) : 0;  // what whole tiles have beside these
  const int64_t rows_of_chunk = (plan.chunk_rows - 1) * rows_a_row + kernel_rows + beside;
  const int64_t p_rows = least(args.P, most(p.end - p.begin, rows_of_chunk));
  const int64_t h_rows = least(args.H, (p_rows - 1) * args.stride.h + (args.R - 1) * args.dilation.h + 1);
  if (plan.copies_x) plan.x_bytes = round_up(h_rows * x_row, CACHE_LINE);
  if (plan.copies_residual) plan.residual_bytes = round_up(p_rows * args.Q * args.F * y_value, CACHE_LINE);
  if (plan.copies_y) plan.y_bytes = round_up(p_rows * result_row, CACHE_LINE);
  if (pools && args.y_layout == Layout::planes)
    plan.pooled_bytes = round_up(plan.chunk_rows * args.out_w * plan.block_f * y_value, CACHE_LINE);
  plan.runs_bytes = round_up(args.R * args.S * MAX_TILE_PIXELS * int64_t(sizeof(char*)), CACHE_LINE);
  if (plan.path == Path::winograd) {
    const int64_t per_row = divide_up(args.Q, WINOGRAD_OUT);
    const int64_t rows = least(divide_up(p_rows, WINOGRAD_OUT), winograd_most_rows(args.C, per_row));
    const int64_t tiles = per_row * rows;
    const int64_t values = winograd_point_values(args.C, tiles) + winograd_product_values(tiles);
    plan.winograd_bytes = round_up(WINOGRAD_POINTS * values * 4, CACHE_LINE);
  }
  plan.outside_bytes = round_up(args.C * (stem ? args.S : 1) * x_value, CACHE_LINE);
  if (x_value == 1) plan.multipliers_bytes = round_up(args.F * int64_t(sizeof(float)), CACHE_LINE);
  return plan;
}

}  // namespace dsf::fused_conv
