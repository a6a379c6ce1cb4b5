// lightning_indexer: which tokens a query of sparse attention should read.
//
//   dot[i, h, j]  = sum_d q[i, h, d] * k[j, d]                    e4m3 codes; products exact
//   logits[i, j]  = k_scale[j] * sum_h weights[i, h] * relu(dot)  for ks[i] <= j < ke[i], else -inf;  relu keeps NaN
//   indices[i]    = the top_k largest of logits[i], the logits never stored
// Order: dot one chain over d = 0, 1 ... from 0 (pairs in VDPBF16PS or BFDOT where the level has it; nothing is
// subnormal, every product a multiple of 2^-18); the heads one chain of fused multiply-adds from 0, h ascending; one
// rounding of * k_scale; one more of a bf16 result. Bits are equal on levels with the same dot instruction, and depend
// on neither threads, the window, nor whether k is dense or paged; so the fused form selects what topk_indices selects
// of the stored f32 logits. Whatever the caller's thread flushes, subnormal sums and scores are kept.
//
// topk_indices: of each row the k largest scores, of equal ones (-0 and 0 are) the lower index, NaN above infinity;
// -inf never counts, nor does what lies from lengths[row] on. Where fewer than k count, -1 fills the end. The set is
// thus one and the same everywhere. Order: "value" descending, equal ones by index; "index" ascending; any: ascending,
// too.
//
//   q        (s_q, H, D) e4m3
//   weights  (s_q, H) f32: a query's own scale, D^-0.5 and H^-0.5 are the caller's to fold in
//   k        (s_kv, D) e4m3, rows at any stride;  k_scale (s_kv) f32
//   ks, ke   (s_q) int32, any values: clamped to 0, s_kv
//   cache    (pages, page, 1, D + 4) bytes: of each page all codes first, then all scales as f32; pages at any stride
//   block_table   (b, pages a request) int32
//   context_lens  (b) int32: query n of next_n sees the tokens up to context_lens[b] - next_n + n; or (b, next_n): its
//            own first so many. Entries of the table that these need must be pages; others are not looked at, nor is
//            any code or scale that no query sees (they may be NaN)
//   logits   (s_q, s_kv) f32 or bf16, contiguous; compressed: (s_q, max_seqlen_k), column j - ks[i]
//   indices  (s_q, top_k) int32, contiguous: rows of k; paged: positions in the request, or as slots
//            page * page size + offset, as sparse_mla_decode reads them
// H from 1 to 1024, D from 1 to 1024, s_kv up to 2^31 - 1; other sizes whose byte counts fit int64.
#pragma once
#include <cstdint>

#include "csrc/core/api.h"
#include "csrc/core/check.h"
#include "csrc/core/context.h"
#include "csrc/core/isa.h"
#include "csrc/core/tensor_view.h"

namespace dsf {

enum class IndexOrder : int32_t { any, index, value };

// A call as a door sees it: k dense or a cache. Text and views outlive the call.
struct IndexerCall {
  const char* op;         // in sentences
  TensorView q, weights;  // paged: q (b, next_n, H, D), weights (b * next_n, H)
  const TensorView* k;    // dense
  const TensorView* k_scale;
  const TensorView* ks;     // or null: 0
  const TensorView* ke;     // or null: s_kv
  const TensorView* cache;  // paged: u8
  const TensorView* context_lens;
  const TensorView* block_table;
  int64_t max_seqlen_k;  // dense: above 0, compressed; paged: columns of the logits
  Dtype logits_dtype;
  const char* logits_dtype_name;
  int32_t selects;  // indices are wanted, not logits
  int64_t top_k;
  const char* sorted_by;  // null, "index", "value"
  int32_t as_slots;
};

struct IndexerArgs {
  int64_t b, s_q, H, D;  // s_q queries a request; dense: b 1
  const uint8_t* q;
  int64_t q_stride;  // bytes from head to head, of all heads of all queries
  const float* weights;
  int64_t weights_stride;
  // Tokens: dense is one page of s_kv.
  const uint8_t* codes;
  const uint8_t* scales;                                                // f32 at any alignment
  int64_t page_size, code_stride, code_page_stride, scale_page_stride;  // bytes, but for page_size
  int32_t paged;
  const int32_t* block_table;
  int64_t block_table_stride;
  const int32_t* begins;  // ks, or null
  const int32_t* ends;    // ke or context_lens, or null
  int32_t ends_a_query;   // paged: context_lens (b, next_n), rows at ends_stride
  int64_t ends_stride;
  int64_t tokens;   // no query sees more
  int64_t columns;  // of the logits
  int32_t compressed;
  Dtype logits_dtype;
  int32_t selects;
  int64_t top_k;
  IndexOrder order;
  int32_t as_slots;
  // Set by the door: one of both.
  void* logits;
  int32_t* indices;
};

struct TopkCall {
  const char* op;
  TensorView scores;  // (..., n) f32, bf16 or f16
  const TensorView* lengths;
  int64_t k;
  const char* sorted_by;
};

struct TopkArgs {
  Dtype dtype;
  int64_t rows, n, k;
  const void* scores;
  int64_t stride;          // elements from row to row
  const int32_t* lengths;  // or null; rows of lengths_columns at lengths_stride
  int64_t lengths_columns, lengths_stride;
  IndexOrder order;
  int32_t* indices;  // (rows, k); set by the door
};

extern "C" {
// Each fills *args, all but the outputs. Returns 1, or 0 and *problem. The paged form reads block_table and
// context_lens through, once.
DSF_API int32_t dsf_lightning_indexer_check(const IndexerCall* call, IndexerArgs* args, Problem* problem);
DSF_API int32_t dsf_topk_indices_check(const TopkCall* call, TopkArgs* args, Problem* problem);

// Bytes of context->workspace, -1 where that overflows. Never in s_q * s_kv: a thread keeps a block of queries' codes
// as bf16 and, fused, for each of them 2 top_k + 1024 candidates.
DSF_API int64_t dsf_lightning_indexer_workspace_bytes(const Context* context, const IndexerArgs* args);
DSF_API void dsf_lightning_indexer(const Context* context, const IndexerArgs* args);
DSF_API int64_t dsf_topk_indices_workspace_bytes(const Context* context, const TopkArgs* args);
DSF_API void dsf_topk_indices(const Context* context, const TopkArgs* args);

// Rows of variants.inc: the i-th one's level and name, -1 and null past the end.
DSF_API int32_t dsf_lightning_indexer_variant(int32_t i, const char** name);
}
}  // namespace dsf
