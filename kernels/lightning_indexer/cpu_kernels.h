// The kernels behind cpu.h: pure functions over codes, a panel of tokens, or a part of a row of scores.
#pragma once
#include "csrc/gemm/packed.h"
#include "kernels/lightning_indexer/cpu.h"

namespace dsf::lightning_indexer {

inline constexpr int PANEL_TOKENS = int(PANEL_N);
inline constexpr int64_t MORE_CANDIDATES = 1024;  // than 2 k: a cut throws at least as many away as it keeps, and these
inline constexpr int64_t SLACK = 16;              // entries past the capacity: stores are of whole vectors
inline constexpr int NUM_SCORE_DTYPES = 3;        // f32, bf16, f16

// The largest so far of a row of scores, and what might still be one of them, in the order of their places.
struct Candidates {
  int32_t* keys;    // of the first `keyed` ordered keys, of the others the bits of f32
  int32_t* places;  // in the row
  int64_t count, keyed, capacity, k;
  float threshold;  // nothing that is not above it can be one of the k
  int32_t closed;   // nothing can: k is 0, or k NaN are there

  [[gnu::always_inline]] void start(int64_t wanted) {
    count = keyed = 0;
    k = wanted;
    threshold = -__builtin_inff();
    closed = wanted == 0;
  }
};

inline constexpr int64_t capacity_of(int64_t k) { return 2 * k + MORE_CANDIDATES; }

// Codes of D values a row become bf16, in rows of padded_D, zeros after the end.
inline constexpr int64_t padded_D(int64_t D) { return round_up(D, 4); }
inline constexpr int64_t panel_bytes(int64_t D) { return padded_D(D) * 2 * PANEL_TOKENS; }

struct Kernel {
  // numbers[0 .. padded_D(D)) of a row.
  void (*decode)(const uint8_t* codes, int64_t D, uint16_t* numbers);
  // panel[d / 2][token][d % 2] of count tokens' rows, at most PANEL_TOKENS.
  void (*panel)(const uint8_t* const* rows, int count, int64_t D, char* panel);
  // logits[token] = scales[token] * sum_h weights[h] * relu(dot(q[h], k[token])); PANEL_TOKENS scales and logits.
  void (*logits)(const uint16_t* q, int64_t H, int64_t D, const float* weights, const char* panel, const float* scales,
                 int count, float* logits);
  void (*to_bf16)(const float* values, int64_t n, uint16_t* rounded);
  // Adds those of n scores that may be among the k largest; the first's place is `first`, past all places so far.
  void (*add[NUM_SCORE_DTYPES])(const void* scores, int64_t n, int64_t first, Candidates* candidates);
  // Leaves the k largest, or all where they are fewer, all with ordered keys.
  void (*cut)(Candidates* candidates);
};

#define DSF_VARIANT(isa, dtype, kernel) extern const Kernel kernel;
#include "kernels/lightning_indexer/variants.inc"
#undef DSF_VARIANT

}  // namespace dsf::lightning_indexer
