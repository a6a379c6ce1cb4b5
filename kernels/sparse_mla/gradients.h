// Backward's kernels, after cpu_body.h's: what a step's scores give to q, and what waits for the rows of kv.
#pragma once

namespace dsf::sparse_mla {
namespace {

using attention::num_value_panels;
using attention::value_panel_bytes;
using attention::value_panels_bytes;

template <Dtype dtype>
struct GradientScratch {
  GradientScratch(int64_t heads, int64_t d_qk, int64_t d_v, char* memory) {
    Taker taker{memory};
    keys = taker.take(attention::key_panel_bytes(PANEL<dtype>, d_qk));
    rows = taker.take(value_panels_bytes(PANEL<dtype>, d_qk));
    scores = taker.take<float>(heads * STEP * 4);
    dp = taker.take<float>(heads * STEP * 4);
    dz = taker.take(heads * STEP * VALUE<dtype>);
    dq = taker.take<float>(heads * num_value_panels(d_qk) * PANEL_N * 4);
    queries = taker.take<float>(dtype == Dtype::f16 ? heads * d_qk * 4 : 0);
    douts = taker.take<float>(dtype == Dtype::f16 ? heads * d_v * 4 : 0);
    bytes = taker.at - memory;
  }
  char *keys, *rows;
  float *scores, *dp;
  char* dz;
  float *dq, *queries, *douts;
  int64_t bytes;
};

template <Dtype dtype>
int64_t gradient_scratch_bytes(int64_t heads, int64_t d_qk, int64_t d_v) {
  static char none;
  return GradientScratch<dtype>(heads, d_qk, d_v, &none).bytes;
}

// Rows of x against one panel of PANEL_N columns; sums, which go on from start where there is one, are rows of PANEL_N.
template <Dtype dtype>
inline void multiply_panel(int64_t rows, int64_t K, const void* x, int64_t x_stride, const char* panel,
                           const float* start, float* sums) {
  using Tile = typename attention::ProductOf<Vec, dtype>::Tile;
  constexpr int BLOCK = Tile::NV * Tile::COLUMNS;
  RowTiles<Tile, Tile> tiles(rows);
  for (int64_t m = 0; m < rows;) {
    const int count = tiles.next(m == 0);
    const auto* x_rows = static_cast<const typename Tile::X*>(x) + m * x_stride;
    for (int c = 0; c < PANEL_N; c += BLOCK)
      run_whole_rows<Tile, Tile::MR>(count, K, x_rows, x_stride, panel + c * (Tile::GROUP_BYTES / PANEL_N),
                                     start ? start + m * PANEL_N + c : nullptr,
                                     typename Tile::Store{sums + m * PANEL_N + c});
    m += count;
  }
}

// delta[h] = dot(dout[h], out[h]) in SUM_LANES sums, halves added; f[h] = 1 / (1 + exp(sink - lse)).
template <Dtype dtype>
void shares(int64_t heads, int64_t d_v, const void* dout, int64_t dout_head_stride, const void* out, const float* lse,
            const float* sinks, float* f, float* delta) {
  using V = Vec;
  constexpr int LANES = attention::SUM_LANES;
  for (int64_t h = 0; h < heads; ++h) {
    float lanes[LANES];
    for (int lane = 0; lane < LANES; lane += V::LANES) {
      auto sum = V::zero();
      for (int64_t i = lane; i < d_v; i += LANES) {
        const int left = int(least(d_v - i, V::LANES));
        sum = V::fma(load_value<V, dtype>(dout, h * dout_head_stride + i, left),
                     load_value<V, dtype>(out, h * d_v + i, left), sum);
      }
      V::store(lanes + lane, sum);
    }
    for (int half = LANES / 2; half >= 1; half /= 2)
      for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    delta[h] = lanes[0];
    const bool is_lonely = lse[h] == -attention::NEGATIVE_INFINITY;
    f[h] = !sinks || is_lonely ? 1.0f : 1.0f / (1.0f + __builtin_expf(sinks[h] - lse[h]));
  }
}

template <Dtype dtype>
void begin_gradient(const Query& query, const GradientRows& rows, char* memory) {
  const GradientScratch<dtype> scratch(query.heads, query.d_qk, query.d_v, memory);
  std::memset(scratch.dq, 0, size_t(query.heads * num_value_panels(query.d_qk) * PANEL_N) * 4);
  if constexpr (dtype == Dtype::f16) {
    widen_rows(query.q, query.heads, query.head_stride, query.d_qk, scratch.queries);
    widen_rows(rows.dout, query.heads, rows.dout_head_stride, query.d_v, scratch.douts);
  }
}

// Of one head: P = exp(z - lse), dz = P (f dp - f delta), as the tiles read it; scale * dz in place of the scores and
// w = f P in place of dp.
template <class V, Dtype dtype>
inline void weights_of_row(float* scores, float* dp, float scale, float lse, float f, float delta, uint64_t seen,
                           void* dz_row) {
  const auto factor = V::set1(scale), of_lse = V::set1(lse), of_f = V::set1(f), shift = V::set1(f * delta);
  for (int j = 0; j < STEP; j += V::LANES) {
    const auto z = V::mul(V::load(scores + j), factor);
    const auto p = attention::weight_of<V>(V::at_most(V::sub(z, of_lse), V::zero()));
    const auto gap = V::sub(V::mul(of_f, V::load(dp + j)), shift);
    const auto dz = V::select_bits(uint32_t(seen >> j), V::mul(p, gap), V::zero());
    const auto w = V::select_bits(uint32_t(seen >> j), V::mul(p, of_f), V::zero());
    if constexpr (dtype == Dtype::bf16)
      V::store_bf16_n(static_cast<uint16_t*>(dz_row) + j, dz, V::LANES);
    else
      V::store(static_cast<float*>(dz_row) + j, dz);
    V::store(scores + j, V::mul(factor, dz));
    V::store(dp + j, w);
  }
}

// to[j][h] = rows[h][j] of a step, as the tiles read weights.
template <class V, Dtype dtype>
inline void transpose_weights(const float* rows, int64_t heads, int n, void* to) {
  for (int64_t h = 0; h < heads; h += V::LANES) {
    const int left = int(least(heads - h, V::LANES));
    for (int64_t j = 0; j < n; j += V::LANES) {
      typename V::i32 square[V::LANES];
      DSF_UNROLL
      for (int i = 0; i < V::LANES; ++i)
        square[i] = i < left ? V::bits_of(V::load(rows + (h + i) * STEP + j)) : V::zero_i32();
      V::transpose(square);
      for (int i = 0; i < V::LANES && j + i < n; ++i)
        store_value<V, dtype>(to, (j + i) * heads + h, V::f32_of_bits(square[i]), left);
    }
  }
}

template <Dtype dtype>
void gradient_step(const Query& query, const Keys& keys, const GradientRows& rows, const Weights& weights,
                   char* memory) {
  using V = Vec;
  constexpr Dtype P = PANEL<dtype>;
  const GradientScratch<dtype> scratch(query.heads, query.d_qk, query.d_v, memory);
  attention::pack_keys<V, dtype>(keys.rows, keys.n, query.d_qk, scratch.keys);
  attention::pack_values<V, dtype>(keys.rows, keys.n, query.d_qk, scratch.rows);
  const QueryRows<dtype> q(query.q, query.head_stride, query.d_qk, scratch.queries);
  const QueryRows<dtype> dout(rows.dout, rows.dout_head_stride, query.d_v, scratch.douts);
  multiply_panel<P>(query.heads, query.d_qk, q.first, q.stride, scratch.keys, nullptr, scratch.scores);
  multiply_panel<P>(query.heads, query.d_v, dout.first, dout.stride, scratch.keys, nullptr, scratch.dp);
  for (int64_t h = 0; h < query.heads; ++h)
    weights_of_row<V, P>(scratch.scores + h * STEP, scratch.dp + h * STEP, query.scale, rows.lse[h], rows.f[h],
                         rows.delta[h], keys.seen, scratch.dz + h * STEP * VALUE<dtype>);
  const auto* dz = static_cast<const void*>(scratch.dz);
  for (int64_t p = 0; p < num_value_panels(query.d_qk); ++p) {
    float* dq = scratch.dq + p * query.heads * PANEL_N;
    multiply_panel<P>(query.heads, keys.n, dz, STEP, scratch.rows + p * value_panel_bytes(P), dq, dq);
  }
  transpose_weights<V, P>(scratch.scores, query.heads, keys.n, weights.dz);
  transpose_weights<V, P>(scratch.dp, query.heads, keys.n, weights.w);
}

template <Dtype dtype>
void finish_gradient(const Query& query, void* dq, char* memory) {
  using V = Vec;
  const GradientScratch<dtype> scratch(query.heads, query.d_qk, query.d_v, memory);
  const auto scale = V::set1(query.scale);
  for (int64_t h = 0; h < query.heads; ++h)
    for (int64_t c = 0; c < query.d_qk; c += V::LANES) {
      const float* at = scratch.dq + (c / PANEL_N * query.heads + h) * PANEL_N + c % PANEL_N;
      store_value<V, dtype>(dq, h * query.d_qk + c, V::mul(V::load(at), scale), int(least(query.d_qk - c, V::LANES)));
    }
}

// STEP heads a part: panels of q's columns, then of dout's.
template <Dtype dtype>
int64_t part_panel_bytes(int64_t d_qk, int64_t d_v) {
  return value_panels_bytes(PANEL<dtype>, d_qk) + value_panels_bytes(PANEL<dtype>, d_v);
}
template <Dtype dtype>
int64_t head_panel_bytes(int64_t heads, int64_t d_qk, int64_t d_v) {
  return (heads + STEP - 1) / STEP * part_panel_bytes<dtype>(d_qk, d_v);
}

template <Dtype dtype>
void pack_heads(const Query& query, const GradientRows& rows, char* panels) {
  constexpr int64_t BYTES = dtype == Dtype::f32 ? 4 : 2;
  for (int64_t first = 0; first < query.heads; first += STEP) {
    const int64_t count = least(STEP, query.heads - first);
    const char *q[STEP], *dout[STEP];
    for (int64_t h = 0; h < count; ++h) {
      q[h] = static_cast<const char*>(query.q) + (first + h) * query.head_stride * BYTES;
      dout[h] = static_cast<const char*>(rows.dout) + (first + h) * rows.dout_head_stride * BYTES;
    }
    attention::pack_values<Vec, dtype>(q, count, query.d_qk, panels);
    attention::pack_values<Vec, dtype>(dout, count, query.d_v, panels + value_panels_bytes(PANEL<dtype>, query.d_qk));
    panels += part_panel_bytes<dtype>(query.d_qk, query.d_v);
  }
}

template <Dtype dtype>
int64_t add_scratch_bytes() {
  return 2 * STEP * STEP * VALUE<dtype>;
}

// Weights of some entries and of heads [first, first + count), as rows of STEP; zeros after them.
template <Dtype dtype>
inline void gather_weights(const void* weights, int64_t heads, int64_t first, int64_t count, int64_t n,
                           const int64_t* entries, char* to) {
  for (int64_t i = 0; i < n; ++i, to += STEP * VALUE<dtype>) {
    const char* from = static_cast<const char*>(weights) + (entries[i] * heads + first) * VALUE<dtype>;
    std::memcpy(to, from, size_t(count * VALUE<dtype>));
    std::memset(to + count * VALUE<dtype>, 0, size_t((STEP - count) * VALUE<dtype>));
  }
}

template <Dtype dtype>
void add_to_rows(const Query& query, int64_t count, const int64_t* entries, const Weights& weights, const char* panels,
                 float* const* rows, char* memory) {
  constexpr Dtype P = PANEL<dtype>;
  using Tile = attention::Tile<Vec, P>;
  const int64_t heads = query.heads;
  auto* dz = reinterpret_cast<typename Tile::X*>(memory);
  auto* w = dz + STEP * STEP;
  for (int64_t first = 0; first < heads; first += STEP, panels += part_panel_bytes<dtype>(query.d_qk, query.d_v)) {
    const int64_t of_part = least(STEP, heads - first);
    gather_weights<dtype>(weights.dz, heads, first, of_part, count, entries, reinterpret_cast<char*>(dz));
    gather_weights<dtype>(weights.w, heads, first, of_part, count, entries, reinterpret_cast<char*>(w));
    const char* douts = panels + value_panels_bytes(P, query.d_qk);
    for (int64_t p = 0; p < num_value_panels(query.d_qk); ++p) {
      const int64_t column = p * PANEL_N, at = p * value_panel_bytes(P);
      Tile::for_each_row_tile(count, [&](int64_t row, int64_t of_tile) {
        float* sums[attention::MAX_TILE_ROWS];
        for (int64_t r = 0; r < of_tile; ++r) sums[r] = rows[row + r] + column;
        const auto sums_of = [&](int64_t c) { return attention::KeyRows{sums, c}; };
        Tile::add_panel(dz + row * STEP, of_tile, int(of_part), query.d_qk - column, panels + at, sums_of);
        if (column < query.d_v)
          Tile::add_panel(w + row * STEP, of_tile, int(of_part), query.d_v - column, douts + at, sums_of);
      });
    }
  }
}

template <Dtype dtype>
void store_row(const float* row, int64_t n, void* to) {
  using V = Vec;
  for (int64_t i = 0; i < n; i += V::LANES) {
    const int left = int(least(n - i, V::LANES));
    store_value<V, dtype>(to, i, load_value<V, Dtype::f32>(row, i, left), left);
  }
}

}  // namespace
}  // namespace dsf::sparse_mla
