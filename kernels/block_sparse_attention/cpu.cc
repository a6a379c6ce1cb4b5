#include "kernels/block_sparse_attention/cpu.h"

#include <cstring>

#include "csrc/gemm/float_value.h"
#include "kernels/block_sparse_attention/walk.h"

namespace dsf {
namespace {

using namespace block_sparse_attention;

struct Variant {
  Isa isa;
  Dtype dtype;
  const char* name;
  const Kernel* kernel;
};

constexpr Variant VARIANTS[] = {
#define DSF_VARIANT(isa, dtype, kernel) {Isa::isa, Dtype::dtype, #kernel, &block_sparse_attention::kernel},
#include "kernels/block_sparse_attention/variants.inc"
#undef DSF_VARIANT
};

constexpr uint32_t NEGATIVE_INFINITY_BITS = 0xFF800000;

// A step that waits for its turn: its rows are on their way from memory while the one before it is computed.
struct Planned {
  uint64_t seen[TILE_ROWS];
  alignas(64) float bias[TILE_ROWS * KEY_STEP];
  const char *k[KEY_STEP], *v[KEY_STEP];
  KeyStep keys;  // n 0: there is none
};

// What a tile needs beside its kernel's memory.
struct Scratch {
  Sight sights[TILE_ROWS];
  const char* q[TILE_ROWS];
  char* out[TILE_ROWS];
  const float* sink[TILE_ROWS];
  float* lse[TILE_ROWS];
  Planned planned[2];
};

// Asks L2 for the lines of a row.
void read_ahead(const char* row, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += CACHE_LINE) __builtin_prefetch(row + at, 0, 2);
}

// One tile of queries: forward.
class Tile {
 public:
  Tile(const AttentionArgs& args, const Kernel& kernel, Scratch& scratch, char* memory)
      : args_(args), kernel_(kernel), scratch_(scratch), memory_(memory) {}

  void run(const Place& place) const {
    const Shape shape{place.rows(), args_.D, args_.D_v, args_.scale};
    for (int64_t row = 0; row < shape.rows; ++row) {
      const int64_t head = place.head + row / place.count, i = place.sequence.q_begin + place.i + row % place.count;
      const int64_t at = (place.b * args_.H + head) * args_.S_q + i;
      scratch_.q[row] = at_of(args_.q, place.b, head, i);
      scratch_.out[row] = static_cast<char*>(args_.out) + at * args_.D_v * value_bytes(args_.dtype);
      scratch_.lse[row] = args_.lse ? args_.lse + at : nullptr;
      scratch_.sink[row] = args_.sink_logits ? args_.sink_logits + head : nullptr;
    }
    kernel_.begin(shape, scratch_.q, memory_);
    Sight some{INT64_MAX, 0, 0}, every{0, INT64_MAX, INT64_MAX};
    for (int64_t i = 0; i < place.count; ++i) {
      const Sight& sight = scratch_.sights[i] = sight_of(args_, place.sequence, place.i + i);
      some = {least(some.begin, sight.begin), most(some.end, sight.end), most(some.sinks, sight.sinks)};
      every = {most(every.begin, sight.begin), least(every.end, sight.end), least(every.sinks, sight.sinks)};
    }
    int turn = 0;
    Planned* waiting = nullptr;
    for_each_step(args_, place, some, [&](const KeptBlocks& blocks, const Run* runs, int64_t count) {
      Planned& planned = scratch_.planned[turn];
      if (!plan(place, blocks, runs, count, every, planned)) return;
      if (waiting) kernel_.step(shape, waiting->keys, memory_);
      waiting = &planned;
      turn ^= 1;
    });
    if (waiting) kernel_.step(shape, waiting->keys, memory_);
    kernel_.finish(shape, scratch_.out, args_.sink_logits ? scratch_.sink : nullptr, args_.lse ? scratch_.lse : nullptr,
                   memory_);
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
    const char* k = at_of(args_.k, place.b, head, place.sequence.k_begin);
    const char* v = at_of(args_.v, place.b, head, place.sequence.k_begin);
    const int64_t k_step = args_.k.strides.s * bytes, v_step = args_.v.strides.s * bytes;
    if (filled != n)
      for (int64_t t = 0; t < n; ++t) planned.k[t] = planned.v[t] = nullptr;
    for (int64_t r = 0; r < count; ++r) {
      const Run& run = runs[r];
      for (int64_t t = 0; t < run.count; ++t) {
        const int64_t slot = run.slot + t;
        const bool seen = some >> slot & 1;
        planned.k[slot] = seen ? k + (run.key + t) * k_step : nullptr;
        planned.v[slot] = seen ? v + (run.key + t) * v_step : nullptr;
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
        uint64_t bits = bits_of(scratch_.sights[i], run.key) & bits_below(run.count);
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

  const char* at_of(const Heads& heads, int64_t b, int64_t head, int64_t s) const {
    const int64_t at = b * heads.strides.b + head * heads.strides.h + s * heads.strides.s;
    return static_cast<const char*>(heads.data) + at * value_bytes(args_.dtype);
  }

  const AttentionArgs& args_;
  const Kernel& kernel_;
  Scratch& scratch_;
  char* memory_;
};

constexpr int64_t SCRATCH_BYTES = (int64_t(sizeof(Scratch)) + 63) / 64 * 64;

int64_t slot_bytes(const AttentionArgs& args) {
  return SCRATCH_BYTES + round_up(kernel_of(args.dtype).tile_bytes(args.D, args.D_v), 64);
}

}  // namespace

const Kernel& block_sparse_attention::kernel_of(Dtype dtype) {
  const int32_t cap = dsf_max_isa();
  for (const Variant& variant : VARIANTS)
    if (variant.dtype == dtype && int32_t(variant.isa) <= cap && dsf_isa_supported(int32_t(variant.isa)))
      return *variant.kernel;
  return block_sparse_attention_f32_scalar;  // not reached: every dtype has a scalar row
}

int64_t dsf_block_sparse_attention_workspace_bytes(const Context* context, const AttentionArgs* args) {
  return context->num_threads * slot_bytes(*args);
}

void dsf_block_sparse_attention(const Context* context, const AttentionArgs* args) {
  const Kernel& kernel = kernel_of(args->dtype);
  const int64_t shares = context->num_threads, bytes = slot_bytes(*args);
  parallel_for(*context, shares, [&](int64_t begin, int64_t end) {
    for (int64_t share = begin; share < end; ++share) {
      char* memory = static_cast<char*>(context->workspace) + share * bytes;
      const Tile tile(*args, kernel, *reinterpret_cast<Scratch*>(memory), memory + SCRATCH_BYTES);
      for_each_tile(*args, share, shares, [&](const Place& place) { tile.run(place); });
    }
  });
}

int32_t dsf_block_sparse_attention_variant(int32_t i, const char** name) {
  const bool past_end = i < 0 || i >= int32_t(sizeof VARIANTS / sizeof *VARIANTS);
  *name = past_end ? nullptr : VARIANTS[i].name;
  return past_end ? -1 : int32_t(VARIANTS[i].isa);
}

}  // namespace dsf
