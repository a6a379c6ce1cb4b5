// The checks of fp8_mqa_logits, its paged form, lightning_indexer and topk_indices: what is wrong with a call, in one
// sentence, before any work.
#include <cstdio>
#include <cstring>

#include "csrc/gemm/linear_checks.h"
#include "kernels/lightning_indexer/cpu_kernels.h"

namespace dsf {
namespace {

constexpr int64_t LARGEST_SIZE = 1024;       // of H and of D
constexpr int64_t MOST_TOKENS = 0x7FFFFFFF;  // places are int32
constexpr int64_t MOST_BYTES = int64_t{1} << 62;
constexpr int64_t SCALE_BYTES = 4;
constexpr const char* ORDERS[] = {"index", "value"};

using Text = char[160];
template <class... Values>
const char* text_of(Text& text, const char* format, Values... values) {
  std::snprintf(text, sizeof text, format, static_cast<long long>(values)...);
  return text;
}

bool check_number(const char* op, const char* arg, int64_t value, Problem* problem) {
  Text got;
  return value >= 0 || value_error(problem, op, arg, "be at least 0", text_of(got, "%lld", value));
}

bool check_dtype(const char* op, const char* arg, const TensorView& view, Dtype dtype, const char* rule,
                 Problem* problem) {
  return view.dtype == dtype || dtype_error(problem, op, arg, rule, view);
}

bool check_order(const char* op, const char* sorted_by, IndexOrder* order, Problem* problem) {
  *order = IndexOrder::any;
  if (!sorted_by) return true;
  for (int32_t i = 0; i < 2; ++i)
    if (std::strcmp(sorted_by, ORDERS[i]) == 0) {
      *order = IndexOrder(i + 1);
      return true;
    }
  Text got;
  std::snprintf(got, sizeof got, "'%.60s'", sorted_by);
  return value_error(problem, op, "sorted_by", "be one of None, index, value", got);
}

// rows x columns values of 4 bytes.
bool check_size(const char* op, const char* arg, const char* rule, int64_t rows, int64_t columns, Problem* problem) {
  int64_t values;
  if (checked_mul(rows, columns, &values) && values <= MOST_BYTES / 4) return true;
  Text got;
  return value_error(problem, op, arg, rule, text_of(got, "%lld", columns));
}

bool check_q(const IndexerCall& call, IndexerArgs* args, Problem* problem) {
  const TensorView& q = call.q;
  const bool paged = call.cache != nullptr;
  const int64_t ndim = paged ? 4 : 3;
  if (!check_dtype(call.op, "q", q, Dtype::f8e4m3, "be float8_e4m3fn", problem)) return false;
  if (q.ndim != ndim)
    return shape_error(problem, call.op, "q",
                       paged ? "have 4 dimensions, (b, next_n, H, D)" : "have 3 dimensions, (s_q, H, D)", q);
  args->b = paged ? q.sizes[0] : 1;
  args->s_q = q.sizes[ndim - 3];
  args->H = q.sizes[ndim - 2];
  args->D = q.sizes[ndim - 1];
  if (args->H < 1 || args->H > LARGEST_SIZE || args->D < 1 || args->D > LARGEST_SIZE)
    return shape_error(problem, call.op, "q", "have from 1 to 1024 heads of 1 to 1024 values", q);
  int64_t rows, bytes;
  if (!checked_mul(args->b, args->s_q, &rows) || !checked_mul(rows, args->H * args->D * 4, &bytes))
    return shape_error(problem, call.op, "q", "have fewer than 2^61 values", q);
  args->q = static_cast<const uint8_t*>(q.data);
  args->q_stride = dsf_row_stride(&q);
  const TensorView& weights = call.weights;
  if (!check_dtype(call.op, "weights", weights, Dtype::f32, "be float32", problem)) return false;
  Text rule;
  if (weights.ndim != 2 || weights.sizes[0] != rows || weights.sizes[1] != args->H)
    return shape_error(problem, call.op, "weights",
                       text_of(rule, "have shape (%lld, %lld), one a query and head", rows, args->H), weights);
  args->weights = static_cast<const float*>(weights.data);
  args->weights_stride = dsf_row_stride(&weights);
  return true;
}

bool check_ends(const IndexerCall& call, const char* arg, const TensorView* view, int64_t s_q, const int32_t** values,
                Problem* problem) {
  if (!view) return true;
  if (!check_dtype(call.op, arg, *view, Dtype::i32, "be int32", problem)) return false;
  Text rule;
  if (view->ndim != 1 || view->sizes[0] != s_q)
    return shape_error(problem, call.op, arg, text_of(rule, "have shape (%lld,), one a query", s_q), *view);
  *values = static_cast<const int32_t*>(view->data);
  return true;
}

bool check_dense(const IndexerCall& call, IndexerArgs* args, Problem* problem) {
  const TensorView &k = *call.k, &k_scale = *call.k_scale;
  Text rule;
  if (!check_dtype(call.op, "k", k, Dtype::f8e4m3, "be float8_e4m3fn", problem)) return false;
  if (k.ndim != 2 || k.sizes[1] != args->D)
    return shape_error(problem, call.op, "k", text_of(rule, "have shape (s_kv, %lld), as many columns as q", args->D),
                       k);
  args->tokens = args->columns = k.sizes[0];
  if (args->tokens > MOST_TOKENS) return shape_error(problem, call.op, "k", "have at most 2147483647 rows", k);
  if (!check_dtype(call.op, "k_scale", k_scale, Dtype::f32, "be float32", problem)) return false;
  if (k_scale.ndim != 1 || k_scale.sizes[0] != args->tokens)
    return shape_error(problem, call.op, "k_scale", text_of(rule, "have shape (%lld,), one a row of k", args->tokens),
                       k_scale);
  args->codes = static_cast<const uint8_t*>(k.data);
  args->code_stride = dsf_row_stride(&k);
  args->scales = static_cast<const uint8_t*>(k_scale.data);
  args->page_size = args->tokens;
  if (!check_ends(call, "ks", call.ks, args->s_q, &args->begins, problem) ||
      !check_ends(call, "ke", call.ke, args->s_q, &args->ends, problem) ||
      !check_number(call.op, "max_seqlen_k", call.max_seqlen_k, problem))
    return false;
  args->compressed = call.max_seqlen_k > 0;
  if (args->compressed) args->columns = call.max_seqlen_k;
  return check_size(call.op, "max_seqlen_k", "leave logits of fewer than 2^62 bytes", args->s_q, args->columns,
                    problem);
}

// Pages whose bytes are contiguous, at any distance.
bool check_cache(const IndexerCall& call, IndexerArgs* args, Problem* problem) {
  const TensorView& cache = *call.cache;
  const int64_t token_bytes = args->D + SCALE_BYTES;
  Text rule;
  if (!check_dtype(call.op, "cache", cache, Dtype::u8, "be uint8", problem)) return false;
  if (cache.ndim != 4 || cache.sizes[2] != 1 || cache.sizes[1] < 1)
    return shape_error(problem, call.op, "cache", text_of(rule, "have shape (pages, page, 1, %lld)", token_bytes),
                       cache);
  if (cache.sizes[3] != token_bytes)
    return shape_error(problem, call.op, "cache", text_of(rule, "have %lld bytes a token, D + 4", token_bytes), cache);
  const int64_t pages = cache.sizes[0], page = cache.sizes[1];
  int64_t slots, page_bytes;
  if (!checked_mul(pages, page, &slots) || slots > MOST_TOKENS || !checked_mul(page, token_bytes, &page_bytes))
    return shape_error(problem, call.op, "cache", "have at most 2147483647 tokens", cache);
  int64_t page_stride = page_bytes;
  if (cache.strides && slots > 0) {
    if ((page > 1 && cache.strides[1] != token_bytes) || cache.strides[3] != 1)
      return value_error(problem, call.op, "cache", "have pages of contiguous bytes", "other strides");
    page_stride = cache.strides[0];
  }
  args->codes = static_cast<const uint8_t*>(cache.data);
  args->scales = args->codes ? args->codes + page * args->D : nullptr;
  args->page_size = page;
  args->code_stride = args->D;
  args->code_page_stride = args->scale_page_stride = page_stride;
  return true;
}

// The entries that the tokens of context_lens need are pages; sets the tokens of the longest request.
bool check_table(const IndexerCall& call, IndexerArgs* args, Problem* problem) {
  const int64_t pages = call.cache->sizes[0], width = call.block_table->sizes[1];
  Text rule, got;
  int64_t longest = 0;
  for (int64_t b = 0; b < args->b; ++b) {
    int64_t tokens = 0;
    for (int64_t n = 0; n < args->s_q; ++n) {
      const int64_t length = args->ends[args->ends_a_query ? b * args->ends_stride + n : b];
      tokens = length > tokens ? length : tokens;
    }
    if (!call.selects && tokens > args->columns) tokens = args->columns;
    longest = tokens > longest ? tokens : longest;
    const int64_t needed = tokens / args->page_size + (tokens % args->page_size != 0);
    if (needed > width)
      return shape_error(problem, call.op, "block_table",
                         text_of(rule, "have %lld pages a request for the tokens of context_lens", needed),
                         *call.block_table);
    for (int64_t i = 0; i < needed; ++i) {
      const int32_t page = args->block_table[b * args->block_table_stride + i];
      if (page >= 0 && page < pages) continue;
      if (pages == 0)
        return shape_error(problem, call.op, "cache", "have pages for the tokens of context_lens", *call.cache);
      return value_error(problem, call.op, "block_table",
                         text_of(rule, "have pages from 0 to %lld for the tokens of context_lens", pages - 1),
                         text_of(got, "%lld", page));
    }
  }
  args->tokens = longest;
  return true;
}

bool check_paged(const IndexerCall& call, IndexerArgs* args, Problem* problem) {
  const TensorView &lengths = *call.context_lens, &table = *call.block_table;
  if (!check_cache(call, args, problem)) return false;
  if (!check_dtype(call.op, "context_lens", lengths, Dtype::i32, "be int32", problem)) return false;
  Text rule;
  const bool of_requests = lengths.ndim == 1 && lengths.sizes[0] == args->b;
  args->ends_a_query = lengths.ndim == 2 && lengths.sizes[0] == args->b && lengths.sizes[1] == args->s_q;
  if (!of_requests && !args->ends_a_query)
    return shape_error(problem, call.op, "context_lens",
                       text_of(rule, "have shape (%lld,) or (%lld, %lld)", args->b, args->b, args->s_q), lengths);
  if (!check_dtype(call.op, "block_table", table, Dtype::i32, "be int32", problem)) return false;
  if (table.ndim != 2 || table.sizes[0] != args->b)
    return shape_error(problem, call.op, "block_table", text_of(rule, "have shape (%lld, pages a request)", args->b),
                       table);
  if (!check_number(call.op, "max_context_len", call.max_seqlen_k, problem)) return false;
  if (call.max_seqlen_k > MOST_TOKENS)
    return value_error(problem, call.op, "max_context_len", "be at most 2147483647",
                       text_of(rule, "%lld", call.max_seqlen_k));
  args->paged = 1;
  args->columns = call.max_seqlen_k;
  args->ends = static_cast<const int32_t*>(lengths.data);
  args->ends_stride = dsf_row_stride(&lengths);
  args->block_table = static_cast<const int32_t*>(table.data);
  args->block_table_stride = dsf_row_stride(&table);
  if (!check_size(call.op, "max_context_len", "leave logits of fewer than 2^62 bytes", args->b * args->s_q,
                  args->columns, problem))
    return false;
  // The door copies what is not rows, and asks again.
  if (args->block_table_stride < 0 || args->ends_stride < 0 || !args->ends) return true;
  return check_table(call, args, problem);
}

}  // namespace

int32_t dsf_lightning_indexer_check(const IndexerCall* call, IndexerArgs* args, Problem* problem) {
  *problem = Problem{};
  *args = IndexerArgs{};
  if (!check_q(*call, args, problem)) return 0;
  if (!(call->cache ? check_paged : check_dense)(*call, args, problem)) return 0;
  args->logits_dtype = call->logits_dtype;
  args->selects = call->selects;
  args->as_slots = call->as_slots;
  if (!call->selects) {
    if (call->logits_dtype == Dtype::f32 || call->logits_dtype == Dtype::bf16) return 1;
    return type_error(problem, call->op, "dtype", "be float32 or bfloat16", call->logits_dtype_name);
  }
  args->top_k = call->top_k;
  return check_number(call->op, "top_k", call->top_k, problem) &&
         check_size(call->op, "top_k", "leave indices of fewer than 2^62 bytes", args->b * args->s_q, args->top_k,
                    problem) &&
         check_order(call->op, call->sorted_by, &args->order, problem);
}

int32_t dsf_topk_indices_check(const TopkCall* call, TopkArgs* args, Problem* problem) {
  *problem = Problem{};
  *args = TopkArgs{};
  const TensorView& scores = call->scores;
  if (!check_float(call->op, "scores", scores, problem)) return 0;
  if (scores.ndim < 1) return shape_error(problem, call->op, "scores", "have at least one dimension", scores);
  int64_t values;
  if (!fold_rows(scores, &args->rows, &args->n) || !checked_mul(args->rows, args->n, &values) ||
      values > MOST_BYTES / 4)
    return shape_error(problem, call->op, "scores", "have fewer than 2^60 values", scores);
  if (args->n > MOST_TOKENS) return shape_error(problem, call->op, "scores", "have at most 2147483647 columns", scores);
  if (!check_number(call->op, "k", call->k, problem) ||
      !check_size(call->op, "k", "leave indices of fewer than 2^62 bytes", args->rows, call->k, problem))
    return 0;
  if (!check_order(call->op, call->sorted_by, &args->order, problem)) return 0;
  args->dtype = scores.dtype;
  args->k = call->k;
  args->scores = scores.data;
  args->stride = dsf_row_stride(&scores);
  if (!call->lengths) return 1;
  const TensorView& lengths = *call->lengths;
  if (!check_dtype(call->op, "lengths", lengths, Dtype::i32, "be int32", problem)) return 0;
  bool fits = lengths.ndim == scores.ndim - 1;
  for (int64_t d = 0; fits && d < lengths.ndim; ++d) fits = lengths.sizes[d] == scores.sizes[d];
  if (!fits) return shape_error(problem, call->op, "lengths", "have scores' shape but for its last dimension", lengths);
  args->lengths = static_cast<const int32_t*>(lengths.data);
  args->lengths_columns = lengths.ndim && lengths.sizes[lengths.ndim - 1] ? lengths.sizes[lengths.ndim - 1] : 1;
  args->lengths_stride = dsf_row_stride(&lengths);
  return 1;
}

}  // namespace dsf
