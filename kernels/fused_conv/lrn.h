// Local response norms: the squares of some pixels into scratch rows, then sums of neighbors by loads that overlap.
// The rows of several pixels lie between a square's store and its load: a load that straddles two stores still in the
// store buffer would wait for them.
#pragma once
#include <cstdint>

#include "csrc/gemm/epilogue.h"
#include "csrc/gemm/unroll.h"
#include "kernels/fused_conv/cpu_kernels.h"

namespace dsf::fused_conv {
namespace {

enum class LrnPower { half, three_quarters, one, any };

// d^beta.
template <class V, LrnPower power>
[[gnu::always_inline]] inline typename V::f32 raised(typename V::f32 d, float beta) {
  if constexpr (power == LrnPower::one) return d;
  if constexpr (power == LrnPower::any) {
    float values[V::LANES];
    V::store(values, d);
    for (float& value : values) value = __builtin_powf(value, beta);
    return V::load(values);
  }
  const auto root = V::sqrt(d);
  return power == LrnPower::half ? root : V::mul(root, V::sqrt(root));
}

template <class V>
inline int lanes(int64_t channels) {
  return channels < V::LANES ? int(channels) : V::LANES;
}

// squares[before + c] = x[c]^2, and zeros up to a whole vector.
template <class V, Dtype dtype>
[[gnu::noinline]] void square(const LrnRule& rule, const LrnBlock& block) {
  constexpr int64_t BYTES = dtype == Dtype::f32 ? 4 : 2;
  const char* x = block.x;
  float* squares = block.squares + rule.before;
  for (int64_t i = 0; i < block.pixels; ++i, x += block.x_stride * BYTES, squares += squares_row(rule, block.channels))
    for (int64_t c = 0; c < block.channels; c += V::LANES) {
      const auto value = load_value<V, dtype>(x, c, lanes<V>(block.channels - c));
      V::store(squares + c, V::mul(value, value));
    }
}

// taps: before + 1 + after; 0: any number.
template <class V, Dtype dtype, LrnPower power, int taps>
[[gnu::noinline]] void divide(const LrnRule& rule, const LrnBlock& block) {
  constexpr int64_t BYTES = dtype == Dtype::f32 ? 4 : 2;
  const auto scale = V::set1(rule.scale), k = V::set1(rule.k);
  const int64_t count = taps ? taps : rule.before + 1 + rule.after;
  const char* x = block.x;
  char* y = block.y;
  const float* squares = block.squares;
  for (int64_t i = 0; i < block.pixels; ++i) {
    for (int64_t c = 0; c < block.channels; c += V::LANES) {
      auto sum = V::load(squares + c);
      DSF_UNROLL
      for (int64_t t = 1; t < count; ++t) sum = V::add(sum, V::load(squares + c + t));
      const auto d = raised<V, power>(V::fma(scale, sum, k), rule.beta);
      const int n = lanes<V>(block.channels - c);
      store_value<V, dtype>(y, c, V::div(load_value<V, dtype>(x, c, n), d), n);
    }
    x += block.x_stride * BYTES, y += block.y_stride * BYTES;
    squares += squares_row(rule, block.channels);
  }
}

template <class V, Dtype dtype, LrnPower power>
void divide_by_power(const LrnRule& rule, const LrnBlock& block) {
  const int64_t taps = rule.before + 1 + rule.after;
  if (taps == 5) return divide<V, dtype, power, 5>(rule, block);
  if (taps == 3) return divide<V, dtype, power, 3>(rule, block);
  divide<V, dtype, power, 0>(rule, block);
}

template <class V, Dtype dtype>
void lrn(const LrnRule& rule, const LrnBlock& block) {
  square<V, dtype>(rule, block);
  if (rule.beta == 0.75f) return divide_by_power<V, dtype, LrnPower::three_quarters>(rule, block);
  if (rule.beta == 0.5f) return divide_by_power<V, dtype, LrnPower::half>(rule, block);
  if (rule.beta == 1.0f) return divide_by_power<V, dtype, LrnPower::one>(rule, block);
  divide<V, dtype, LrnPower::any, 0>(rule, block);
}

}  // namespace
}  // namespace dsf::fused_conv
