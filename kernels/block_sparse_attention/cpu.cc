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

// What a tile needs beside its kernel's memory.
struct Scratch {
  uint64_t seen[TILE_ROWS];
  Sight sights[TILE_ROWS];
  alignas(64) float bias[TILE_ROWS * KEY_STEP];
  const char* q[TILE_ROWS];
  char* out[TILE_ROWS];
  const float* sink[TILE_ROWS];
  float* lse[TILE_ROWS];
  const char *k[KEY_STEP], *v[KEY_STEP];
};

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
    for_each_step(args_, place, some, [&](const KeptBlocks& blocks, const Run* runs, int64_t count) {
      step(shape, place, blocks, runs, count, every);
    });
    kernel_.finish(shape, scratch_.out, args_.sink_logits ? scratch_.sink : nullptr, args_.lse ? scratch_.lse : nullptr,
                   memory_);
  }

 private:
  void step(const Shape& shape, const Place& place, const KeptBlocks& blocks, const Run* runs, int64_t count,
            const Sight& every) const {
    const int64_t n = runs[count - 1].slot + runs[count - 1].count;
    uint64_t filled = 0;
    bool whole = true;
    for (int64_t r = 0; r < count; ++r) {
      filled |= bits_below(runs[r].count) << runs[r].slot;
      whole = whole && every.all_of(runs[r].key, runs[r].count) && !blocks.is_partial(runs[r].entry);
    }
    whole = whole && filled == bits_below(n);
    uint64_t some = whole ? filled : mask_rows(place, blocks, runs, count);
    KeyStep keys{scratch_.k, scratch_.v, int(n), whole ? nullptr : scratch_.seen, nullptr, 0};
    if (args_.token_bias.data) {
      some &= fill_bias(place, runs, count, n);
      keys.bias = scratch_.bias;
      keys.bias_stride = bias_rows(place) == 1 ? 0 : KEY_STEP;
    }
    if (!some) return;
    const int64_t head = place.head / (args_.H / args_.H_kv);
    for (int64_t t = 0; t < n; ++t) scratch_.k[t] = scratch_.v[t] = nullptr;
    for (int64_t r = 0; r < count; ++r) {
      const Run& run = runs[r];
      const int64_t key = place.sequence.k_begin + run.key, bytes = value_bytes(args_.dtype);
      const char *k = at_of(args_.k, place.b, head, key), *v = at_of(args_.v, place.b, head, key);
      for (int64_t t = 0; t < run.count; ++t) {
        if (!(some >> (run.slot + t) & 1)) continue;
        scratch_.k[run.slot + t] = k + t * args_.k.strides.s * bytes;
        scratch_.v[run.slot + t] = v + t * args_.v.strides.s * bytes;
      }
    }
    kernel_.step(shape, keys, memory_);
  }

  // Fills seen, and returns what any row sees.
  uint64_t mask_rows(const Place& place, const KeptBlocks& blocks, const Run* runs, int64_t count) const {
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
      for (int64_t h = 0; h < place.heads; ++h) scratch_.seen[h * place.count + i] = seen;
    }
    return some;
  }

  int64_t bias_rows(const Place& place) const {
    const HeadStrides& strides = args_.token_bias.strides;
    return (strides.h == 0 || place.heads == 1) && (strides.s == 0 || place.count == 1) ? 1 : place.rows();
  }

  // Fills bias, and returns the keys that it does not hide from every row.
  uint64_t fill_bias(const Place& place, const Run* runs, int64_t count, int64_t n) const {
    uint32_t shown[KEY_STEP] = {};
    for (int64_t row = 0; row < bias_rows(place); ++row) {
      const int64_t head = place.head + row / place.count, i = place.sequence.q_begin + place.i + row % place.count;
      const Heads& bias = args_.token_bias;
      const int64_t first = place.b * bias.strides.b + head * bias.strides.h + i * bias.strides.s;
      float* target = scratch_.bias + row * KEY_STEP;
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
