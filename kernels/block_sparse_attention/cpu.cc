#include "kernels/block_sparse_attention/cpu.h"

#include "kernels/block_sparse_attention/steps.h"

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

// What a tile needs beside its kernel's memory.
struct Scratch {
  Steps steps;
  const char* q[TILE_ROWS];
  char* out[TILE_ROWS];
  const float* sink[TILE_ROWS];
  float* lse[TILE_ROWS];
};
constexpr int64_t SCRATCH_BYTES = round_up(sizeof(Scratch), 64);

int64_t slot_bytes(const AttentionArgs& args) {
  return SCRATCH_BYTES + round_up(kernel_of(args.dtype).tile_bytes(args.D, args.D_v), 64);
}

// One tile of queries.
void run_tile(const AttentionArgs& args, const Kernel& kernel, const Place& place, Scratch& scratch, char* memory) {
  const Shape shape{place.rows(), args.D, args.D_v, args.scale};
  for (int64_t row = 0; row < shape.rows; ++row) {
    const int64_t head = place.head + row / place.count, i = place.sequence.q_begin + place.i + row % place.count;
    const int64_t at = (place.b * args.H + head) * args.S_q + i;
    scratch.q[row] = row_of(args.q, args.dtype, place.b, head, i);
    scratch.out[row] = static_cast<char*>(args.out) + at * args.D_v * value_bytes(args.dtype);
    scratch.lse[row] = args.lse ? args.lse + at : nullptr;
    scratch.sink[row] = args.sink_logits ? args.sink_logits + head : nullptr;
  }
  kernel.begin(shape, scratch.q, memory);
  StepPlanner(args, scratch.steps).for_each(place, [&](const Planned& planned) {
    kernel.step(shape, planned.keys, memory);
  });
  kernel.finish(shape, scratch.out, args.sink_logits ? scratch.sink : nullptr, args.lse ? scratch.lse : nullptr,
                memory);
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
      Scratch& scratch = *reinterpret_cast<Scratch*>(memory);
      int64_t number = 0;
      for (int64_t b = 0; b < args->B; ++b)
        for (int64_t kv = 0; kv < args->H_kv; ++kv)
          for_each_tile(*args, b, kv, [&](const Place& place) {
            if (number++ % shares == share) run_tile(*args, kernel, place, scratch, memory + SCRATCH_BYTES);
          });
    }
  });
}

int32_t dsf_block_sparse_attention_variant(int32_t i, const char** name) {
  const bool past_end = i < 0 || i >= int32_t(sizeof VARIANTS / sizeof *VARIANTS);
  *name = past_end ? nullptr : VARIANTS[i].name;
  return past_end ? -1 : int32_t(VARIANTS[i].isa);
}

}  // namespace dsf
