// Backward's kernels, after cpu_body.h's: what a step's scores give to q, and what waits for the rows of kv.
#pragma once

namespace dsf::sparse_mla {
namespace {

template <Dtype dtype>
struct GradientScratch {
  static constexpr Dtype PANEL = Scratch<dtype>::PANEL;
  static constexpr int64_t VALUE = Scratch<dtype>::VALUE;

  GradientScratch(int64_t heads, int64_t d_qk, int64_t d_v, char* memory) : begin_(memory), at_(memory) {
    keys = take(key_panel_bytes(PANEL, d_qk));
    rows = take(value_panel_bytes(PANEL, STEP, d_qk));
    scores = reinterpret_cast<float*>(take(heads * STEP * 4));
    dp = reinterpret_cast<float*>(take(heads * STEP * 4));
    dz = take(heads * STEP * VALUE);
    dq = reinterpret_cast<float*>(take(heads * padded_v(d_qk) * 4));
    queries = reinterpret_cast<float*>(take(dtype == Dtype::f16 ? heads * d_qk * 4 : 0));
    douts = reinterpret_cast<float*>(take(dtype == Dtype::f16 ? heads * d_v * 4 : 0));
  }
  int64_t bytes() const { return at_ - begin_; }

  char *keys, *rows;
  float *scores, *dp;
  char* dz;
  float *dq, *queries, *douts;

 private:
  char* take(int64_t bytes) {
    char* here = at_;
    at_ += round_up(bytes, CACHE_LINE);
    return here;
  }
  char *begin_, *at_;
};

template <Dtype dtype>
int64_t gradient_scratch_bytes(int64_t heads, int64_t d_qk, int64_t d_v) {
  alignas(CACHE_LINE) static char none[1];
  return GradientScratch<dtype>(heads, d_qk, d_v, none).bytes();
}

template <Dtype dtype>
void shares(int64_t heads, int64_t d_v, const void* dout, int64_t dout_head_stride, const void* out, const float* lse,
            const float* sinks, float* f, float* delta) {
  using V = Vec;
  constexpr int GROUPS = int(SUM_LANES) / V::LANES;
  for (int64_t h = 0; h < heads; ++h) {
    float lanes[SUM_LANES];
    DSF_UNROLL
    for (int g = 0; g < GROUPS; ++g) {
      auto sum = V::zero();
      for (int64_t i = g * V::LANES; i < d_v; i += SUM_LANES) {
        const int left = int(least(d_v - i, V::LANES));
        sum = V::fma(load_value<V, dtype>(dout, h * dout_head_stride + i, left),
                     load_value<V, dtype>(out, h * d_v + i, left), sum);
      }
      V::store(lanes + g * V::LANES, sum);
    }
    delta[h] = total_of(lanes);
    const bool is_lonely = lse[h] == INF || lse[h] == -INF;
    f[h] = !sinks || is_lonely ? 1.0f : 1.0f / (1.0f + __builtin_expf(sinks[h] - lse[h]));
  }
}

template <Dtype dtype>
void begin_gradient(const Query& query, const GradientRows& rows, char* memory) {
  const GradientScratch<dtype> scratch(query.heads, query.d_qk, query.d_v, memory);
  std::memset(scratch.dq, 0, size_t(query.heads * padded_v(query.d_qk)) * 4);
  if constexpr (dtype == Dtype::f16) {
    widen_rows(query.q, query.heads, query.head_stride, query.d_qk, scratch.queries);
    widen_rows(rows.dout, query.heads, rows.dout_head_stride, query.d_v, scratch.douts);
  }
}

// dz and w of one head in place of its scores and of dout's products: P = exp(z - lse), dz = P (f dp - f delta).
template <class V, Dtype panel>
inline void weights_of_row(float* scores, float* dp, float scale, float lse, float f, float delta,
                           const Hidden& hidden, void* dz_row) {
  const auto factor = V::set1(scale), of_lse = V::set1(lse), of_f = V::set1(f), shift = V::set1(f * delta);
  for (int64_t j = 0; j < STEP; j += V::LANES) {
    const auto sign = V::load(hidden.sign + j);
    const auto z = V::mul(V::load(scores + j), factor);
    const auto p = exp_or_zero<V>(V::at_most(V::sub(z, of_lse), V::zero()));
    const auto gap = V::sub(V::mul(of_f, V::load(dp + j)), shift);
    const auto dz = V::select_negative(sign, V::zero(), V::mul(p, gap));
    const auto w = V::select_negative(sign, V::zero(), V::mul(p, of_f));
    if constexpr (panel == Dtype::bf16)
      V::store_bf16_n(static_cast<uint16_t*>(dz_row) + j, dz, V::LANES);
    else
      V::store(static_cast<float*>(dz_row) + j, dz);
    V::store(scores + j, V::mul(factor, dz));
    V::store(dp + j, w);
  }
}

// to[j][h] = rows[h][j] of a step, as the tiles read weights.
template <class V, Dtype panel>
inline void transpose_weights(const float* rows, int64_t heads, void* to) {
  for (int64_t h = 0; h < heads; h += V::LANES) {
    const int left = int(least(heads - h, V::LANES));
    for (int64_t j = 0; j < STEP; j += V::LANES) {
      typename V::i32 square[V::LANES];
      DSF_UNROLL
      for (int i = 0; i < V::LANES; ++i)
        square[i] = i < left ? V::bits_of(V::load(rows + (h + i) * STEP + j)) : V::zero_i32();
      V::transpose(square);
      DSF_UNROLL
      for (int i = 0; i < V::LANES; ++i)
        store_value<V, panel>(to, (j + i) * heads + h, V::f32_of_bits(square[i]), left);
    }
  }
}

template <Dtype dtype>
void gradient_step(const Query& query, const Keys& keys, const GradientRows& rows, const Weights& weights,
                   char* memory) {
  using S = GradientScratch<dtype>;
  using V = Vec;
  constexpr bool widened = dtype == Dtype::f16;
  const S scratch(query.heads, query.d_qk, query.d_v, memory);
  pack_keys<V, dtype, S::PANEL>(keys.rows, query.d_qk, scratch.keys);
  pack_values<V, dtype, S::PANEL>(keys.rows, STEP, query.d_qk, scratch.rows);
  multiply_keys<V, S::PANEL>(query.heads, query.d_qk, widened ? scratch.queries : query.q,
                             widened ? query.d_qk : query.head_stride, scratch.keys, scratch.scores);
  multiply_keys<V, S::PANEL>(query.heads, query.d_v, widened ? scratch.douts : rows.dout,
                             widened ? query.d_v : rows.dout_head_stride, scratch.keys, scratch.dp);
  const Hidden hidden(keys.seen);
  for (int64_t h = 0; h < query.heads; ++h)
    weights_of_row<V, S::PANEL>(scratch.scores + h * STEP, scratch.dp + h * STEP, query.scale, rows.lse[h], rows.f[h],
                                rows.delta[h], hidden, scratch.dz + h * STEP * S::VALUE);
  add_values<V, S::PANEL>(query.heads, STEP, query.d_qk, scratch.dz, scratch.rows, scratch.dq);
  transpose_weights<V, S::PANEL>(scratch.scores, query.heads, weights.dz);
  transpose_weights<V, S::PANEL>(scratch.dp, query.heads, weights.w);
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

template <Dtype dtype>
int64_t head_panel_bytes(int64_t heads, int64_t d_qk, int64_t d_v) {
  constexpr Dtype PANEL = Scratch<dtype>::PANEL;
  return value_panel_bytes(PANEL, heads, d_qk) + value_panel_bytes(PANEL, heads, d_v);
}

template <Dtype dtype>
void pack_heads(const Query& query, const GradientRows& rows, char* panels) {
  constexpr Dtype PANEL = Scratch<dtype>::PANEL;
  constexpr int64_t BYTES = dtype == Dtype::f32 ? 4 : 2;
  const EvenRows q{query.q, query.head_stride * BYTES}, dout{rows.dout, rows.dout_head_stride * BYTES};
  pack_values<Vec, dtype, PANEL>(q, query.heads, query.d_qk, panels);
  pack_values<Vec, dtype, PANEL>(dout, query.heads, query.d_v,
                                 panels + value_panel_bytes(PANEL, query.heads, query.d_qk));
}

template <Dtype dtype>
int64_t add_scratch_bytes(int64_t heads, int64_t, int64_t) {
  return round_up(2 * STEP * heads * Scratch<dtype>::VALUE, CACHE_LINE) + STEP * PANEL_N * 4;
}

template <Dtype dtype>
void add_to_rows(const Query& query, int64_t count, const int64_t* entries, const Weights& weights, const char* panels,
                 float* const* rows, char* memory) {
  using S = Scratch<dtype>;
  using Tile = typename TileOf<Vec, S::PANEL>::Tile;
  const int64_t heads = query.heads, bytes = heads * S::VALUE;
  char *dz = memory, *w = memory + STEP * bytes;
  auto* sums = reinterpret_cast<float*>(memory + round_up(2 * STEP * bytes, CACHE_LINE));
  for (int64_t i = 0; i < count; ++i) {
    std::memcpy(dz + i * bytes, static_cast<const char*>(weights.dz) + entries[i] * bytes, size_t(bytes));
    std::memcpy(w + i * bytes, static_cast<const char*>(weights.w) + entries[i] * bytes, size_t(bytes));
  }
  const char* douts = panels + value_panel_bytes(S::PANEL, heads, query.d_qk);
  const int64_t panel_bytes = value_panel_bytes(S::PANEL, heads, PANEL_N);
  for (int64_t p = 0; p < padded_v(query.d_qk) / PANEL_N; ++p) {
    for (int64_t i = 0; i < count; ++i) std::memcpy(sums + i * PANEL_N, rows[i] + p * PANEL_N, PANEL_N * 4);
    multiply_panel<Tile>(count, heads, dz, heads, panels + p * panel_bytes, sums, sums);
    if (p * PANEL_N < query.d_v) multiply_panel<Tile>(count, heads, w, heads, douts + p * panel_bytes, sums, sums);
    for (int64_t i = 0; i < count; ++i) std::memcpy(rows[i] + p * PANEL_N, sums + i * PANEL_N, PANEL_N * 4);
  }
}

template <Dtype dtype>
void store_row(const float* row, int64_t n, void* to) {
  using V = Vec;
  for (int64_t i = 0; i < n; i += V::LANES) {
    const int left = int(least(n - i, V::LANES));
    store_value<V, dtype>(to, i, left < V::LANES ? V::load_n(row + i, left) : V::load(row + i), left);
  }
}

}  // namespace
}  // namespace dsf::sparse_mla
