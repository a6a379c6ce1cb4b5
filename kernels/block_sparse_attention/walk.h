// Which keys a tile of queries sees, step by step: the mask, the window and the sequences of an AttentionArgs.
#pragma once
#include "kernels/block_sparse_attention/cpu_kernels.h"

namespace dsf::block_sparse_attention {

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
// Towards minus infinity.
inline int64_t divide_down(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

// Integers of either type.
inline int64_t integer_at(const void* values, Dtype dtype, int64_t i) {
  return dtype == Dtype::i32 ? static_cast<const int32_t*>(values)[i] : static_cast<const int64_t*>(values)[i];
}

// One sequence of the batch: its tokens and its first row of blocks.
struct Sequence {
  int64_t q_begin, q_count, k_begin, k_count, first_row;
};

inline int64_t sequences_of(const AttentionArgs& args) { return args.ends_q ? args.num_sequences : 1; }
inline int64_t block_q_of(const AttentionArgs& args) { return args.has_mask ? args.block_q : KEY_STEP; }
inline int64_t block_k_of(const AttentionArgs& args) { return args.has_mask ? args.block_k : KEY_STEP; }

inline Sequence sequence_of(const AttentionArgs& args, int64_t n, int64_t first_row) {
  if (!args.ends_q) return {0, args.S_q, 0, args.S_k, 0};
  const int64_t q = integer_at(args.ends_q, args.ends_dtype_q, n), k = integer_at(args.ends_k, args.ends_dtype_k, n);
  return {q, integer_at(args.ends_q, args.ends_dtype_q, n + 1) - q, k,
          integer_at(args.ends_k, args.ends_dtype_k, n + 1) - k, first_row};
}

// Queries [i, i + count) of a sequence in one row of blocks, of `heads` heads from `head` on that read one head of k.
struct Place {
  Sequence sequence;
  int64_t b, head, heads, row, i, count;  // row of blocks in the sequence

  int64_t rows() const { return heads * count; }
};

// What positions alone let a query see: keys [begin, end), and those below `sinks`.
struct Sight {
  int64_t begin, end, sinks;

  bool anything_of(int64_t key, int64_t n) const { return (key < end && key + n > begin) || key < sinks; }
  bool all_of(int64_t key, int64_t n) const { return (key >= begin && key + n <= end) || key + n <= sinks; }
};

inline uint64_t bits_below(int64_t n) { return n <= 0 ? 0 : n >= 64 ? ~uint64_t{0} : (uint64_t{1} << n) - 1; }

// Bit t: key + t is seen.
inline uint64_t bits_of(const Sight& sight, int64_t key) {
  return (bits_below(sight.end - key) & ~bits_below(sight.begin - key)) | bits_below(sight.sinks - key);
}

inline constexpr int64_t FAR = int64_t{1} << 60;  // from any token, and sums of two are numbers

inline Sight sight_of(const AttentionArgs& args, const Sequence& sequence, int64_t i) {
  const auto limited = [](int64_t distance) { return most(-FAR, least(FAR, distance)); };
  const int64_t at = i + (args.q_at_end ? sequence.k_count - sequence.q_count : limited(args.q_offset));
  const int64_t stride = args.key_stride, count = sequence.k_count;
  // Key j stands at (j + 1) * stride - 1.
  const auto keys_up_to = [&](int64_t position) { return most(0, least(count, divide_down(position + 1, stride))); };
  const int64_t end = args.is_causal ? keys_up_to(at) : count;
  Sight sight{0, end, 0};
  if (args.left != NO_LIMIT) sight.begin = keys_up_to(at - limited(args.left) - 1);
  if (args.right != NO_LIMIT) sight.end = least(end, keys_up_to(at + limited(args.right)));
  if (args.left != NO_LIMIT || args.right != NO_LIMIT) sight.sinks = least(end, args.sinks);
  if (sight.end < sight.begin) sight.end = sight.begin;
  return sight;
}

// The kept blocks of one row: entries [begin, end).
class KeptBlocks {
 public:
  KeptBlocks(const AttentionArgs& args, const Place& place) : args_(args) {
    columns_ = divide_up(place.sequence.k_count, block_k_of(args));
    begin_ = 0;
    end_ = columns_;
    if (!args.has_mask) return;
    const int64_t group = args.H / args.H_kv;
    const int64_t head = args.mask_heads == args.H ? place.head : args.mask_heads == 1 ? 0 : place.head / group;
    const int64_t row = place.sequence.first_row + place.row;
    if (!args.row_offsets) {
      kept_ = args.kept + place.b * args.kept_strides.b + head * args.kept_strides.h + row * args.kept_strides.s;
    } else {
      const int64_t at = place.b * args.offset_strides.b + head * args.offset_strides.h + row;
      begin_ = integer_at(args.row_offsets, args.offsets_dtype, at);
      end_ = integer_at(args.row_offsets, args.offsets_dtype, at + 1);
    }
  }
  int64_t begin() const { return begin_; }
  int64_t end() const { return end_; }
  // walk(column_of), which gives the block of entry e, or -1 where it is not kept or beyond the sequence.
  template <class Walk>
  void with_columns(const Walk& walk) const {
    const int64_t columns = columns_;
    const auto listed = [&](const auto* list) {
      walk([=](int64_t e) __attribute__((always_inline)) { return list[e] < columns ? int64_t(list[e]) : -1; });
    };
    if (!args_.has_mask)
      walk([](int64_t e) { return e; });
    else if (!args_.row_offsets)
      walk([kept = kept_](int64_t e) { return kept[e] ? e : -1; });
    else if (args_.listed_dtype == Dtype::i32)
      listed(static_cast<const int32_t*>(args_.listed));
    else
      listed(static_cast<const int64_t*>(args_.listed));
  }
  // Bits of the query `i` of the block for keys [64 word, 64 word + 64) of the block of entry e.
  uint64_t table_bits(int64_t e, int64_t i, int64_t word) const {
    if (!args_.tables || args_.tables[e] < 0) return ~uint64_t{0};
    return args_.bits[(args_.tables[e] * args_.block_q + i) * divide_up(args_.block_k, 64) + word];
  }
  bool is_partial(int64_t e) const { return args_.tables && args_.tables[e] >= 0; }

 private:
  const AttentionArgs& args_;
  const uint8_t* kept_ = nullptr;
  int64_t columns_, begin_, end_;
};

// Keys of a step that lie one after the other: `count` of them from `key` on, the step's from `slot` on.
struct Run {
  int64_t key, count, slot, entry, word;  // word: 64 keys of a block that has several
};

template <class ColumnOf, class Visit>
void walk_steps(const AttentionArgs& args, const Place& place, const Sight& sight, const KeptBlocks& blocks,
                const ColumnOf& column_of, const Visit& visit) {
  const int64_t block_k = block_k_of(args), k_count = place.sequence.k_count;
  Run runs[KEY_STEP];
  if (block_k >= KEY_STEP) {
    for (int64_t e = blocks.begin(); e < blocks.end(); ++e) {
      const int64_t column = column_of(e);
      if (column < 0) continue;
      const int64_t first = column * block_k, last = least(first + block_k, k_count);
      if (!sight.anything_of(first, last - first)) continue;
      for (int64_t key = first; key < last; key += KEY_STEP) {
        runs[0] = {key, least(KEY_STEP, last - key), 0, e, (key - first) / KEY_STEP};
        if (sight.anything_of(key, runs[0].count)) visit(blocks, runs, 1);
      }
    }
    return;
  }
  // Small blocks make a step together. Those that are out of sight have their places, too.
  const int64_t per_step = KEY_STEP / block_k;
  int64_t taken = 0, count = 0;
  for (int64_t e = blocks.begin(); e < blocks.end(); ++e) {
    const int64_t column = column_of(e);
    if (column < 0) continue;
    const int64_t first = column * block_k, keys = least(block_k, k_count - first);
    if (sight.anything_of(first, keys)) runs[count++] = {first, keys, taken * block_k, e, 0};
    if (++taken < per_step) continue;
    if (count) visit(blocks, runs, count);
    taken = count = 0;
  }
  if (count) visit(blocks, runs, count);
}

// visit(blocks, runs, number of runs) of every step with keys that `sight` does not rule out, in the contract's order.
template <class Visit>
void for_each_step(const AttentionArgs& args, const Place& place, const Sight& sight, const Visit& visit) {
  const KeptBlocks blocks(args, place);
  blocks.with_columns([&](const auto& column_of) { walk_steps(args, place, sight, blocks, column_of, visit); });
}

// visit(place) of every tile whose queries read head kv of batch b, in ascending order.
template <class Visit>
void for_each_tile(const AttentionArgs& args, int64_t b, int64_t kv, const Visit& visit) {
  const int64_t group = args.H / args.H_kv, block_q = block_q_of(args);
  // Heads of a group that read the same lists go together where a tile has room.
  const bool together = !args.has_mask || args.mask_heads != args.H || args.H == 1;
  for (int64_t n = 0, first_row = 0; n < sequences_of(args); ++n) {
    const Sequence sequence = sequence_of(args, n, first_row);
    const int64_t rows = divide_up(sequence.q_count, block_q), longest = least(block_q, sequence.q_count);
    first_row += rows;
    if (rows == 0) continue;
    const int64_t heads = together ? most(1, least(group, TILE_ROWS / longest)) : 1;
    for (int64_t first = 0; first < group; first += heads) {
      for (int64_t row = 0; row < rows; ++row) {
        const int64_t i = row * block_q, count = least(block_q, sequence.q_count - i);
        const int64_t parts = divide_up(count, TILE_ROWS);
        for (int64_t part = 0; part < parts; ++part) {
          const int64_t begin = count * part / parts, end = count * (part + 1) / parts;
          visit(Place{sequence, b, kv * group + first, least(heads, group - first), row, i + begin, end - begin});
        }
      }
    }
  }
}

}  // namespace dsf::block_sparse_attention
