// topk_indices, and the kernels of the level in force; logits.cc has the other half.
#include "kernels/lightning_indexer/pick.h"

namespace dsf {
namespace lightning_indexer {
namespace {

struct Variant {
  Isa isa;
  const char* name;
  const Kernel* kernel;
};

constexpr Variant VARIANTS[] = {
#define DSF_VARIANT(isa, dtype, kernel) {Isa::isa, #kernel, &lightning_indexer::kernel},
#include "kernels/lightning_indexer/variants.inc"
#undef DSF_VARIANT
};

// No more scores than this are worth another thread.
constexpr int64_t SERIAL_SCORES = 64 << 10;

int64_t topk_slots(const Context& context, const TopkArgs& args) {
  int64_t scores;
  if (checked_mul(args.rows, args.n, &scores) && scores <= SERIAL_SCORES) return least(args.rows, 1);
  return least(args.rows, context.num_threads);
}

int64_t length_of(const TopkArgs& args, int64_t row) {
  if (!args.lengths) return args.n;
  const int32_t length = args.lengths[row / args.lengths_columns * args.lengths_stride + row % args.lengths_columns];
  return most(0, least(length, args.n));
}

}  // namespace

const Kernel& pick() {
  const int32_t cap = dsf_max_isa();
  for (const Variant& variant : VARIANTS)
    if (int32_t(variant.isa) <= cap && dsf_isa_supported(int32_t(variant.isa))) return *variant.kernel;
  return lightning_indexer_f8e4m3_scalar;
}

}  // namespace lightning_indexer

using namespace lightning_indexer;

int64_t dsf_topk_indices_workspace_bytes(const Context* context, const TopkArgs* args) {
  int64_t bytes;
  return checked_mul(topk_slots(*context, *args), candidate_bytes(least(args->k, args->n)), &bytes) ? bytes : -1;
}

void dsf_topk_indices(const Context* context, const TopkArgs* args) {
  const Kernel& kernel = pick();
  const auto add = kernel.add[score_index(args->dtype)];
  const int64_t k = least(args->k, args->n), slots = topk_slots(*context, *args);
  for_slots(*context, slots, [&](int64_t slot) {
    Candidates candidates = candidates_at(static_cast<char*>(context->workspace) + slot * candidate_bytes(k), k);
    for (int64_t row = slot; row < args->rows; row += slots) {
      const int64_t n = length_of(*args, row);
      candidates.start(k);
      add(static_cast<const char*>(args->scores) + row * args->stride * value_bytes(args->dtype), n, 0, &candidates);
      write_indices(
          kernel, &candidates, args->order, args->k, [](int32_t place) { return place; },
          args->indices + row * args->k);
    }
  });
}

int32_t dsf_lightning_indexer_variant(int32_t i, const char** name) {
  const bool past_end = i < 0 || i >= int32_t(sizeof VARIANTS / sizeof *VARIANTS);
  *name = past_end ? nullptr : VARIANTS[i].name;
  return past_end ? -1 : int32_t(VARIANTS[i].isa);
}

}  // namespace dsf
