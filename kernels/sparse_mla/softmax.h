// The online softmax of a step, head by head, in f32: block_sparse_attention's cpu.h has the order.
#pragma once
#include "csrc/gemm/activation.h"
#include "kernels/sparse_mla/cpu_kernels.h"

namespace dsf::sparse_mla {
namespace {

inline constexpr float LOWEST_EXPONENT = -87.0f;  // below, exp counts as 0
inline constexpr float INF = __builtin_inff();

// exp(x) for x <= 0, NaN for NaN.
template <class V>
[[gnu::always_inline]] inline typename V::f32 exp_or_zero(typename V::f32 x) {
  const auto limit = V::set1(LOWEST_EXPONENT);
  const auto e = exp_negative<V>(V::at_least(x, limit));
  return V::select_negative(V::sub(x, limit), V::zero(), e);
}

template <class V>
inline float exp_of_number(float x) {
  float lanes[V::LANES];
  V::store(lanes, exp_or_zero<V>(V::set1(x)));
  return lanes[0];
}

// exp(before - now), exactly 1 where the maximum stayed.
template <class V>
inline float rescale(float before, float now) {
  return before == now ? 1.0f : exp_of_number<V>(before - now);
}

// 0 for an entry that counts, -1 for any other.
struct Hidden {
  alignas(64) float sign[STEP];
  bool any;

  explicit Hidden(uint64_t seen) : any(~seen != 0) {
    for (int64_t j = 0; j < STEP; ++j) sign[j] = seen >> j & 1 ? 0.0f : -1.0f;
  }
};

template <class V>
[[gnu::always_inline]] inline float largest_of(typename V::f32 v) {
#ifdef __AVX512F__
  return _mm512_reduce_max_ps(v);
#else
  float lanes[V::LANES], most = -INF;
  V::store(lanes, v);
  for (int i = 0; i < V::LANES; ++i) most = lanes[i] > most ? lanes[i] : most;
  return most;
#endif
}

// z = scale * products, -inf where hidden; the new maximum, the sums of weights, weights in place of the products and,
// where to_bf16, rounded beside them. Returns what sums so far are multiplied by.
template <class V, bool to_bf16>
inline float softmax_row(float* row, float scale, const Hidden& hidden, float* m, float* l, uint16_t* p_bf16) {
  constexpr int VECTORS = int(STEP) / V::LANES, GROUPS = int(SUM_LANES) / V::LANES;
  const auto factor = V::set1(scale), nothing = V::set1(-INF);
  auto most = nothing;
  typename V::f32 z[VECTORS];
  DSF_UNROLL
  for (int v = 0; v < VECTORS; ++v) {
    z[v] = V::mul(V::load(row + v * V::LANES), factor);
    if (hidden.any) z[v] = V::select_negative(V::load(hidden.sign + v * V::LANES), nothing, z[v]);
    most = V::max(z[v], most);
  }
  const float before = *m, largest = largest_of<V>(most), now = largest > before ? largest : before;
  const float r = rescale<V>(before, now);
  *m = now;
  const auto top = V::set1(now == -INF ? 0.0f : now), factor_r = V::set1(r);
  DSF_UNROLL
  for (int v = 0; v < VECTORS; ++v) z[v] = exp_or_zero<V>(V::sub(z[v], top));
  DSF_UNROLL
  for (int g = 0; g < GROUPS; ++g) {
    auto sum = V::mul(V::load(l + g * V::LANES), factor_r);
    DSF_UNROLL
    for (int v = g; v < VECTORS; v += GROUPS) sum = V::add(sum, z[v]);
    V::store(l + g * V::LANES, sum);
  }
  DSF_UNROLL
  for (int v = 0; v < VECTORS; ++v) {
    if constexpr (to_bf16)
      V::store_bf16_n(p_bf16 + v * V::LANES, z[v], V::LANES);
    else
      V::store(row + v * V::LANES, z[v]);
  }
  return r;
}

// Halves are added: 8, 4, 2, 1.
inline float total_of(const float* l) {
  float sums[SUM_LANES];
  for (int64_t i = 0; i < SUM_LANES; ++i) sums[i] = l[i];
  for (int64_t half = SUM_LANES / 2; half > 0; half /= 2)
    for (int64_t i = 0; i < half; ++i) sums[i] += sums[i + half];
  return sums[0];
}

}  // namespace
}  // namespace dsf::sparse_mla
