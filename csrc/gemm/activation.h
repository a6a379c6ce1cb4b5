// Activations on vectors. Three smooth ones share one form, exact in the limits and free of cancellation:
//   act(z) = max(z, 0) - a * h(a),  a = |z|
//   gelu       h = erfc(a / sqrt 2) / 2
//   gelu_tanh  h = 1 / (1 + exp(2 u)),  u = sqrt(2 / pi) (a + 0.044715 a^3)
//   silu       h = 1 / (1 + exp(a))
// The two gelus read h from a table of polynomials, silu computes it. Measured error of an activation: at most
// 1.3 * 2^-24 * |z| (float64 emulation over 500,000 z in [-9, 9]). Two are within 3 * 2^-24 * |act(z)| (float64
// emulation, every third to eleventh f32: sigmoid 2.95, tanh 2.53):
//   sigmoid    1 / (1 + e) for z >= 0, e / (1 + e) below, e = exp(-a); 0 below -87, which is less than 2^-125 off
//   tanh       a + a s P(s), s = a^2, for a < 0.625; 1 - 2 h(2 a) with silu's h above; the sign is z's
// The others are what their formulas say, each operation rounded once:
//   relu6      min(max(z, 0), 6)
//   hardswish  z * (min(max(z + 3, 0), 6) / 6), of z up to -3 (and -inf) +0; z itself from 3 on
// Only exactly rounded operations in a fixed order: the same bits on every ISA level. NaN stays NaN; inf and -inf give
// the limits (silu of -inf within 2^-100 of it).
#pragma once
#include "csrc/gemm/activation_tables.h"
#include "csrc/gemm/linear.h"
#include "csrc/gemm/unroll.h"

namespace dsf {
namespace {

// exp(x) for -87 <= x <= 0, within 1 ULP: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2] (minimax fit, 3.1e-9).
template <class V>
inline typename V::f32 exp_negative(typename V::f32 x) {
  const auto shift = V::set1(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const auto t = V::fma(x, V::set1(1.44269504f), shift);
  const auto n = V::sub(t, shift);
  auto r = V::fma(n, V::set1(-0.693145751953125f), x);  // ln 2 in two parts (Cody and Waite)
  r = V::fma(n, V::set1(-1.42860682030941723e-6f), r);
  auto p = V::set1(1.381459879e-03f);
  p = V::fma(p, r, V::set1(8.368716575e-03f));
  p = V::fma(p, r, V::set1(4.166838899e-02f));
  p = V::fma(p, r, V::set1(1.666652113e-01f));
  p = V::fma(p, r, V::set1(4.999999404e-01f));
  p = V::fma(p, r, V::set1(1.0f));
  p = V::fma(p, r, V::set1(1.0f));
  return V::mul(p, V::pow2_of_shifted(t));
}

// h(min(a, TABLE_LIMIT)): 16 intervals of a, one lane of a register each. Six lookups and five multiply-adds; the
// erfc formula with exp takes 28 (16 cycles a vector against 9, Zen 5, November 2026).
template <class V>
inline typename V::f32 table_value(const float (*table)[16], typename V::f32 limited_a) {
  const auto steps = V::mul(limited_a, V::set1(TABLE_STEPS));
  const auto interval = V::truncate(steps);
  const auto f = V::sub(steps, V::to_f32(interval));
  auto h = V::lookup(table[TABLE_DEGREE], interval);
  DSF_UNROLL
  for (int d = TABLE_DEGREE - 1; d >= 0; --d) h = V::fma(h, f, V::lookup(table[d], interval));
  return h;
}

// 1 / (1 + exp(u)) for 0 <= u <= 87.
template <class V>
inline typename V::f32 falling_sigmoid(typename V::f32 u) {
  const auto e = exp_negative<V>(V::negate(u));
  return V::div(e, V::add(V::set1(1.0f), e));
}

template <class V>
inline typename V::f32 sigmoid(typename V::f32 z) {
  constexpr float LIMIT = 87.0f;                // of |z|, for exp's argument
  constexpr int32_t AFTER_LIMIT = -1028784127;  // the bits of -87, plus 1: the larger a negative number, the higher
  const auto e = exp_negative<V>(V::negate(V::min_limit(V::abs(z), LIMIT)));
  const auto one = V::set1(1.0f);
  const auto bits = V::bits_of(z);
  const auto not_negative = V::select_below(bits, 0, V::zero_i32(), V::bits_of(one));
  const auto share = V::f32_of_bits(V::select_below(bits, AFTER_LIMIT, V::bits_of(e), not_negative));
  return V::div(share, V::add(one, e));
}

template <class V>
inline typename V::f32 tanh(typename V::f32 z) {
  constexpr int32_t BEND = 0x3F200000;  // the bits of 0.625
  const auto a = V::abs(z);
  const auto s = V::mul(a, a);
  auto p = V::set1(-5.70498733e-03f);  // (tanh(a) / a - 1) / s on [0, 0.625], minimax fit: tanh to within 4.4e-9
  p = V::fma(p, s, V::set1(2.0639088e-02f));
  p = V::fma(p, s, V::set1(-5.37397154e-02f));
  p = V::fma(p, s, V::set1(1.33314416e-01f));
  p = V::fma(p, s, V::set1(-3.33332807e-01f));
  const auto near = V::fma(V::mul(p, s), a, a);
  const auto far = V::fma(V::set1(-2.0f), falling_sigmoid<V>(V::min_limit(V::add(a, a), 87.0f)), V::set1(1.0f));
  const auto size = V::select_below(V::bits_of(a), BEND, V::bits_of(near), V::bits_of(far));
  return V::f32_of_bits(V::or_bits(size, V::and_bits(V::bits_of(z), INT32_MIN)));
}

template <class V>
inline typename V::f32 hardswish(typename V::f32 z) {
  const auto share = V::div(V::min_limit(V::max0(V::add(z, V::set1(3.0f))), 6.0f), V::set1(6.0f));
  // Not z, which may be -inf; + 0, so that 0 has its sign.
  return V::fma(V::negate(V::min_limit(V::negate(z), 3.0f)), share, V::zero());
}

template <class V, Activation activation>
inline typename V::f32 activate(typename V::f32 z) {
  if constexpr (activation == Activation::none) return z;
  if constexpr (activation == Activation::hardswish) return hardswish<V>(z);
  if constexpr (activation == Activation::sigmoid) return sigmoid<V>(z);
  if constexpr (activation == Activation::tanh) return tanh<V>(z);
  const auto positive = V::max0(z);
  if constexpr (activation == Activation::relu) return positive;
  if constexpr (activation == Activation::relu6) return V::min_limit(positive, 6.0f);
  if constexpr (activation == Activation::gelu || activation == Activation::gelu_tanh) {
    const auto a = V::min_limit(V::abs(z), TABLE_LIMIT);
    const auto h = table_value<V>(activation == Activation::gelu ? GELU_TABLE : GELU_TANH_TABLE, a);
    return V::fma(V::negate(a), h, positive);
  }
  if constexpr (activation == Activation::silu) {
    const auto a = V::min_limit(V::abs(z), 87.0f);  // exp's argument stays above -87; beyond, a * h(a) < 2^-100
    return V::fma(V::negate(a), falling_sigmoid<V>(a), positive);
  }
}

}  // namespace
}  // namespace dsf
