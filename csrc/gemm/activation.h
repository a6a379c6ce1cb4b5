// Activations on vectors. The smooth ones share one form, exact in the limits and free of cancellation:
//   act(z) = max(z, 0) - a * h(a),  a = |z|
//   gelu       h = erfc(a / sqrt 2) / 2
//   gelu_tanh  h = 1 / (1 + exp(2 u)),  u = sqrt(2 / pi) (a + 0.044715 a^3)
//   silu       h = 1 / (1 + exp(a))
// The two gelus read h from a table of polynomials, silu computes it. Measured error of an activation: at most
// 1.3 * 2^-24 * |z| (float64 emulation over 500,000 z in [-9, 9]).
// Only exactly rounded operations in a fixed order: the same bits on every ISA level. NaN stays NaN; inf gives inf,
// -inf gives 0 (silu: within 2^-100 of it).
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

template <class V, Activation activation>
inline typename V::f32 activate(typename V::f32 z) {
  if constexpr (activation == Activation::none) return z;
  const auto positive = V::max0(z);
  if constexpr (activation == Activation::relu) return positive;
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
