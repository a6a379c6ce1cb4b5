// The kernels behind cpu.h: pure functions on a tile of queries, one table of them per row of variants.inc. walk.h says
// which keys a tile sees; cpu.cc leads the one through the other.
#pragma once
#include "csrc/attention/panels.h"
#include "kernels/block_sparse_attention/cpu.h"

namespace dsf::block_sparse_attention {

inline constexpr int64_t TILE_ROWS = 64;  // of queries, perhaps of several heads that read the same keys

// Sizes of one head and the rows of a tile.
struct Shape {
  int64_t rows, D, D_v;
  float scale;
};

// Up to KEY_STEP keys. A row that is null is one that no query of the tile sees.
struct KeyStep {
  const char* const* k;
  const char* const* v;
  int n;
  const uint64_t* seen;  // of each row of the tile, or null: all of them
  const float* bias;     // KEY_STEP values a row, or null
  int64_t bias_stride;   // 0: the same for every row
};

// A tile's rows backward.
struct RowsBackward {
  const char *q[TILE_ROWS], *dout[TILE_ROWS];
  char* dq[TILE_ROWS];
  float lse[TILE_ROWS], delta[TILE_ROWS], dlse[TILE_ROWS];
  float sink[TILE_ROWS];  // -inf: none
};

struct Kernel {
  // Bytes of a tile's memory.
  int64_t (*tile_bytes)(int64_t D, int64_t D_v);
  // Copies the tile's queries, one pointer a row, and forgets what was seen.
  void (*begin)(const Shape& shape, const char* const* q, char* tile);
  void (*step)(const Shape& shape, const KeyStep& keys, char* tile);
  // out: one pointer a row; sink: one logit a row, or null; lse: one pointer a row, or null.
  void (*finish)(const Shape& shape, char* const* out, const float* const* sink, float* const* lse, char* tile);

  // The same backward.
  int64_t (*backward_bytes)(int64_t D, int64_t D_v);
  void (*begin_backward)(const Shape& shape, const RowsBackward& rows, char* tile);
  // dk, dv: a row of sums for each key, null where they are not wanted; dk null: of none. Rows have room for whole
  // sixteens of values.
  void (*step_backward)(const Shape& shape, const KeyStep& keys, bool wants_dq, float* const* dk, float* const* dv,
                        char* tile);
  void (*finish_backward)(const Shape& shape, const RowsBackward& rows, char* tile);
  // delta[i] = dot(dout[i], out[i]) of `count` rows; out's are contiguous, dout's stride is in values.
  void (*delta)(const char* dout, int64_t dout_stride, const char* out, int64_t D_v, int64_t count, float* delta);
  // sum - the sum over i of (1 - f[i]) delta[i]
  float (*sink_gradient)(const float* lse, float sink, const float* delta, int64_t count, float sum);
  // factor * sums, rounded once.
  void (*store_row)(const float* sums, float factor, int64_t D, char* out);
};

#define DSF_VARIANT(isa, dtype, kernel) extern const Kernel kernel;
#include "kernels/block_sparse_attention/variants.inc"
#undef DSF_VARIANT

// The best one for q's dtype under the level in force.
const Kernel& kernel_of(Dtype dtype);

}  // namespace dsf::block_sparse_attention
