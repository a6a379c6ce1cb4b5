// The checks of caches, and of what writes and reads them.
#include "kernels/sparse_mla/checks.h"

namespace dsf {
namespace sparse_mla {

bool check_dims(const char* op, const char* arg, int64_t ndim, const TensorView& view, Problem* problem) {
  if (view.ndim != ndim) return shape_error(problem, op, arg, ShapeRule("have %lld dimensions", ndim).text, view);
  int64_t values = 1, bytes;
  for (int64_t d = 0; d < ndim; ++d)
    if (!checked_mul(values, view.sizes[d] > 0 ? view.sizes[d] : 1, &values))
      return shape_error(problem, op, arg, "have fewer than 2^61 values", view);
  return checked_mul(values, 4, &bytes) || shape_error(problem, op, arg, "have fewer than 2^61 values", view);
}

bool check_vector(const char* op, const char* arg, Dtype dtype, const char* be_dtype, int64_t length,
                  const TensorView& view, Problem* problem) {
  if (view.dtype != dtype) return dtype_error(problem, op, arg, be_dtype, view);
  if (view.ndim == 1 && view.sizes[0] == length) return true;
  return shape_error(problem, op, arg, ShapeRule("have shape (%lld,)", length).text, view);
}

bool number_error(const char* op, const char* arg, const char* rule, long long got, Problem* problem) {
  char text[32];
  std::snprintf(text, sizeof text, "%lld", got);
  return value_error(problem, op, arg, rule, text);
}

int64_t stride_of(const TensorView& view, int64_t dimension) {
  if (view.strides) return view.strides[dimension];
  int64_t stride = 1;
  for (int64_t d = view.ndim - 1; d > dimension; --d) stride *= view.sizes[d];
  return stride;
}

bool check_layout(const char* op, const char* text, bool or_plain, CacheLayout* layout, Problem* problem) {
  constexpr const char* NAMES[] = {"plain", "v32", "v4"};
  const int first = or_plain ? 0 : 1;
  const int32_t found = chosen(op, "layout", NAMES + first, 3 - first, text, problem);
  *layout = CacheLayout(found + first);
  return found >= 0;
}

bool has_whole_tokens(const TensorView& cache, CacheLayout layout) {
  const bool whole = cache.sizes[3] < 2 || stride_of(cache, 3) == 1;
  return whole && (layout != CacheLayout::v4 || cache.sizes[1] < 2 || stride_of(cache, 1) == V4_TOKEN);
}

bool check_cache(const char* op, const char* arg, CacheLayout layout, const TensorView& cache, const TensorView* q,
                 TokenStore* store, Problem* problem) {
  const bool plain = layout == CacheLayout::plain;
  if (plain && cache.dtype != q->dtype) {
    char rule[64];
    std::snprintf(rule, sizeof rule, "have q's dtype %s", q->dtype_name);
    return dtype_error(problem, op, arg, rule, cache);
  }
  if (!plain && cache.dtype != Dtype::u8 && cache.dtype != Dtype::f8e4m3)
    return dtype_error(problem, op, arg, "be uint8 or float8_e4m3fn for an FP8 layout", cache);
  if (!check_dims(op, arg, 4, cache, problem)) return false;
  if (cache.sizes[2] != 1) return shape_error(problem, op, arg, "have one head in its third dimension", cache);
  const int64_t token = cache.sizes[3], bytes = plain ? value_bytes(cache.dtype) : 1;
  if (plain && token != q->sizes[q->ndim - 1])
    return shape_error(problem, op, arg, ShapeRule("have q's last dimension of %lld", q->sizes[q->ndim - 1]).text,
                       cache);
  if (!plain && token != (layout == CacheLayout::v32 ? V32_TOKEN : V4_TOKEN)) {
    const bool is_v32 = layout == CacheLayout::v32;
    return shape_error(problem, op, arg,
                       is_v32 ? "have 656 bytes a token for layout v32" : "have 584 bytes a token for layout v4",
                       cache);
  }
  if (!plain && !has_whole_tokens(cache, layout))
    return shape_error(
        problem, op, arg,
        layout == CacheLayout::v4 ? "have contiguous bytes in each page" : "have contiguous bytes in each token",
        cache);
  constexpr int64_t MOST_TOKENS = INT64_C(1) << 31;  // an index is an int32
  int64_t tokens;
  if (cache.sizes[0] > 0 && (!checked_mul(cache.sizes[0], cache.sizes[1], &tokens) || tokens > MOST_TOKENS))
    return shape_error(problem, op, arg, "have at most 2^31 tokens", cache);
  const int64_t token_stride = layout == CacheLayout::v4 ? V4_FRONT : stride_of(cache, 1) * bytes;
  *store = {layout, cache.data, cache.sizes[0], cache.sizes[1], stride_of(cache, 0) * bytes, token_stride, 0};
  return true;
}

}  // namespace sparse_mla

using namespace sparse_mla;

namespace {

// An int32 or int64 slot.
int64_t slot_at(const CacheWriteArgs& args, int64_t i) {
  i *= args.slots_stride;
  return args.slots_are_i32 ? static_cast<const int32_t*>(args.slots)[i] : static_cast<const int64_t*>(args.slots)[i];
}

bool check_slots(const CacheWriteCall& call, CacheWriteArgs* args, Problem* problem) {
  constexpr const char* OP = "mla_cache_write";
  const int64_t room = args->pages * args->page_size;
  if (!call.slots) {
    if (args->tokens <= room) return true;
    return shape_error(problem, OP, "kv", ShapeRule("have at most the cache's %lld tokens", room).text, call.kv);
  }
  const TensorView& slots = *call.slots;
  if (slots.dtype != Dtype::i32 && slots.dtype != Dtype::i64)
    return dtype_error(problem, OP, "slots", "be int32 or int64", slots);
  if (slots.ndim != 1 || slots.sizes[0] != args->tokens)
    return shape_error(problem, OP, "slots", ShapeRule("have shape (%lld,)", args->tokens).text, slots);
  args->slots = slots.data;
  args->slots_stride = stride_of(slots, 0);
  args->slots_are_i32 = slots.dtype == Dtype::i32;
  if (!slots.data) return true;
  for (int64_t i = 0; i < args->tokens; ++i)
    if (slot_at(*args, i) >= room)
      return number_error(OP, "slots", ShapeRule("be below %lld, the cache's tokens", room).text, slot_at(*args, i),
                          problem);
  return true;
}

}  // namespace

int32_t dsf_mla_cache_write_check(const CacheWriteCall* call, CacheWriteArgs* args, Problem* problem) {
  constexpr const char* OP = "mla_cache_write";
  *problem = Problem{};
  *args = CacheWriteArgs{};
  TokenStore store{};
  if (!check_layout(OP, call->layout, false, &args->layout, problem)) return 0;
  if (!check_cache(OP, "cache", args->layout, call->cache, nullptr, &store, problem)) return 0;
  const TensorView& kv = call->kv;
  if (kv.dtype != Dtype::bf16 && kv.dtype != Dtype::f32)
    return dtype_error(problem, OP, "kv", "be float32 or bfloat16", kv);
  if (!check_dims(OP, "kv", 2, kv, problem)) return 0;
  const int64_t numbers = args->layout == CacheLayout::v32 ? V32_NUMBERS : V4_NUMBERS;
  if (kv.sizes[1] != numbers)
    return shape_error(problem, OP, "kv", ShapeRule("have %lld columns for this layout", numbers).text, kv);
  args->dtype = kv.dtype;
  args->tokens = kv.sizes[0];
  args->page_size = store.page_size;
  args->kv = kv.data;
  args->kv_stride = stride_of(kv, 0);
  args->cache = static_cast<uint8_t*>(const_cast<void*>(store.data));
  args->pages = store.pages;
  args->page_stride = store.page_stride;
  args->token_stride = store.token_stride;
  return check_slots(*call, args, problem);
}

int32_t dsf_mla_cache_read_check(const CacheReadCall* call, TokenStore* store, Problem* problem) {
  constexpr const char* OP = "mla_cache_read";
  *problem = Problem{};
  *store = TokenStore{};
  CacheLayout layout;
  if (!check_layout(OP, call->layout, false, &layout, problem)) return 0;
  return check_cache(OP, "cache", layout, call->cache, nullptr, store, problem);
}

}  // namespace dsf
