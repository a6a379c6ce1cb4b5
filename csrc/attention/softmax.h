// Online softmax of a tile's rows: a step of keys at a time, a row's maximum, its weights' sum and its weighted values'
// sums so far are kept. Milakov and Gimelshein 2018; Dao et al. 2022. The order of arithmetic is in
// kernels/block_sparse_attention/cpu.h.
#pragma once
#include <cstdint>

#include "csrc/attention/panels.h"
#include "csrc/gemm/activation.h"

namespace dsf::attention {

inline constexpr int SUM_LANES = 16;         // partial sums of a row's weights
inline constexpr int64_t MAX_TILE_ROWS = 8;  // of register tiles, on every level

// What a step adds to the scores, and which keys its rows see.
struct StepMask {
  int n;                 // keys of the step, 1 to STEP_KEYS
  const uint64_t* seen;  // of each row, bit t: it sees key t; null: every row sees all n
  const float* bias;     // STEP_KEYS values a row; null: none
  int64_t bias_stride;   // 0: the same for every row
};

// Keys of a step from `begin`, an even one, to `end`.
struct KeyRange {
  int begin, end;

  int count() const { return end > begin ? end - begin : 0; }
};

namespace {

// Those that some of `count` rows see: at the edges of windows far from all.
inline KeyRange range_of(const StepMask& mask, int64_t row, int64_t count) {
  if (!mask.seen) return {0, mask.n};
  uint64_t some = 0;
  for (int64_t r = row; r < row + count; ++r) some |= mask.seen[r];
  if (mask.n < STEP_KEYS) some &= (uint64_t{1} << mask.n) - 1;
  if (!some) return {0, 0};
  return {__builtin_ctzll(some) & ~1, 64 - __builtin_clzll(some)};
}

constexpr float NEGATIVE_INFINITY = -__builtin_inff();
constexpr float LEAST_EXPONENT = -87.0f;  // below it a weight is 0: exp_negative's range, and above the subnormals

// exp(x) of x <= 0; 0 below LEAST_EXPONENT; of NaN NaN.
template <class V>
[[gnu::always_inline]] inline typename V::f32 weight_of(typename V::f32 x) {
  const auto e = exp_negative<V>(V::at_least(x, V::set1(LEAST_EXPONENT)));
  return V::select_negative(V::sub(x, V::set1(LEAST_EXPONENT)), V::zero(), e);
}

template <class V>
inline float weight_of(float x) {
  float lanes[V::LANES];
  V::store(lanes, weight_of<V>(V::set1(x)));
  return lanes[0];
}

// log(x) of normal x >= 1 within 1 ULP; of NaN NaN. x = 2^e (1 + f) with 1 + f from sqrt(1/2) to sqrt 2, and
// log(1 + f) = f - f^2 / 2 + f^3 P(f) (minimax fit, 7.5e-10).
template <class V>
[[gnu::always_inline]] inline typename V::f32 log_of(typename V::f32 x) {
  constexpr int32_t SQRT_HALF = 0x3F3504F3;
  const auto bits = V::add_i32(V::bits_of(x), -SQRT_HALF);
  const auto e = V::to_f32(V::template shift_right<23>(bits));
  const auto f = V::sub(V::f32_of_bits(V::add_i32(V::and_bits(bits, 0x7FFFFF), SQRT_HALF)), V::set1(1.0f));
  const auto square = V::mul(f, f);
  auto p = V::set1(6.746640056e-02f);
  p = V::fma(p, f, V::set1(-1.167565212e-01f));
  p = V::fma(p, f, V::set1(1.188816205e-01f));
  p = V::fma(p, f, V::set1(-1.240558922e-01f));
  p = V::fma(p, f, V::set1(1.421955228e-01f));
  p = V::fma(p, f, V::set1(-1.666799635e-01f));
  p = V::fma(p, f, V::set1(2.000211924e-01f));
  p = V::fma(p, f, V::set1(-2.500000894e-01f));
  p = V::fma(p, f, V::set1(3.333331347e-01f));
  p = V::mul(V::mul(p, f), square);
  p = V::fma(e, V::set1(-2.121944400e-04f), p);  // ln 2 in two parts
  p = V::fma(V::set1(-0.5f), square, p);
  const auto log = V::fma(e, V::set1(0.693359375f), V::add(f, p));
  return V::add(log, V::sub(x, x));  // NaN stays
}

// z = score + bias, -inf where hidden (by seen or a bias of -inf), written to the row of scores; returns the largest,
// NaN where all others are -inf.
template <class V, bool masked>
[[gnu::always_inline]] inline float mask_scores(float* scores, uint64_t seen, const float* bias) {
  constexpr int VECTORS = STEP_KEYS / V::LANES;
  typename V::f32 top = V::set1(NEGATIVE_INFINITY);
  DSF_UNROLL
  for (int v = 0; v < VECTORS; ++v) {
    auto z = V::load(scores + v * V::LANES);
    if constexpr (masked) {
      if (bias) {
        const auto b = V::load(bias + v * V::LANES), hidden = V::set1(NEGATIVE_INFINITY);
        z = V::select_bits(V::bits_equal(b, hidden), hidden, V::add(z, b));
      }
      z = V::select_bits(uint32_t(seen >> (v * V::LANES)), z, V::set1(NEGATIVE_INFINITY));
      V::store(scores + v * V::LANES, z);
    }
    top = V::max(z, top);  // top where z is NaN
  }
  const float largest = V::largest(top);
  if (largest == NEGATIVE_INFINITY) [[unlikely]]
    for (int t = 0; t < STEP_KEYS; ++t)
      if (scores[t] != scores[t]) return scores[t];
  return largest;
}

// Weights p of a row's scores, as the products read them, and their sums: l = l * r + p.
template <class V, Dtype dtype>
[[gnu::always_inline]] inline void weigh_scores(const float* scores, float m, float r, float* sums, void* weights) {
  constexpr int VECTORS = STEP_KEYS / V::LANES, SUMS = SUM_LANES / V::LANES;
  typename V::f32 l[SUMS];
  DSF_UNROLL
  for (int i = 0; i < SUMS; ++i) l[i] = V::mul(V::load(sums + i * V::LANES), V::set1(r));
  const auto largest = V::set1(m);
  const auto weigh = [&](int v) __attribute__((always_inline)) {
    const auto p = weight_of<V>(V::sub(V::load(scores + v * V::LANES), largest));
    l[v % SUMS] = V::add(l[v % SUMS], p);
    return p;
  };
  DSF_UNROLL
  for (int v = 0; v < VECTORS; v += 2) {
    const auto a = weigh(v), b = weigh(v + 1);
    if constexpr (dtype == Dtype::bf16) {
      V::store_bf16_pair(static_cast<uint16_t*>(weights) + v * V::LANES, a, b);
    } else {
      V::store(static_cast<float*>(weights) + v * V::LANES, a);
      V::store(static_cast<float*>(weights) + (v + 1) * V::LANES, b);
    }
  }
  DSF_UNROLL
  for (int i = 0; i < SUMS; ++i) V::store(sums + i * V::LANES, l[i]);
}

// A step's scores of `rows` rows become weights; m and sums (SUM_LANES a row) go on; factors[row] (of whole vectors)
// is what the sums of values so far are multiplied by. A row that sees nothing of the step stays as it is.
template <class V, Dtype dtype>
inline void softmax_step(const StepMask& mask, int64_t first_row, int64_t rows, float* scores, float* m, float* sums,
                         float* factors, void* weights) {
  constexpr int64_t WEIGHT_BYTES = panel_value_bytes(dtype);
  const uint64_t all = mask.n == STEP_KEYS ? ~uint64_t{0} : (uint64_t{1} << mask.n) - 1;
  alignas(64) float before[16] = {}, after[16] = {};
  for (int64_t row = 0; row < rows; ++row) {
    const uint64_t seen = mask.seen ? mask.seen[first_row + row] & all : all;
    const float* bias = mask.bias ? mask.bias + (first_row + row) * mask.bias_stride : nullptr;
    float* z = scores + row * STEP_KEYS;
    const bool whole = seen == ~uint64_t{0} && !bias;
    const float top = whole ? mask_scores<V, false>(z, seen, bias) : mask_scores<V, true>(z, seen, bias);
    before[row] = m[row];
    after[row] = m[row] >= top ? m[row] : top;  // a NaN is the later one's
  }
  for (int64_t row = 0; row < rows; row += V::LANES) {
    // exp(before - after), exactly 1 where they are equal, be they infinite.
    const auto a = V::load(before + row), b = V::load(after + row);
    V::store(factors + row, V::select_bits(V::bits_equal(a, b), V::set1(1.0f), weight_of<V>(V::sub(a, b))));
  }
  for (int64_t row = 0; row < rows; ++row) {
    char* p = static_cast<char*>(weights) + row * STEP_KEYS * WEIGHT_BYTES;
    m[row] = after[row];
    if (after[row] == NEGATIVE_INFINITY) [[unlikely]]
      __builtin_memset(p, 0, STEP_KEYS * WEIGHT_BYTES);
    else
      weigh_scores<V, dtype>(scores + row * STEP_KEYS, after[row], factors[row], sums + row * SUM_LANES, p);
  }
}

}  // namespace
}  // namespace dsf::attention
