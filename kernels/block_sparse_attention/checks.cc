// The checks of block_sparse_attention: what is wrong with a call, in one sentence, before any work.
#include "kernels/block_sparse_attention/checks.h"

#include <cmath>
#include <utility>

namespace dsf {
namespace attention_checks {

bool check_rows(const char* op, const char* arg, const TensorView& view, Problem* problem) {
  return has_rows(view) || is_contiguous(view) ||  // or empty
         value_error(problem, op, arg, "have the values of its last dimension side by side", "a stride between them");
}

bool check_contiguous(const char* op, const char* arg, const TensorView& view, Problem* problem) {
  return is_contiguous(view) || value_error(problem, op, arg, "be contiguous", "strides of its own");
}

HeadStrides strides_of(const TensorView& view, bool one_for_all) {
  int64_t strides[4];
  uint64_t stride = 1;  // may wrap around where another dimension is empty: then nobody uses it
  for (int64_t d = 3; d >= 0; --d) {
    strides[d] = view.strides ? view.strides[d] : int64_t(stride);
    if (one_for_all && view.sizes[d] == 1) strides[d] = 0;
    stride *= uint64_t(view.sizes[d]);
  }
  return {strides[0], strides[1], strides[2]};
}

namespace {

bool count_elements(const TensorView& view, int64_t* elements) {
  *elements = 1;
  for (int64_t d = 0; d < view.ndim; ++d)
    if (view.sizes[d] == 0) return *elements = 0, true;
  for (int64_t d = 0; d < view.ndim; ++d)
    if (!checked_mul(*elements, view.sizes[d], elements) || *elements > LARGEST) return false;
  return true;
}

// Four dimensions, not too many elements, values of a head side by side.
bool check_heads(const char* op, const char* arg, const TensorView& view, Problem* problem) {
  int64_t elements;
  if (view.ndim != 4) return shape_error(problem, op, arg, "have 4 dimensions", view);
  for (int64_t d = 0; d < 4; ++d)
    if (view.sizes[d] > LARGEST) return shape_error(problem, op, arg, "have at most 2^58 elements", view);
  if (!count_elements(view, &elements)) return shape_error(problem, op, arg, "have at most 2^58 elements", view);
  return check_rows(op, arg, view, problem);
}

bool check_dtype(const char* op, const char* arg, const TensorView& view, Dtype dtype, Problem* problem) {
  return view.dtype == dtype || dtype_error(problem, op, arg, Text("have q's dtype %s", what_is(dtype)), view);
}

bool check_qkv(const AttentionCall& call, AttentionArgs* args, Problem* problem) {
  const char* op = call.op;
  const TensorView &q = call.q, &k = call.k, &v = call.v;
  if (q.dtype != Dtype::f32 && q.dtype != Dtype::bf16 && q.dtype != Dtype::f16)
    return dtype_error(problem, op, "q", "be float32, bfloat16 or float16", q);
  if (!check_dtype(op, "k", k, q.dtype, problem) || !check_dtype(op, "v", v, q.dtype, problem)) return false;
  if (!check_heads(op, "q", q, problem) || !check_heads(op, "k", k, problem) || !check_heads(op, "v", v, problem))
    return false;
  const int64_t B = q.sizes[0], H = q.sizes[1], D = q.sizes[3], H_kv = k.sizes[1], S_k = k.sizes[2];
  if (H < 1) return shape_error(problem, op, "q", "have at least 1 head", q);
  if (D < 1 || D > MAX_HEAD_DIM) return shape_error(problem, op, "q", "have heads of 1 to 1024 values", q);
  if (k.sizes[0] != B) return shape_error(problem, op, "k", Text("have q's batch of %lld", Long{B}), k);
  if (k.sizes[3] != D) return shape_error(problem, op, "k", Text("have heads of q's %lld values", Long{D}), k);
  if (!call.enable_gqa && H_kv != H)
    return shape_error(problem, op, "k", Text("have q's %lld heads where enable_gqa is False", Long{H}), k);
  if (H_kv < 1 || H % H_kv != 0)
    return shape_error(problem, op, "k", Text("have heads that divide q's %lld", Long{H}), k);
  if (v.sizes[0] != B || v.sizes[1] != H_kv || v.sizes[2] != S_k)
    return shape_error(problem, op, "v",
                       Text("have k's batch, heads and tokens (%lld, %lld, %lld)", Long{B}, Long{H_kv}, Long{S_k}), v);
  if (v.sizes[3] < 1 || v.sizes[3] > MAX_HEAD_DIM)
    return shape_error(problem, op, "v", "have heads of 1 to 1024 values", v);
  const int64_t out_sizes[] = {B, H, q.sizes[2], v.sizes[3]};
  int64_t elements;
  if (!count_elements({nullptr, q.dtype, "", 4, out_sizes, nullptr}, &elements))
    return shape_error(problem, op, "q", "give at most 2^58 elements with v's heads", q);
  args->dtype = q.dtype;
  args->B = B, args->H = H, args->H_kv = H_kv;
  args->S_q = q.sizes[2], args->S_k = S_k;
  args->D = D, args->D_v = v.sizes[3];
  args->q = {q.data, strides_of(q, false)};
  args->k = {k.data, strides_of(k, false)};
  args->v = {v.data, strides_of(v, false)};
  return true;
}

// A side of the window; so large a one that it ends beyond every position is none.
int64_t side_of(int64_t side) { return side > 4 * LARGEST ? NO_LIMIT : side; }

bool check_positions(const AttentionCall& call, AttentionArgs* args, Problem* problem) {
  const char* op = call.op;
  if (!std::isfinite(call.scale))
    return value_error(problem, op, "scale", "be finite in float32", Text("%g", double(call.scale)));
  if (call.left < NO_LIMIT || call.right < NO_LIMIT)
    return value_error(problem, op, "window", "have sides from 0, or -1 where there is no limit",
                       Text("(%lld, %lld)", Long{call.left}, Long{call.right}));
  if (call.sinks < 0) return value_error(problem, op, "sinks", "be at least 0", Text("%lld", Long{call.sinks}));
  if (call.sinks > 0 && call.left == NO_LIMIT && call.right == NO_LIMIT)
    return value_error(problem, op, "sinks", "come with a window", Text("%lld", Long{call.sinks}));
  if (!call.q_at_end && (call.q_offset < -LARGEST || call.q_offset > LARGEST))
    return value_error(problem, op, "q_offset", "be from -2^58 to 2^58", Text("%lld", Long{call.q_offset}));
  if (call.key_stride < 1 || call.key_stride > LARGEST_BLOCK)
    return value_error(problem, op, "key_stride", "be from 1 to 2^30", Text("%lld", Long{call.key_stride}));
  args->scale = call.scale;
  args->is_causal = call.is_causal != 0;
  args->q_at_end = call.q_at_end != 0;
  args->q_offset = call.q_at_end ? 0 : call.q_offset;
  args->left = side_of(call.left), args->right = side_of(call.right);
  args->sinks = call.sinks < args->S_k ? call.sinks : args->S_k;
  args->key_stride = call.key_stride;
  return true;
}

bool check_token_bias(const AttentionCall& call, AttentionArgs* args, Problem* problem) {
  if (!call.token_bias) return true;
  const TensorView& bias = *call.token_bias;
  if (bias.dtype != Dtype::f32 && bias.dtype != args->dtype)
    return dtype_error(problem, call.op, "token_bias",
                       args->dtype == Dtype::f32 ? "be float32" : Text("be float32 or %s", what_is(args->dtype)).text,
                       bias);
  const auto fits = [&](int64_t d, int64_t size) { return bias.sizes[d] == size || bias.sizes[d] == 1; };
  if (bias.ndim != 4 || !fits(0, args->B) || !fits(1, args->H) || !fits(2, args->S_q) || bias.sizes[3] != args->S_k)
    return shape_error(problem, call.op, "token_bias",
                       Text("have shape (%lld or 1, %lld or 1, %lld or 1, %lld)", Long{args->B}, Long{args->H},
                            Long{args->S_q}, Long{args->S_k}),
                       bias);
  if (!check_heads(call.op, "token_bias", bias, problem)) return false;
  args->bias_dtype = bias.dtype;
  args->token_bias = {bias.data, strides_of(bias, true)};
  return true;
}

bool check_sink_logits(const AttentionCall& call, AttentionArgs* args, Problem* problem) {
  if (!call.sink_logits) return true;
  const TensorView& sink = *call.sink_logits;
  if (sink.dtype != Dtype::f32) return dtype_error(problem, call.op, "sink_logits", "be float32", sink);
  if (sink.ndim != 1 || sink.sizes[0] != args->H)
    return shape_error(problem, call.op, "sink_logits", Text("have shape (%lld,)", Long{args->H}), sink);
  if (!check_rows(call.op, "sink_logits", sink, problem)) return false;
  args->sink_logits = static_cast<const float*>(sink.data);
  return true;
}

// A tensor of out's shape, or without the last dimension of lse's.
bool check_result_shape(const char* op, const char* arg, const TensorView& view, const AttentionArgs& args, bool is_lse,
                        Problem* problem) {
  const int64_t wanted[] = {args.B, args.H, args.S_q, args.D_v};
  bool same = view.ndim == (is_lse ? 3 : 4);
  for (int64_t d = 0; same && d < view.ndim; ++d) same = view.sizes[d] == wanted[d];
  if (same) return true;
  char shape[160];
  shape_text({nullptr, args.dtype, "", is_lse ? 3 : 4, wanted, nullptr}, shape, sizeof shape);
  return shape_error(problem, op, arg, Text("have shape %s", shape), view);
}

bool check_out(const char* op, const char* arg, const TensorView& view, const AttentionArgs& args, Heads* heads,
               Problem* problem) {
  if (!check_dtype(op, arg, view, args.dtype, problem) || !check_result_shape(op, arg, view, args, false, problem) ||
      !check_rows(op, arg, view, problem))
    return false;
  *heads = {view.data, strides_of(view, false)};
  return true;
}

bool check_lse(const char* op, const char* arg, const TensorView& view, const AttentionArgs& args, const float** lse,
               Problem* problem) {
  if (view.dtype != Dtype::f32) return dtype_error(problem, op, arg, "be float32", view);
  if (!check_result_shape(op, arg, view, args, true, problem) || !check_contiguous(op, arg, view, problem))
    return false;
  *lse = static_cast<const float*>(view.data);
  return true;
}

}  // namespace
}  // namespace attention_checks

using namespace attention_checks;

int32_t dsf_block_sparse_attention_check(const AttentionCall* call, AttentionArgs* args, Problem* problem) {
  *args = AttentionArgs{};
  problem->fault = Fault::none;
  problem->sentence[0] = 0;
  return check_qkv(*call, args, problem) && check_positions(*call, args, problem) &&
         check_token_bias(*call, args, problem) && check_sink_logits(*call, args, problem) &&
         check_sequences(*call, args, problem) && check_mask(*call, args, problem);
}

int32_t dsf_block_sparse_attention_backward_check(const AttentionCall* call, AttentionArgs* args, Problem* problem) {
  if (!dsf_block_sparse_attention_check(call, args, problem)) return 0;
  const char* op = call->op;
  for (const auto& [arg, view] : {std::pair{"out", call->out}, {"lse", call->lse}, {"dout", call->dout}})
    if (!view) return type_error(problem, op, arg, "be a tensor", "none");
  return check_out(op, "out", *call->out, *args, &args->forward_out, problem) &&
         check_lse(op, "lse", *call->lse, *args, &args->forward_lse, problem) &&
         check_out(op, "dout", *call->dout, *args, &args->dout, problem) &&
         (!call->dlse || check_lse(op, "dlse", *call->dlse, *args, &args->dlse, problem));
}

}  // namespace dsf
