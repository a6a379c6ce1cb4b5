// The torch operators of the indexer. Meta kernels are beside the public functions in op.py.
#include "csrc/torch/adapter.h"
#include "kernels/lightning_indexer/door.h"

namespace dsf::torch_door {
namespace {

using MaybeTensor = std::optional<Tensor>;
constexpr const char* ANY_ORDER = "any";  // the schema's word for None

const char* order_of(const std::string& sorted_by) { return sorted_by == ANY_ORDER ? nullptr : sorted_by.c_str(); }

IndexerOperands<Operand> dense(const char* op, const Tensor& q, const Tensor& k, const Tensor& k_scale,
                               const Tensor& weights, const MaybeTensor& ks, const MaybeTensor& ke) {
  const MaybeTensor none;
  return {{op, "q", q},
          {op, "weights", weights},
          {op, "k", k},
          {op, "k_scale", k_scale},
          {op, "ks", ks},
          {op, "ke", ke},
          {op, "cache", none},
          {op, "context_lens", none},
          {op, "block_table", none}};
}

IndexerOperands<Operand> paged(const char* op, const Tensor& q, const Tensor& cache, const Tensor& weights,
                               const Tensor& context_lens, const Tensor& block_table) {
  const MaybeTensor none;
  return {{op, "q", q},
          {op, "weights", weights},
          {op, "k", none},
          {op, "k_scale", none},
          {op, "ks", none},
          {op, "ke", none},
          {op, "cache", cache},
          {op, "context_lens", context_lens},
          {op, "block_table", block_table}};
}

Tensor run(IndexerCall call, IndexerOperands<Operand> operands, ScalarType dtype) {
  IndexerArgs args = checked_indexer<Operand>(&call, operands, raise);
  const Tensor output = new_tensor(output_sizes(args), dtype);
  args.logits = output.mutable_data_ptr();
  args.indices = static_cast<int32_t*>(output.mutable_data_ptr());
  CallContext context;
  context.reserve(call.op, dsf_lightning_indexer_workspace_bytes(context.get(), &args));
  dsf_lightning_indexer(context.get(), &args);
  return output;
}

IndexerCall logits_call(const char* op, int64_t columns, ScalarType dtype) {
  IndexerCall call{};
  call.op = op;
  call.max_seqlen_k = columns;
  call.logits_dtype = dtype_of(dtype);
  call.logits_dtype_name = name_of(dtype);
  return call;
}

IndexerCall indices_call(const char* op, int64_t top_k, const std::string& sorted_by, bool as_slots) {
  IndexerCall call{};
  call.op = op;
  call.selects = true;
  call.top_k = top_k;
  call.sorted_by = order_of(sorted_by);
  call.as_slots = as_slots;
  return call;
}

Tensor fp8_mqa_logits(const Tensor& q, const Tensor& k, const Tensor& k_scale, const Tensor& weights,
                      const MaybeTensor& ks, const MaybeTensor& ke, int64_t max_seqlen_k, ScalarType dtype) {
  constexpr const char* OP = "fp8_mqa_logits";
  return run(logits_call(OP, max_seqlen_k, dtype), dense(OP, q, k, k_scale, weights, ks, ke), dtype);
}

Tensor fp8_paged_mqa_logits(const Tensor& q, const Tensor& cache, const Tensor& weights, const Tensor& context_lens,
                            const Tensor& block_table, int64_t max_context_len, ScalarType dtype) {
  constexpr const char* OP = "fp8_paged_mqa_logits";
  return run(logits_call(OP, max_context_len, dtype), paged(OP, q, cache, weights, context_lens, block_table), dtype);
}

Tensor lightning_indexer(const Tensor& q, const Tensor& k, const Tensor& k_scale, const Tensor& weights, int64_t top_k,
                         const MaybeTensor& ks, const MaybeTensor& ke, std::string sorted_by) {
  constexpr const char* OP = "lightning_indexer";
  return run(indices_call(OP, top_k, sorted_by, false), dense(OP, q, k, k_scale, weights, ks, ke), ScalarType::Int);
}

Tensor lightning_indexer_paged(const Tensor& q, const Tensor& cache, const Tensor& weights, const Tensor& context_lens,
                               const Tensor& block_table, int64_t top_k, std::string sorted_by, bool as_slots) {
  constexpr const char* OP = "lightning_indexer_paged";
  return run(indices_call(OP, top_k, sorted_by, as_slots), paged(OP, q, cache, weights, context_lens, block_table),
             ScalarType::Int);
}

Tensor topk_indices(const Tensor& scores_tensor, int64_t k, std::string sorted_by, const MaybeTensor& lengths_tensor) {
  constexpr const char* OP = "topk_indices";
  Operand scores(OP, "scores", scores_tensor), lengths(OP, "lengths", lengths_tensor);
  TopkCall call{};
  call.op = OP;
  call.k = k;
  call.sorted_by = order_of(sorted_by);
  TopkArgs args = checked_topk<Operand>(&call, scores, lengths, raise);
  const Tensor indices = new_tensor(output_sizes(call), ScalarType::Int);
  args.indices = static_cast<int32_t*>(indices.mutable_data_ptr());
  CallContext context;
  context.reserve(OP, dsf_topk_indices_workspace_bytes(context.get(), &args));
  dsf_topk_indices(context.get(), &args);
  return indices;
}

}  // namespace
}  // namespace dsf::torch_door

STABLE_TORCH_LIBRARY_FRAGMENT(deepseek_fast, library) {
  // Positional: a keyword costs a call 0.2 us.
  library.def(
      "fp8_mqa_logits(Tensor q, Tensor k, Tensor k_scale, Tensor weights, Tensor? ks, Tensor? ke, int max_seqlen_k, "
      "ScalarType dtype) -> Tensor");
  library.def(
      "fp8_paged_mqa_logits(Tensor q, Tensor cache, Tensor weights, Tensor context_lens, Tensor block_table, int "
      "max_context_len, ScalarType dtype) -> Tensor");
  library.def(
      "lightning_indexer(Tensor q, Tensor k, Tensor k_scale, Tensor weights, int top_k, Tensor? ks, Tensor? ke, str "
      "sorted_by) -> Tensor");
  library.def(
      "lightning_indexer_paged(Tensor q, Tensor cache, Tensor weights, Tensor context_lens, Tensor block_table, int "
      "top_k, str sorted_by, bool as_slots) -> Tensor");
  library.def("topk_indices(Tensor scores, int k, str sorted_by, Tensor? lengths) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(deepseek_fast, CPU, library) {
  library.impl("fp8_mqa_logits", TORCH_BOX(&dsf::torch_door::fp8_mqa_logits));
  library.impl("fp8_paged_mqa_logits", TORCH_BOX(&dsf::torch_door::fp8_paged_mqa_logits));
  library.impl("lightning_indexer", TORCH_BOX(&dsf::torch_door::lightning_indexer));
  library.impl("lightning_indexer_paged", TORCH_BOX(&dsf::torch_door::lightning_indexer_paged));
  library.impl("topk_indices", TORCH_BOX(&dsf::torch_door::topk_indices));
}
