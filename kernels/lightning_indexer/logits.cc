// Logits, stored or handed to the selection: blocks of queries x tokens, a panel of tokens decoded once per block.
#include "kernels/lightning_indexer/pick.h"

namespace dsf {
namespace {

using namespace lightning_indexer;

constexpr int64_t QUERY_BLOCK = 8;      // that share a decoded panel: 1.5 % of their time at H = 64
constexpr int64_t LONGEST_PART = 1024;  // tokens of a part of the work
constexpr int64_t SHORTEST_PART = 128;
constexpr int64_t PARTS_A_THREAD = 4;         // at least, for an even load
constexpr int64_t SERIAL_PRODUCTS = 1 << 20;  // no more are worth another thread
constexpr int32_t BITS_OF_MINUS_INFINITY = int32_t(0xFF800000);
constexpr uint16_t BF16_MINUS_INFINITY = 0xFF80;

int64_t products_of(const IndexerArgs& args) {
  int64_t products = args.H * args.D;
  return checked_mul(products, args.b * args.s_q, &products) && checked_mul(products, args.tokens, &products)
             ? products
             : INT64_MAX;
}

// How the work is cut. A part: some queries of one request, and some tokens (or columns) of theirs.
struct Plan {
  int64_t queries;       // of a block, at most
  int64_t query_blocks;  // of a request
  int64_t length;        // tokens of a part
  int64_t token_parts;
  int64_t parts, slots;
  int64_t k;                 // candidates that a query keeps
  int64_t numbers_bytes;     // of a block's codes as bf16
  int64_t slot_bytes;        // and a panel; and, where token_parts is 1, candidates
  int64_t candidates_bytes;  // of a block of queries
  int64_t kept_bytes;        // of candidates that outlive a part

  Plan(const Context& context, const IndexerArgs& args) {
    const bool serial = products_of(args) <= SERIAL_PRODUCTS;
    const int64_t threads = serial ? 1 : context.num_threads;
    queries = most(1, least(QUERY_BLOCK, args.s_q));
    query_blocks = parts_of(args.s_q, queries);
    const int64_t blocks = args.b * query_blocks;
    if (args.selects) {
      // Tokens are shared out only where there are too few queries: what the parts found is merged.
      const int64_t wanted = blocks >= threads || blocks == 0 ? 1 : parts_of(threads, blocks);
      length = most(LONGEST_PART, round_up(parts_of(args.tokens, wanted), PANEL_TOKENS));
      token_parts = most(1, parts_of(args.tokens, length));
    } else {
      const int64_t all = args.compressed ? args.tokens : args.columns;
      length = LONGEST_PART;
      while (length > SHORTEST_PART && blocks * parts_of(all, length) < threads * PARTS_A_THREAD) length /= 2;
      token_parts = most(1, parts_of(all, length));
    }
    parts = blocks * token_parts;
    slots = least(parts, threads);
    k = least(args.top_k, args.tokens);
    numbers_bytes = round_up(queries * args.H * padded_D(args.D) * 2, ALIGNMENT);
    slot_bytes = numbers_bytes + panel_bytes(args.D);
    candidates_bytes = args.selects ? queries * candidate_bytes(k) : 0;
    if (token_parts == 1) slot_bytes += candidates_bytes;
    kept_bytes = token_parts > 1 ? candidates_bytes : 0;
  }
};

struct Window {
  int64_t begin, end;  // tokens
};

Window window_of(const IndexerArgs& args, int64_t request, int64_t query) {
  const int64_t row = request * args.s_q + query;
  Window window{0, args.tokens};
  if (args.begins) window.begin = most(0, args.begins[row]);
  if (args.ends && !args.paged)
    window.end = args.ends[row];
  else if (args.ends)
    window.end = args.ends_a_query ? int64_t(args.ends[request * args.ends_stride + query])
                                   : int64_t(args.ends[request]) - args.s_q + 1 + query;
  window.end = least(window.end, args.tokens);
  if (args.compressed) window.end = least(window.end, window.begin + args.columns);
  if (window.end <= window.begin) window = {0, 0};
  return window;
}

// Where the tokens of a panel lie.
struct PanelRows {
  int64_t first = -1;
  const uint8_t* codes[PANEL_TOKENS];
  alignas(ALIGNMENT) float scales[PANEL_TOKENS];
};

// Where all do.
struct Tokens {
  const IndexerArgs& args;
  const int32_t* table;  // the request's, or null

  void find(int64_t first, int count, PanelRows* rows) const {
    rows->first = first;
    int64_t entry = table ? first / args.page_size : 0, place = table ? first % args.page_size : first;
    for (int i = 0; i < count; ++entry, place = 0) {
      const int64_t page = table ? table[entry] : 0;
      const uint8_t* codes = args.codes + page * args.code_page_stride;
      const uint8_t* scales = args.scales + page * args.scale_page_stride;
      for (; i < count && place < args.page_size; ++i, ++place) {
        rows->codes[i] = codes + place * args.code_stride;
        std::memcpy(rows->scales + i, scales + place * 4, 4);
      }
    }
    for (int i = count; i < PANEL_TOKENS; ++i) rows->scales[i] = 0.0f;
  }
};

// Columns [begin, end) of a row of logits become -inf.
void fill(const IndexerArgs& args, int64_t row, int64_t begin, int64_t end) {
  const int64_t at = row * args.columns;
  if (args.logits_dtype == Dtype::f32) {
    auto* logits = static_cast<int32_t*>(args.logits) + at;
    for (int64_t c = begin; c < end; ++c) logits[c] = BITS_OF_MINUS_INFINITY;
  } else {
    auto* logits = static_cast<uint16_t*>(args.logits) + at;
    for (int64_t c = begin; c < end; ++c) logits[c] = BF16_MINUS_INFINITY;
  }
}

// What one thread does.
class Worker {
 public:
  Worker(const IndexerArgs& args, const Plan& plan, const Kernel& kernel, char* memory, char* kept)
      : args_(args),
        plan_(plan),
        kernel_(kernel),
        numbers_(reinterpret_cast<uint16_t*>(memory)),
        panel_(memory + plan.numbers_bytes),
        candidates_memory_(panel_ + panel_bytes(args.D)),
        kept_(kept) {}

  void run(int64_t part) {
    const int64_t block = part / plan_.token_parts;
    take_queries(block);
    begin_ = part % plan_.token_parts * plan_.length;
    end_ = begin_ + plan_.length;
    if (args_.selects) {
      char* memory = kept_ ? kept_ + part * plan_.candidates_bytes : candidates_memory_;
      for (int64_t i = 0; i < count_; ++i)
        candidates_[i] = candidates_at(memory + i * candidate_bytes(plan_.k), plan_.k);
    } else {
      fill_outside();
    }
    walk_panels();
    if (!args_.selects) return;
    if (!kept_) return write(candidates_);
    for (int64_t i = 0; i < count_; ++i) kernel_.cut(candidates_ + i);
    // The counts lie behind the slack of each buffer of keys.
    for (int64_t i = 0; i < count_; ++i) counts(memory_of(part, i)) = int32_t(candidates_[i].count);
  }

  // Of one block of queries, whose parts all ran: their candidates in the order of their places.
  void merge(int64_t block) {
    take_windows(block);
    for (int64_t i = 0; i < count_; ++i) {
      Candidates& all = candidates_[i];
      char* memory = memory_of(block * plan_.token_parts, i);
      const int64_t first = counts(memory);
      all = candidates_at(memory, plan_.k);
      all.count = all.keyed = first;
      for (int64_t part = 1; part < plan_.token_parts; ++part) {
        char* more = memory_of(block * plan_.token_parts + part, i);
        const Candidates found = candidates_at(more, plan_.k);
        const int64_t count = counts(more);
        std::memcpy(all.keys + all.count, found.keys, size_t(count) * 4);
        std::memcpy(all.places + all.count, found.places, size_t(count) * 4);
        all.count += count;
        all.keyed = all.count;
        kernel_.cut(&all);
      }
    }
    write(candidates_);
  }

 private:
  char* memory_of(int64_t part, int64_t i) const {
    return kept_ + part * plan_.candidates_bytes + i * candidate_bytes(plan_.k);
  }
  int32_t& counts(char* memory) const { return reinterpret_cast<int32_t*>(memory)[candidate_bytes(plan_.k) / 8 - 1]; }

  void take_windows(int64_t block) {
    request_ = block / plan_.query_blocks;
    query_ = block % plan_.query_blocks * plan_.queries;
    count_ = least(plan_.queries, args_.s_q - query_);
    for (int64_t i = 0; i < count_; ++i) windows_[i] = window_of(args_, request_, query_ + i);
  }

  void take_queries(int64_t block) {
    if (block == block_) return;
    block_ = block;
    take_windows(block);
    const int64_t first = (request_ * args_.s_q + query_) * args_.H, stride = padded_D(args_.D);
    for (int64_t head = 0; head < count_ * args_.H; ++head)
      kernel_.decode(args_.q + (first + head) * args_.q_stride, args_.D, numbers_ + head * stride);
  }

  void fill_outside() const {
    for (int64_t i = 0; i < count_; ++i) {
      const int64_t row = request_ * args_.s_q + query_ + i;
      const Window& window = windows_[i];
      if (args_.compressed) {
        if (begin_ == 0) fill(args_, row, window.end - window.begin, args_.columns);
        continue;
      }
      const int64_t end = least(end_, args_.columns);
      fill(args_, row, begin_, least(end, window.begin));
      fill(args_, row, most(begin_, window.end), end);
    }
  }

  void walk_panels() {
    int64_t from = INT64_MAX, to = 0;
    for (int64_t i = 0; i < count_; ++i) {
      if (windows_[i].end == windows_[i].begin) continue;
      from = least(from, windows_[i].begin);
      to = most(to, windows_[i].end);
    }
    const Tokens tokens{args_, args_.paged ? args_.block_table + request_ * args_.block_table_stride : nullptr};
    to = least(to, end_);
    alignas(ALIGNMENT) float logits[PANEL_TOKENS];
    PanelRows both[2];
    PanelRows *rows = both, *next = both + 1;
    for (int64_t first = most(from, begin_); first < to; first += PANEL_TOKENS) {
      const int count = int(least(PANEL_TOKENS, to - first)), more = int(least(PANEL_TOKENS, to - first - count));
      if (!seen(first, first + count)) continue;
      if (rows->first != first) tokens.find(first, count, rows);
      kernel_.panel(rows->codes, count, args_.D, panel_);
      if (more > 0 && seen(first + count, first + count + more)) {
        tokens.find(first + count, more, next);
        ask_for(*next, more);
      }
      for (int64_t i = 0; i < count_; ++i) {
        const int64_t begin = most(first, windows_[i].begin), end = least(first + count, windows_[i].end);
        if (begin >= end) continue;
        const int64_t row = request_ * args_.s_q + query_ + i;
        kernel_.logits(numbers_ + i * args_.H * padded_D(args_.D), args_.H, args_.D,
                       args_.weights + row * args_.weights_stride, panel_, rows->scales, int(end - first), logits);
        take(i, row, begin, end - begin, logits + (begin - first));
      }
      PanelRows* used = rows;
      rows = next;
      next = used;
    }
  }

  // The next panel's codes, while this one's logits are computed: pages lie anywhere.
  void ask_for(const PanelRows& rows, int count) const {
    for (int i = 0; i < count; ++i)
      for (int64_t line = 0; line < args_.D; line += CACHE_LINE) __builtin_prefetch(rows.codes[i] + line, 0, 2);
  }

  bool seen(int64_t begin, int64_t end) const {
    for (int64_t i = 0; i < count_; ++i)
      if (windows_[i].begin < end && begin < windows_[i].end) return true;
    return false;
  }

  void take(int64_t i, int64_t row, int64_t token, int64_t n, const float* logits) {
    if (args_.selects) return kernel_.add[0](logits, n, token, candidates_ + i);
    const int64_t at = row * args_.columns + token - (args_.compressed ? windows_[i].begin : 0);
    if (args_.logits_dtype == Dtype::f32)
      std::memcpy(static_cast<float*>(args_.logits) + at, logits, size_t(n) * 4);
    else
      kernel_.to_bf16(logits, n, static_cast<uint16_t*>(args_.logits) + at);
  }

  void write(Candidates* candidates) {
    const int32_t* table = args_.paged ? args_.block_table + request_ * args_.block_table_stride : nullptr;
    const auto place_of = [&](int32_t token) {
      if (!args_.as_slots) return token;
      return int32_t(table[token / args_.page_size] * args_.page_size + token % args_.page_size);
    };
    for (int64_t i = 0; i < count_; ++i) {
      int32_t* indices = args_.indices + (request_ * args_.s_q + query_ + i) * args_.top_k;
      write_indices(kernel_, candidates + i, args_.order, args_.top_k, place_of, indices);
    }
  }

  const IndexerArgs& args_;
  const Plan& plan_;
  const Kernel& kernel_;
  uint16_t* numbers_;
  char* panel_;
  char* candidates_memory_;
  char* kept_;
  int64_t block_ = -1, request_ = 0, query_ = 0, count_ = 0, begin_ = 0, end_ = 0;
  Window windows_[QUERY_BLOCK];
  Candidates candidates_[QUERY_BLOCK];
};

}  // namespace

int64_t dsf_lightning_indexer_workspace_bytes(const Context* context, const IndexerArgs* args) {
  const Plan plan(*context, *args);
  int64_t slots, kept, bytes;
  if (!checked_mul(plan.slots, plan.slot_bytes, &slots) || !checked_mul(plan.parts, plan.kept_bytes, &kept)) return -1;
  return __builtin_add_overflow(slots, kept, &bytes) ? -1 : bytes;
}

void dsf_lightning_indexer(const Context* context, const IndexerArgs* args) {
  const Plan plan(*context, *args);
  const Kernel& kernel = pick();
  auto* memory = static_cast<char*>(context->workspace);
  char* kept = plan.token_parts > 1 && args->selects ? memory + plan.slots * plan.slot_bytes : nullptr;
  for_slots(*context, plan.slots, [&](int64_t slot) {
    Worker worker(*args, plan, kernel, memory + slot * plan.slot_bytes, kept);
    for (int64_t part = slot; part < plan.parts; part += plan.slots) worker.run(part);
  });
  if (!kept) return;
  const int64_t blocks = plan.parts / plan.token_parts;
  for_slots(*context, least(plan.slots, blocks), [&](int64_t slot) {
    Worker worker(*args, plan, kernel, memory + slot * plan.slot_bytes, kept);
    for (int64_t block = slot; block < blocks; block += least(plan.slots, blocks)) worker.merge(block);
  });
}

}  // namespace dsf
