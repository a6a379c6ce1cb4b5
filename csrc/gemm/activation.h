// Activations on vectors. The smooth ones share one form, exact in the limits and free of cancellation:
//   act(z) = max(z, 0) - a * h(a),  a = |z|
//   gelu       h = erfc(a / sqrt 2) / 2
//   gelu_tanh  h = 1 / (1 + exp(2 u)),  u = sqrt(2 / pi) (a + 0.044715 a^3)
//   silu       h = 1 / (1 + exp(a))
// Only exactly rounded operations in a fixed order: the same bits on every ISA level. NaN stays NaN;
// -inf gives a value within 2^-100 of 0, inf gives inf.
#pragma once
#include "csrc/gemm/linear.h"

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

// erfc(a / sqrt 2) / 2 for 0 <= a <= 13.1: a polynomial in t = 1 / (1 + 0.225 a) times exp(-a^2 / 2), the form of
// Abramowitz and Stegun 7.1.26 with a fit of degree 8 (relative error 6.8e-8 before rounding).
template <class V>
inline typename V::f32 half_erfc(typename V::f32 a) {
  const auto one = V::set1(1.0f);
  const auto t = V::div(one, V::fma(a, V::set1(0.225f), one));
  auto p = V::set1(-9.2608884e-02f);
  p = V::fma(p, t, V::set1(3.795005977e-01f));
  p = V::fma(p, t, V::set1(-4.375911653e-01f));
  p = V::fma(p, t, V::set1(4.582712352e-01f));
  p = V::fma(p, t, V::set1(-1.272199154e-01f));
  p = V::fma(p, t, V::set1(1.524366885e-01f));
  p = V::fma(p, t, V::set1(7.591269165e-02f));
  p = V::fma(p, t, V::set1(9.138066322e-02f));
  p = V::fma(p, t, V::set1(-8.189776418e-05f));
  return V::mul(p, exp_negative<V>(V::mul(V::mul(a, a), V::set1(-0.5f))));
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
  // The limits keep exp's argument above -87; beyond them a * h(a) is below 2^-100.
  if constexpr (activation == Activation::gelu) {
    const auto a = V::min_limit(V::abs(z), 13.1f);
    return V::fma(V::negate(a), half_erfc<V>(a), positive);
  }
  if constexpr (activation == Activation::gelu_tanh) {
    const auto a = V::min_limit(V::abs(z), 9.9f);
    const auto a2 = V::mul(a, a);
    const auto u2 = V::mul(a, V::fma(a2, V::set1(0.0713548162f), V::set1(1.59576912f)));  // 2 sqrt(2/pi) (0.044715, 1)
    return V::fma(V::negate(a), falling_sigmoid<V>(u2), positive);
  }
  if constexpr (activation == Activation::silu) {
    const auto a = V::min_limit(V::abs(z), 87.0f);
    return V::fma(V::negate(a), falling_sigmoid<V>(a), positive);
  }
}

}  // namespace
}  // namespace dsf
