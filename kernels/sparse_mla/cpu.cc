#include "kernels/sparse_mla/cpu.h"

#include "kernels/sparse_mla/walk.h"

namespace dsf {
namespace sparse_mla {
namespace {

struct Variant {
  Isa isa;
  Dtype dtype;
  const char* name;
  const Kernel* kernel;
};

constexpr Variant VARIANTS[] = {
#define DSF_VARIANT(isa, dtype, kernel) {Isa::isa, Dtype::dtype, #kernel, &sparse_mla::kernel},
#include "kernels/sparse_mla/variants.inc"
#undef DSF_VARIANT
};

}  // namespace

const Kernel& pick(Dtype dtype) {
  const int32_t cap = dsf_max_isa();
  for (const Variant& variant : VARIANTS)
    if (variant.dtype == dtype && int32_t(variant.isa) <= cap && dsf_isa_supported(int32_t(variant.isa)))
      return *variant.kernel;
  return sparse_mla_f32_scalar;  // not reached: every dtype has a scalar row
}

}  // namespace sparse_mla

namespace {

using namespace sparse_mla;

// How a call is cut: never decides what is computed.
struct Plan {
  int64_t queries;               // of all requests and heads of kv
  int64_t first_splits, splits;  // of a query's first list; of both
  int64_t heads, chunks;         // of a task; chunks of the heads that share one of kv's
  bool apart;                    // every split is a task, merged behind
  int64_t tasks, slots;

  Plan(const Context& context, const SparseMlaArgs& args, int64_t split) {
    const int64_t group = args.h_q / args.h_kv, threads = most(1, context.num_threads);
    queries = args.b * args.s_q * args.h_kv;
    int64_t entries = args.lists.topk;
    if (args.block_table) {
      entries = 0;
      for (int64_t b = 0; b < args.b; ++b) entries = most(entries, args.cache_seqlens[b]);
    }
    const int64_t more = args.extra_store.data ? args.extra_lists.topk : 0;
    first_splits = parts_of(entries, split);
    splits = most(1, first_splits + parts_of(more, split));
    const int64_t longest = parts_of(least(split, most(entries, more)), STEP);  // steps of a split
    choose(group, parts_of(entries, STEP) + parts_of(more, STEP), longest, threads);
    heads = parts_of(group, chunks);
    tasks = group > 0 ? queries * (apart ? splits : 1) * chunks : 0;
    slots = most(1, least(threads, tasks));
  }

 private:
  // The cut that should end first: a task's time is its steps, each of so many heads and of what packs its tokens.
  void choose(int64_t group, int64_t steps, int64_t longest, int64_t threads) {
    constexpr int64_t PACKING = 11;       // heads: 13 % of the time beside 76 % for products of 64 (Zen 5, 2026-11)
    constexpr int64_t FEWEST_HEADS = 16;  // of a chunk
    apart = false;
    chunks = most(parts_of(group, MAX_HEADS), 1);
    if (queries >= 4 * threads) return;
    int64_t best = INT64_MAX;
    for (int64_t count = chunks, end = most(count, parts_of(group, FEWEST_HEADS)); count <= end; ++count) {
      const int64_t a_step = PACKING + parts_of(group, count);
      const int64_t whole = parts_of(queries * count, threads) * steps * a_step;
      const int64_t cut = most(longest * a_step, parts_of(queries * count * steps * a_step, threads));
      const bool may_cut = queries < threads && splits > 1;
      const int64_t least_time = may_cut ? least(whole, cut) : whole;
      if (least_time >= best) continue;
      best = least_time;
      chunks = count;
      apart = least_time < whole;
    }
  }
};

// The memory of a call.
struct Work {
  char *scratch, *sums;
  int64_t scratch_bytes, sums_bytes, bytes;

  Work(const SparseMlaArgs& args, const Plan& plan, const Kernel& kernel, void* memory) {
    Parts parts(memory);
    scratch_bytes = round_up(kernel.scratch_bytes(plan.heads, args.d_qk, args.d_v), CACHE_LINE);
    sums_bytes = round_up(kernel.sums_bytes(plan.heads, args.d_v), CACHE_LINE);
    scratch = parts.take(plan.slots, scratch_bytes);
    sums = parts.take(plan.apart ? plan.tasks : 2 * plan.slots, sums_bytes);
    bytes = parts.bytes();
  }
  char* sums_at(int64_t place) const { return sums + place * sums_bytes; }
};

// Heads of one query that a task computes.
struct Part {
  int64_t b, i, head, first, heads;  // head: of kv; first: of q's

  Part(const SparseMlaArgs& args, const Plan& plan, int64_t number) {
    const int64_t group = args.h_q / args.h_kv, chunk = number % plan.chunks;
    number /= plan.chunks;
    head = number % args.h_kv;
    i = number / args.h_kv % args.s_q;
    b = number / args.h_kv / args.s_q;
    first = head * group + chunk * plan.heads;
    heads = most(0, least(plan.heads, group - chunk * plan.heads));
  }
  Query query(const SparseMlaArgs& args) const {
    const int64_t at = b * args.q_batch_stride + i * args.q_stride + first * args.q_head_stride;
    return {static_cast<const char*>(args.q) + at * value_bytes(args.dtype),
            args.q_head_stride,
            heads,
            args.d_qk,
            args.d_v,
            args.scale};
  }
};

class Forward {
 public:
  Forward(const Context& context, const SparseMlaArgs& args, int64_t split)
      : args_(args),
        split_(split),
        kernel_(pick(args.dtype)),
        plan_(context, args, split),
        work_(args, plan_, kernel_, context.workspace) {}

  int64_t workspace_bytes() const { return work_.bytes; }

  void run(const Context& context) const {
    if (plan_.tasks == 0) return;
    if (!plan_.apart)
      return for_slots(context, plan_.slots, plan_.tasks,
                       [&](int64_t slot, int64_t task) { whole(slot, Part(args_, plan_, task)); });
    for_slots(context, plan_.slots, plan_.tasks, [&](int64_t slot, int64_t task) {
      const Part part(args_, plan_, task / plan_.splits);
      sum(part, task % plan_.splits, slot, work_.sums_at(task));
    });
    const int64_t parts = plan_.tasks / plan_.splits;
    for_slots(context, least(plan_.slots, parts), parts, [&](int64_t, int64_t number) {
      const Part part(args_, plan_, number);
      if (part.heads == 0) return;
      char* into = work_.sums_at(number * plan_.splits);
      for (int64_t s = 1; s < plan_.splits; ++s) merge(part, into, work_.sums_at(number * plan_.splits + s));
      finish(part, into);
    });
  }

 private:
  void merge(const Part& part, char* into, char* from) const { kernel_.merge(part.heads, args_.d_v, into, from); }

  // A query's splits one after the other.
  void whole(int64_t slot, const Part& part) const {
    if (part.heads == 0) return;
    char *into = work_.sums_at(2 * slot), *next = work_.sums_at(2 * slot + 1);
    sum(part, 0, slot, into);
    for (int64_t s = 1; s < plan_.splits; ++s) {
      sum(part, s, slot, next);
      merge(part, into, next);
    }
    finish(part, into);
  }

  // The entries of split s.
  void sum(const Part& part, int64_t s, int64_t slot, char* sums) const {
    if (part.heads == 0) return;
    const bool extra = s >= plan_.first_splits;
    const List list = list_of(args_, extra, part.b, part.i, part.head);
    const int64_t begin = (extra ? s - plan_.first_splits : s) * split_;
    const int64_t end = list.count - begin > split_ ? begin + split_ : list.count;
    char* scratch = work_.scratch + slot * work_.scratch_bytes;
    const Query query = part.query(args_);
    const int64_t bytes = token_bytes(args_, list.store->layout);
    kernel_.begin(query, sums, scratch);
    Keys keys[2];
    bool counts = begin < end && fill_keys(list, begin, end, &keys[0]);
    bool first = true;
    int now = 0;
    for (int64_t t = begin; t < end; t += STEP, now = 1 - now) {
      const bool next = t + STEP < end && fill_keys(list, t + STEP, end, &keys[1 - now]);
      if (next) prefetch_keys(keys[1 - now], bytes);
      if (counts) {
        keys[now].first = first;
        kernel_.step(query, keys[now], sums, scratch);
        first = false;
      }
      counts = next;
    }
    if (first) kernel_.clear(query, sums);
  }

  void finish(const Part& part, char* sums) const {
    if (part.heads == 0) return;
    const int64_t row = (part.b * args_.s_q + part.i) * args_.h_q + part.first;
    const bool decodes = !args_.max_logits;
    Result result{};
    result.out = static_cast<char*>(args_.out) + row * args_.d_v * value_bytes(args_.dtype);
    result.max_logits = decodes ? nullptr : args_.max_logits + row;
    result.lse = args_.lse + (decodes ? (part.b * args_.h_q + part.first) * args_.s_q + part.i : row);
    result.lse_stride = decodes ? args_.s_q : 1;
    result.sinks = args_.attn_sink ? args_.attn_sink + part.first : nullptr;
    kernel_.finish(part.query(args_), sums, result);
  }

  const SparseMlaArgs& args_;
  const int64_t split_;
  const Kernel& kernel_;
  const Plan plan_;
  const Work work_;
};

constexpr int64_t ONE_SPLIT = INT64_MAX;

}  // namespace

int64_t dsf_sparse_mla_workspace_bytes(const Context* context, const SparseMlaArgs* args) {
  Context without = *context;
  without.workspace = nullptr;
  return Forward(without, *args, ONE_SPLIT).workspace_bytes();
}

void dsf_sparse_mla(const Context* context, const SparseMlaArgs* args) {
  Forward(*context, *args, ONE_SPLIT).run(*context);
}

int64_t dsf_sparse_mla_decode_workspace_bytes(const Context* context, const SparseMlaArgs* args) {
  Context without = *context;
  without.workspace = nullptr;
  return Forward(without, *args, SPLIT_ENTRIES).workspace_bytes();
}

void dsf_sparse_mla_decode(const Context* context, const SparseMlaArgs* args) {
  Forward(*context, *args, SPLIT_ENTRIES).run(*context);
}

int32_t dsf_sparse_mla_variant(int32_t i, const char** name) {
  const bool past_end = i < 0 || i >= int32_t(sizeof VARIANTS / sizeof *VARIANTS);
  *name = past_end ? nullptr : VARIANTS[i].name;
  return past_end ? -1 : int32_t(VARIANTS[i].isa);
}

}  // namespace dsf
