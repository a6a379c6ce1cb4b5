// Panels that the products of attention read: STEP_KEYS keys side by side for scores, D_v values for sums of values.
//   keys     f32    panel[d][key]                  f16 is widened, exactly
//            bf16   panel[d / 2][key][d % 2]       pairs, as VDPBF16PS reads them; zeros after the last d
//   values   panels of PANEL_N columns, of each
//            f32    panel[key][column]
//            bf16   panel[key / 2][column][key % 2]
// A panel of keys has STEP_KEYS of them, whatever a step has, those of values a row or pair a key; what is beyond the
// step's keys or the last column is zeros.
#pragma once
#include <cstdint>

#include "csrc/gemm/packed.h"
#include "csrc/gemm/unroll.h"

namespace dsf::attention {

inline constexpr int64_t STEP_KEYS = PANEL_N;

// Bytes of a value in panels and rows of queries.
inline constexpr int64_t panel_value_bytes(Dtype dtype) { return dtype == Dtype::bf16 ? 2 : 4; }
inline constexpr int64_t key_panel_bytes(Dtype dtype, int64_t D) {
  return dtype == Dtype::bf16 ? (D + 1) / 2 * STEP_KEYS * 4 : D * STEP_KEYS * 4;
}
inline constexpr int64_t value_panel_bytes(Dtype dtype) { return STEP_KEYS * PANEL_N * panel_value_bytes(dtype); }
inline constexpr int64_t num_value_panels(int64_t D_v) { return (D_v + PANEL_N - 1) / PANEL_N; }
inline constexpr int64_t value_panels_bytes(Dtype dtype, int64_t D_v) {
  return num_value_panels(D_v) * value_panel_bytes(dtype);
}

namespace {

// Values [first, first + n) of a row as the panels have them, n up to a vector's 32-bit lanes; zeros after them.
template <class V, Dtype dtype>
[[gnu::always_inline]] inline typename V::i32 load_words(const char* row, int64_t first, int64_t D) {
  const int64_t left = D - first;
  if constexpr (dtype == Dtype::f16) {
    const auto* p = reinterpret_cast<const uint16_t*>(row) + first;
    return V::bits_of(left >= V::LANES ? V::load_f16(p) : V::load_f16_n(p, int(left)));
  } else {
    constexpr int64_t BYTES = dtype == Dtype::bf16 ? 2 : 4;
    const char* p = row + first * BYTES;
    if (left * BYTES >= V::LANES * 4) return V::load_i32(reinterpret_cast<const int32_t*>(p));
    return V::load_bytes_n(p, int(left * BYTES));
  }
}

// rows[0] ... [n - 1], D values each, to a panel of keys. A row that is null is zeros.
template <class V, Dtype dtype>
inline void pack_keys(const char* const* rows, int64_t n, int64_t D, char* panel) {
  constexpr int64_t WORD_VALUES = dtype == Dtype::bf16 ? 2 : 1;
  constexpr int64_t WORD_BYTES = STEP_KEYS * 4;  // of one word of all keys
  for (int64_t key = 0; key < STEP_KEYS; key += V::LANES) {
    const char* lane_rows[V::LANES];
    for (int i = 0; i < V::LANES; ++i) lane_rows[i] = key + i < n ? rows[key + i] : nullptr;
    for (int64_t d = 0; d < D; d += V::LANES * WORD_VALUES) {
      typename V::i32 words[V::LANES];
      DSF_UNROLL
      for (int i = 0; i < V::LANES; ++i)
        words[i] = lane_rows[i] ? load_words<V, dtype>(lane_rows[i], d, D) : V::zero_i32();
      V::transpose(words);
      char* target = panel + d / WORD_VALUES * WORD_BYTES + key * 4;
      const int64_t count = (D - d + WORD_VALUES - 1) / WORD_VALUES;
      if (count >= V::LANES) {
        DSF_UNROLL
        for (int i = 0; i < V::LANES; ++i) V::store_i32(reinterpret_cast<int32_t*>(target + i * WORD_BYTES), words[i]);
      } else {
        for (int i = 0; i < count; ++i) V::store_i32(reinterpret_cast<int32_t*>(target + i * WORD_BYTES), words[i]);
      }
    }
  }
}

// A vector of f32 lanes of bf16 values [first, first + LANES) of a row, zeros after D.
template <class V>
[[gnu::always_inline]] inline typename V::i32 load_high_halves(const char* row, int64_t first, int64_t D) {
  const auto* p = reinterpret_cast<const uint16_t*>(row) + first;
  return V::bits_of(D - first >= V::LANES ? V::load_bf16(p) : V::load_bf16_n(p, int(D - first)));
}

// rows[0] ... [n - 1], D values each, to panels of values. Rows that are null are zeros.
template <class V, Dtype dtype>
inline void pack_values(const char* const* rows, int64_t n, int64_t D, char* panels) {
  constexpr int64_t PANEL_BYTES = value_panel_bytes(dtype), ROW_BYTES = PANEL_N * 4;  // of a key, or a pair of them
  constexpr int64_t KEYS = dtype == Dtype::bf16 ? 2 : 1;
  const int64_t columns = num_value_panels(D) * PANEL_N;
  for (int64_t key = 0; key < n; key += KEYS) {
    const char* row = rows[key];
    const char* next = KEYS == 2 && key + 1 < n ? rows[key + 1] : nullptr;
    for (int64_t c = 0; c < columns; c += V::LANES) {
      auto words = V::zero_i32();
      if constexpr (dtype == Dtype::bf16) {
        if (row && c < D) words = V::template shift_right<16>(load_high_halves<V>(row, c, D));
        if (next && c < D) words = V::or_bits(words, load_high_halves<V>(next, c, D));
      } else {
        if (row && c < D) words = load_words<V, dtype>(row, c, D);
      }
      char* target = panels + c / PANEL_N * PANEL_BYTES + key / KEYS * ROW_BYTES + c % PANEL_N * 4;
      V::store_i32(reinterpret_cast<int32_t*>(target), words);
    }
  }
}

}  // namespace
}  // namespace dsf::attention
