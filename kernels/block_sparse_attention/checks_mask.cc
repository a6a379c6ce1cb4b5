// What of a block_sparse_attention call is read before any work: cu_seqlens and lists, once, so that no kernel can be
// led outside its tensors.
#include <cstring>

#include "kernels/block_sparse_attention/checks.h"

namespace dsf::attention_checks {
namespace {

constexpr const char *MASK = "block_mask", *TABLES = "tables", *BITS = "bits";
constexpr int64_t BITS_PER_WORD = 64;
constexpr int64_t UNKNOWN = -1;  // sequences and blocks where cu_seqlens have no values that could be read

bool check_integers(const char* op, const char* arg, const TensorView& view, Problem* problem) {
  return is_integer(view.dtype) || dtype_error(problem, op, arg, BE_INTEGERS, view);
}

// Ascending from 0 to S.
bool check_ends(const char* op, const char* arg, const TensorView& view, int64_t S, Problem* problem) {
  const Integers ends{view.data, view.dtype};
  const int64_t last = view.sizes[0] - 1;
  const auto wrong = [&](const Text& got) {
    return value_error(problem, op, arg, Text("ascend from 0 to %lld", Long{S}), got);
  };
  if (ends[0] != 0) return wrong(Text("%lld at its beginning", Long{ends[0]}));
  for (int64_t i = 0; i < last; ++i)
    if (ends[i + 1] < ends[i]) return wrong(Text("%lld after %lld", Long{ends[i + 1]}, Long{ends[i]}));
  return ends[last] == S || wrong(Text("%lld at its end", Long{ends[last]}));
}

bool check_ends_shape(const char* op, const char* arg, const TensorView& view, int64_t wanted, Problem* problem) {
  if (!check_integers(op, arg, view, problem)) return false;
  if (view.ndim != 1 || view.sizes[0] < 1)
    return shape_error(problem, op, arg, "have 1 dimension and at least 1 value", view);
  if (wanted > 0 && view.sizes[0] != wanted)
    return shape_error(problem, op, arg, Text("have cu_seqlens_q's %lld values", Long{wanted}), view);
  return check_rows(op, arg, view, problem);
}

// Blocks of all sequences one after the other, and of the longest.
struct BlockCounts {
  int64_t rows, columns;
};
BlockCounts blocks_of(const AttentionArgs& args) {
  if (args.num_sequences == UNKNOWN) return {UNKNOWN, UNKNOWN};
  if (!args.ends_q) return {num_blocks(args.S_q, args.block_q), num_blocks(args.S_k, args.block_k)};
  const Integers ends_q{args.ends_q, args.ends_dtype_q}, ends_k{args.ends_k, args.ends_dtype_k};
  BlockCounts counts{0, 0};
  for (int64_t n = 0; n < args.num_sequences; ++n) {
    counts.rows += num_blocks(ends_q[n + 1] - ends_q[n], args.block_q);
    const int64_t columns = num_blocks(ends_k[n + 1] - ends_k[n], args.block_k);
    if (columns > counts.columns) counts.columns = columns;
  }
  return counts;
}

bool check_block_size(const char* op, int64_t block_q, int64_t block_k, AttentionArgs* args, Problem* problem) {
  if (block_q < 1 || block_k < 1 || block_q > LARGEST_BLOCK || block_k > LARGEST_BLOCK)
    return value_error(problem, op, "block_size", "be from 1 to 2^30",
                       Text("(%lld, %lld)", Long{block_q}, Long{block_k}));
  args->has_mask = 1;
  args->block_q = block_q, args->block_k = block_k;
  const BlockCounts counts = blocks_of(*args);
  args->rows = counts.rows, args->columns = counts.columns;
  return true;
}

// The leading dimensions of a mask: one for all of the batch, and of the heads a group's or all's.
bool check_leading(const char* op, const TensorView& view, AttentionArgs* args, Problem* problem) {
  const int64_t B = view.sizes[0], heads = view.sizes[1];
  if ((B == args->B || B == 1) && (heads == args->H || heads == args->H_kv || heads == 1)) {
    args->mask_heads = heads;
    return true;
  }
  return shape_error(
      problem, op, MASK,
      Text("have a batch of %lld or 1 and %lld, %lld or 1 heads", Long{args->B}, Long{args->H}, Long{args->H_kv}),
      view);
}

bool check_kept(const AttentionCall& call, AttentionArgs* args, Problem* problem) {
  const TensorView& kept = *call.kept;
  if (std::strcmp(kept.dtype_name, "bool") != 0) return dtype_error(problem, call.op, MASK, "be bool", kept);
  if (kept.ndim != 2 && kept.ndim != 4) return shape_error(problem, call.op, MASK, "have 2 or 4 dimensions", kept);
  if (!check_block_size(call.op, call.block_q, call.block_k, args, problem)) return false;
  if (args->rows != UNKNOWN && (kept.sizes[kept.ndim - 2] != args->rows || kept.sizes[kept.ndim - 1] != args->columns))
    return shape_error(problem, call.op, MASK,
                       Text("have %lld rows and %lld columns of blocks of %lld x %lld", Long{args->rows},
                            Long{args->columns}, Long{args->block_q}, Long{args->block_k}),
                       kept);
  if (!check_rows(call.op, MASK, kept, problem)) return false;
  args->kept = static_cast<const uint8_t*>(kept.data);
  args->mask_heads = 1;
  if (kept.ndim == 2) {
    args->kept_strides = {0, 0, kept.strides ? kept.strides[0] : args->columns};
    return true;
  }
  if (!check_leading(call.op, kept, args, problem)) return false;
  args->kept_strides = strides_of(kept, true);
  return true;
}

bool check_offsets_shape(const char* op, const TensorView& offsets, AttentionArgs* args, Problem* problem) {
  if (offsets.ndim != 1 && offsets.ndim != 3)
    return shape_error(problem, op, MASK, "have row offsets of 1 or 3 dimensions", offsets);
  if (args->rows != UNKNOWN && offsets.sizes[offsets.ndim - 1] != args->rows + 1)
    return shape_error(
        problem, op, MASK,
        Text("have %lld row offsets, one more than rows of blocks of %lld", Long{args->rows + 1}, Long{args->block_q}),
        offsets);
  args->mask_heads = 1;
  args->offset_strides = {0, 0, 1};
  if (offsets.ndim == 3) {
    if (!check_leading(op, offsets, args, problem)) return false;
    const int64_t length = args->rows + 1;
    const int64_t b = offsets.strides ? offsets.strides[0] : offsets.sizes[1] * length;
    const int64_t h = offsets.strides ? offsets.strides[1] : length;
    args->offset_strides = {offsets.sizes[0] == 1 ? 0 : b, offsets.sizes[1] == 1 ? 0 : h, 1};
  }
  return true;
}

// Strictly ascending from 0 to columns - 1, without stopping where it is not: in vectors.
template <class T>
bool ascends(const T* list, int64_t count, int64_t columns) {
  if (count == 0) return true;
  bool falls = false;
  for (int64_t e = 1; e < count; ++e) falls |= list[e] <= list[e - 1];
  return !falls && list[0] >= 0 && list[count - 1] < columns;
}

// One row's list, read through.
bool check_row(const char* op, const AttentionArgs& args, int64_t begin, int64_t end, Problem* problem) {
  const Integers listed{args.listed, args.listed_dtype};
  if (args.listed_dtype == Dtype::i32
          ? ascends(static_cast<const int32_t*>(args.listed) + begin, end - begin, args.columns)
          : ascends(static_cast<const int64_t*>(args.listed) + begin, end - begin, args.columns))
    return true;
  for (int64_t e = begin; e < end; ++e) {
    const int64_t column = listed[e];
    if (column < 0 || column >= args.columns)
      return value_error(problem, op, MASK, Text("have columns from 0 to %lld", Long{args.columns - 1}),
                         Text("%lld", Long{column}));
    if (e > begin && column <= listed[e - 1])
      return value_error(problem, op, MASK, "have ascending columns in each row",
                         Text("%lld after %lld", Long{column}, Long{listed[e - 1]}));
  }
  return true;
}

bool check_lists_through(const char* op, const TensorView& offsets, int64_t entries, const AttentionArgs& args,
                         Problem* problem) {
  const int64_t batches = offsets.ndim == 3 ? offsets.sizes[0] : 1;
  for (int64_t b = 0; b < batches; ++b)
    for (int64_t h = 0; h < args.mask_heads; ++h) {
      const int64_t first = b * args.offset_strides.b + h * args.offset_strides.h;
      const Integers ends{args.row_offsets, args.offsets_dtype};
      for (int64_t row = 0; row <= args.rows; ++row) {
        const int64_t end = ends[first + row], before = row ? ends[first + row - 1] : 0;
        if (end < before || end > entries)
          return value_error(problem, op, MASK,
                             Text("have row offsets that ascend from 0 to %lld, the number of columns", Long{entries}),
                             row ? Text("%lld after %lld", Long{end}, Long{before}) : Text("%lld", Long{end}));
        if (row && !check_row(op, args, before, end, problem)) return false;
      }
    }
  return true;
}

bool check_tables(const char* op, const BlockLists& lists, int64_t entries, AttentionArgs* args, Problem* problem) {
  if (!lists.tables && !lists.bits) return true;
  if (!lists.tables || !lists.bits)
    return type_error(problem, op, lists.tables ? BITS : TABLES, lists.tables ? "come with tables" : "come with bits",
                      "none");
  const TensorView &tables = *lists.tables, &bits = *lists.bits;
  const int64_t words = num_blocks(args->block_k, BITS_PER_WORD);
  if (tables.dtype != Dtype::i32) return dtype_error(problem, op, TABLES, "be int32", tables);
  if (bits.dtype != Dtype::i64) return dtype_error(problem, op, BITS, "be int64", bits);
  if (tables.ndim != 1 || tables.sizes[0] != entries)
    return shape_error(problem, op, TABLES, Text("have shape (%lld,), one for each column", Long{entries}), tables);
  if (bits.ndim != 3 || bits.sizes[1] != args->block_q || bits.sizes[2] != words)
    return shape_error(problem, op, BITS, Text("have shape (tables, %lld, %lld)", Long{args->block_q}, Long{words}),
                       bits);
  if (!check_rows(op, TABLES, tables, problem) || !check_contiguous(op, BITS, bits, problem)) return false;
  const auto* of_entry = static_cast<const int32_t*>(tables.data);
  for (int64_t e = 0; of_entry && e < entries; ++e)
    if (of_entry[e] < -1 || of_entry[e] >= bits.sizes[0])
      return value_error(problem, op, TABLES, Text("be from -1 to %lld", Long{bits.sizes[0] - 1}),
                         Text("%lld", Long{of_entry[e]}));
  args->tables = of_entry;
  args->bits = static_cast<const uint64_t*>(bits.data);
  return true;
}

bool check_lists(const AttentionCall& call, AttentionArgs* args, Problem* problem) {
  const char* op = call.op;
  const BlockLists& lists = *call.lists;
  const TensorView &offsets = lists.row_offsets, &columns = lists.columns;
  if (!is_integer(offsets.dtype)) return dtype_error(problem, op, MASK, "have row offsets of int32 or int64", offsets);
  if (!is_integer(columns.dtype)) return dtype_error(problem, op, MASK, "have columns of int32 or int64", columns);
  if (lists.tables && call.cu_seqlens_q)
    return value_error(problem, op, MASK, "be boolean or lists where there are cu_seqlens", "a BlockMask");
  if (!check_block_size(op, lists.block_q, lists.block_k, args, problem) ||
      !check_offsets_shape(op, offsets, args, problem))
    return false;
  if (columns.ndim != 1) return shape_error(problem, op, MASK, "have columns of 1 dimension", columns);
  if (!check_rows(op, MASK, offsets, problem) || !check_rows(op, MASK, columns, problem)) return false;
  args->row_offsets = offsets.data, args->offsets_dtype = offsets.dtype;
  args->listed = columns.data, args->listed_dtype = columns.dtype;
  const int64_t entries = columns.sizes[0];
  return (!offsets.data || check_lists_through(op, offsets, entries, *args, problem)) &&
         check_tables(op, lists, entries, args, problem);
}

}  // namespace

bool check_sequences(const AttentionCall& call, AttentionArgs* args, Problem* problem) {
  const char* op = call.op;
  if (!call.cu_seqlens_q) {
    if (call.cu_seqlens_k) return type_error(problem, op, "cu_seqlens_q", "come with cu_seqlens_k", "none");
    return true;
  }
  const TensorView& ends_q = *call.cu_seqlens_q;
  const TensorView& ends_k = call.cu_seqlens_k ? *call.cu_seqlens_k : ends_q;
  if (args->B != 1) return shape_error(problem, op, "q", "have a batch of 1 where there are cu_seqlens", call.q);
  if (!check_ends_shape(op, "cu_seqlens_q", ends_q, 0, problem)) return false;
  if (call.cu_seqlens_k && !check_ends_shape(op, "cu_seqlens_k", ends_k, ends_q.sizes[0], problem)) return false;
  if (!call.cu_seqlens_k && args->S_k != args->S_q)
    return shape_error(problem, op, "k", Text("have q's %lld tokens where there is no cu_seqlens_k", Long{args->S_q}),
                       call.k);
  if (!ends_q.data || !ends_k.data) {  // a shape before there is data, or on a GPU
    args->num_sequences = UNKNOWN;
    return true;
  }
  if (!check_ends(op, "cu_seqlens_q", ends_q, args->S_q, problem)) return false;
  if (call.cu_seqlens_k && !check_ends(op, "cu_seqlens_k", ends_k, args->S_k, problem)) return false;
  args->num_sequences = ends_q.sizes[0] - 1;
  args->ends_q = ends_q.data, args->ends_dtype_q = ends_q.dtype;
  args->ends_k = ends_k.data, args->ends_dtype_k = ends_k.dtype;
  return true;
}

bool check_mask(const AttentionCall& call, AttentionArgs* args, Problem* problem) {
  if (call.kept && call.lists) return value_error(problem, call.op, MASK, "be boolean or lists", "both");
  if (call.kept) return check_kept(call, args, problem);
  if (call.lists) return check_lists(call, args, problem);
  args->mask_heads = 1;
  return true;
}

}  // namespace dsf::attention_checks
