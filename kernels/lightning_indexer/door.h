// How a door with strided tensors checks a call of the indexer, and copies what is not rows.
#pragma once
#include <vector>

#include "kernels/lightning_indexer/cpu.h"

namespace dsf {

// Operand has `view`, `get()` (null where absent), `whole` and `make_rows()` (true where it copied). The dense form has
// no cache, the paged one no k.
template <class Operand>
struct IndexerOperands {
  Operand q, weights, k, k_scale, ks, ke, cache, context_lens, block_table;
};

template <class Operand, class Raise>
IndexerArgs checked_indexer(IndexerCall* call, IndexerOperands<Operand>& operands, const Raise& raise) {
  IndexerArgs args;
  const auto check = [&] {
    call->q = operands.q.view;
    call->weights = operands.weights.view;
    call->k = operands.k.get();
    call->k_scale = operands.k_scale.get();
    call->ks = operands.ks.get();
    call->ke = operands.ke.get();
    call->cache = operands.cache.get();
    call->context_lens = operands.context_lens.get();
    call->block_table = operands.block_table.get();
    Problem problem;
    if (!dsf_lightning_indexer_check(call, &args, &problem)) raise(problem);
  };
  for (Operand* read : {&operands.context_lens, &operands.block_table})  // the check reads their values
    if (!read->whole) read->make_rows();
  check();
  bool copied = false;
  for (Operand* rows : {&operands.q, &operands.weights, &operands.k, &operands.k_scale, &operands.ks, &operands.ke,
                        &operands.context_lens, &operands.block_table})
    copied |= rows->make_rows();
  if (copied) check();
  return args;
}

inline std::vector<int64_t> output_sizes(const IndexerArgs& args) {
  if (args.selects && args.paged) return {args.b, args.s_q, args.top_k};
  return {args.b * args.s_q, args.selects ? args.top_k : args.columns};
}

template <class Operand, class Raise>
TopkArgs checked_topk(TopkCall* call, Operand& scores, Operand& lengths, const Raise& raise) {
  TopkArgs args;
  const auto check = [&] {
    call->scores = scores.view;
    call->lengths = lengths.get();
    Problem problem;
    if (!dsf_topk_indices_check(call, &args, &problem)) raise(problem);
  };
  check();
  bool copied = scores.make_rows();
  copied |= lengths.make_rows();
  if (copied) check();
  return args;
}

inline std::vector<int64_t> output_sizes(const TopkCall& call) {
  std::vector<int64_t> sizes(call.scores.sizes, call.scores.sizes + call.scores.ndim);
  sizes.back() = call.k;
  return sizes;
}

}  // namespace dsf
