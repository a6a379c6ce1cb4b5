// Lists of blocks: patterns that depend on sizes alone, and those of a boolean mask.
#include "kernels/block_sparse_attention/builders.h"

#include <cstring>

#include "kernels/block_sparse_attention/checks.h"
#include "kernels/block_sparse_attention/walk.h"

namespace dsf {
namespace {

using namespace attention_checks;
using namespace block_sparse_attention;

constexpr int64_t LARGEST_LIST = INT32_MAX;  // entries: offsets are int32
constexpr int MAX_LOG = 62;                  // of a distance

// Writes a row's columns, ascending, each once; with columns null it counts.
class Row {
 public:
  Row(int64_t limit, int32_t* columns) : limit_(limit), columns_(columns) {}

  // [begin, end), as far as it is there and not behind.
  void add(int64_t begin, int64_t end) {
    begin = most(begin, next_), end = least(end, limit_);
    if (begin >= end) return;
    if (columns_)
      for (int64_t column = begin; column < end; ++column) columns_[count_ + column - begin] = int32_t(column);
    count_ += end - begin;
    next_ = end;
  }
  int64_t count() const { return count_; }

 private:
  int64_t limit_;
  int32_t* columns_;
  int64_t next_ = 0, count_ = 0;
};

int64_t offset_of(const BlockPattern& p) { return p.q_at_end ? p.S_k - p.S_q : p.q_offset; }
int64_t rows_of(const BlockPattern& p) { return num_blocks(p.S_q, p.block_q); }

// Positions of the row's first and last query.
void add_window(const BlockPattern& p, int64_t first, int64_t last, Row* row) {
  const int64_t shown = p.is_causal ? most(0, least(p.S_k, last + 1)) : p.S_k;
  const int64_t begin = p.left == NO_LIMIT ? 0 : most(0, first - least(p.left, FAR));
  const int64_t end = least(shown, p.right == NO_LIMIT ? p.S_k : last + least(p.right, FAR) + 1);
  row->add(0, num_blocks(least(p.sinks, shown), p.block_k));
  if (begin < end) row->add(begin / p.block_k, num_blocks(end, p.block_k));
}

void add_log(const BlockPattern& p, int64_t first, int64_t last, Row* row) {
  const int64_t begin = divide_down(first, p.block_k), end = divide_down(last, p.block_k) + 1;  // of the own blocks
  const int64_t columns = num_blocks(p.S_k, p.block_k), beyond = p.local - 1;
  row->add(0, p.first);
  for (int log = MAX_LOG; log >= 0; --log) {
    const int64_t distance = beyond + (int64_t{1} << log);
    if (distance > 0 && distance <= begin) row->add(begin - distance, begin - distance + 1);
  }
  row->add(begin - beyond, begin);
  row->add(begin, end);
  row->add(end, end + beyond);
  for (int log = 0; log <= MAX_LOG; ++log) {
    const int64_t distance = beyond + (int64_t{1} << log), column = end - 1 + distance;
    if (distance > 0 && column < columns) row->add(column, column + 1);
  }
}

int64_t fill_row(const BlockPattern& p, int64_t r, int32_t* columns) {
  const int64_t first = r * p.block_q + offset_of(p);
  const int64_t last = least(r * p.block_q + p.block_q, p.S_q) - 1 + offset_of(p);
  int64_t limit = num_blocks(p.S_k, p.block_k);
  if (p.is_causal) limit = most(0, least(limit, divide_down(last, p.block_k) + 1));
  Row row(limit, columns);
  (p.is_log ? add_log : add_window)(p, first, last, &row);
  return row.count();
}

bool check_number(const char* op, const char* arg, const char* rule, int64_t value, int64_t lowest, int64_t highest,
                  Problem* problem) {
  return (value >= lowest && value <= highest) || value_error(problem, op, arg, rule, Text("%lld", Long{value}));
}

bool check_sizes(const BlockPattern& p, Problem* problem) {
  if (p.block_q < 1 || p.block_q > LARGEST_BLOCK || p.block_k < 1 || p.block_k > LARGEST_BLOCK)
    return value_error(problem, p.op, "block_size", "be two numbers from 1 to 2^30",
                       Text("(%lld, %lld)", Long{p.block_q}, Long{p.block_k}));
  return check_number(p.op, "S_q", "be from 0 to 2^58", p.S_q, 0, LARGEST, problem) &&
         check_number(p.op, "S_k", "be from 0 to 2^58", p.S_k, 0, LARGEST, problem) &&
         check_number(p.op, "q_offset", "be from -2^58 to 2^58", p.q_at_end ? 0 : p.q_offset, -LARGEST, LARGEST,
                      problem);
}

bool check_choice(const BlockPattern& p, Problem* problem) {
  if (p.is_log)
    return check_number(p.op, "local", "be from 0 to 2^30", p.local, 0, LARGEST_BLOCK, problem) &&
           check_number(p.op, "first", "be from 0 to 2^30", p.first, 0, LARGEST_BLOCK, problem);
  if (p.left < NO_LIMIT || p.right < NO_LIMIT)
    return value_error(problem, p.op, "window", "have sides from 0, or -1 where there is no limit",
                       Text("(%lld, %lld)", Long{p.left}, Long{p.right}));
  if (p.sinks > 0 && p.left == NO_LIMIT && p.right == NO_LIMIT)
    return value_error(problem, p.op, "sinks", "come with a window", Text("%lld", Long{p.sinks}));
  return check_number(p.op, "sinks", "be at least 0", p.sinks, 0, INT64_MAX, problem);
}

bool few_enough(const char* op, const char* arg, int64_t entries, Problem* problem) {
  return entries <= LARGEST_LIST ||
         value_error(problem, op, arg, "keep fewer than 2^31 blocks", Text("at least %lld", Long{entries}));
}

// A mask in four dimensions.
struct Mask {
  int64_t outer, heads, rows, columns;
  HeadStrides strides;
  const uint8_t* data;

  explicit Mask(const TensorView& kept) : data(static_cast<const uint8_t*>(kept.data)) {
    const int64_t sizes[] = {1, 1, kept.sizes[kept.ndim - 2], kept.sizes[kept.ndim - 1]};
    const int64_t own[] = {0, 0, kept.strides ? kept.strides[kept.ndim - 2] : sizes[3], 1};
    const bool is_pair = kept.ndim == 2;
    const TensorView view{kept.data, kept.dtype, "", 4, is_pair ? sizes : kept.sizes, is_pair ? own : kept.strides};
    strides = strides_of(view, true);
    outer = view.sizes[0], heads = view.sizes[1], rows = view.sizes[2], columns = view.sizes[3];
  }
  const uint8_t* row(int64_t b, int64_t h, int64_t r) const {
    return data + b * strides.b + h * strides.h + r * strides.s;
  }
};

}  // namespace

int32_t dsf_block_pattern_check(const BlockPattern* pattern, int64_t* rows, int64_t* entries, Problem* problem) {
  const BlockPattern& p = *pattern;
  if (!check_sizes(p, problem) || !check_choice(p, problem)) return 0;
  *rows = rows_of(p);
  *entries = 0;
  if (!few_enough(p.op, "S_q", *rows, problem) || !few_enough(p.op, "S_k", num_blocks(p.S_k, p.block_k), problem))
    return 0;
  for (int64_t r = 0; r < *rows; ++r) {
    *entries += fill_row(p, r, nullptr);
    if (!few_enough(p.op, "S_q", *entries, problem)) return 0;
  }
  return 1;
}

void dsf_block_pattern(const BlockPattern* pattern, int32_t* row_offsets, int32_t* columns) {
  int64_t entries = 0;
  row_offsets[0] = 0;
  for (int64_t r = 0; r < rows_of(*pattern); ++r) {
    entries += fill_row(*pattern, r, columns + entries);
    row_offsets[r + 1] = int32_t(entries);
  }
}

int32_t dsf_block_lists_check(const char* op, const TensorView* kept, int64_t* entries, Problem* problem) {
  if (std::strcmp(kept->dtype_name, "bool") != 0) return dtype_error(problem, op, "block_mask", "be bool", *kept);
  if (kept->ndim != 2 && kept->ndim != 4)
    return shape_error(problem, op, "block_mask", "have 2 or 4 dimensions", *kept);
  if (!check_rows(op, "block_mask", *kept, problem)) return 0;
  const Mask mask(*kept);
  *entries = 0;
  for (int64_t b = 0; b < mask.outer; ++b)
    for (int64_t h = 0; h < mask.heads; ++h)
      for (int64_t r = 0; r < mask.rows; ++r) {
        const uint8_t* row = mask.row(b, h, r);
        for (int64_t column = 0; column < mask.columns; ++column) *entries += row[column] != 0;
        if (!few_enough(op, "block_mask", *entries, problem)) return 0;
      }
  return 1;
}

void dsf_block_lists(const TensorView* kept, int32_t* row_offsets, int32_t* columns) {
  const Mask mask(*kept);
  int32_t entries = 0;
  for (int64_t b = 0; b < mask.outer; ++b)
    for (int64_t h = 0; h < mask.heads; ++h) {
      *row_offsets++ = entries;
      for (int64_t r = 0; r < mask.rows; ++r) {
        const uint8_t* row = mask.row(b, h, r);
        for (int64_t column = 0; column < mask.columns; ++column)
          if (row[column]) columns[entries++] = int32_t(column);
        *row_offsets++ = entries;
      }
    }
}

}  // namespace dsf
