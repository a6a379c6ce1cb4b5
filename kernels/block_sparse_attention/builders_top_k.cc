// The blocks with the largest scores of means: ref_builders.top_k_blocks_ref in f32.
#include <algorithm>
#include <cstring>

#include "csrc/gemm/float_value.h"
#include "csrc/gemm/packed.h"
#include "kernels/block_sparse_attention/builders.h"
#include "kernels/block_sparse_attention/checks.h"
#include "kernels/block_sparse_attention/walk.h"

namespace dsf {
namespace {

using namespace attention_checks;
using namespace block_sparse_attention;

// One thread's memory: the mean of a block's queries, the row's scores, and its candidates in order.
struct Scratch {
  float* mean;
  float* scores;
  uint64_t* ranked;

  Scratch(const AttentionArgs& args, char* memory)
      : mean(reinterpret_cast<float*>(memory)),
        scores(mean + round_up(args.D, 2)),
        ranked(reinterpret_cast<uint64_t*>(scores + round_up(args.columns, 2))) {}
  static int64_t bytes(const AttentionArgs& args) {
    return round_up(4 * (round_up(args.D, 2) + round_up(args.columns, 2)) + 8 * args.columns, 64);
  }
};

int64_t means_bytes(const AttentionArgs& args) { return round_up(args.B * args.H_kv * args.D * args.columns * 4, 64); }

template <Dtype dtype>
void add_token(int64_t D, const void* x, int64_t at, float* sums) {
  for (int64_t d = 0; d < D; ++d) sums[d] += float_at(dtype, x, at + d);
}

// mean[d * step] = the sum over the block's tokens / their number
void take_mean(const AttentionArgs& args, const Heads& x, int64_t b, int64_t head, int64_t S, int64_t size,
               int64_t block, float* mean, int64_t step) {
  const auto add = args.dtype == Dtype::f32    ? add_token<Dtype::f32>
                   : args.dtype == Dtype::bf16 ? add_token<Dtype::bf16>
                                               : add_token<Dtype::f16>;
  const int64_t first = block * size, count = least(size, S - first);
  float sums[MAX_HEAD_DIM] = {};
  for (int64_t s = first; s < first + count; ++s)
    add(args.D, x.data, b * x.strides.b + head * x.strides.h + s * x.strides.s, sums);
  for (int64_t d = 0; d < args.D; ++d) mean[d * step] = sums[d] / float(count);
}

// Numbers in the order of scores, larger ones of equal scores for lower columns.
uint64_t rank_of(float score, int64_t column) {
  score += 0.0f;  // -0 equals 0
  uint32_t bits;
  std::memcpy(&bits, &score, 4);
  const uint32_t ordered = score != score ? 0 : bits >> 31 ? ~bits : bits | 0x80000000u;
  return uint64_t{ordered} << 32 | uint32_t(~uint32_t(column));
}
int64_t column_of(uint64_t rank) { return int64_t(uint32_t(~uint32_t(rank))); }

void choose(const AttentionArgs& args, const TopK& top, int64_t row, const Scratch& scratch, uint8_t* kept) {
  const int64_t offset = args.q_at_end ? args.S_k - args.S_q : args.q_offset;
  const int64_t behind = least(row * args.block_q + args.block_q, args.S_q);
  const int64_t begin = divide_down(row * args.block_q + offset, args.block_k);
  const int64_t end = divide_down(behind - 1 + offset, args.block_k);
  const int64_t candidates = args.is_causal ? most(0, least(args.columns, end + 1)) : args.columns;
  int64_t forced = 0, others = 0;
  for (int64_t c = 0; c < args.columns; ++c) {
    const int64_t distance = c < begin ? begin - c : c > end ? c - end : 0;
    kept[c] = c < candidates && (distance < top.local || c < top.first);
    forced += kept[c];
    if (c < candidates && !kept[c]) scratch.ranked[others++] = rank_of(scratch.scores[c], c);
  }
  const int64_t wanted = least(others, top.num_blocks - forced);
  if (wanted <= 0) return;
  uint64_t* last = scratch.ranked + wanted - 1;
  std::nth_element(scratch.ranked, last, scratch.ranked + others, [](uint64_t a, uint64_t b) { return a > b; });
  for (const uint64_t* rank = scratch.ranked; rank <= last; ++rank) kept[column_of(*rank)] = 1;
}

void score_row(const AttentionArgs& args, int64_t b, int64_t head, int64_t row, const float* means,
               const Scratch& scratch) {
  take_mean(args, args.q, b, head, args.S_q, args.block_q, row, scratch.mean, 1);
  for (int64_t c = 0; c < args.columns; ++c) scratch.scores[c] = 0.0f;
  for (int64_t d = 0; d < args.D; ++d) {
    const float value = scratch.mean[d];
    const float* of_d = means + d * args.columns;
    for (int64_t c = 0; c < args.columns; ++c) scratch.scores[c] += value * of_d[c];
  }
  for (int64_t c = 0; c < args.columns; ++c) scratch.scores[c] *= args.scale;
}

bool at_least(const char* op, const char* arg, int64_t value, int64_t lowest, Problem* problem) {
  return value >= lowest ||
         value_error(problem, op, arg, Text("be at least %lld", Long{lowest}), Text("%lld", Long{value}));
}

}  // namespace

int32_t dsf_top_k_blocks_check(const AttentionCall* call, const TopK* top, AttentionArgs* args, Problem* problem) {
  if (!dsf_block_sparse_attention_check(call, args, problem)) return 0;
  const int64_t block_q = call->block_q, block_k = call->block_k;
  if (block_q < 1 || block_q > LARGEST_BLOCK || block_k < 1 || block_k > LARGEST_BLOCK)
    return value_error(problem, call->op, "block_size", "be two numbers from 1 to 2^30",
                       Text("(%lld, %lld)", Long{block_q}, Long{block_k}));
  if (!at_least(call->op, "num_blocks", top->num_blocks, 1, problem) ||
      !at_least(call->op, "first", top->first, 0, problem) || !at_least(call->op, "local", top->local, 0, problem))
    return 0;
  args->block_q = block_q, args->block_k = block_k;
  args->rows = num_blocks(args->S_q, block_q), args->columns = num_blocks(args->S_k, block_k);
  int64_t blocks;
  if (args->columns > INT32_MAX || !checked_mul(args->B * args->H, args->rows, &blocks) ||
      !checked_mul(blocks, args->columns, &blocks) || blocks > LARGEST)
    return shape_error(problem, call->op, "k", "have fewer blocks", call->k);
  return 1;
}

int64_t dsf_top_k_blocks_workspace_bytes(const Context* context, const AttentionArgs* args) {
  return means_bytes(*args) + context->num_threads * Scratch::bytes(*args);
}

void dsf_top_k_blocks(const Context* context, const AttentionArgs* args, const TopK* top, uint8_t* kept) {
  const AttentionArgs& a = *args;
  char* memory = static_cast<char*>(context->workspace);
  float* means = reinterpret_cast<float*>(memory);  // (B, H_kv, D, columns)
  parallel_for(*context, a.B * a.H_kv * a.columns, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t head = i / a.columns, column = i % a.columns;
      float* mean = means + head * a.D * a.columns + column;
      take_mean(a, a.k, head / a.H_kv, head % a.H_kv, a.S_k, a.block_k, column, mean, a.columns);
    }
  });
  const int64_t shares = context->num_threads, rows = a.B * a.H * a.rows;
  parallel_for(*context, shares, [&](int64_t begin, int64_t end) {
    for (int64_t share = begin; share < end; ++share) {
      const Scratch scratch(a, memory + means_bytes(a) + share * Scratch::bytes(a));
      for (int64_t i = rows * share / shares; i < rows * (share + 1) / shares; ++i) {
        const int64_t b = i / a.rows / a.H, head = i / a.rows % a.H, row = i % a.rows;
        const int64_t of_k = b * a.H_kv + head / (a.H / a.H_kv);
        score_row(a, b, head, row, means + of_k * a.D * a.columns, scratch);
        choose(a, *top, row, scratch, kept + i * a.columns);
      }
    }
  });
}

}  // namespace dsf
