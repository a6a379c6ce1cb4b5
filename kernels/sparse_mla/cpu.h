// sparse_mla: attention of every query to the rows of kv that its list names; V is the first d_v numbers of K's row.
// sparse_mla_decode: the same of a paged cache, bf16 or FP8.
//
//   z[i, h, t] = scale * dot(q[i, h], kv[indices[i, t]])      t an entry of the list that counts
//   max_logits = max_t z, -inf where nothing counts;  lse = log sum_t exp(z), +inf where nothing counts
//   out[i, h]  = sum_t exp(z - lse) kv[indices[i, t]][0 : d_v] / (1 + exp(attn_sink[h] - lse)),  0 where nothing counts
// An entry counts if it is at least 0, below s_kv (decode: pages * page size) and its place in the list below
// topk_length; one that is there twice counts twice. What does not count is never read, so that any index is safe and
// rows that no list names may be NaN. A sink of -inf changes nothing, of +inf makes out 0; lse and max_logits are
// without it. Causality is the lists' affair.
//
// Numbers of a cache (ref.py's caches.py has the bytes):
//   plain  (pages, page, 1, d_qk) of q's dtype, pages at any stride
//   v32    656 bytes a token: 512 e4m3, 4 f32 scales, 64 bf16.  d_qk 576
//   v4     a page: page times (448 e4m3, 64 bf16), then page times 8 bytes, 7 e8m0 scales and one that is not looked
//   at;
//          pages at any stride of at least page * 584 bytes, FlashMLA's a multiple of 576.  d_qk 512
//   number = code * scale rounded once to bf16, which is exact for a power of two; of code NaN or scale NaN a NaN. The
//   decoding is exact for zeros, subnormals and NaN: table look-ups, not the shift that turns 0 into 2^-7.
//
// Order of arithmetic: block_sparse_attention's (its cpu.h), the steps of 64 entries of the list counted from its
// first, whether they count or not. Decode sums every SPLIT_ENTRIES entries of a list by themselves, from m = -inf, l =
// 0, acc = 0, and merges them in ascending order, those of the extra list after them:
//   m = max(m, m'); acc = acc * exp(m_before - m) + acc' * exp(m' - m), one FMA; the 16 sums of l alike
// so that bits depend neither on threads nor on how requests are batched. Prefill is one split.
//
// Backward (prefill), from out and lse as forward stored them: P, f, delta and dz of block_sparse_attention's cpu.h.
//   dq[i, h]  = scale * sum_t dz kv[indices[i, t]]            one chain, entries ascending
//   dkv[j]    = sum of (scale * dz) q[i, h] + (f P) dout[i, h] (the latter of the first d_v numbers)
//               one chain of f32: queries ascending, entries of a query ascending; of an entry 64 heads at a time,
//               their products with q before those with dout.  scale * dz and f P are rounded to bf16 where q is
//   delta = dot(dout, out) in 16 sums, d % 16, halves added
// A row of dkv is one thread's: the lists' transpose, made by counting, says who reads it. Rows nobody reads get 0.
//
//   q        (s_q, h_q, d_qk) bf16, f16 or f32; decode (b, s_q, h_q, d_qk);  head's values contiguous
//   kv       (s_kv, h_kv, d_qk) q's dtype, h_kv divides h_q; rows' values contiguous
//   indices  (s_q, h_kv, topk) int32; decode (b, s_q, topk), page * page size + offset;  entries contiguous
//   topk_length (s_q), decode (b), int32;  attn_sink (h_q) f32
//   out      (s_q, h_q, d_v) q's dtype; max_logits, lse (s_q, h_q) f32; decode out (b, s_q, h_q, d_v), lse (b, h_q,
//   s_q)
// Dense decode, without indices: block_table (b, pages a request) and cache_seqlens (b), int32; query i sees the first
// cache_seqlens[b] tokens, with is_causal those up to cache_seqlens[b] - s_q + i. Entries of the table that these need
// must be pages; others are not looked at.
// d_qk from 1 to MAX_ROW_NUMBERS. Alignment of the element type; bytes of a cache need none. Any sizes whose byte
// counts fit int64.
#pragma once
#include <cstdint>

#include "csrc/core/api.h"
#include "csrc/core/check.h"
#include "csrc/core/context.h"
#include "csrc/core/isa.h"
#include "csrc/core/tensor_view.h"

namespace dsf {

constexpr int64_t MAX_ROW_NUMBERS = 1024;  // d_qk
constexpr int64_t SPLIT_ENTRIES = 512;     // of a list; decides the order of sums
enum class CacheLayout : int32_t { plain, v32, v4 };

struct SparseMlaCall {
  const char* op;  // in sentences
  TensorView q, kv, indices;
  float scale;
  int64_t d_v;
  const TensorView* attn_sink;
  const TensorView* topk_length;
  // Backward alone; else null.
  const TensorView* out;
  const TensorView* lse;
  const TensorView* dout;
};

struct SparseMlaDecodeCall {
  const char* op;
  TensorView q, k_cache;  // of v32 and v4 bytes: (pages, page, 1, 656) or (pages, page, 1, 584), u8 or f8e4m3
  const char* layout;     // "plain", "v32", "v4"
  const TensorView* indices;
  const TensorView* topk_length;
  const TensorView* block_table;
  const TensorView* cache_seqlens;
  int32_t is_causal;
  const TensorView* extra_k_cache;
  const TensorView* extra_indices;
  const TensorView* extra_topk_length;
  float scale;
  int64_t d_v;
  const TensorView* attn_sink;
};

// Where tokens lie: rows of kv, or pages of a cache.
struct TokenStore {
  CacheLayout layout;
  const void* data;
  int64_t pages, page_size;  // kv: one page of s_kv tokens
  int64_t page_stride;       // bytes
  int64_t token_stride;      // bytes; of v4 the tokens' first part
  int64_t head_stride;       // bytes, of kv's heads
};
// The lists of one store. Entry t of query (b, i), head k: data[b * batch_stride + i * query_stride + k * head_stride +
// t]
struct TokenLists {
  const int32_t* data;  // null: dense
  int64_t batch_stride, query_stride, head_stride, topk;
  const int32_t* length;   // or null
  int32_t length_a_query;  // prefill; decode: a request
};

struct SparseMlaArgs {
  Dtype dtype;
  int64_t b, s_q, h_q, h_kv, d_qk, d_v;  // prefill: b 1
  float scale;
  const void* q;
  int64_t q_batch_stride, q_stride, q_head_stride;  // elements
  TokenStore store, extra_store;                    // extra data null: none
  TokenLists lists, extra_lists;
  const int32_t* block_table;  // dense decode
  int64_t block_table_stride;
  const int32_t* cache_seqlens;
  int32_t is_causal;
  const float* attn_sink;  // or null
  // Backward:
  const void* forward_out;  // (s_q, h_q, d_v), contiguous
  const float* forward_lse;
  const void* dout;
  int64_t dout_stride, dout_head_stride;
  // Set by the door; all contiguous:
  void* out;
  float* max_logits;  // or null
  float* lse;
  void* dq;
  void* dkv;
  float* dattn_sink;  // or null
};

// Tokens to a cache and back; NumPy's caches.py has the same bytes.
struct CacheWriteCall {
  TensorView cache;  // bytes, as k_cache of sparse_mla_decode; its page and token strides as they are
  TensorView kv;     // (tokens, d_qk) bf16 or f32
  const char* layout;
  const TensorView* slots;  // (tokens) int32 or int64, or null
};
struct CacheReadCall {
  TensorView cache;
  const char* layout;
};
struct CacheWriteArgs {
  CacheLayout layout;  // v32 or v4
  Dtype dtype;         // of kv: bf16 or f32
  int64_t tokens, page_size;
  const void* kv;  // (tokens, d_qk)
  int64_t kv_stride;
  const void* slots;     // a token's page * page size + offset, or null: 0, 1, 2 ...; below 0: the token is left out
  int64_t slots_stride;  // elements
  int32_t slots_are_i32;
  uint8_t* cache;
  int64_t pages, page_stride, token_stride;  // bytes
};

extern "C" {
// Each fills *args, all but the outputs. Returns 1, or 0 and *problem. Indices are not read: any value is right.
DSF_API int32_t dsf_sparse_mla_check(const SparseMlaCall* call, SparseMlaArgs* args, Problem* problem);
DSF_API int32_t dsf_sparse_mla_backward_check(const SparseMlaCall* call, SparseMlaArgs* args, Problem* problem);
DSF_API int32_t dsf_sparse_mla_decode_check(const SparseMlaDecodeCall* call, SparseMlaArgs* args, Problem* problem);

// Bytes of context->workspace, -1 where that overflows. Of sums (d_v + 17) f32 for each of 64 heads or part of them,
// d_v rounded up to 64: twice a thread, or for every split where splits are tasks.
DSF_API int64_t dsf_sparse_mla_workspace_bytes(const Context* context, const SparseMlaArgs* args);
DSF_API void dsf_sparse_mla(const Context* context, const SparseMlaArgs* args);
DSF_API int64_t dsf_sparse_mla_backward_workspace_bytes(const Context* context, const SparseMlaArgs* args);
DSF_API void dsf_sparse_mla_backward(const Context* context, const SparseMlaArgs* args);
DSF_API int64_t dsf_sparse_mla_decode_workspace_bytes(const Context* context, const SparseMlaArgs* args);
DSF_API void dsf_sparse_mla_decode(const Context* context, const SparseMlaArgs* args);

// The check reads slots: each must be below the cache's tokens. Two tokens of one slot leave the bytes of either.
DSF_API int32_t dsf_mla_cache_write_check(const CacheWriteCall* call, CacheWriteArgs* args, Problem* problem);
DSF_API int32_t dsf_mla_cache_read_check(const CacheReadCall* call, TokenStore* store, Problem* problem);
DSF_API void dsf_mla_cache_write(const Context* context, const CacheWriteArgs* args);
// Numbers of a token: 576 or 512.
DSF_API int64_t dsf_mla_cache_numbers(const TokenStore* store);
// numbers: (pages * page_size, d_qk) bf16, contiguous.
DSF_API void dsf_mla_cache_read(const Context* context, const TokenStore* store, uint16_t* numbers);

// Rows of variants.inc: the i-th one's level and name, -1 and null past the end.
DSF_API int32_t dsf_sparse_mla_variant(int32_t i, const char** name);
}
}  // namespace dsf
