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
// Even where the weight is gated; fills gated and N.
bool check_linear_rows(const LinearWeight& weight, const char* op, const char* weight_arg, LinearArgs* args,
                       Problem* problem);
// A matrix of K columns and such rows, without a look at its dtype.
bool check_linear_weight(const LinearCall& call, const char* op, const char* weight_arg, LinearArgs* args,
                         Problem* problem);
// A whole packed weight of this version, K columns and out_features rows, twice as many where gated. *format is what it
// holds.
bool check_linear_packed(const LinearCall& call, const char* op, LinearArgs* args, PackedFormat* format,
                         Problem* problem);
// Representable sizes, then bias, residual, activation. format: of the packed weight, made or to be made.
bool check_linear_rest(const LinearCall& call, const char* op, const char* weight_arg, PackedFormat format,
                       LinearArgs* args, Problem* problem);

// Two dimensions, and a packed form of representable size.
bool check_matrix(const char* op, const char* arg, const TensorView& matrix, PackedFormat format, Problem* problem);
// An even number of rows where gated.
bool check_gated(const char* op, const char* arg, const LinearWeight& weight, Problem* problem);
// call.weight.scale, of shape (length,) and f32.
bool check_linear_scale(const LinearCall& call, const char* op, int64_t length, LinearArgs* args, Problem* problem);
const char* dtype_name(Dtype dtype);
// The dtypes of x, y and of weights that are not quantized, as a rule and as a check: is_float().
inline constexpr const char* BE_FLOAT = "be float32, bfloat16 or float16";
bool check_float(const char* op, const char* arg, const TensorView& view, Problem* problem);

inline int64_t weight_rows(const LinearArgs& args) { return args.gated ? 2 * args.N : args.N; }
int64_t packed_bytes(PackedFormat format, int64_t N, int64_t K);  // -1 on overflow; N: rows of the weight
void write_packed_header(PackedFormat format, int64_t N, int64_t K, void* packed);

// x of f16 as the float tiles read it: f32, in rows of K in the workspace.
int64_t widened_x_bytes(const LinearArgs& args);  // 0 for any other x; -1 on overflow
// args with x in f32 where it is f16, made by the level's widen (epilogue.h) in memory of widened_x_bytes.
LinearArgs with_widened_x(const Context& context, const LinearArgs& args, WidenX widen, void* memory);

// Work is cut into panels x blocks of rows. How it is cut never changes a result.
struct WalkPlan {
  int64_t panels;  // of y
  int64_t row_blocks;
  int64_t rows;  // of a block
};
WalkPlan plan_walk(const Context& context, const LinearArgs& args);

inline constexpr int64_t SMALLEST_BLOCK = 48;  // rows: whole register tiles of every level
// Most rows that the two halves of a gated product take in turn: 96 KiB of the gate wait for its other half, a tile's
// part of them in L1, and each half's panel comes from L3 once for so many rows.
inline constexpr int64_t GATE_ROWS = 8 * SMALLEST_BLOCK;

// Rows [m_begin, m_end) of a gated product's columns: the gate's panel, then the other factor's, chunk by chunk.
template <class Run>
[[gnu::noinline]] void walk_halves(LinearArgs args, int64_t m_begin, int64_t m_end, int64_t columns, const Run& run) {
  alignas(64) float gate[GATE_ROWS * PANEL_N];
  args.gate = gate;
  const int64_t chunks = (m_end - m_begin + GATE_ROWS - 1) / GATE_ROWS;
  const int64_t rows = chunks > 1 ? round_up((m_end - m_begin + chunks - 1) / chunks, SMALLEST_BLOCK) : GATE_ROWS;
  for (int64_t m = m_begin; m < m_end; m += rows) {
    const int64_t end = m_end - m < rows ? m_end : m + rows;
    args.gate_m = m;
    run(args, m, end, 2 * columns);
    run(args, m, end, 2 * columns + 1);
  }
}

// Calls run(args, m_begin, m_end, panel) for all of the plan; consecutive tasks share a panel.
template <class Run>
void walk(const Context& context, const LinearArgs& args, const Run& run) {
  const WalkPlan plan = plan_walk(context, args);
  parallel_for(context, plan.panels * plan.row_blocks, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t m = task % plan.row_blocks * plan.rows;
      const int64_t m_end = m + plan.rows < args.M ? m + plan.rows : args.M;
      if (args.gated)
        walk_halves(args, m, m_end, task / plan.row_blocks, run);
      else
        run(args, m, m_end, task / plan.row_blocks);
    }
  });
}

}  // namespace dsf
