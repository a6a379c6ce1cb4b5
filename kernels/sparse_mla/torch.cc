// The torch operators of sparse_mla. Meta kernels are in meta.py, the gradient in grad.py, the public functions in
// op.py.
#include "csrc/torch/adapter.h"
#include "kernels/sparse_mla/door.h"

namespace dsf::torch_door {
namespace {

using MaybeTensor = std::optional<Tensor>;
using MaybeScale = std::optional<double>;

MlaOperands<Operand> operands(const char* op, const Tensor& q, const Tensor& kv, const Tensor& indices,
                              const MaybeTensor& attn_sink, const MaybeTensor& topk_length) {
  return {{op, "q", q},
          {op, "kv", kv},
          {op, "indices", indices},
          {op, "attn_sink", attn_sink},
          {op, "topk_length", topk_length}};
}

std::tuple<Tensor, Tensor, Tensor> sparse_mla(const Tensor& q, const Tensor& kv, const Tensor& indices,
                                              MaybeScale scale, int64_t d_v, const MaybeTensor& attn_sink,
                                              const MaybeTensor& topk_length) {
  constexpr const char* OP = "sparse_mla";
  MlaOperands<Operand> given = operands(OP, q, kv, indices, attn_sink, topk_length);
  SparseMlaCall call{};
  call.op = OP;
  call.d_v = d_v;
  SparseMlaArgs args =
      checked_mla<Operand>(dsf_sparse_mla_check, &call, scale, given, static_cast<Operand*>(nullptr), raise);
  const Tensor out = new_tensor({args.s_q, args.h_q, args.d_v}, q.scalar_type());
  const Tensor max_logits = new_tensor({args.s_q, args.h_q}, ScalarType::Float);
  const Tensor lse = new_tensor({args.s_q, args.h_q}, ScalarType::Float);
  args.out = out.mutable_data_ptr();
  args.max_logits = static_cast<float*>(max_logits.mutable_data_ptr());
  args.lse = static_cast<float*>(lse.mutable_data_ptr());
  CallContext context;
  context.reserve(OP, dsf_sparse_mla_workspace_bytes(context.get(), &args));
  dsf_sparse_mla(context.get(), &args);
  return {out, max_logits, lse};
}

std::tuple<Tensor, Tensor, Tensor> sparse_mla_backward(const Tensor& dout_tensor, const Tensor& q, const Tensor& kv,
                                                       const Tensor& indices, const Tensor& out, const Tensor& lse,
                                                       MaybeScale scale, int64_t d_v, const MaybeTensor& attn_sink,
                                                       const MaybeTensor& topk_length) {
  constexpr const char* OP = "sparse_mla_backward";
  MlaOperands<Operand> given = operands(OP, q, kv, indices, attn_sink, topk_length);
  Operand dout(OP, "dout", dout_tensor);
  const Operand forward_out(OP, "out", torch::stable::contiguous(out));
  const Operand forward_lse(OP, "lse", torch::stable::contiguous(lse));
  SparseMlaCall call{};
  call.op = OP;
  call.d_v = d_v;
  call.out = forward_out.get();
  call.lse = forward_lse.get();
  SparseMlaArgs args = checked_mla<Operand>(dsf_sparse_mla_backward_check, &call, scale, given, &dout, raise);
  const Tensor dq = new_tensor({args.s_q, args.h_q, args.d_qk}, q.scalar_type());
  const Tensor dkv = new_tensor({args.store.page_size, args.h_kv, args.d_qk}, q.scalar_type());
  const Tensor dsink = new_tensor({attn_sink ? args.h_q : 0}, ScalarType::Float);
  args.dq = dq.mutable_data_ptr();
  args.dkv = dkv.mutable_data_ptr();
  args.dattn_sink = attn_sink ? static_cast<float*>(dsink.mutable_data_ptr()) : nullptr;
  CallContext context;
  context.reserve(OP, dsf_sparse_mla_backward_workspace_bytes(context.get(), &args));
  dsf_sparse_mla_backward(context.get(), &args);
  return {dq, dkv, dsink};
}

std::tuple<Tensor, Tensor> sparse_mla_decode(const Tensor& q, const Tensor& k_cache, const MaybeTensor& indices,
                                             MaybeScale scale, int64_t d_v, std::string layout,
                                             const MaybeTensor& block_table, const MaybeTensor& cache_seqlens,
                                             bool is_causal, const MaybeTensor& attn_sink,
                                             const MaybeTensor& topk_length, const MaybeTensor& extra_k_cache,
                                             const MaybeTensor& extra_indices, const MaybeTensor& extra_topk_length) {
  constexpr const char* OP = "sparse_mla_decode";
  DecodeOperands<Operand> given{{OP, "q", q},
                                {OP, "k_cache", k_cache},
                                {OP, "indices", indices},
                                {OP, "topk_length", topk_length},
                                {OP, "block_table", block_table},
                                {OP, "cache_seqlens", cache_seqlens},
                                {OP, "extra_k_cache", extra_k_cache},
                                {OP, "extra_indices", extra_indices},
                                {OP, "extra_topk_length", extra_topk_length},
                                {OP, "attn_sink", attn_sink}};
  SparseMlaDecodeCall call{};
  call.op = OP;
  call.layout = layout.c_str();
  call.d_v = d_v;
  call.is_causal = is_causal;
  SparseMlaArgs args = checked_decode<Operand>(&call, scale, given, raise);
  const Tensor out = new_tensor({args.b, args.s_q, args.h_q, args.d_v}, q.scalar_type());
  const Tensor lse = new_tensor({args.b, args.h_q, args.s_q}, ScalarType::Float);
  args.out = out.mutable_data_ptr();
  args.lse = static_cast<float*>(lse.mutable_data_ptr());
  CallContext context;
  context.reserve(OP, dsf_sparse_mla_decode_workspace_bytes(context.get(), &args));
  dsf_sparse_mla_decode(context.get(), &args);
  return {out, lse};
}

void mla_cache_write(Tensor cache_tensor, const Tensor& kv_tensor, const MaybeTensor& slots_tensor,
                     std::string layout) {
  constexpr const char* OP = "mla_cache_write";
  const Operand cache(OP, "cache", cache_tensor), slots(OP, "slots", slots_tensor);
  Operand kv(OP, "kv", kv_tensor);
  CacheWriteArgs args;
  const auto check = [&] {
    const CacheWriteCall call{cache.view, kv.view, layout.c_str(), slots.get()};
    Problem problem;
    if (!dsf_mla_cache_write_check(&call, &args, &problem)) raise(problem);
  };
  check();
  if (lay_out(kv)) check();
  end_if_only_checked();
  const CallContext context;
  dsf_mla_cache_write(context.get(), &args);
}

Tensor mla_cache_read(const Tensor& cache_tensor, std::string layout) {
  constexpr const char* OP = "mla_cache_read";
  const Operand cache(OP, "cache", cache_tensor);
  const CacheReadCall call{cache.view, layout.c_str()};
  TokenStore store;
  Problem problem;
  if (!dsf_mla_cache_read_check(&call, &store, &problem)) raise(problem);
  const Tensor numbers =
      new_tensor({store.pages, store.page_size, dsf_mla_cache_numbers(&store)}, ScalarType::BFloat16);
  const CallContext context;
  dsf_mla_cache_read(context.get(), &store, static_cast<uint16_t*>(numbers.mutable_data_ptr()));
  return numbers;
}

}  // namespace
}  // namespace dsf::torch_door

STABLE_TORCH_LIBRARY_FRAGMENT(deepseek_fast, library) {
  library.def(
      "sparse_mla(Tensor q, Tensor kv, Tensor indices, float? scale=None, SymInt d_v=512, Tensor? attn_sink=None, "
      "Tensor? topk_length=None) -> (Tensor, Tensor, Tensor)");
  library.def(
      "sparse_mla_backward(Tensor dout, Tensor q, Tensor kv, Tensor indices, Tensor out, Tensor lse, float? scale, "
      "SymInt d_v, Tensor? attn_sink, Tensor? topk_length) -> (Tensor, Tensor, Tensor)");
  library.def(
      "sparse_mla_decode(Tensor q, Tensor k_cache, Tensor? indices=None, float? scale=None, SymInt d_v=512, str "
      "layout=\"plain\", Tensor? block_table=None, Tensor? cache_seqlens=None, bool is_causal=False, Tensor? "
      "attn_sink=None, Tensor? topk_length=None, Tensor? extra_k_cache=None, Tensor? extra_indices=None, Tensor? "
      "extra_topk_length=None) -> (Tensor, Tensor)");
  library.def("mla_cache_write(Tensor(a!) cache, Tensor kv, Tensor? slots, str layout) -> ()");
  library.def("mla_cache_read(Tensor cache, str layout) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(deepseek_fast, CPU, library) {
  library.impl("sparse_mla", TORCH_BOX(&dsf::torch_door::sparse_mla));
  library.impl("sparse_mla_backward", TORCH_BOX(&dsf::torch_door::sparse_mla_backward));
  library.impl("sparse_mla_decode", TORCH_BOX(&dsf::torch_door::sparse_mla_decode));
  library.impl("mla_cache_write", TORCH_BOX(&dsf::torch_door::mla_cache_write));
  library.impl("mla_cache_read", TORCH_BOX(&dsf::torch_door::mla_cache_read));
}
