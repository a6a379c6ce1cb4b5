// A tile: up to MAX_ROWS rows of queries that see the same keys, which come a step at a time as panels (panels.h).
//   begin(rows)                  nothing seen so far
//   weigh(...), then add(...)    for every step: scores q k^T and softmax, then sums of weights * values
//   finish(row, ...)             out and lse of a row
#pragma once
#include <cstdint>

#include "csrc/attention/softmax.h"
#include "csrc/attention/value_tile.h"

namespace dsf::attention {

inline constexpr int64_t MAX_ROWS = 64;

namespace {

// scale * sums to rows of scores.
template <class V>
struct StoreScores {
  float* rows;
  float scale;

  template <int rows_, int vectors>
  [[gnu::always_inline]] void take(const typename V::f32 (&acc)[rows_][vectors]) const {
    const auto factor = V::set1(scale);
    DSF_UNROLL
    for (int r = 0; r < rows_; ++r) {
      DSF_UNROLL
      for (int v = 0; v < vectors; ++v) V::store(rows + r * STEP_KEYS + v * V::LANES, V::mul(acc[r][v], factor));
    }
  }
};

template <class V, Dtype dtype>
struct ProductOf {
  using Tile = TileF32<V>;
};
template <class V>
struct ProductOf<V, Dtype::bf16> {
  using Tile = TileBf16<V>;
};

// Sums under way of up to MAX_ROWS rows.
struct TileSums {
  float* m;       // MAX_ROWS
  float* l;       // MAX_ROWS x SUM_LANES
  float* values;  // [panel of D_v][MAX_ROWS][PANEL_N]

  static constexpr int64_t bytes(int64_t D_v) {
    return MAX_ROWS * 4 * (1 + SUM_LANES + num_value_panels(D_v) * PANEL_N);
  }
  explicit TileSums(char* memory)
      : m(reinterpret_cast<float*>(memory)), l(m + MAX_ROWS), values(l + MAX_ROWS * SUM_LANES) {}
};

template <class V, Dtype dtype>
struct Tile {
  using X = typename RowOf<dtype>::Value;
  using Product = typename ProductOf<V, dtype>::Tile;
  using Values = ValueTile<V, dtype>;

  static void begin(const TileSums& sums, int64_t rows, int64_t D_v) {
    for (int64_t row = 0; row < rows; ++row) sums.m[row] = NEGATIVE_INFINITY;
    __builtin_memset(sums.l, 0, size_t(rows) * SUM_LANES * 4);
    for (int64_t p = 0; p < num_value_panels(D_v); ++p)
      __builtin_memset(sums.values + p * MAX_ROWS * PANEL_N, 0, size_t(rows) * PANEL_N * 4);
  }

  // The two halves of a step, of rows q[row * q_stride ...], D values each: what the second needs waits in weights
  // (MAX_ROWS x STEP_KEYS) and factors (MAX_ROWS + 16), so that keys and values may take turns in one place.
  static void weigh(const StepMask& mask, const X* q, int64_t q_stride, int64_t rows, int64_t D, float scale,
                    const char* keys, const TileSums& sums, X* weights, float* factors) {
    for_each_row_tile(rows, [&](int64_t row, int64_t count) {
      weigh_rows(mask, q, q_stride, row, count, D, scale, keys, sums, weights + row * STEP_KEYS, factors + row);
    });
  }
  static void add(const X* weights, const float* factors, int64_t rows, int n, int64_t D_v, const char* values,
                  const TileSums& sums) {
    for_each_row_tile(rows, [&](int64_t row, int64_t count) {
      add_values(weights + row * STEP_KEYS, factors + row, count, n, D_v, values, sums.values + row * PANEL_N);
    });
  }

  // The second half for the rows of one register tile, which read each value once: without panels of them.
  static bool takes_rows(int64_t rows, int64_t D_v) { return rows <= Product::MR && D_v % PANEL_N == 0; }
  static void add_rows(const X* weights, const float* factors, int64_t rows, int n, int64_t D_v,
                       const char* const* values, const TileSums& sums) {
    constexpr int BLOCK = Values::NV * V::LANES;
    const char* at[STEP_KEYS];
    for (int t = 0; t < n; ++t) at[t] = row_or_zeros(values[t]);
    if (n % 2) at[n] = ZEROS;
    for (int64_t column = 0; column < D_v; column += BLOCK) {
      float* first = sums.values + column / PANEL_N * MAX_ROWS * PANEL_N + column % PANEL_N;
      run_whole_value_tile<Values, Values::MR>(int(rows), int64_t{n}, weights,
                                               RowColumns<V, dtype>{at, column * value_bytes(dtype)},
                                               TileRows{first, factors});
    }
  }

  // take(first row, count) of the fewest register tiles, as even as can be.
  template <class Take>
  [[gnu::always_inline]] static void for_each_row_tile(int64_t rows, const Take& take) {
    constexpr int64_t MR = Product::MR;
    static_assert(MR <= MAX_TILE_ROWS && Values::MR == MR && Values::NV == Product::NV);
    const int64_t tiles = (rows + MR - 1) / MR;
    for (int64_t i = 0, row = 0; i < tiles; ++i) {
      const int64_t count = (rows - row + (tiles - i) - 1) / (tiles - i);
      take(row, count);
      row += count;
    }
  }

  // Weights of the register tile of rows [row, row + count), and what the sums of their values are multiplied by.
  static void weigh_rows(const StepMask& mask, const X* q, int64_t q_stride, int64_t row, int64_t count, int64_t D,
                         float scale, const char* keys, const TileSums& sums, X* weights, float* factors) {
    alignas(64) float scores[MAX_TILE_ROWS * STEP_KEYS];
    score(q + row * q_stride, q_stride, count, mask.n, D, scale, keys, scores);
    softmax_step<V, dtype>(mask, row, count, scores, sums.m + row, sums.l + row * SUM_LANES, factors, weights);
  }

  // scores[row][key] = scale * dot(q[row], key) of up to MR rows.
  static void score(const X* q, int64_t q_stride, int64_t rows, int n, int64_t D, float scale, const char* keys,
                    float* scores) {
    constexpr int BLOCK = Product::NV * V::LANES;
    for (int c = 0; c < n; c += BLOCK) {
      const int left = (n - c + V::LANES - 1) / V::LANES;
      run_tile<Product, Product::MR, Product::NV>(int(rows), left < Product::NV ? left : Product::NV, D, q, q_stride,
                                                  keys + c * 4, nullptr, StoreScores<V>{scores + c, scale});
    }
    for (int c = (n + V::LANES - 1) / V::LANES * V::LANES; c < STEP_KEYS; c += V::LANES)  // hidden; but numbers
      for (int64_t row = 0; row < rows; ++row) V::store(scores + row * STEP_KEYS + c, V::zero());
  }

  static void add_values(const X* weights, const float* factors, int64_t rows, int n, int64_t D_v, const char* values,
                         float* sums) {
    for (int64_t p = 0; p < num_value_panels(D_v); ++p)
      add_panel(weights, rows, n, D_v - p * PANEL_N, values + p * value_panel_bytes(dtype),
                [&](int64_t c) { return TileRows{sums + p * MAX_ROWS * PANEL_N + c, factors}; });
  }

  // The columns of one panel: sums_of(first column) are the rows to add to.
  template <class SumsOf>
  static void add_panel(const X* weights, int64_t rows, int n, int64_t columns, const char* panel,
                        const SumsOf& sums_of) {
    constexpr int BLOCK = Values::NV * V::LANES;
    for (int64_t c = 0; c < columns && c < PANEL_N; c += BLOCK) {
      const int64_t left = (columns - c + V::LANES - 1) / V::LANES;
      run_value_tile<Values, Values::MR, Values::NV>(int(rows), left < Values::NV ? int(left) : Values::NV, int64_t{n},
                                                     weights, PanelColumns<V, dtype>{panel + c * 4}, sums_of(c));
    }
  }

  // out = values / (l + the sink's weight), rounded once; lse = m + log(l), -inf where nothing was seen.
  // sink: null, or a logit that has no value.
  static void finish(const TileSums& sums, int64_t row, int64_t D_v, const float* sink, char* out, float* lse) {
    float l[SUM_LANES];
    for (int i = 0; i < SUM_LANES; ++i) l[i] = sums.l[row * SUM_LANES + i];
    for (int half = SUM_LANES / 2; half >= 1; half /= 2)
      for (int i = 0; i < half; ++i) l[i] = l[i] + l[i + half];
    float total = l[0], factor = 1.0f;
    const float m = sums.m[row];
    if (lse) {
      float log[V::LANES];
      V::store(log, log_of<V>(V::set1(total)));
      *lse = total == 0.0f ? NEGATIVE_INFINITY : m + log[0];
    }
    if (sink) {
      const float top = m >= *sink ? m : *sink;
      factor = m == top ? 1.0f : weight_of<V>(m - top);
      const float of_sink = *sink == top ? 1.0f : weight_of<V>(*sink - top);
      total = total * factor + of_sink;
    }
    const auto by = V::set1(factor), share = V::set1(1.0f / total);
    for (int64_t column = 0; column < D_v; column += V::LANES) {
      const float* at = sums.values + column / PANEL_N * MAX_ROWS * PANEL_N + row * PANEL_N + column % PANEL_N;
      const auto v = total == 0.0f ? V::zero() : V::mul(V::mul(V::load(at), by), share);
      const int n = D_v - column < V::LANES ? int(D_v - column) : V::LANES;
      if constexpr (dtype == Dtype::f32) V::store_n(reinterpret_cast<float*>(out) + column, v, n);
      if constexpr (dtype == Dtype::bf16) V::store_bf16_n(reinterpret_cast<uint16_t*>(out) + column, v, n);
      if constexpr (dtype == Dtype::f16) V::store_f16_n(reinterpret_cast<uint16_t*>(out) + column, v, n);
    }
  }
};

}  // namespace
}  // namespace dsf::attention
