// The backward pass of a tile: from the stored lse, five products a step of keys. The order of arithmetic is in
// kernels/block_sparse_attention/cpu.h.
//   z = scale q k^T (+ bias);  p = exp(z - lse);  dp = dout v^T;  dz = p (f dp - shift);  w = f p
//   dq += dz k,  dk += dz^T q,  dv += w^T dout        dq and dk without their factor scale
#pragma once
#include "csrc/attention/tiles.h"

namespace dsf::attention {
namespace {

// What forward left of a row, for every row of a tile.
struct RowGradients {
  float* lse;    // 0 where nothing was seen
  float* f;      // the share of the weight that is not the sink's
  float* shift;  // f * delta - dlse
};

// Panels of a step's keys.
struct StepPanels {
  const char* k_keys;    // panel of keys, of k
  const char* v_keys;    // panel of keys, of v
  const char* k_values;  // panels of values, of k
};

// Panels of values of a tile's rows.
struct RowPanels {
  const char* q;
  const char* dout;
};

// Sums of a step's keys, row by row of round_up(D, SUM_LANES) values; a row that is null is left out.
struct KeySums {
  float* const* dk;
  float* const* dv;
};

template <class V, Dtype dtype>
struct BackwardTile {
  using X = typename RowOf<dtype>::Value;
  using Forward = Tile<V, dtype>;
  static constexpr int64_t SQUARE = MAX_ROWS * STEP_KEYS;

  struct Scratch {
    alignas(64) float dz[SQUARE], w[SQUARE];
    alignas(64) X dz_rows[SQUARE], dz_keys[SQUARE], w_keys[SQUARE];  // as the products read them: by row, by key
    alignas(64) float scores[MAX_TILE_ROWS * STEP_KEYS], dp[MAX_TILE_ROWS * STEP_KEYS];
    alignas(64) float ones[16];
    alignas(64) float nobody[PANEL_N];  // sums of a row that is left out
  };

  static void step(const StepMask& mask, const X* q, int64_t q_stride, const X* dout, int64_t dout_stride, int64_t rows,
                   int64_t D, int64_t D_v, float scale, const RowGradients& row_gradients, const StepPanels& panels,
                   const RowPanels& row_panels, const TileSums* dq, const KeySums* sums, Scratch& scratch) {
    for (int i = 0; i < 16; ++i) scratch.ones[i] = 1.0f;
    Forward::for_each_row_tile(rows, [&](int64_t row, int64_t count) {
      const KeyRange range = range_of(mask, row, count);
      Forward::score(q + row * q_stride, q_stride, count, range, D, scale, panels.k_keys, scratch.scores);
      Forward::score(dout + row * dout_stride, dout_stride, count, range, D_v, 1.0f, panels.v_keys, scratch.dp);
      for (int64_t r = 0; r < count; ++r)
        differentiate(mask, row + r, row_gradients, scratch.scores + r * STEP_KEYS, scratch.dp + r * STEP_KEYS,
                      scratch);
      if (dq)
        Forward::add_values(scratch.dz_rows + row * STEP_KEYS, scratch.ones, count, mask.n, D, panels.k_values,
                            dq->values + row * PANEL_N);
    });
    if (!sums) return;
    clear_rows(rows, scratch.dz);
    clear_rows(rows, scratch.w);
    by_keys(rows, mask.n, scratch.dz, scratch.dz_keys);
    by_keys(rows, mask.n, scratch.w, scratch.w_keys);
    add_to_keys(scratch.dz_keys, rows, mask.n, D, row_panels.q, sums->dk, scratch);
    add_to_keys(scratch.w_keys, rows, mask.n, D_v, row_panels.dout, sums->dv, scratch);
  }

 private:
  // dz and w of one row.
  [[gnu::always_inline]] static void differentiate(const StepMask& mask, int64_t row, const RowGradients& of,
                                                   float* scores, const float* dp, Scratch& scratch) {
    const uint64_t all = mask.n == STEP_KEYS ? ~uint64_t{0} : (uint64_t{1} << mask.n) - 1;
    const uint64_t seen = mask.seen ? mask.seen[row] & all : all;
    const float* bias = mask.bias ? mask.bias + row * mask.bias_stride : nullptr;
    const bool whole = seen == ~uint64_t{0} && !bias;
    if (!whole) mask_scores<V, true>(scores, seen, bias);
    const auto lse = V::set1(of.lse[row]), f = V::set1(of.f[row]), shift = V::set1(of.shift[row]);
    const auto hidden = V::set1(NEGATIVE_INFINITY);
    const auto one = [&](int v) __attribute__((always_inline)) {
      const auto z = V::load(scores + v * V::LANES);
      const auto p = weight_of<V>(V::at_most(V::sub(z, lse), V::zero()));
      auto dz = V::mul(p, V::sub(V::mul(f, V::load(dp + v * V::LANES)), shift));
      if (!whole) dz = V::select_bits(V::bits_equal(z, hidden), V::zero(), dz);
      V::store(scratch.dz + row * STEP_KEYS + v * V::LANES, dz);
      V::store(scratch.w + row * STEP_KEYS + v * V::LANES, V::mul(f, p));
      return dz;
    };
    for (int v = 0; v < STEP_KEYS / V::LANES; v += 2) {
      const auto a = one(v), b = one(v + 1);
      X* target = scratch.dz_rows + row * STEP_KEYS + v * V::LANES;
      if constexpr (dtype == Dtype::bf16) {
        V::store_bf16_pair(target, a, b);
      } else {
        V::store(target, a);
        V::store(target + V::LANES, b);
      }
    }
  }

  // Zeros after the last row, up to whole vectors of rows.
  static void clear_rows(int64_t rows, float* square) {
    const int64_t end = round_up(rows, 2 * V::LANES);
    if (rows < end && rows < MAX_ROWS)
      __builtin_memset(square + rows * STEP_KEYS, 0, size_t((end < MAX_ROWS ? end : MAX_ROWS) - rows) * STEP_KEYS * 4);
  }

  // square[row][key] to keys[key][row], as the products read it.
  static void by_keys(int64_t rows, int64_t n, const float* square, X* keys) {
    for (int64_t key = 0; key < n; key += V::LANES) {
      for (int64_t row = 0; row < rows; row += 2 * V::LANES) {
        typename V::i32 first[V::LANES], second[V::LANES];
        DSF_UNROLL
        for (int i = 0; i < V::LANES; ++i) first[i] = V::bits_of(V::load(square + (row + i) * STEP_KEYS + key));
        V::transpose(first);
        DSF_UNROLL
        for (int i = 0; i < V::LANES; ++i)
          second[i] = V::bits_of(V::load(square + (row + V::LANES + i) * STEP_KEYS + key));
        V::transpose(second);
        for (int i = 0; i < V::LANES; ++i) {
          X* target = keys + (key + i) * STEP_KEYS + row;
          if constexpr (dtype == Dtype::bf16) {
            V::store_bf16_pair(target, V::f32_of_bits(first[i]), V::f32_of_bits(second[i]));
          } else {
            V::store(target, V::f32_of_bits(first[i]));
            V::store(target + V::LANES, V::f32_of_bits(second[i]));
          }
        }
      }
    }
  }

  // sums[key][c] += sum_row weights[key][row] * panel[row][c]
  static void add_to_keys(const X* weights, int64_t rows, int64_t n, int64_t D, const char* panels, float* const* sums,
                          Scratch& scratch) {
    for (int64_t p = 0; p < num_value_panels(D); ++p) {
      Forward::for_each_row_tile(n, [&](int64_t key, int64_t count) {
        float* at[MAX_TILE_ROWS];
        for (int64_t r = 0; r < count; ++r) at[r] = sums[key + r] ? sums[key + r] + p * PANEL_N : scratch.nobody;
        Forward::add_panel(weights + key * STEP_KEYS, count, int(rows), D - p * PANEL_N,
                           panels + p * value_panel_bytes(dtype), [&](int64_t c) { return KeyRows{at, c}; });
      });
    }
  }
};

// The sum of a[d] * b[d] over D values: SUM_LANES chains of fused multiply-adds, then halves added.
template <class V, Dtype dtype>
inline float dot_of_rows(const char* a, const char* b, int64_t D) {
  constexpr int SUMS = SUM_LANES / V::LANES;
  typename V::f32 sums[SUMS];
  for (auto& sum : sums) sum = V::zero();
  const auto load = [&](const char* row, int64_t d, int n) {
    if constexpr (dtype == Dtype::f32) return V::load_n(reinterpret_cast<const float*>(row) + d, n);
    if constexpr (dtype == Dtype::bf16) return V::load_bf16_n(reinterpret_cast<const uint16_t*>(row) + d, n);
    if constexpr (dtype == Dtype::f16) return V::load_f16_n(reinterpret_cast<const uint16_t*>(row) + d, n);
  };
  for (int64_t d = 0; d < D; d += V::LANES) {
    const int n = D - d < V::LANES ? int(D - d) : V::LANES;
    auto& sum = sums[d / V::LANES % SUMS];
    sum = V::fma(load(a, d, n), load(b, d, n), sum);
  }
  float lanes[SUM_LANES];
  for (int i = 0; i < SUMS; ++i) V::store(lanes + i * V::LANES, sums[i]);
  for (int half = SUM_LANES / 2; half >= 1; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] = lanes[i] + lanes[i + half];
  return lanes[0];
}

// 1 / (1 + exp(sink - lse)): 1 where nothing is seen.
template <class V>
inline float share_of_keys(float lse, float sink) {
  if (lse == NEGATIVE_INFINITY) return 1.0f;
  const float x = sink - lse, e = weight_of<V>(x > 0.0f ? -x : x);
  return x > 0.0f ? e / (1.0f + e) : 1.0f / (1.0f + e);
}

// values[0 ... n) * factor, rounded once to the dtype.
template <class V, Dtype dtype>
inline void store_scaled(const float* values, float factor, int64_t n, char* out) {
  for (int64_t d = 0; d < n; d += V::LANES) {
    const int count = n - d < V::LANES ? int(n - d) : V::LANES;
    const auto v = V::mul(V::load(values + d), V::set1(factor));
    if constexpr (dtype == Dtype::f32) V::store_n(reinterpret_cast<float*>(out) + d, v, count);
    if constexpr (dtype == Dtype::bf16) V::store_bf16_n(reinterpret_cast<uint16_t*>(out) + d, v, count);
    if constexpr (dtype == Dtype::f16) V::store_f16_n(reinterpret_cast<uint16_t*>(out) + d, v, count);
  }
}

}  // namespace
}  // namespace dsf::attention
