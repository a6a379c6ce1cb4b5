// The checks of sparse_mla and sparse_mla_decode: what is wrong with a call, in one sentence, before any work.
#include <cmath>
#include <initializer_list>
#include <utility>

#include "kernels/sparse_mla/checks.h"

namespace dsf {

using namespace sparse_mla;

namespace {

bool same_dtype(const char* op, const char* arg, const TensorView& view, const TensorView& q, Problem* problem) {
  if (view.dtype == q.dtype) return true;
  char rule[64];
  std::snprintf(rule, sizeof rule, "have q's dtype %s", q.dtype_name);
  return dtype_error(problem, op, arg, rule, view);
}

bool check_numbers(const char* op, const TensorView& q, Problem* problem) {
  const int64_t d_qk = q.sizes[q.ndim - 1];
  if (d_qk >= 1 && d_qk <= MAX_ROW_NUMBERS) return true;
  return shape_error(problem, op, "q", ShapeRule("have a last dimension from 1 to %lld", MAX_ROW_NUMBERS).text, q);
}

// d_v, scale and the sink, the same in both ops. row: whose last dimension bounds d_v.
bool check_options(const char* op, const char* row, int64_t d_v, float scale, const TensorView* attn_sink,
                   SparseMlaArgs* args, Problem* problem) {
  if (d_v < 1 || d_v > args->d_qk) {
    char rule[80];
    std::snprintf(rule, sizeof rule, "be from 1 to %lld, %s's last dimension", static_cast<long long>(args->d_qk), row);
    return number_error(op, "d_v", rule, d_v, problem);
  }
  args->d_v = d_v;
  if (!std::isfinite(scale)) {
    char got[32];
    std::snprintf(got, sizeof got, "%g", double(scale));
    return value_error(problem, op, "scale", "be finite in float32", got);
  }
  args->scale = scale;
  if (!attn_sink) return true;
  if (!check_vector(op, "attn_sink", Dtype::f32, "be float32", args->h_q, *attn_sink, problem)) return false;
  args->attn_sink = static_cast<const float*>(attn_sink->data);
  return true;
}

bool check_prefill(const SparseMlaCall& call, SparseMlaArgs* args, Problem* problem) {
  const char* op = call.op;
  const TensorView &q = call.q, &kv = call.kv, &indices = call.indices;
  if (!check_float(op, "q", q, problem) || !check_dims(op, "q", 3, q, problem)) return false;
  if (!same_dtype(op, "kv", kv, q, problem) || !check_dims(op, "kv", 3, kv, problem)) return false;
  const int64_t s_q = q.sizes[0], h_q = q.sizes[1], h_kv = kv.sizes[1], d_qk = q.sizes[2];
  if (!check_numbers(op, q, problem)) return false;
  if (kv.sizes[2] != d_qk)
    return shape_error(problem, op, "kv", ShapeRule("have q's last dimension of %lld", d_qk).text, kv);
  if (h_kv < 1 || h_q % h_kv)
    return shape_error(problem, op, "kv", ShapeRule("have heads that divide q's %lld", h_q).text, kv);
  if (kv.sizes[0] > INT64_C(1) << 31) return shape_error(problem, op, "kv", "have at most 2^31 tokens", kv);
  if (indices.dtype != Dtype::i32) return dtype_error(problem, op, "indices", "be int32", indices);
  if (!check_dims(op, "indices", 3, indices, problem)) return false;
  if (indices.sizes[0] != s_q || indices.sizes[1] != h_kv)
    return shape_error(problem, op, "indices", ShapeRule("have shape (%lld, %lld, topk)", s_q, h_kv).text, indices);
  args->dtype = q.dtype;
  args->b = 1;
  args->s_q = s_q;
  args->h_q = h_q;
  args->h_kv = h_kv;
  args->d_qk = d_qk;
  args->q = q.data;
  args->q_stride = stride_of(q, 0);
  args->q_head_stride = stride_of(q, 1);
  const int64_t bytes = value_bytes(q.dtype);
  args->store = {CacheLayout::plain, kv.data, 1, kv.sizes[0], 0, stride_of(kv, 0) * bytes, stride_of(kv, 1) * bytes};
  args->lists = {static_cast<const int32_t*>(indices.data),
                 0,
                 stride_of(indices, 0),
                 stride_of(indices, 1),
                 indices.sizes[2],
                 nullptr,
                 1};
  if (!check_options(op, "kv", call.d_v, call.scale, call.attn_sink, args, problem)) return false;
  if (!call.topk_length) return true;
  if (!check_vector(op, "topk_length", Dtype::i32, "be int32", s_q, *call.topk_length, problem)) return false;
  args->lists.length = static_cast<const int32_t*>(call.topk_length->data);
  return true;
}

// One store's lists.
bool check_lists(const SparseMlaDecodeCall& call, const char* arg, const TensorView& indices, const char* length_arg,
                 const TensorView* length, TokenLists* lists, const SparseMlaArgs& args, Problem* problem) {
  if (indices.dtype != Dtype::i32) return dtype_error(problem, call.op, arg, "be int32", indices);
  if (!check_dims(call.op, arg, 3, indices, problem)) return false;
  if (indices.sizes[0] != args.b || indices.sizes[1] != args.s_q)
    return shape_error(problem, call.op, arg, ShapeRule("have shape (%lld, %lld, topk)", args.b, args.s_q).text,
                       indices);
  *lists = {static_cast<const int32_t*>(indices.data),
            stride_of(indices, 0),
            stride_of(indices, 1),
            0,
            indices.sizes[2],
            nullptr,
            0};
  if (!length) return true;
  if (!check_vector(call.op, length_arg, Dtype::i32, "be int32", args.b, *length, problem)) return false;
  lists->length = static_cast<const int32_t*>(length->data);
  return true;
}

bool check_sparse(const SparseMlaDecodeCall& call, SparseMlaArgs* args, Problem* problem) {
  const char* op = call.op;
  if (call.block_table) return value_error(problem, op, "block_table", "be left out where indices are given", "one");
  if (call.cache_seqlens)
    return value_error(problem, op, "cache_seqlens", "be left out where indices are given", "one");
  if (call.is_causal) return value_error(problem, op, "is_causal", "be False where indices are given", "True");
  if (!check_lists(call, "indices", *call.indices, "topk_length", call.topk_length, &args->lists, *args, problem))
    return false;
  if (!call.extra_k_cache) {
    const char* wrong = call.extra_indices ? "extra_indices" : call.extra_topk_length ? "extra_topk_length" : nullptr;
    return !wrong || value_error(problem, op, wrong, "be left out where there is no extra_k_cache", "one");
  }
  if (!call.extra_indices)
    return value_error(problem, op, "extra_indices", "be given where there is an extra_k_cache", "None");
  return check_cache(op, "extra_k_cache", args->store.layout, *call.extra_k_cache, &call.q, &args->extra_store,
                     problem) &&
         check_lists(call, "extra_indices", *call.extra_indices, "extra_topk_length", call.extra_topk_length,
                     &args->extra_lists, *args, problem);
}

// Reads lengths and the entries of the table that they need.
bool check_tokens(const SparseMlaDecodeCall& call, const SparseMlaArgs& args, int64_t columns, Problem* problem) {
  const int64_t page = args.store.page_size, most = columns * page;
  for (int64_t b = 0; b < args.b; ++b) {
    const int64_t length = args.cache_seqlens[b];
    if (length < 0 || length > most)
      return number_error(call.op, "cache_seqlens", ShapeRule("be from 0 to %lld, block_table's tokens", most).text,
                          length, problem);
    for (int64_t i = 0; i * page < length; ++i) {
      const int64_t entry = args.block_table[b * args.block_table_stride + i];
      if (entry >= 0 && entry < args.store.pages) continue;
      const ShapeRule rule("have pages from 0 to %lld for the tokens of cache_seqlens", args.store.pages - 1);
      return number_error(call.op, "block_table", rule.text, entry, problem);
    }
  }
  return true;
}

bool check_dense(const SparseMlaDecodeCall& call, SparseMlaArgs* args, Problem* problem) {
  const char* op = call.op;
  if (!call.block_table) return value_error(problem, op, "indices", "be given where there is no block_table", "None");
  if (!call.cache_seqlens)
    return value_error(problem, op, "cache_seqlens", "be given where there is a block_table", "None");
  const char* wrong = call.topk_length         ? "topk_length"
                      : call.extra_k_cache     ? "extra_k_cache"
                      : call.extra_indices     ? "extra_indices"
                      : call.extra_topk_length ? "extra_topk_length"
                                               : nullptr;
  if (wrong) return value_error(problem, op, wrong, "be left out where there are no indices", "one");
  const TensorView& table = *call.block_table;
  if (table.dtype != Dtype::i32) return dtype_error(problem, op, "block_table", "be int32", table);
  if (table.ndim != 2 || table.sizes[0] != args->b)
    return shape_error(problem, op, "block_table", ShapeRule("have shape (%lld, pages of a request)", args->b).text,
                       table);
  if (!check_vector(op, "cache_seqlens", Dtype::i32, "be int32", args->b, *call.cache_seqlens, problem)) return false;
  args->block_table = static_cast<const int32_t*>(table.data);
  args->block_table_stride = stride_of(table, 0);
  args->cache_seqlens = static_cast<const int32_t*>(call.cache_seqlens->data);
  args->is_causal = call.is_causal;
  if (!table.data || !call.cache_seqlens->data) return true;
  return check_tokens(call, *args, table.sizes[1], problem);
}

}  // namespace

int32_t dsf_sparse_mla_check(const SparseMlaCall* call, SparseMlaArgs* args, Problem* problem) {
  *problem = Problem{};
  *args = SparseMlaArgs{};
  return check_prefill(*call, args, problem);
}

int32_t dsf_sparse_mla_backward_check(const SparseMlaCall* call, SparseMlaArgs* args, Problem* problem) {
  *problem = Problem{};
  *args = SparseMlaArgs{};
  if (!check_prefill(*call, args, problem)) return 0;
  const char* op = call->op;
  const ShapeRule shape("have shape (%lld, %lld, %lld)", args->s_q, args->h_q, args->d_v);
  for (const auto& [arg, view] : {std::pair{"out", call->out}, std::pair{"dout", call->dout}}) {
    if (!same_dtype(op, arg, *view, call->q, problem)) return 0;
    if (view->ndim != 3 || view->sizes[0] != args->s_q || view->sizes[1] != args->h_q || view->sizes[2] != args->d_v)
      return shape_error(problem, op, arg, shape.text, *view);
  }
  const TensorView& lse = *call->lse;
  if (lse.dtype != Dtype::f32) return dtype_error(problem, op, "lse", "be float32", lse);
  if (lse.ndim != 2 || lse.sizes[0] != args->s_q || lse.sizes[1] != args->h_q)
    return shape_error(problem, op, "lse", ShapeRule("have shape (%lld, %lld)", args->s_q, args->h_q).text, lse);
  args->forward_out = call->out->data;
  args->forward_lse = static_cast<const float*>(lse.data);
  args->dout = call->dout->data;
  args->dout_stride = stride_of(*call->dout, 0);
  args->dout_head_stride = stride_of(*call->dout, 1);
  return 1;
}

int32_t dsf_sparse_mla_decode_check(const SparseMlaDecodeCall* call, SparseMlaArgs* args, Problem* problem) {
  *problem = Problem{};
  *args = SparseMlaArgs{};
  const char* op = call->op;
  const TensorView& q = call->q;
  CacheLayout layout;
  if (!check_layout(op, call->layout, true, &layout, problem)) return 0;
  if (!check_float(op, "q", q, problem) || !check_dims(op, "q", 4, q, problem)) return 0;
  const int64_t numbers = layout == CacheLayout::v32 ? V32_NUMBERS : V4_NUMBERS;
  if (layout != CacheLayout::plain && q.sizes[3] != numbers)
    return shape_error(problem, op, "q", ShapeRule("have a last dimension of %lld for this layout", numbers).text, q);
  if (!check_numbers(op, q, problem)) return 0;
  args->dtype = q.dtype;
  args->b = q.sizes[0];
  args->s_q = q.sizes[1];
  args->h_q = q.sizes[2];
  args->h_kv = 1;
  args->d_qk = q.sizes[3];
  args->q = q.data;
  args->q_batch_stride = stride_of(q, 0);
  args->q_stride = stride_of(q, 1);
  args->q_head_stride = stride_of(q, 2);
  if (!check_cache(op, "k_cache", layout, call->k_cache, &q, &args->store, problem)) return 0;
  if (!check_options(op, "q", call->d_v, call->scale, call->attn_sink, args, problem)) return 0;
  return call->indices ? check_sparse(*call, args, problem) : check_dense(*call, args, problem);
}

}  // namespace dsf
