// The kernels behind cpu.h: pure functions over one step of 64 entries of a query's list, one table of them per row of
// variants.inc.
#pragma once
#include "csrc/gemm/packed.h"
#include "kernels/sparse_mla/cpu.h"

namespace dsf::sparse_mla {

inline constexpr int64_t STEP = PANEL_N;     // entries
inline constexpr int64_t MAX_HEADS = 128;    // of a task: 256 KiB of sums beside two panels stay in L2
inline constexpr int64_t MAX_SCALES = 8;     // of a token, at most
inline constexpr int64_t MAX_NUMBERS = 576;  // of a token in a cache of bytes

// Heads of one query that share a head of kv.
struct Query {
  const void* q;        // of the first head
  int64_t head_stride;  // elements
  int64_t heads, d_qk, d_v;
  float scale;
};

// Entries of one step; of those that do not count rows are null. Of v4 a token's scales lie apart.
struct Keys {
  const char* rows[STEP];  // numbers, or a token's bytes
  const void* scales[STEP];
  uint64_t seen;  // bit j: entry j counts
  int n;          // the last that counts, plus 1
  bool first;     // of the sums that it is added to
  CacheLayout layout;
};

struct Result {
  void* out;  // (heads, d_v)
  float* max_logits;
  float* lse;
  int64_t lse_stride;  // from head to head
  const float* sinks;  // or null
};

// What backward keeps of a query, its heads and its steps.
struct Weights {
  void* dz;  // scale * dz of (entries, heads) as the tiles read them: f32, or bf16
  void* w;
};

struct GradientRows {
  const float* lse;    // (heads)
  const float* f;      // (heads) share of the keys beside the sink
  const float* delta;  // (heads)
  const void* dout;
  int64_t dout_head_stride;
};

struct Kernel {
  // Bytes that a task of so many heads works in, and those of a softmax that is not finished.
  int64_t (*scratch_bytes)(int64_t heads, int64_t d_qk, int64_t d_v);
  int64_t (*sums_bytes)(int64_t heads, int64_t d_v);
  // Empty sums, whose values the first step writes; q as the tiles read it.
  void (*begin)(const Query& query, char* sums, char* scratch);
  // Values of sums to which no step was added.
  void (*clear)(const Query& query, char* sums);
  void (*step)(const Query& query, const Keys& keys, char* sums, char* scratch);
  // into's entries come before from's.
  void (*merge)(int64_t heads, int64_t d_v, char* into, char* from);
  void (*finish)(const Query& query, char* sums, const Result& result);
  // Numbers of one token of a cache: bf16 = code * scale, rounded once.
  void (*decode)(CacheLayout layout, const void* token, const void* scales, uint16_t* numbers);

  // Backward. f and delta of a query's heads.
  void (*shares)(int64_t heads, int64_t d_v, const void* dout, int64_t dout_head_stride, const void* out,
                 const float* lse, const float* sinks, float* f, float* delta);
  int64_t (*gradient_scratch_bytes)(int64_t heads, int64_t d_qk, int64_t d_v);
  void (*begin_gradient)(const Query& query, const GradientRows& rows, char* scratch);
  // dz and w of a step; dq's sums go on.
  void (*gradient_step)(const Query& query, const Keys& keys, const GradientRows& rows, const Weights& weights,
                        char* scratch);
  void (*finish_gradient)(const Query& query, void* dq, char* scratch);
  // Panels of the heads of q and dout, in which each entry finds what it adds to its row.
  int64_t (*head_panel_bytes)(int64_t heads, int64_t d_qk, int64_t d_v);
  void (*pack_heads)(const Query& query, const GradientRows& rows, char* panels);
  // rows[i] (f32, whole panels of d_qk) += scale * dz q + w dout of entries[i]; at most STEP distinct rows.
  int64_t (*add_scratch_bytes)();
  void (*add_to_rows)(const Query& query, int64_t count, const int64_t* entries, const Weights& weights,
                      const char* panels, float* const* rows, char* scratch);
  void (*store_row)(const float* row, int64_t n, void* to);
};

#define DSF_VARIANT(isa, dtype, kernel) extern const Kernel kernel;
#include "kernels/sparse_mla/variants.inc"
#undef DSF_VARIANT

// The best kernels for q of a dtype.
const Kernel& pick(Dtype dtype);

}  // namespace dsf::sparse_mla
