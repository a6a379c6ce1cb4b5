// block_sparse_attention: out = softmax(scale q k^T + token_bias over the keys that a query sees) v, and its gradients.
//
//   seen[i, j] = the block of (i, j) is kept, and j is in i's sequence, and (not causal or j <= at),
//                and (at - left <= j <= at + right or j < sinks),   at = i + q_offset, or i + len_k - len_q "at the
//                end"
//   z[i, j]    = scale * dot(q[i], k[j]) + token_bias[i, j],  a bias of -inf hides the key
//   lse[i]     = log sum_j exp(z[i, j]),  -inf where nothing is seen
//   out[i]     = sum_j exp(z[i, j] - lse[i]) v[j] * f[i],  f = 1 / (1 + exp(sink_logit - lse)), 1 without a sink logit
// A query that sees nothing has out = 0 and lse = -inf, gives no gradient and gets 0. Positions i and j count from the
// beginning of their sequence. Head h of q reads head h / (H / H_kv) of k and v.
//
// Storage f32, bf16 or f16; sums, exp and lse in f32. Order, the same whatever tiles and threads a level takes:
//   key steps  Kept blocks of the row in ascending order. One of more than KEY_STEP keys is cut into steps of KEY_STEP
//   from
//              its first; of smaller ones KEY_STEP / block_k whole blocks make a step, kept ones one after the other,
//              so that lists of single keys go 64 at a time. Without a mask the sequence is one block. A step of which
//              a query sees nothing leaves its row as it is.
//   dot        one chain over d = 0, 1 ... of fused multiply-adds from 0 (bf16: pairs in VDPBF16PS or BFDOT, which read
//              and write subnormals as zero); * scale, one rounding; + token_bias, one rounding; hidden keys -inf
//   m          max(m, the step's largest);  r = exp(m_before - m), exactly 1 where m stays
//   p          exp(z - m), the difference rounded once; 0 below -87; exp within 1 ULP (csrc/gemm/activation.h)
//   l          l[j % 16] = l[j % 16] * r + p[j], j from the step's first key (a hidden one has p 0); in the end halves
//   are added: 8, 4, 2, 1 acc        acc * r, then one chain of fused multiply-adds over the step's keys; bf16: pairs
//   of p rounded to bf16, p
//              as it was in l
//   end        a sink logit is a last step: m, r as above, exp(sink - m) added to the sum; lse is without it.
//              out = acc * (1 / l), rounded once to q's dtype;  lse = m + log(l)
// So f32 and f16 (widened exactly) have equal bits on every level with FMA (the scalar level multiplies, then adds),
// and bf16 on every level with the same dot instruction; everywhere a row's bits depend neither on threads nor on other
// rows.
//
// Backward, from out and lse as forward stored them; P = exp(z - lse), f as above (from lse and the sink logit):
//   delta = sum of dout * out, 16 chains of fused multiply-adds and halves added as l's;  shift = f * delta - dlse
//   dp = dot(dout, v)
//   dz = P * (f * dp - shift);  w = f * P          bf16: dz and w rounded to bf16 where they are multiplied
//   dq[i] = scale * sum_j dz k[j]                  one chain, key steps ascending
//   dk[j] = scale * sum dz q[i],  dv[j] = sum w dout[i]   one chain: tiles of up to 64 rows ascending (queries of one
//              block; of several heads of a group where these share lists and fit), in a tile heads, then queries
//   dsink[h] = -sum over b, i of (1 - f) * delta   one chain, no multiply-add fused
// One thread owns each output element; nothing is added atomically. A key that no query sees has dk = dv = 0.
//
// NaN and inf: a row follows IEEE in what it sees. k[j], v[j] of a key that no query of a block sees are never read
// into a sum and may be anything. Where v[j] is not finite and some query of a q block (without a mask: of 64 queries
// from the sequence's first) sees j, its other queries may get NaN. So may dk and dv of
// a key that is in a step with a query of NaN.
//
//   q     (B, H, S_q, D)      values of a head contiguous; other strides any, so that BSHD is read in place
//   k, v  (B, H_kv, S_k, D), (B, H_kv, S_k, D_v)   alike, q's dtype
//   out   (B, H, S_q, D_v)    q's dtype, contiguous;  lse (B, H, S_q) f32, contiguous; overlap nothing
//   token_bias   (B | 1, H | 1, S_q | 1, S_k) f32 or q's dtype;  sink_logits (H) f32
//   cu_seqlens   (N + 1) int32 or int64, ascending from 0 to S; B = 1. Blocks, windows and positions begin anew at each
//                sequence: rows of blocks count on through the sequences, columns from each one's beginning.
// Pointers need the alignment of their element type. D, D_v from 1 to 1024; any sizes whose byte counts fit int64.
#pragma once
#include <cstdint>

#include "csrc/core/api.h"
#include "csrc/core/check.h"
#include "csrc/core/context.h"
#include "csrc/core/isa.h"
#include "csrc/core/tensor_view.h"

namespace dsf {

constexpr int64_t KEY_STEP = 64;        // keys; decides the order of sums
constexpr int64_t NO_LIMIT = -1;        // of a window's side
constexpr int64_t MAX_HEAD_DIM = 1024;  // values: a row of f32 sums stays in L1

// Kept blocks as lists. A block of queries (b, h, row) keeps columns[row_offsets[b, h, row] ... [row + 1]), strictly
// ascending; the offsets are absolute, so that heads may share lists. Heads: H, H_kv (one a group) or 1.
//   tables   null: every kept block counts whole. Else one a column: -1 whole, t: only the keys whose bit is set in
//            bits[t][query of the block][key of the block], 64 keys a word, the lowest bit first (a FlexAttention
//            BlockMask's partial blocks; the door asks mask_mod once for each).
struct BlockLists {
  int64_t block_q, block_k;
  TensorView row_offsets;    // (B | 1, heads, rows + 1) int32 or int64
  TensorView columns;        // (entries) int32 or int64
  const TensorView* tables;  // (entries) int32
  const TensorView* bits;    // (tables, block_q, ceil(block_k / 64)) int64
};

// A call as a door sees it. Text and views outlive the call.
struct AttentionCall {
  const char* op;  // in sentences
  TensorView q, k, v;
  const TensorView* kept;    // (B | 1, heads, rows, columns) or (rows, columns) bool as u8; or null
  int64_t block_q, block_k;  // of kept
  const BlockLists* lists;   // or null: with kept null, too, every block
  float scale;
  int32_t is_causal;
  int64_t left, right;  // the window: keys before and after a query's own; NO_LIMIT
  int64_t sinks;        // first tokens that the window does not hide
  int64_t q_offset;
  int32_t q_at_end;    // q_offset is len_k - len_q of each sequence
  int64_t key_stride;  // as in AttentionArgs
  int32_t enable_gqa;
  const TensorView* token_bias;
  const TensorView* sink_logits;
  const TensorView* cu_seqlens_q;
  const TensorView* cu_seqlens_k;  // null: those of q
  // Backward alone; else null.
  const TensorView* out;
  const TensorView* lse;
  const TensorView* dout;
  const TensorView* dlse;
};

// Elements from one index to the next of (B, H, S, D); D's is 1. 0 where a dimension is one for all.
struct HeadStrides {
  int64_t b, h, s;
};
struct Heads {
  const void* data;
  HeadStrides strides;
};

struct AttentionArgs {
  Dtype dtype, bias_dtype;
  int64_t B, H, H_kv, S_q, S_k, D, D_v;
  float scale;
  int32_t is_causal, q_at_end;
  int64_t left, right, sinks, q_offset;
  int64_t key_stride;  // key j stands at (j + 1) * key_stride - 1: 1, or for means of blocks the block's size
  Heads q, k, v;
  Heads token_bias;          // data null: none
  const float* sink_logits;  // or null
  // Sequences: num_sequences + 1 ends of each, of the integer type given; null: one of S_q and S_k for each b.
  int64_t num_sequences;
  const void* ends_q;
  const void* ends_k;
  Dtype ends_dtype_q, ends_dtype_k;
  // The mask: kept, lists or neither. has_mask 0: blocks of KEY_STEP keys, all kept.
  int32_t has_mask;
  int64_t block_q, block_k, rows, columns;  // columns: of the longest sequence
  const uint8_t* kept;
  HeadStrides kept_strides;  // s: of a row
  const void* row_offsets;
  HeadStrides offset_strides;  // s is 1
  const void* listed;
  Dtype offsets_dtype, listed_dtype;
  const int32_t* tables;
  const uint64_t* bits;
  int64_t mask_heads;  // H, H_kv or 1
  // Backward:
  Heads dout, forward_out;
  const float* forward_lse;
  const float* dlse;  // or null
  // Set by the door: forward out and lse (null: not wanted); backward the gradients, contiguous, dsink null: not
  // wanted.
  void* out;
  float* lse;
  void* dq;
  void* dk;
  void* dv;
  float* dsink_logits;
};

extern "C" {
// Each fills *args, all but the outputs. Returns 1, or 0 and *problem. They read the lists and cu_seqlens through,
// once: after them no kernel can be led outside its tensors.
DSF_API int32_t dsf_block_sparse_attention_check(const AttentionCall* call, AttentionArgs* args, Problem* problem);
DSF_API int32_t dsf_block_sparse_attention_backward_check(const AttentionCall* call, AttentionArgs* args,
                                                          Problem* problem);

// Bytes of context->workspace, -1 where that overflows. Linear in num_threads, in S of one head (packed k and v) and,
// backward, in the entries of the lists (their transpose): never in S_q * S_k.
DSF_API int64_t dsf_block_sparse_attention_workspace_bytes(const Context* context, const AttentionArgs* args);
DSF_API void dsf_block_sparse_attention(const Context* context, const AttentionArgs* args);
DSF_API int64_t dsf_block_sparse_attention_backward_workspace_bytes(const Context* context, const AttentionArgs* args);
DSF_API void dsf_block_sparse_attention_backward(const Context* context, const AttentionArgs* args);

// Rows of variants.inc: the i-th one's level and name, -1 and null past the end.
DSF_API int32_t dsf_block_sparse_attention_variant(int32_t i, const char** name);
}
}  // namespace dsf
