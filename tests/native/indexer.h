// The indexer's operators by their plain C ABI: check, allocate, call, as every door does.
#pragma once
#include "kernels/lightning_indexer/cpu.h"
#include "tests/native/protocol.h"

namespace {

using namespace dsf;

// Text of an order, null for none.
const char* order_of(const Arguments& arguments) {
  return arguments.texts.count("sorted_by") ? arguments.text("sorted_by") : nullptr;
}

void run_indexer(const char* op, const Arguments& arguments) {
  const std::string name = op;
  IndexerCall call{};
  call.op = op;
  call.q = arguments.needed("q");
  call.weights = arguments.needed("weights");
  call.k = arguments.tensor("k");
  call.k_scale = arguments.tensor("k_scale");
  call.ks = arguments.tensor("ks");
  call.ke = arguments.tensor("ke");
  call.cache = arguments.tensor("cache");
  call.context_lens = arguments.tensor("context_lens");
  call.block_table = arguments.tensor("block_table");
  call.max_seqlen_k = arguments.integer(call.cache ? "max_context_len" : "max_seqlen_k", 0);
  call.logits_dtype_name = arguments.text("dtype", "float32");
  call.logits_dtype = dtype_of(call.logits_dtype_name).dtype;
  call.selects = name.find("logits") == std::string::npos;
  call.top_k = arguments.integer("top_k", 0);
  call.sorted_by = order_of(arguments);
  call.as_slots = int32_t(arguments.integer("as_slots", 0));
  IndexerArgs args;
  Problem problem;
  if (!DSF_FUNCTION(dsf_lightning_indexer_check)(&call, &args, &problem)) return write_problem(problem);
  const int64_t value_bytes = call.selects || call.logits_dtype == Dtype::f32 ? 4 : 2;
  const int64_t bytes = args.b * args.s_q * (call.selects ? args.top_k : args.columns) * value_bytes;
  const Guarded output(bytes, value_bytes);
  args.logits = output.data;
  args.indices = reinterpret_cast<int32_t*>(output.data);
  Context context = serial();
  const Guarded workspace(DSF_FUNCTION(dsf_lightning_indexer_workspace_bytes)(&context, &args), DOOR_ALIGNMENT);
  context.workspace = workspace.data;
  {
    const Flushing mode(arguments.integer("flush", 0));
    DSF_FUNCTION(dsf_lightning_indexer)(&context, &args);
  }
  write_results({{output.data, bytes}});
}

void run_topk(const char* op, const Arguments& arguments) {
  const TopkCall call{op, arguments.needed("scores"), arguments.tensor("lengths"), arguments.integer("k", 0),
                      order_of(arguments)};
  TopkArgs args;
  Problem problem;
  if (!DSF_FUNCTION(dsf_topk_indices_check)(&call, &args, &problem)) return write_problem(problem);
  const Guarded indices(args.rows * args.k * 4, 4);
  args.indices = reinterpret_cast<int32_t*>(indices.data);
  Context context = serial();
  const Guarded workspace(DSF_FUNCTION(dsf_topk_indices_workspace_bytes)(&context, &args), DOOR_ALIGNMENT);
  context.workspace = workspace.data;
  {
    const Flushing mode(arguments.integer("flush", 0));
    DSF_FUNCTION(dsf_topk_indices)(&context, &args);
  }
  write_results({{indices.data, args.rows * args.k * 4}});
}

using IndexerOp = void (*)(const char* op, const Arguments& arguments);
// Null for a name that is none of the room's.
IndexerOp indexer_named(const std::string& name) {
  static const std::map<std::string, IndexerOp> OPS = {
      {"fp8_mqa_logits", run_indexer},    {"fp8_paged_mqa_logits", run_indexer},
      {"lightning_indexer", run_indexer}, {"lightning_indexer_paged", run_indexer},
      {"topk_indices", run_topk},
  };
  const auto at = OPS.find(name);
  return at == OPS.end() ? nullptr : at->second;
}

}  // namespace
