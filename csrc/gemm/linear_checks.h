// The checks, packing header and work plan behind every linear room's functions.
#pragma once
#include "csrc/gemm/linear.h"
#include "csrc/gemm/packed.h"

namespace dsf {

// Fills *args from the call; weight_arg is the weight's name in sentences ("weight", "q"). False and *problem
// otherwise. A room whose weight needs other rules calls the steps itself, in this order: x, the weight, the rest.
bool check_linear(const LinearCall& call, const char* op, const char* weight_arg, Dtype weight_dtype, LinearArgs* args,
                  Problem* problem);
bool check_linear_x(const LinearCall& call, const char* op, LinearArgs* args, Problem* problem);
// A matrix of K columns, without a look at its dtype.
bool check_linear_weight(const LinearCall& call, const char* op, const char* weight_arg, LinearArgs* args,
                         Problem* problem);
// A whole packed weight of this version, K columns and out_features rows. *format is what it holds.
bool check_linear_packed(const LinearCall& call, const char* op, LinearArgs* args, PackedFormat* format,
                         Problem* problem);
// Representable sizes, then bias, residual, activation. format: of the packed weight, made or to be made.
bool check_linear_rest(const LinearCall& call, const char* op, const char* weight_arg, PackedFormat format,
                       LinearArgs* args, Problem* problem);

// Two dimensions, and a packed form of representable size.
bool check_matrix(const char* op, const char* arg, const TensorView& matrix, PackedFormat format, Problem* problem);
// call.weight.scale, of shape (length,) and f32.
bool check_linear_scale(const LinearCall& call, const char* op, int64_t length, LinearArgs* args, Problem* problem);
const char* dtype_name(Dtype dtype);
// The dtypes of x, y and of weights that are not quantized, as a rule and as a check: is_float().
inline constexpr const char* BE_FLOAT = "be float32, bfloat16 or float16";
bool check_float(const char* op, const char* arg, const TensorView& view, Problem* problem);

int64_t packed_bytes(PackedFormat format, int64_t N, int64_t K);  // -1 on overflow
void write_packed_header(PackedFormat format, int64_t N, int64_t K, void* packed);

// x of f16 as the float tiles read it: f32, in rows of K in the workspace.
int64_t widened_x_bytes(const LinearArgs& args);  // 0 for any other x; -1 on overflow
// args with x in f32 where it is f16, made by the level's widen (epilogue.h) in memory of widened_x_bytes.
LinearArgs with_widened_x(const Context& context, const LinearArgs& args, WidenX widen, void* memory);

// Work is cut into panels x blocks of rows. How it is cut never changes a result.
struct WalkPlan {
  int64_t panels;
  int64_t row_blocks;
  int64_t rows;  // of a block
};
WalkPlan plan_walk(const Context& context, const LinearArgs& args);

// Calls run(m_begin, m_end, panel) for all of the plan; consecutive tasks share a panel.
template <class Run>
void walk(const Context& context, const LinearArgs& args, const Run& run) {
  const WalkPlan plan = plan_walk(context, args);
  parallel_for(context, plan.panels * plan.row_blocks, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t m = task % plan.row_blocks * plan.rows;
      const int64_t m_end = m + plan.rows < args.M ? m + plan.rows : args.M;
      run(m, m_end, task / plan.row_blocks);
    }
  });
}

}  // namespace dsf
