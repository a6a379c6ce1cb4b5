// How a door checks a call of top_k_blocks.
#pragma once
#include "kernels/block_sparse_attention/builders.h"
#include "kernels/block_sparse_attention/door.h"

namespace dsf {

// Operand as door.h has it; raise(problem) throws.
template <class Operand, class Raise>
AttentionArgs checked_top_k(const char* op, Operand* q, Operand* k, const AttentionOptions& options, const TopK& top,
                            const Raise& raise) {
  for (Operand* operand : {q, k})
    if (!(operand->whole && has_rows(operand->view))) operand->make_contiguous();
  AttentionCall call{};
  call.op = op;
  call.q = q->view, call.k = call.v = k->view;
  set_options(&call, options);
  AttentionArgs args;
  Problem problem;
  if (!dsf_top_k_blocks_check(&call, &top, &args, &problem)) raise(problem);
  return args;
}

}  // namespace dsf
