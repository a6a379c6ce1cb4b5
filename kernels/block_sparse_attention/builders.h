// Builders of block masks: lists of patterns that depend on sizes alone, lists of a boolean mask, and the blocks with
// the largest scores. ref_builders.py has their meaning.
//
//   lists   row_offsets (rows + 1), columns (entries), int32; the columns of a row ascend. Time and memory are those of
//           the lists: O(rows * (local + first + log n)), never rows * columns.
//   scores  scale * dot(mean of a block's queries, mean of a block's keys), in f32. A mean is one chain over its
//           tokens, divided by their number; a dot product one chain over d, multiplied, then added, the same on every
//           level. A score that is NaN counts as -inf. Of equal scores the lower column is taken.
// No level has kernels of its own: the scores of 8 heads of 8192 tokens of 128 bf16 values take 1.6 ms, the attention
// over the 8 blocks a row that they choose 136 ms (one thread, Zen 5, 2026-11).
#pragma once
#include "kernels/block_sparse_attention/cpu.h"

namespace dsf {

// Blocks of S_q queries and S_k keys that positions choose: those that a window shows to some query of the row, or with
// `is_log` those at distances below `local`, then local - 1 + 1, 2, 4, 8 ..., and the `first` blocks.
struct BlockPattern {
  const char* op;  // in sentences
  int64_t S_q, S_k, block_q, block_k;
  int32_t is_causal;
  int64_t q_offset;
  int32_t q_at_end;  // q_offset is S_k - S_q
  int32_t is_log;
  int64_t left, right, sinks;  // of the window; NO_LIMIT
  int64_t local, first;        // of the other
};

// What top_k_blocks adds to an AttentionCall, whose v is k again, with neither mask, bias nor sequences.
struct TopK {
  int64_t num_blocks, first, local;
};

extern "C" {
// Rows and entries of the lists. Returns 1, or 0 and *problem.
DSF_API int32_t dsf_block_pattern_check(const BlockPattern* pattern, int64_t* rows, int64_t* entries, Problem* problem);
DSF_API void dsf_block_pattern(const BlockPattern* pattern, int32_t* row_offsets, int32_t* columns);

// A boolean mask's (B | 1, heads, rows, columns) or (rows, columns), as bytes: row_offsets (B | 1, heads, rows + 1) and
// columns. The values of a row lie side by side.
DSF_API int32_t dsf_block_lists_check(const char* op, const TensorView* kept, int64_t* entries, Problem* problem);
DSF_API void dsf_block_lists(const TensorView* kept, int32_t* row_offsets, int32_t* columns);

// Fills *args. kept: (B, H, args->rows, args->columns), as bytes.
DSF_API int32_t dsf_top_k_blocks_check(const AttentionCall* call, const TopK* top, AttentionArgs* args,
                                       Problem* problem);
DSF_API int64_t dsf_top_k_blocks_workspace_bytes(const Context* context, const AttentionArgs* args);
DSF_API void dsf_top_k_blocks(const Context* context, const AttentionArgs* args, const TopK* top, uint8_t* kept);
}
}  // namespace dsf
