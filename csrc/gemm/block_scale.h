// Scales of a matrix (N, K): one value for each block of block_n rows and block_k columns, f32 or e8m0 (a power of
// two). A block of -1 is the whole dimension.
#pragma once
#include <cstdint>

#include "csrc/core/api.h"
#include "csrc/core/check.h"

namespace dsf {

struct Block {
  int64_t n, k;
};

inline constexpr int64_t SMALLEST_BLOCK_K = 32;  // columns: MX's block, and what keeps the cost of scaling small

inline int64_t num_blocks(int64_t size, int64_t block) { return block < 0 ? 1 : size / block + (size % block != 0); }
inline int64_t block_of(int64_t i, int64_t block) { return block < 0 ? 0 : i / block; }

// scale[row, column] of rows of values, at any address; an e8m0 code 0xFF is NaN. Moves bits only: 2^-127, a subnormal
// f32, stays.
float scale_value(const TensorView& scale, int64_t row, int64_t column);

// Positive or -1; columns in multiples of SMALLEST_BLOCK_K. The sentence for what is no pair of integers at all, too.
extern "C" DSF_API void dsf_block_error(const char* op, const char* got, Problem* problem);
bool check_block(const char* op, Block block, Problem* problem);
// Dtype and shape.
bool check_scale(const char* op, const char* arg, const TensorView& scale, int64_t N, int64_t K, Block block,
                 Problem* problem);
// Finite and above zero. True where there are no values yet, or where they are not rows, which a door makes first.
bool check_scale_values(const char* op, const char* arg, const TensorView& scale, Problem* problem);

}  // namespace dsf
