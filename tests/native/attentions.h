// block_sparse_attention and its backward by their plain C ABI: check, allocate, call, as every door does.
// Tensors and numbers are named as the torch operators' arguments; scale is a text.
#pragma once
#include "kernels/block_sparse_attention/door.h"
#include "tests/native/protocol.h"

namespace {

using namespace dsf;

struct AttentionRequestOf {
  AttentionCall call{};
  BlockLists lists{};

  AttentionRequestOf(const char* op, const Arguments& arguments) {
    const auto number = [&](const char* name, int64_t otherwise) { return arguments.integer(name, otherwise); };
    const char* scale = arguments.text("scale");
    call.op = op;
    call.q = arguments.needed("q"), call.k = arguments.needed("k"), call.v = arguments.needed("v");
    call.kept = arguments.tensor("block_mask");
    call.token_bias = arguments.tensor("token_bias"), call.sink_logits = arguments.tensor("sink_logits");
    call.cu_seqlens_q = arguments.tensor("cu_seqlens_q"), call.cu_seqlens_k = arguments.tensor("cu_seqlens_k");
    AttentionOptions options{0.0,
                             number("is_causal", 0) != 0,
                             number("left", NO_LIMIT),
                             number("right", NO_LIMIT),
                             number("sinks", 0),
                             number("q_offset", 0),
                             number("q_at_end", 0) != 0,
                             number("enable_gqa", 1) != 0,
                             number("block_q", 128),
                             number("block_k", 128)};
    if (*scale)
      options.scale = std::atof(scale);
    else
      options.scale.reset();
    set_options(&call, options);
    if (!arguments.tensor("row_offsets")) return;
    lists = {options.block_q,
             options.block_k,
             arguments.needed("row_offsets"),
             arguments.needed("columns"),
             arguments.tensor("tables"),
             arguments.tensor("bits")};
    call.lists = &lists;
  }
  AttentionRequestOf(const AttentionRequestOf&) = delete;
};

// Memory of a result, of B x heads x tokens x values.
struct ResultOf {
  const int64_t bytes;
  const Guarded memory;

  ResultOf(int64_t count, int64_t value_bytes) : bytes(count * value_bytes), memory(bytes, value_bytes) {}
  operator Result() const { return {memory.data, bytes}; }
};

void run_block_sparse_attention(const char* op, const Arguments& arguments) {
  const AttentionRequestOf request(op, arguments);
  AttentionArgs args;
  Problem problem;
  if (!DSF_FUNCTION(dsf_block_sparse_attention_check)(&request.call, &args, &problem)) return write_problem(problem);
  const int64_t rows = args.B * args.H * args.S_q;
  const ResultOf out(rows * args.D_v, dtype_of(request.call.q.dtype_name).bytes), lse(rows, 4);
  args.out = out.memory.data;
  args.lse = reinterpret_cast<float*>(lse.memory.data);
  Context context = serial();
  const Guarded workspace(DSF_FUNCTION(dsf_block_sparse_attention_workspace_bytes)(&context, &args), DOOR_ALIGNMENT);
  context.workspace = workspace.data;
  DSF_FUNCTION(dsf_block_sparse_attention)(&context, &args);
  write_results({out, lse});
}

void run_block_sparse_attention_backward(const char* op, const Arguments& arguments) {
  AttentionRequestOf request(op, arguments);
  AttentionCall& call = request.call;
  call.out = arguments.tensor("out"), call.lse = arguments.tensor("lse");
  call.dout = arguments.tensor("dout"), call.dlse = arguments.tensor("dlse");
  AttentionArgs args;
  Problem problem;
  if (!DSF_FUNCTION(dsf_block_sparse_attention_backward_check)(&call, &args, &problem)) return write_problem(problem);
  const int64_t value_bytes = dtype_of(call.q.dtype_name).bytes, keys = args.B * args.H_kv * args.S_k;
  const ResultOf dq(args.B * args.H * args.S_q * args.D, value_bytes), dk(keys * args.D, value_bytes);
  const ResultOf dv(keys * args.D_v, value_bytes), dsink(call.sink_logits ? args.H : 0, 4);
  args.dq = dq.memory.data, args.dk = dk.memory.data, args.dv = dv.memory.data;
  if (call.sink_logits) args.dsink_logits = reinterpret_cast<float*>(dsink.memory.data);
  Context context = serial();
  const Guarded workspace(DSF_FUNCTION(dsf_block_sparse_attention_backward_workspace_bytes)(&context, &args),
                          DOOR_ALIGNMENT);
  context.workspace = workspace.data;
  DSF_FUNCTION(dsf_block_sparse_attention_backward)(&context, &args);
  write_results({dq, dk, dv, dsink});
}

using AttentionOp = void (*)(const char* op, const Arguments& arguments);
// Null for a name that is neither.
AttentionOp attention_named(const std::string& name) {
  if (name == "block_sparse_attention") return run_block_sparse_attention;
  return name == "block_sparse_attention_backward" ? run_block_sparse_attention_backward : nullptr;
}

}  // namespace
