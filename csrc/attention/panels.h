// Panels that the products of attention read: STEP_KEYS keys side by side for scores, D_v values for sums of values.
//   keys     f32    panel[d][key]                  f16 is widened, exactly
//            bf16   panel[d / 2][key][d % 2]       pairs, as VDPBF16PS reads them; zeros after the last d
//   values   panels of PANEL_N columns, of each
//            f32    panel[key][column]
//            bf16   panel[key / 2][column][key % 2]
// A panel of keys has STEP_KEYS of them, whatever a step has; what is beyond the step's keys may be anything. Those of
// values have a row of each key or pair of keys, with zeros after the last key and the last column.
#pragma once
#include <cstdint>

#include "csrc/gemm/packed.h"
#include "csrc/gemm/unroll.h"

namespace dsf::attention {

inline constexpr int64_t STEP_KEYS = PANEL_N;
inline constexpr int64_t MAX_ROW_VALUES = 1024;  // of a key or a value

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

// Values of a row from `first` on, as the panels have them, a vector of 32-bit lanes; zeros after D unless `whole`.
template <class V, Dtype dtype, bool whole>
[[gnu::always_inline]] inline typename V::i32 load_words(const char* row, int64_t first, int64_t D) {
  if constexpr (dtype == Dtype::f16) {
    const auto* p = reinterpret_cast<const uint16_t*>(row) + first;
    if constexpr (whole) return V::bits_of(V::load_f16(p));
    return V::bits_of(V::load_f16_n(p, D - first < V::LANES ? int(D - first) : V::LANES));
  } else {
    constexpr int64_t BYTES = dtype == Dtype::bf16 ? 2 : 4;
    const char* p = row + first * BYTES;
    if constexpr (whole) return V::load_i32(reinterpret_cast<const int32_t*>(p));
    const int64_t left = (D - first) * BYTES;
    return V::load_bytes_n(p, left < V::LANES * 4 ? int(left) : V::LANES * 4);
  }
}

// What a row that is null holds.
alignas(64) constexpr char ZEROS[MAX_ROW_VALUES * 4] = {};

[[gnu::always_inline]] inline const char* row_or_zeros(const char* row) { return row ? row : ZEROS; }

// rows[0] ... [n - 1], D values each, to a panel of keys. A row that is null is zeros.
template <class V, Dtype dtype>
inline void pack_keys(const char* const* rows, int64_t n, int64_t D, char* panel) {
  constexpr int64_t WORD_VALUES = dtype == Dtype::bf16 ? 2 : 1;
  constexpr int64_t WORD_BYTES = STEP_KEYS * 4;  // of one word of all keys
  for (int64_t key = 0; key < n; key += V::LANES) {
    const char* lane_rows[V::LANES];
    for (int i = 0; i < V::LANES; ++i) lane_rows[i] = row_or_zeros(key + i < n ? rows[key + i] : nullptr);
    for (int64_t d = 0; d < D; d += V::LANES * WORD_VALUES) {
      typename V::i32 words[V::LANES];
      char* target = panel + d / WORD_VALUES * WORD_BYTES + key * 4;
      if (D - d >= V::LANES * WORD_VALUES) {
        DSF_UNROLL
        for (int i = 0; i < V::LANES; ++i) words[i] = load_words<V, dtype, true>(lane_rows[i], d, D);
        V::transpose(words);
        DSF_UNROLL
        for (int i = 0; i < V::LANES; ++i) V::store_i32(reinterpret_cast<int32_t*>(target + i * WORD_BYTES), words[i]);
      } else {
        for (int i = 0; i < V::LANES; ++i) words[i] = load_words<V, dtype, false>(lane_rows[i], d, D);
        V::transpose(words);
        const int64_t count = (D - d + WORD_VALUES - 1) / WORD_VALUES;
        for (int i = 0; i < count; ++i) V::store_i32(reinterpret_cast<int32_t*>(target + i * WORD_BYTES), words[i]);
      }
    }
  }
}

// `columns` values of a row, or of a pair of rows side by side, to one row of a panel; zeros after them.
template <class V, Dtype dtype, bool whole>
[[gnu::always_inline]] inline void pack_panel_row(const char* row, const char* partner, int64_t columns, char* target) {
  if constexpr (dtype == Dtype::bf16) {
    constexpr int64_t STEP = 2 * V::LANES;
    char edges[2][whole ? 1 : PANEL_N * 2];
    if constexpr (!whole) {
      __builtin_memset(edges, 0, sizeof edges);
      __builtin_memcpy(edges[0], row, size_t(columns) * 2);
      __builtin_memcpy(edges[1], partner, size_t(columns) * 2);
      row = edges[0];
      partner = edges[1];
    }
    DSF_UNROLL
    for (int64_t c = 0; c < PANEL_N; c += STEP) {
      typename V::i32 first, second;
      V::interleave_halves(row + c * 2, partner + c * 2, first, second);
      V::store_i32(reinterpret_cast<int32_t*>(target + c * 4), first);
      V::store_i32(reinterpret_cast<int32_t*>(target + (c + V::LANES) * 4), second);
    }
  } else {
    DSF_UNROLL
    for (int64_t c = 0; c < PANEL_N; c += V::LANES) {
      const auto words = whole || columns > c ? load_words<V, dtype, whole>(row, c, columns) : V::zero_i32();
      V::store_i32(reinterpret_cast<int32_t*>(target + c * 4), words);
    }
  }
}

// rows[0] ... [n - 1], D values each, to panels of values. Rows that are null are zeros.
template <class V, Dtype dtype>
inline void pack_values(const char* const* rows, int64_t n, int64_t D, char* panels) {
  constexpr int64_t KEYS = dtype == Dtype::bf16 ? 2 : 1, ROW_BYTES = PANEL_N * 4;
  for (int64_t c = 0; c < D; c += PANEL_N, panels += value_panel_bytes(dtype)) {
    const int64_t at = c * value_bytes(dtype), columns = D - c;
    char* target = panels;
    for (int64_t key = 0; key < n; key += KEYS, target += ROW_BYTES) {
      const char* row = row_or_zeros(rows[key]) + at;
      const char* partner = row_or_zeros(KEYS == 2 && key + 1 < n ? rows[key + 1] : nullptr) + at;
      if (columns >= PANEL_N)
        pack_panel_row<V, dtype, true>(row, partner, PANEL_N, target);
      else
        pack_panel_row<V, dtype, false>(row, partner, columns, target);
    }
  }
}

}  // namespace
}  // namespace dsf::attention
