// A tile: up to MAX_ROWS rows of queries that see the same keys, which come a step at a time as panels (panels.h).
//   begin(rows)                  nothing seen so far
//   weigh(...), then add(...)    for every step: scores q k^T and softmax, then sums of weights * values
//   finish(...)                  out and lse of every row
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

  static void begin(const TileSums& sums, int64_t rows) {
    for (int64_t row = 0; row < rows; ++row) sums.m[row] = NEGATIVE_INFINITY;
    __builtin_memset(sums.l, 0, size_t(rows) * SUM_LANES * 4);
  }
  // Where no step is the first one.
  static void clear_values(const TileSums& sums, int64_t rows, int64_t D_v) {
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
  static void add(const StepMask& mask, const X* weights, const float* factors, int64_t rows, int64_t D_v,
                  const char* values, const TileSums& sums, bool first) {
    constexpr int64_t KEY_BYTES = value_panel_bytes(dtype) / STEP_KEYS;
    for_each_row_tile(rows, [&](int64_t row, int64_t count) {
      const KeyRange range = range_of(mask, row, count);
      add_values(weights + row * STEP_KEYS + range.begin, factors + row, count, range.count(), D_v,
                 values + range.begin * KEY_BYTES, sums.values + row * PANEL_N, first);
    });
  }

  // The second half for the rows of one register tile, which read each value once: without panels of them.
  static bool takes_rows(int64_t rows, int64_t D_v) { return rows <= Product::MR && D_v % PANEL_N == 0; }
  static void add_rows(const StepMask& mask, const X* weights, const float* factors, int64_t rows, int64_t D_v,
                       const char* const* values, const TileSums& sums, bool first) {
    constexpr int BLOCK = Values::NV * V::LANES;
    const KeyRange range = range_of(mask, 0, rows);
    const char* at[STEP_KEYS + 1];
    for (int t = range.begin; t < mask.n; ++t) at[t] = row_or_zeros(values[t]);
    at[mask.n] = ZEROS;  // the last key's partner, if it has none
    for (int64_t column = 0; column < D_v; column += BLOCK) {
      float* into = sums.values + column / PANEL_N * MAX_ROWS * PANEL_N + column % PANEL_N;
      const RowColumns<V, dtype> columns{at + range.begin, column * value_bytes(dtype)};
      const auto run = [&](const auto& rows_of) {
        run_whole_value_tile<Values, Values::MR>(int(rows), int64_t{range.count()}, weights + range.begin, columns,
                                                 rows_of);
      };
      if (first)
        run(FreshRows{into});
      else
        run(TileRows{into, factors});
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
    score(q + row * q_stride, q_stride, count, range_of(mask, row, count), D, scale, keys, scores);
    softmax_step<V, dtype>(mask, row, count, scores, sums.m + row, sums.l + row * SUM_LANES, factors, weights);
  }

  // scores[row][key] = scale * dot(q[row], key) of up to MR rows; those beyond the range stay what they are.
  static void score(const X* q, int64_t q_stride, int64_t rows, const KeyRange& range, int64_t D, float scale,
                    const char* keys, float* scores) {
    constexpr int BLOCK = Product::NV * V::LANES;
    for (int c = range.begin / V::LANES * V::LANES; c < range.end; c += BLOCK) {
      const int left = (range.end - c + V::LANES - 1) / V::LANES;
      run_tile<Product, Product::MR, Product::NV>(int(rows), left < Product::NV ? left : Product::NV, D, q, q_stride,
                                                  keys + c * 4, nullptr, StoreScores<V>{scores + c, scale});
    }
  }

  // first: the sums begin with this step.
  static void add_values(const X* weights, const float* factors, int64_t rows, int n, int64_t D_v, const char* values,
                         float* sums, bool first = false) {
    for (int64_t p = 0; p < num_value_panels(D_v); ++p) {
      const char* panel = values + p * value_panel_bytes(dtype);
      float* at = sums + p * MAX_ROWS * PANEL_N;
      if (first)
        add_panel(weights, rows, n, D_v - p * PANEL_N, panel, [&](int64_t c) { return FreshRows{at + c}; });
      else
        add_panel(weights, rows, n, D_v - p * PANEL_N, panel, [&](int64_t c) { return TileRows{at + c, factors}; });
    }
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

  // Of every row: out = values / (l + the sink's weight), rounded once; lse = m + log(l), -inf where nothing was seen.
  // of.sink(row): null, or a logit that has no value; of.out(row); of.lse(row, lse).
  template <class Of>
  static void finish(const TileSums& sums, int64_t rows, int64_t D_v, const Of& of) {
    alignas(64) float totals[MAX_ROWS], lse[MAX_ROWS];
    for (int64_t row = 0; row < rows; ++row) totals[row] = total_of(sums.l + row * SUM_LANES);
    for (int64_t row = rows; row < round_up(rows, V::LANES); ++row) totals[row] = 0.0f;
    for (int64_t row = 0; row < rows; row += V::LANES) {
      const auto l = V::load(totals + row);
      const auto sum = V::add(V::load(sums.m + row), log_of<V>(l));
      V::store(lse + row, V::select_bits(V::bits_equal(l, V::zero()), V::set1(NEGATIVE_INFINITY), sum));
    }
    for (int64_t row = 0; row < rows; ++row) {
      of.lse(row, lse[row]);
      const float* sink = of.sink(row);
      float total = totals[row], factor = 1.0f;
      if (sink) {
        const float m = sums.m[row], top = m >= *sink ? m : *sink;
        factor = m == top ? 1.0f : weight_of<V>(m - top);
        const float of_sink = *sink == top ? 1.0f : weight_of<V>(*sink - top);
        total = total * factor + of_sink;
      }
      const bool nothing = totals[row] == 0.0f;  // then the sums may never have begun
      store_row(sums.values + row * PANEL_N, D_v, nothing, factor, 1.0f / total, of.out(row));
    }
  }

 private:
  static float total_of(const float* lanes) {
    float l[SUM_LANES];
    for (int i = 0; i < SUM_LANES; ++i) l[i] = lanes[i];
    for (int half = SUM_LANES / 2; half >= 1; half /= 2)
      for (int i = 0; i < half; ++i) l[i] = l[i] + l[i + half];
    return l[0];
  }

  // values * factor * share, or zeros.
  static void store_row(const float* values, int64_t D_v, bool zeros, float factor, float share_of_one, char* out) {
    const auto by = V::set1(factor), share = V::set1(share_of_one);
    for (int64_t p = 0; p * PANEL_N < D_v; ++p, values += MAX_ROWS * PANEL_N) {
      const int64_t columns = D_v - p * PANEL_N < PANEL_N ? D_v - p * PANEL_N : PANEL_N;
      char* at = out + p * PANEL_N * value_bytes(dtype);
      const auto scaled = [&](int64_t c) __attribute__((always_inline)) {
        return zeros ? V::zero() : V::mul(V::mul(V::load(values + c), by), share);
      };
      if (dtype == Dtype::bf16 && columns == PANEL_N) {
        DSF_UNROLL
        for (int64_t c = 0; c < PANEL_N; c += 2 * V::LANES)
          V::store_bf16_pair(reinterpret_cast<uint16_t*>(at) + c, scaled(c), scaled(c + V::LANES));
        continue;
      }
      for (int64_t c = 0; c < columns; c += V::LANES) {
        const int n = columns - c < V::LANES ? int(columns - c) : V::LANES;
        if constexpr (dtype == Dtype::f32) V::store_n(reinterpret_cast<float*>(at) + c, scaled(c), n);
        if constexpr (dtype == Dtype::bf16) V::store_bf16_n(reinterpret_cast<uint16_t*>(at) + c, scaled(c), n);
        if constexpr (dtype == Dtype::f16) V::store_f16_n(reinterpret_cast<uint16_t*>(at) + c, scaled(c), n);
      }
    }
  }
};

}  // namespace
}  // namespace dsf::attention
