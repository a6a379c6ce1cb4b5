// What forward and backward share outside the kernels: the entries of a list as addresses, and work on slots.
#pragma once
#include "csrc/core/check.h"
#include "csrc/core/subnormals.h"
#include "kernels/sparse_mla/cpu_kernels.h"

namespace dsf::sparse_mla {
namespace {

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t parts_of(int64_t size, int64_t part) { return size / part + (size % part != 0); }

// A token's first part and, of v4, its scales.
inline void place_of(const TokenStore& store, int64_t page, int64_t offset, const char** token, const void** scales) {
  constexpr int64_t FRONT = 576, SCALES = 8;  // bytes a token of v4
  const char* at = static_cast<const char*>(store.data) + page * store.page_stride;
  *token = at + offset * store.token_stride;
  *scales = store.layout == CacheLayout::v4 ? at + store.page_size * FRONT + offset * SCALES : nullptr;
}

// One list of one query for one head of kv.
struct List {
  const TokenStore* store;
  const int32_t* entries;  // null: tokens of a request, by its row of the block table
  const int32_t* table;
  int64_t count;  // entries that are looked at
  int64_t head;   // of kv

  // Where the token of entry t lies, and of v4 its scales; false where the entry does not count.
  bool locate(int64_t t, const char** token, const void** scales) const {
    int64_t page, offset;
    const int64_t size = store->page_size;
    if (entries) {
      const int64_t index = entries[t];
      if (index < 0 || index >= store->pages * size) return false;
      page = uint32_t(index) / uint32_t(size);
      offset = index - page * size;
    } else {
      page = table[t / size];
      offset = t % size;
    }
    place_of(*store, page, offset, token, scales);
    *token += head * store->head_stride;
    return true;
  }
};

inline int64_t token_bytes(const SparseMlaArgs& args, CacheLayout layout) {
  if (layout == CacheLayout::plain) return args.d_qk * value_bytes(args.dtype);
  return layout == CacheLayout::v32 ? 656 : 576;
}

inline int64_t count_of(const TokenLists& lists, int64_t b, int64_t i) {
  if (!lists.length) return lists.topk;
  return most(0, least(lists.topk, lists.length[lists.length_a_query ? i : b]));
}

inline List list_of(const SparseMlaArgs& args, bool extra, int64_t b, int64_t i, int64_t head) {
  const TokenLists& lists = extra ? args.extra_lists : args.lists;
  const TokenStore& store = extra ? args.extra_store : args.store;
  if (args.block_table && !extra) {
    const int64_t length = args.cache_seqlens[b];
    const int64_t count = args.is_causal ? most(0, length - args.s_q + i + 1) : length;
    return {&store, nullptr, args.block_table + b * args.block_table_stride, count, head};
  }
  if (!store.data || !lists.data) return {&store, nullptr, nullptr, 0, head};
  const int32_t* entries = lists.data + b * lists.batch_stride + i * lists.query_stride + head * lists.head_stride;
  return {&store, entries, nullptr, count_of(lists, b, i), head};
}

// Entries [begin, begin + STEP) up to `end`; false where none counts.
inline bool fill_keys(const List& list, int64_t begin, int64_t end, Keys* keys) {
  keys->layout = list.store->layout;
  keys->seen = 0;
  keys->n = 0;
  for (int j = 0; j < STEP; ++j) {
    const char* token;
    keys->rows[j] = nullptr;
    if (begin + j >= end || !list.locate(begin + j, &token, &keys->scales[j])) continue;
    keys->rows[j] = token;
    keys->seen |= uint64_t{1} << j;
    keys->n = j + 1;
  }
  return keys->n > 0;
}

// Asks for the tokens of a step ahead of it.
inline void prefetch_keys(const Keys& keys, int64_t bytes) {
  for (int j = 0; j < keys.n; ++j) {
    const char* row = keys.rows[j];
    if (!row) continue;
    for (int64_t at = 0; at < bytes; at += CACHE_LINE) __builtin_prefetch(row + at);
    if (keys.scales[j]) __builtin_prefetch(keys.scales[j]);
  }
}

// body(slot, task) of every task, the tasks of a slot one after the other.
template <class Body>
void for_slots(const Context& context, int64_t slots, int64_t tasks, const Body& body) {
  parallel_for(context, slots, [&](int64_t begin, int64_t end) {
    const IeeeSubnormals scope;
    for (int64_t slot = begin; slot < end; ++slot)
      for (int64_t task = slot; task < tasks; task += slots) body(slot, task);
  });
}

// A workspace in parts that begin at cache lines; as a sum of sizes where there is no memory.
class Parts {
 public:
  explicit Parts(void* memory) : memory_(static_cast<char*>(memory)) {}
  char* take(int64_t count, int64_t bytes) {
    int64_t all;
    if (overflow_ || !checked_mul(count, round_up(bytes, CACHE_LINE), &all) ||
        __builtin_add_overflow(used_, all, &used_)) {
      overflow_ = true;
      return nullptr;
    }
    return memory_ ? memory_ + (used_ - all) : nullptr;
  }
  int64_t bytes() const { return overflow_ ? -1 : used_; }

 private:
  char* memory_;
  int64_t used_ = 0;
  bool overflow_ = false;
};

}  // namespace
}  // namespace dsf::sparse_mla
