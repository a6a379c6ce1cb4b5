// The steps of a tile, one after the other: which rows of k and v they read, and who sees them.
#pragma once
#include <cstring>

#include "csrc/gemm/float_value.h"
#include "kernels/block_sparse_attention/walk.h"

namespace dsf::block_sparse_attention {

inline constexpr uint32_t NEGATIVE_INFINITY_BITS = 0xFF800000;

// A step that waits for its turn: its rows are on their way from memory while the one before it is computed.
struct Planned {
  uint64_t seen[TILE_ROWS];
  alignas(64) float bias[TILE_ROWS * KEY_STEP];
  const char *k[KEY_STEP], *v[KEY_STEP];
  int64_t key[KEY_STEP];  // of the batch; -1 where no query of the tile sees it
  KeyStep keys;
};

// What a tile needs beside its kernel's memory.
struct Steps {
  Sight sights[TILE_ROWS];
  Planned planned[2];
};

inline const char* row_of(const Heads& heads, Dtype dtype, int64_t b, int64_t head, int64_t s) {
  const int64_t at = b * heads.strides.b + head * heads.strides.h + s * heads.strides.s;
  return static_cast<const char*>(heads.data) + at * value_bytes(dtype);
}

// Asks L2, which fetches lines by pairs, for a row.
inline void read_ahead(const char* row, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 2 * CACHE_LINE) __builtin_prefetch(row + at, 0, 2);
}

class StepPlanner {
 public:
  StepPlanner(const AttentionArgs& args, Steps& memory) : args_(args), memory_(memory) {}

  // take(planned) of every step of which the tile sees something.
  template <class Take>
  void for_each(const Place& place, const Take& take) const {
    Sight some{INT64_MAX, 0, 0}, every{0, INT64_MAX, INT64_MAX};
    for (int64_t i = 0; i < place.count; ++i) {
      const Sight& sight = memory_.sights[i] = sight_of(args_, place.sequence, place.i + i);
      some = {least(some.begin, sight.begin), most(some.end, sight.end), most(some.sinks, sight.sinks)};
      every = {most(every.begin, sight.begin), least(every.end, sight.end), least(every.sinks, sight.sinks)};
    }
    int turn = 0;
    const Planned* waiting = nullptr;
    for_each_step(args_, place, some, [&](const KeptBlocks& blocks, const Run* runs, int64_t count) {
      Planned& planned = memory_.planned[turn];
      if (!plan(place, blocks, runs, count, every, planned)) return;
      if (waiting) take(*waiting);
      waiting = &planned;
      turn ^= 1;
    });
    if (waiting) take(*waiting);
  }

 private:
  // Returns whether any row sees anything of it.
  bool plan(const Place& place, const KeptBlocks& blocks, const Run* runs, int64_t count, const Sight& every,
            Planned& planned) const {
    const Run& last = runs[count - 1];
    const int64_t n = last.slot + last.count;
    int64_t filled = 0;
    bool whole = !args_.tables && every.all_of(runs[0].key, last.key + last.count - runs[0].key);
    for (int64_t r = 0; r < count; ++r) filled += runs[r].count;
    whole = whole && filled == n;
    uint64_t some = whole ? bits_below(n) : mask_rows(place, blocks, runs, count, planned.seen);
    planned.keys = {planned.k, planned.v, int(n), whole ? nullptr : planned.seen, nullptr, 0};
    if (args_.token_bias.data) {
      some &= fill_bias(place, runs, count, n, planned.bias);
      planned.keys.bias = planned.bias;
      planned.keys.bias_stride = bias_rows(place) == 1 ? 0 : KEY_STEP;
    }
    if (!some) return false;
    const int64_t head = place.head / (args_.H / args_.H_kv), bytes = value_bytes(args_.dtype);
    const char* k = row_of(args_.k, args_.dtype, place.b, head, place.sequence.k_begin);
    const char* v = row_of(args_.v, args_.dtype, place.b, head, place.sequence.k_begin);
    const int64_t k_step = args_.k.strides.s * bytes, v_step = args_.v.strides.s * bytes;
    if (filled != n)
      for (int64_t t = 0; t < n; ++t) {
        planned.k[t] = planned.v[t] = nullptr;
        planned.key[t] = -1;
      }
    for (int64_t r = 0; r < count; ++r) {
      const Run& run = runs[r];
      for (int64_t t = 0; t < run.count; ++t) {
        const int64_t slot = run.slot + t;
        const bool seen = some >> slot & 1;
        planned.k[slot] = seen ? k + (run.key + t) * k_step : nullptr;
        planned.v[slot] = seen ? v + (run.key + t) * v_step : nullptr;
        planned.key[slot] = seen ? place.sequence.k_begin + run.key + t : -1;
        if (!seen) continue;
        read_ahead(planned.k[slot], args_.D * bytes);
        read_ahead(planned.v[slot], args_.D_v * bytes);
      }
    }
    return true;
  }

  // Fills seen, and returns what any row sees.
  uint64_t mask_rows(const Place& place, const KeptBlocks& blocks, const Run* runs, int64_t count,
                     uint64_t* seen_rows) const {
    uint64_t some = 0;
    for (int64_t i = 0; i < place.count; ++i) {
      uint64_t seen = 0;
      for (int64_t r = 0; r < count; ++r) {
        const Run& run = runs[r];
        uint64_t bits = bits_of(memory_.sights[i], run.key) & bits_below(run.count);
        if (blocks.is_partial(run.entry))
          bits &= blocks.table_bits(run.entry, place.i + i - place.row * args_.block_q, run.word);
        seen |= bits << run.slot;
      }
      some |= seen;
      for (int64_t h = 0; h < place.heads; ++h) seen_rows[h * place.count + i] = seen;
    }
    return some;
  }

  int64_t bias_rows(const Place& place) const {
    const HeadStrides& strides = args_.token_bias.strides;
    return (strides.h == 0 || place.heads == 1) && (strides.s == 0 || place.count == 1) ? 1 : place.rows();
  }

  // Fills bias, and returns the keys that it does not hide from every row.
  uint64_t fill_bias(const Place& place, const Run* runs, int64_t count, int64_t n, float* rows) const {
    uint32_t shown[KEY_STEP] = {};
    for (int64_t row = 0; row < bias_rows(place); ++row) {
      const int64_t head = place.head + row / place.count, i = place.sequence.q_begin + place.i + row % place.count;
      const Heads& bias = args_.token_bias;
      const int64_t first = place.b * bias.strides.b + head * bias.strides.h + i * bias.strides.s;
      float* target = rows + row * KEY_STEP;
      for (int64_t t = 0; t < KEY_STEP; ++t) target[t] = 0.0f;
      for (int64_t r = 0; r < count; ++r) {
        const int64_t key = first + place.sequence.k_begin + runs[r].key;
        if (args_.bias_dtype == Dtype::f32)
          std::memcpy(target + runs[r].slot, static_cast<const float*>(bias.data) + key, size_t(runs[r].count) * 4);
        else
          for (int64_t t = 0; t < runs[r].count; ++t)
            target[runs[r].slot + t] = float_at(args_.bias_dtype, bias.data, key + t);
      }
      uint32_t bits[KEY_STEP];
      std::memcpy(bits, target, sizeof bits);
      for (int64_t t = 0; t < KEY_STEP; ++t) shown[t] |= bits[t] != NEGATIVE_INFINITY_BITS;
    }
    uint64_t result = 0;
    for (int64_t t = 0; t < n; ++t) result |= uint64_t{shown[t]} << t;
    return result;
  }

  const AttentionArgs& args_;
  Steps& memory_;
};

}  // namespace dsf::block_sparse_attention
