// How a door checks a call of block_sparse_attention, copies what has to lie side by side, and runs it.
#pragma once
#include <cmath>
#include <cstdio>
#include <optional>

#include "csrc/core/memory.h"
#include "kernels/block_sparse_attention/cpu.h"

namespace dsf {

// Options in numbers: deepseek_fast/_attention.py makes them of what users write.
struct AttentionOptions {
  std::optional<double> scale;  // none: 1 / sqrt(D)
  bool is_causal;
  int64_t left, right, sinks, q_offset;
  bool q_at_end, enable_gqa;
  int64_t block_q, block_k;
  int64_t key_stride = 1;  // AttentionArgs has the meaning
};

// Operand has `view`, `whole` (its strides count values), `get()` (null where absent) and `make_contiguous()`.
template <class Operand>
struct AttentionOperands {
  Operand &q, &k, &v, &kept, &row_offsets, &columns, &token_bias, &sink_logits, &cu_seqlens_q, &cu_seqlens_k, &tables,
      &bits;
};
template <class Operand>
struct GradientOperands {
  Operand &out, &lse, &dout, &dlse;
};

inline void set_options(AttentionCall* call, const AttentionOptions& options) {
  const int64_t D = call->q.ndim == 4 ? call->q.sizes[3] : 1;
  call->scale = float(options.scale ? *options.scale : 1 / std::sqrt(double(D < 1 ? 1 : D)));
  call->block_q = options.block_q, call->block_k = options.block_k;
  call->is_causal = options.is_causal;
  call->left = options.left, call->right = options.right;
  call->sinks = options.sinks;
  call->q_offset = options.q_offset, call->q_at_end = options.q_at_end;
  call->enable_gqa = options.enable_gqa;
  call->key_stride = options.key_stride;
}

// A call, and the lists that it points to. raise(problem) throws.
template <class Operand>
class AttentionRequest {
 public:
  template <class Raise>
  AttentionRequest(const char* op, const AttentionOperands<Operand>& o, const AttentionOptions& options,
                   const Raise& raise) {
    for (Operand* operand : {&o.q, &o.k, &o.v, &o.kept, &o.row_offsets, &o.columns, &o.token_bias, &o.sink_logits,
                             &o.cu_seqlens_q, &o.cu_seqlens_k, &o.tables})
      make_rows(operand);
    o.bits.make_contiguous();
    call.op = op;
    call.q = o.q.view, call.k = o.k.view, call.v = o.v.view;
    call.kept = o.kept.get();
    if (o.row_offsets.get() && !o.columns.get()) raise(missing(op, "columns", "row_offsets"));
    if (o.columns.get() && !o.row_offsets.get()) raise(missing(op, "row_offsets", "columns"));
    if (!o.row_offsets.get() && (o.tables.get() || o.bits.get())) raise(missing(op, "row_offsets", "tables"));
    if (o.row_offsets.get()) {
      lists_ = {options.block_q, options.block_k, o.row_offsets.view, o.columns.view, o.tables.get(), o.bits.get()};
      call.lists = &lists_;
    }
    call.token_bias = o.token_bias.get(), call.sink_logits = o.sink_logits.get();
    call.cu_seqlens_q = o.cu_seqlens_q.get(), call.cu_seqlens_k = o.cu_seqlens_k.get();
    set_options(&call, options);
  }
  AttentionRequest(const AttentionRequest&) = delete;

  void give(const GradientOperands<Operand>& o) {
    make_rows(&o.out);
    make_rows(&o.dout);
    o.lse.make_contiguous();
    o.dlse.make_contiguous();
    call.out = o.out.get(), call.lse = o.lse.get();
    call.dout = o.dout.get(), call.dlse = o.dlse.get();
  }

  template <class Raise>
  AttentionArgs checked(const Raise& raise) const {
    AttentionArgs args;
    Problem problem;
    const auto check = call.dout ? dsf_block_sparse_attention_backward_check : dsf_block_sparse_attention_check;
    if (!check(&call, &args, &problem)) raise(problem);
    return args;
  }

  AttentionCall call{};

 private:
  static void make_rows(Operand* operand) {
    if (operand->get() && !(operand->whole && has_rows(operand->view))) operand->make_contiguous();
  }

  static Problem missing(const char* op, const char* arg, const char* other) {
    Problem problem{Fault::type, {}};
    std::snprintf(problem.sentence, sizeof problem.sentence, "%s: %s must come with %s; got none", op, arg, other);
    return problem;
  }

  BlockLists lists_{};
};

// Runs checked calls whose outputs are set. reserve(bytes) gives context its workspace.
template <class Reserve>
void run_attention(const Context* context, const AttentionArgs& args, const Reserve& reserve) {
  reserve(dsf_block_sparse_attention_workspace_bytes(context, &args));
  dsf_block_sparse_attention(context, &args);
}
template <class Reserve>
void run_attention_backward(const Context* context, const AttentionArgs& args, const Reserve& reserve) {
  reserve(dsf_block_sparse_attention_backward_workspace_bytes(context, &args));
  dsf_block_sparse_attention_backward(context, &args);
}

}  // namespace dsf
