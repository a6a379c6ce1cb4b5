// The torch operators of block_sparse_attention. Meta kernels are in meta.py, the public function in op.py.
#include "csrc/torch/adapter.h"
#include "kernels/block_sparse_attention/door.h"

namespace dsf::torch_door {
namespace {

using MaybeTensor = std::optional<Tensor>;
constexpr const char *OP = "block_sparse_attention", *BACKWARD = "block_sparse_attention_backward";

struct Operands {
  Operand q, k, v, kept, row_offsets, columns, token_bias, sink_logits, cu_seqlens_q, cu_seqlens_k, tables, bits;

  AttentionOperands<Operand> all() {
    return {q, k, v, kept, row_offsets, columns, token_bias, sink_logits, cu_seqlens_q, cu_seqlens_k, tables, bits};
  }
};

std::tuple<Tensor, Tensor> block_sparse_attention(
    const Tensor& q, const Tensor& k, const Tensor& v, const MaybeTensor& block_mask, const MaybeTensor& row_offsets,
    const MaybeTensor& columns, const MaybeTensor& token_bias, const MaybeTensor& sink_logits,
    const MaybeTensor& cu_seqlens_q, const MaybeTensor& cu_seqlens_k, const MaybeTensor& tables,
    const MaybeTensor& bits, std::optional<double> scale, bool is_causal, int64_t left, int64_t right, int64_t sinks,
    int64_t q_offset, bool q_at_end, bool enable_gqa, int64_t block_q, int64_t block_k, int64_t key_stride) {
  Operands operands{{OP, "q", q},
                    {OP, "k", k},
                    {OP, "v", v},
                    {OP, "block_mask", block_mask},
                    {OP, "block_mask", row_offsets},
                    {OP, "block_mask", columns},
                    {OP, "token_bias", token_bias},
                    {OP, "sink_logits", sink_logits},
                    {OP, "cu_seqlens_q", cu_seqlens_q},
                    {OP, "cu_seqlens_k", cu_seqlens_k},
                    {OP, "tables", tables},
                    {OP, "bits", bits}};
  const AttentionRequest<Operand> request(
      OP, operands.all(),
      {scale, is_causal, left, right, sinks, q_offset, q_at_end, enable_gqa, block_q, block_k, key_stride}, raise);
  AttentionArgs args = request.checked(raise);
  const Tensor out = new_tensor({args.B, args.H, args.S_q, args.D_v}, q.scalar_type());
  const Tensor lse = new_tensor({args.B, args.H, args.S_q}, ScalarType::Float);
  args.out = out.mutable_data_ptr();
  args.lse = static_cast<float*>(lse.mutable_data_ptr());
  CallContext context;
  run_attention(context.get(), args, [&](int64_t bytes) { context.reserve(OP, bytes); });
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> block_sparse_attention_backward(
    const Tensor& dout, const MaybeTensor& dlse, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
    const Tensor& lse, const MaybeTensor& block_mask, const MaybeTensor& row_offsets, const MaybeTensor& columns,
    const MaybeTensor& token_bias, const MaybeTensor& sink_logits, const MaybeTensor& cu_seqlens_q,
    const MaybeTensor& cu_seqlens_k, const MaybeTensor& tables, const MaybeTensor& bits, std::optional<double> scale,
    bool is_causal, int64_t left, int64_t right, int64_t sinks, int64_t q_offset, bool q_at_end, bool enable_gqa,
    int64_t block_q, int64_t block_k, int64_t key_stride) {
  Operands operands{{BACKWARD, "q", q},
                    {BACKWARD, "k", k},
                    {BACKWARD, "v", v},
                    {BACKWARD, "block_mask", block_mask},
                    {BACKWARD, "block_mask", row_offsets},
                    {BACKWARD, "block_mask", columns},
                    {BACKWARD, "token_bias", token_bias},
                    {BACKWARD, "sink_logits", sink_logits},
                    {BACKWARD, "cu_seqlens_q", cu_seqlens_q},
                    {BACKWARD, "cu_seqlens_k", cu_seqlens_k},
                    {BACKWARD, "tables", tables},
                    {BACKWARD, "bits", bits}};
  Operand out_of_forward(BACKWARD, "out", out), lse_of_forward(BACKWARD, "lse", lse);
  Operand of_out(BACKWARD, "dout", dout), of_lse(BACKWARD, "dlse", dlse);
  AttentionRequest<Operand> request(
      BACKWARD, operands.all(),
      {scale, is_causal, left, right, sinks, q_offset, q_at_end, enable_gqa, block_q, block_k, key_stride}, raise);
  request.give({out_of_forward, lse_of_forward, of_out, of_lse});
  AttentionArgs args = request.checked(raise);
  const Tensor dq = new_tensor({args.B, args.H, args.S_q, args.D}, q.scalar_type());
  const Tensor dk = new_tensor({args.B, args.H_kv, args.S_k, args.D}, q.scalar_type());
  const Tensor dv = new_tensor({args.B, args.H_kv, args.S_k, args.D_v}, q.scalar_type());
  const Tensor dsink = new_tensor({sink_logits ? args.H : 0}, ScalarType::Float);
  args.dq = dq.mutable_data_ptr(), args.dk = dk.mutable_data_ptr(), args.dv = dv.mutable_data_ptr();
  if (sink_logits) args.dsink_logits = static_cast<float*>(dsink.mutable_data_ptr());
  CallContext context;
  run_attention_backward(context.get(), args, [&](int64_t bytes) { context.reserve(BACKWARD, bytes); });
  return {dq, dk, dv, dsink};
}

}  // namespace
}  // namespace dsf::torch_door

STABLE_TORCH_LIBRARY_FRAGMENT(deepseek_fast, library) {
  // Positional, and the window and the block's size as two numbers each: a keyword costs a call 0.2 us, a list 1 us.
  // block_mask, or row_offsets and columns; with these tables and bits. op.py makes them of all that users may give.
  library.def(
      "block_sparse_attention(Tensor q, Tensor k, Tensor v, Tensor? block_mask=None, Tensor? row_offsets=None, Tensor? "
      "columns=None, Tensor? token_bias=None, Tensor? sink_logits=None, Tensor? cu_seqlens_q=None, Tensor? "
      "cu_seqlens_k=None, Tensor? tables=None, Tensor? bits=None, float? scale=None, bool is_causal=False, SymInt "
      "left=-1, SymInt right=-1, SymInt sinks=0, SymInt q_offset=0, bool q_at_end=False, bool enable_gqa=True, SymInt "
      "block_q=128, SymInt block_k=128, SymInt key_stride=1) -> (Tensor out, Tensor lse)");
  library.def(
      "block_sparse_attention_backward(Tensor dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor "
      "lse, Tensor? block_mask=None, Tensor? row_offsets=None, Tensor? columns=None, Tensor? token_bias=None, Tensor? "
      "sink_logits=None, Tensor? cu_seqlens_q=None, Tensor? cu_seqlens_k=None, Tensor? tables=None, Tensor? bits=None, "
      "float? scale=None, bool is_causal=False, SymInt left=-1, SymInt right=-1, SymInt sinks=0, SymInt q_offset=0, "
      "bool q_at_end=False, bool enable_gqa=True, SymInt block_q=128, SymInt block_k=128, SymInt key_stride=1) -> "
      "(Tensor dq, Tensor dk, "
      "Tensor dv, Tensor dsink_logits)");
}

STABLE_TORCH_LIBRARY_IMPL(deepseek_fast, CPU, library) {
  library.impl("block_sparse_attention", TORCH_BOX(&dsf::torch_door::block_sparse_attention));
  library.impl("block_sparse_attention_backward", TORCH_BOX(&dsf::torch_door::block_sparse_attention_backward));
}
