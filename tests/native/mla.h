// sparse_mla, its backward and sparse_mla_decode by their plain C ABI: check, allocate, call, as every door does.
#pragma once
#include "kernels/sparse_mla/door.h"
#include "tests/native/protocol.h"

namespace {

using namespace dsf;

float scale_of(const Arguments& arguments, const TensorView& q) {
  const char* text = arguments.text("scale");
  return scale_or_default(*text ? std::optional<double>(std::atof(text)) : std::nullopt, q);
}

template <class Bytes, class Run>
void run_guarded(const Bytes& workspace_bytes, const Run& run, const SparseMlaArgs& args) {
  Context context = serial();
  const Guarded workspace(workspace_bytes(&context, &args), DOOR_ALIGNMENT);
  context.workspace = workspace.data;
  run(&context, &args);
}

SparseMlaCall prefill_call(const char* op, const Arguments& arguments) {
  SparseMlaCall call{};
  call.op = op;
  call.q = arguments.needed("q");
  call.kv = arguments.needed("kv");
  call.indices = arguments.needed("indices");
  call.scale = scale_of(arguments, call.q);
  call.d_v = arguments.integer("d_v", 512);
  call.attn_sink = arguments.tensor("attn_sink");
  call.topk_length = arguments.tensor("topk_length");
  call.out = arguments.tensor("out");
  call.lse = arguments.tensor("lse");
  call.dout = arguments.tensor("dout");
  return call;
}

// Results: out, max_logits, lse.
void run_sparse_mla(const char* op, const Arguments& arguments) {
  const SparseMlaCall call = prefill_call(op, arguments);
  SparseMlaArgs args;
  Problem problem;
  if (!DSF_FUNCTION(dsf_sparse_mla_check)(&call, &args, &problem)) return write_problem(problem);
  const int64_t value = dtype_of(call.q.dtype_name).bytes, rows = args.s_q * args.h_q;
  const Guarded out(rows * args.d_v * value, value), max_logits(rows * 4, 4), lse(rows * 4, 4);
  args.out = out.data;
  args.max_logits = reinterpret_cast<float*>(max_logits.data);
  args.lse = reinterpret_cast<float*>(lse.data);
  run_guarded(DSF_FUNCTION(dsf_sparse_mla_workspace_bytes), DSF_FUNCTION(dsf_sparse_mla), args);
  write_results({{out.data, rows * args.d_v * value}, {max_logits.data, rows * 4}, {lse.data, rows * 4}});
}

// Results: dq, dkv, dattn_sink.
void run_sparse_mla_backward(const char* op, const Arguments& arguments) {
  const SparseMlaCall call = prefill_call(op, arguments);
  SparseMlaArgs args;
  Problem problem;
  if (!DSF_FUNCTION(dsf_sparse_mla_backward_check)(&call, &args, &problem)) return write_problem(problem);
  const int64_t value = dtype_of(call.q.dtype_name).bytes, sinks = call.attn_sink ? args.h_q * 4 : 0;
  const int64_t dq_bytes = args.s_q * args.h_q * args.d_qk * value;
  const int64_t dkv_bytes = args.store.page_size * args.h_kv * args.d_qk * value;
  const Guarded dq(dq_bytes, value), dkv(dkv_bytes, value), dsink(sinks, 4);
  args.dq = dq.data;
  args.dkv = dkv.data;
  args.dattn_sink = call.attn_sink ? reinterpret_cast<float*>(dsink.data) : nullptr;
  run_guarded(DSF_FUNCTION(dsf_sparse_mla_backward_workspace_bytes), DSF_FUNCTION(dsf_sparse_mla_backward), args);
  write_results({{dq.data, dq_bytes}, {dkv.data, dkv_bytes}, {dsink.data, sinks}});
}

// Results: out, lse.
void run_sparse_mla_decode(const char* op, const Arguments& arguments) {
  SparseMlaDecodeCall call{};
  call.op = op;
  call.q = arguments.needed("q");
  call.k_cache = arguments.needed("k_cache");
  call.layout = arguments.text("layout", "plain");
  call.indices = arguments.tensor("indices");
  call.topk_length = arguments.tensor("topk_length");
  call.block_table = arguments.tensor("block_table");
  call.cache_seqlens = arguments.tensor("cache_seqlens");
  call.is_causal = int32_t(arguments.integer("is_causal", 0));
  call.extra_k_cache = arguments.tensor("extra_k_cache");
  call.extra_indices = arguments.tensor("extra_indices");
  call.extra_topk_length = arguments.tensor("extra_topk_length");
  call.scale = scale_of(arguments, call.q);
  call.d_v = arguments.integer("d_v", 512);
  call.attn_sink = arguments.tensor("attn_sink");
  SparseMlaArgs args;
  Problem problem;
  if (!DSF_FUNCTION(dsf_sparse_mla_decode_check)(&call, &args, &problem)) return write_problem(problem);
  const int64_t value = dtype_of(call.q.dtype_name).bytes, rows = args.b * args.s_q * args.h_q;
  const Guarded out(rows * args.d_v * value, value), lse(rows * 4, 4);
  args.out = out.data;
  args.lse = reinterpret_cast<float*>(lse.data);
  run_guarded(DSF_FUNCTION(dsf_sparse_mla_decode_workspace_bytes), DSF_FUNCTION(dsf_sparse_mla_decode), args);
  write_results({{out.data, rows * args.d_v * value}, {lse.data, rows * 4}});
}

// Results: the cache's memory, as it was given, with kv in it; then its numbers.
void run_mla_cache(const char*, const Arguments& arguments) {
  const TensorView& cache = arguments.needed("cache");
  const CacheWriteCall call{cache, arguments.needed("kv"), arguments.text("layout"), arguments.tensor("slots")};
  const CacheReadCall read{cache, call.layout};
  CacheWriteArgs args;
  TokenStore store;
  Problem problem;
  if (!DSF_FUNCTION(dsf_mla_cache_write_check)(&call, &args, &problem) ||
      !DSF_FUNCTION(dsf_mla_cache_read_check)(&read, &store, &problem))
    return write_problem(problem);
  const Context context = serial();
  DSF_FUNCTION(dsf_mla_cache_write)(&context, &args);
  const int64_t bytes = store.pages * store.page_size * DSF_FUNCTION(dsf_mla_cache_numbers)(&store) * 2;
  const Guarded numbers(bytes, 2);
  DSF_FUNCTION(dsf_mla_cache_read)(&context, &store, reinterpret_cast<uint16_t*>(numbers.data));
  write_results({{numbers.data, bytes}});
}

using MlaOp = void (*)(const char* op, const Arguments& arguments);
// Null for a name that is none of the family's.
MlaOp mla_named(const std::string& name) {
  static const std::map<std::string, MlaOp> OPS = {
      {"sparse_mla", run_sparse_mla},
      {"sparse_mla_backward", run_sparse_mla_backward},
      {"sparse_mla_decode", run_sparse_mla_decode},
      {"mla_cache", run_mla_cache},
  };
  const auto at = OPS.find(name);
  return at == OPS.end() ? nullptr : at->second;
}

}  // namespace
