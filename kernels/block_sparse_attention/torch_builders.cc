// The torch operators that build block masks; meta_builders.py has their Meta kernels, op_builders.py the functions.
#include "csrc/torch/adapter.h"
#include "kernels/block_sparse_attention/door_builders.h"

namespace dsf::torch_door {
namespace {

using Lists = std::tuple<Tensor, Tensor>;

Lists lists_of(const BlockPattern& pattern) {
  int64_t rows, entries;
  Problem problem;
  if (!dsf_block_pattern_check(&pattern, &rows, &entries, &problem)) raise(problem);
  const Tensor offsets = new_tensor({1, 1, rows + 1}, ScalarType::Int),
               columns = new_tensor({entries}, ScalarType::Int);
  dsf_block_pattern(&pattern, static_cast<int32_t*>(offsets.mutable_data_ptr()),
                    static_cast<int32_t*>(columns.mutable_data_ptr()));
  return {offsets, columns};
}

Lists sliding_window_blocks(int64_t S_q, int64_t S_k, int64_t left, int64_t right, int64_t sinks, bool is_causal,
                            int64_t q_offset, bool q_at_end, int64_t block_q, int64_t block_k) {
  return lists_of({"sliding_window_blocks", S_q, S_k, block_q, block_k, is_causal, q_offset, q_at_end, 0, left, right,
                   sinks, 0, 0});
}

Lists local_log_blocks(int64_t S_q, int64_t S_k, int64_t local, int64_t first, bool is_causal, int64_t q_offset,
                       bool q_at_end, int64_t block_q, int64_t block_k) {
  return lists_of({"local_log_blocks", S_q, S_k, block_q, block_k, is_causal, q_offset, q_at_end, 1, NO_LIMIT, NO_LIMIT,
                   0, local, first});
}

Lists block_lists(const Tensor& block_mask) {
  Operand mask("block_lists", "block_mask", block_mask);
  mask.make_contiguous();
  int64_t entries;
  Problem problem;
  if (!dsf_block_lists_check(mask.op, mask.get(), &entries, &problem)) raise(problem);
  const int64_t n = mask.view.ndim, *sizes = mask.view.sizes;
  const Tensor offsets = new_tensor({n == 4 ? sizes[0] : 1, n == 4 ? sizes[1] : 1, sizes[n - 2] + 1}, ScalarType::Int);
  const Tensor columns = new_tensor({entries}, ScalarType::Int);
  dsf_block_lists(mask.get(), static_cast<int32_t*>(offsets.mutable_data_ptr()),
                  static_cast<int32_t*>(columns.mutable_data_ptr()));
  return {offsets, columns};
}

Tensor top_k_blocks(const Tensor& q, const Tensor& k, int64_t num_blocks, std::optional<double> scale, int64_t first,
                    int64_t local, bool is_causal, int64_t q_offset, bool q_at_end, int64_t block_q, int64_t block_k) {
  const char* op = "top_k_blocks";
  Operand of_q(op, "q", q), of_k(op, "k", k);
  const AttentionOptions options{scale, is_causal, NO_LIMIT, NO_LIMIT, 0, q_offset, q_at_end, true, block_q, block_k};
  const TopK top{num_blocks, first, local};
  const AttentionArgs args = checked_top_k(op, &of_q, &of_k, options, top, raise);
  const Tensor kept = new_tensor({args.B, args.H, args.rows, args.columns}, ScalarType::Bool);
  CallContext context;
  context.reserve(op, dsf_top_k_blocks_workspace_bytes(context.get(), &args));
  dsf_top_k_blocks(context.get(), &args, &top, static_cast<uint8_t*>(kept.mutable_data_ptr()));
  return kept;
}

}  // namespace
}  // namespace dsf::torch_door

STABLE_TORCH_LIBRARY_FRAGMENT(deepseek_fast, library) {
  library.def(
      "sliding_window_blocks(SymInt S_q, SymInt S_k, SymInt left, SymInt right, SymInt sinks=0, bool is_causal=False, "
      "SymInt q_offset=0, bool q_at_end=False, SymInt block_q=128, SymInt block_k=128) -> (Tensor row_offsets, Tensor "
      "columns)");
  library.def(
      "local_log_blocks(SymInt S_q, SymInt S_k, SymInt local=2, SymInt first=1, bool is_causal=True, SymInt "
      "q_offset=0, bool q_at_end=False, SymInt block_q=128, SymInt block_k=128) -> (Tensor row_offsets, Tensor "
      "columns)");
  library.def("block_lists(Tensor block_mask) -> (Tensor row_offsets, Tensor columns)");
  library.def(
      "top_k_blocks(Tensor q, Tensor k, SymInt num_blocks, float? scale=None, SymInt first=1, SymInt local=1, bool "
      "is_causal=False, SymInt q_offset=0, bool q_at_end=False, SymInt block_q=128, SymInt block_k=128) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(deepseek_fast, CPU, library) {
  library.impl("block_lists", TORCH_BOX(&dsf::torch_door::block_lists));
  library.impl("top_k_blocks", TORCH_BOX(&dsf::torch_door::top_k_blocks));
}

// No tensor comes in that would say where they run.
STABLE_TORCH_LIBRARY_IMPL(deepseek_fast, CompositeExplicitAutograd, library) {
  library.impl("sliding_window_blocks", TORCH_BOX(&dsf::torch_door::sliding_window_blocks));
  library.impl("local_log_blocks", TORCH_BOX(&dsf::torch_door::local_log_blocks));
}
