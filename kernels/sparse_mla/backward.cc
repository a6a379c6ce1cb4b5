// Backward of sparse_mla: queries in chunks. Each query gives its own dq, and keeps the weights dz and w of its
// entries; then every thread adds what the chunk's entries give to the rows of kv that are its own. Who owns a row
// follows from a count of its readers.
#include <cstring>

#include "kernels/sparse_mla/walk.h"

namespace dsf {
namespace {

using namespace sparse_mla;

constexpr int64_t CHUNK_BYTES = 64 << 20;  // of kept weights and packed heads

struct Plan {
  int64_t group, steps, chunk, groups;  // heads of one of kv; of a list; queries; queries times heads of kv
  int64_t slots;
  int64_t weight_bytes, panel_bytes;  // of a query and a head of kv

  Plan(const Context& context, const SparseMlaArgs& args, const Kernel& kernel)
      : group(args.h_q / args.h_kv), steps(parts_of(args.lists.topk, STEP)) {
    const int64_t bytes = args.dtype == Dtype::bf16 ? 2 : 4;
    panel_bytes = round_up(kernel.head_panel_bytes(group, args.d_qk, args.d_v), CACHE_LINE);
    int64_t entries;
    if (!checked_mul(steps * STEP, group * bytes, &entries)) entries = CHUNK_BYTES;
    weight_bytes = round_up(entries, CACHE_LINE);
    chunk = most(1, least(args.s_q, CHUNK_BYTES / ((2 * weight_bytes + panel_bytes) * args.h_kv + 1)));
    groups = chunk * args.h_kv;
    slots = most(1, context.num_threads);
  }
};

struct Work {
  char *scratch, *weights, *panels, *rows, *shares, *counts, *marks;
  int64_t scratch_bytes, row_values, bytes;

  Work(const SparseMlaArgs& args, const Plan& plan, const Kernel& kernel, void* memory) {
    Parts parts(memory);
    scratch_bytes = round_up(
        most(kernel.gradient_scratch_bytes(plan.group, args.d_qk, args.d_v), kernel.add_scratch_bytes()), CACHE_LINE);
    row_values = round_up(args.d_qk, PANEL_N);
    const int64_t rows_of_kv = args.store.page_size * args.h_kv;
    scratch = parts.take(plan.slots, scratch_bytes);
    weights = parts.take(2 * plan.groups, plan.weight_bytes);
    panels = parts.take(plan.groups, plan.panel_bytes);
    rows = parts.take(rows_of_kv, row_values * 4);
    shares = parts.take(2 * args.s_q, args.h_q * 4);
    counts = parts.take(1, (rows_of_kv + 1) * 8);
    marks = parts.take(1, rows_of_kv * 8);
    bytes = parts.bytes();
  }
};

class Backward {
 public:
  Backward(const Context& context, const SparseMlaArgs& args)
      : args_(args),
        kernel_(pick(args.dtype)),
        plan_(context, args, kernel_),
        work_(args, plan_, kernel_, context.workspace),
        value_(value_bytes(args.dtype)) {}

  int64_t workspace_bytes() const { return work_.bytes; }

  void run(const Context& context) const {
    const int64_t rows_of_kv = args_.store.page_size * args_.h_kv;
    std::memset(work_.rows, 0, size_t(rows_of_kv * work_.row_values) * 4);
    std::memset(work_.marks, 0xFF, size_t(rows_of_kv) * 8);
    if (plan_.group > 0)
      for (int64_t first = 0; first < args_.s_q; first += plan_.chunk) {
        const int64_t count = least(plan_.chunk, args_.s_q - first), tasks = count * args_.h_kv;
        for_slots(context, least(plan_.slots, most(1, tasks)), tasks,
                  [&](int64_t slot, int64_t task) { query_part(slot, first, task); });
        count_readers(first, count);
        for_slots(context, plan_.slots, plan_.slots,
                  [&](int64_t slot, int64_t owner) { add_owned(slot, owner, first, count); });
      }
    for_slots(context, least(plan_.slots, most(1, rows_of_kv)), rows_of_kv, [&](int64_t, int64_t row) {
      kernel_.store_row(row_at(row), args_.d_qk, static_cast<char*>(args_.dkv) + row * args_.d_qk * value_);
    });
    if (args_.dattn_sink) sum_sinks();
  }

 private:
  float* row_at(int64_t row) const { return reinterpret_cast<float*>(work_.rows) + row * work_.row_values; }
  float* f_at(int64_t i) const {
    return reinterpret_cast<float*>(work_.shares + i * round_up(args_.h_q * 4, CACHE_LINE));
  }
  float* delta_at(int64_t i) const { return f_at(args_.s_q + i); }
  int64_t* counts() const { return reinterpret_cast<int64_t*>(work_.counts); }
  char* scratch(int64_t slot) const { return work_.scratch + slot * work_.scratch_bytes; }
  Weights weights_at(int64_t task, int64_t entry) const {
    char* at = work_.weights + 2 * task * plan_.weight_bytes;
    const int64_t ahead = entry * plan_.group * (args_.dtype == Dtype::bf16 ? 2 : 4);
    return {at + ahead, at + plan_.weight_bytes + ahead};
  }

  Query query_of(int64_t i, int64_t head) const {
    const int64_t at = i * args_.q_stride + head * plan_.group * args_.q_head_stride;
    return {static_cast<const char*>(args_.q) + at * value_,
            args_.q_head_stride,
            plan_.group,
            args_.d_qk,
            args_.d_v,
            args_.scale};
  }
  GradientRows rows_of(int64_t i, int64_t head) const {
    const int64_t first = head * plan_.group;
    const int64_t dout = i * args_.dout_stride + first * args_.dout_head_stride;
    return {args_.forward_lse + i * args_.h_q + first, f_at(i) + first, delta_at(i) + first,
            static_cast<const char*>(args_.dout) + dout * value_, args_.dout_head_stride};
  }

  // dq of one query and head of kv; what its entries weigh; its heads as panels.
  void query_part(int64_t slot, int64_t first_query, int64_t task) const {
    const int64_t i = first_query + task / args_.h_kv, head = task % args_.h_kv;
    const Query query = query_of(i, head);
    const GradientRows rows = rows_of(i, head);
    const int64_t of_q = head * plan_.group, row = i * args_.h_q + of_q;
    const char* out = static_cast<const char*>(args_.forward_out) + row * args_.d_v * value_;
    kernel_.shares(plan_.group, args_.d_v, rows.dout, rows.dout_head_stride, out, rows.lse,
                   args_.attn_sink ? args_.attn_sink + of_q : nullptr, f_at(i) + of_q, delta_at(i) + of_q);
    kernel_.begin_gradient(query, rows, scratch(slot));
    const List list = list_of(args_, false, 0, i, head);
    for (int64_t t = 0; t < list.count; t += STEP) {
      Keys keys;
      if (fill_keys(list, t, list.count, &keys))
        kernel_.gradient_step(query, keys, rows, weights_at(task, t), scratch(slot));
    }
    kernel_.finish_gradient(query, static_cast<char*>(args_.dq) + row * args_.d_qk * value_, scratch(slot));
    kernel_.pack_heads(query, rows, work_.panels + task * plan_.panel_bytes);
  }

  // Calls body(row of dkv, entry) for the entries that count, ascending.
  template <class Body>
  void for_entries(int64_t i, int64_t head, const Body& body) const {
    const List list = list_of(args_, false, 0, i, head);
    for (int64_t t = 0; t < list.count; ++t) {
      const int64_t index = list.entries[t];
      if (index >= 0 && index < args_.store.page_size) body(index * args_.h_kv + head, t);
    }
  }

  // counts[row]: entries of the chunk that name a row before this one.
  void count_readers(int64_t first, int64_t count) const {
    const int64_t rows = args_.store.page_size * args_.h_kv;
    std::memset(counts(), 0, size_t(rows + 1) * 8);
    for (int64_t i = first; i < first + count; ++i)
      for (int64_t head = 0; head < args_.h_kv; ++head)
        for_entries(i, head, [&](int64_t row, int64_t) { ++counts()[row + 1]; });
    for (int64_t row = 0; row < rows; ++row) counts()[row + 1] += counts()[row];
  }

  // The first row from which on `share` of all readers have been counted.
  int64_t row_of_share(int64_t owner) const {
    const int64_t rows = args_.store.page_size * args_.h_kv, wanted = counts()[rows] / plan_.slots * owner;
    if (owner == plan_.slots) return rows;
    int64_t low = 0, high = rows;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (counts()[middle] < wanted)
        low = middle + 1;
      else
        high = middle;
    }
    return owner == 0 ? 0 : low;
  }

  // The rows of one owner: queries ascending, entries ascending. Rows of a batch are distinct.
  void add_owned(int64_t slot, int64_t owner, int64_t first, int64_t count) const {
    const int64_t begin = row_of_share(owner), end = row_of_share(owner + 1);
    if (begin >= end) return;
    auto* marks = reinterpret_cast<int64_t*>(work_.marks);
    for (int64_t i = first; i < first + count; ++i)
      for (int64_t head = 0; head < args_.h_kv; ++head) {
        const int64_t task = (i - first) * args_.h_kv + head;
        const Query query = query_of(i, head);
        int64_t entries[STEP], batch = 0, first_mark = i * plan_.steps * STEP, mark = first_mark;
        float* rows[STEP];
        const auto flush = [&] {
          if (batch)
            kernel_.add_to_rows(query, batch, entries, weights_at(task, 0), work_.panels + task * plan_.panel_bytes,
                                rows, scratch(slot));
          batch = 0;
        };
        for_entries(i, head, [&](int64_t row, int64_t t) {
          if (row < begin || row >= end) return;
          if (batch == STEP || (batch && marks[row] == mark)) flush();
          if (batch == 0) mark = first_mark + t;  // one of this batch alone
          marks[row] = mark;
          entries[batch] = t;
          rows[batch++] = row_at(row);
        });
        flush();
      }
  }

  // dsink[h] = -sum over queries of (1 - f) delta, one chain.
  void sum_sinks() const {
    const IeeeSubnormals scope;
    for (int64_t h = 0; h < args_.h_q; ++h) args_.dattn_sink[h] = 0;
    for (int64_t i = 0; i < args_.s_q; ++i)
      for (int64_t h = 0; h < args_.h_q; ++h) args_.dattn_sink[h] += (f_at(i)[h] - 1) * delta_at(i)[h];
  }

  const SparseMlaArgs& args_;
  const Kernel& kernel_;
  const Plan plan_;
  const Work work_;
  const int64_t value_;
};

}  // namespace

int64_t dsf_sparse_mla_backward_workspace_bytes(const Context* context, const SparseMlaArgs* args) {
  Context without = *context;
  without.workspace = nullptr;
  return Backward(without, *args).workspace_bytes();
}

void dsf_sparse_mla_backward(const Context* context, const SparseMlaArgs* args) {
  Backward(*context, *args).run(*context);
}

}  // namespace dsf
