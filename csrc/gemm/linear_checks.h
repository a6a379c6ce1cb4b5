// The checks, packing header and work plan behind every linear room's functions.
#pragma once
#include "csrc/gemm/linear.h"

namespace dsf {

// Fills *args from the call; weight_arg is the weight's name in sentences ("weight", "q"). False and *problem
// otherwise.
bool check_linear(const LinearCall& call, const char* op, const char* weight_arg, Dtype weight_dtype, LinearArgs* args,
                  Problem* problem);

// Two dimensions, and a packed form of representable size.
bool check_matrix(const char* op, const char* arg, const TensorView& matrix, Problem* problem);

int64_t packed_bytes(Dtype dtype, int64_t N, int64_t K);  // -1 on overflow
void write_packed_header(Dtype dtype, int64_t N, int64_t K, void* packed);

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
