// The end of a convolution, shared by every path: sums -> + bias -> + residual -> activation -> + residual -> y.
// What is cut off at limits is finished in registers; a curved activation takes the sums through a scratch row.
#pragma once
#include <cstdint>

#include "csrc/gemm/activation.h"
#include "csrc/gemm/epilogue.h"
#include "kernels/fused_conv/cpu_kernels.h"

namespace dsf::fused_conv {
namespace {

// min(max(z, lowest), highest), NaN stays NaN.
struct Limits {
  float lowest, highest;
};

// none, relu, relu6 and clip are their limits.
inline Limits limits_of(const ConvArgs& args) {
  constexpr float INF = __builtin_inff();
  switch (args.activation) {
    case ConvActivation::relu:
      return {0, INF};
    case ConvActivation::relu6:
      return {0, 6};
    case ConvActivation::clip:
      return {args.params[0], args.params[1]};
    default:
      return {-INF, INF};
  }
}

template <class V, ConvActivation activation>
inline typename V::f32 curve(typename V::f32 z, const float* params) {
  if constexpr (activation == ConvActivation::leaky_relu)
    return V::select_negative(z, V::mul(V::set1(params[0]), z), z);
  else if constexpr (activation == ConvActivation::hardsigmoid)
    return V::min_limit(V::max0(V::add(V::mul(V::set1(params[0]), z), V::set1(params[1]))), 1.0f);
  else
    return activate<V, static_cast<Activation>(activation)>(z);
}

// z = act(z) of `count` values, a multiple of LANES.
using Curve = void (*)(float* z, int64_t count, const float* params);
template <class V, ConvActivation activation>
[[gnu::noinline]] void curve_row(float* z, int64_t count, const float* params) {
  for (int64_t i = 0; i < count; i += V::LANES) V::store(z + i, curve<V, activation>(V::load(z + i), params));
}

// Null: limits are all that the activation needs.
template <class V>
inline Curve curve_of(ConvActivation activation) {
  switch (activation) {
    case ConvActivation::none:
    case ConvActivation::relu:
    case ConvActivation::relu6:
    case ConvActivation::clip:
      return nullptr;
#define DSF_CURVE(name)      \
  case ConvActivation::name: \
    return curve_row<V, ConvActivation::name>;
      DSF_CURVE(gelu)
      DSF_CURVE(gelu_tanh)
      DSF_CURVE(silu)
      DSF_CURVE(hardswish)
      DSF_CURVE(sigmoid)
      DSF_CURVE(tanh)
      DSF_CURVE(leaky_relu)
      DSF_CURVE(hardsigmoid)
#undef DSF_CURVE
  }
  return nullptr;
}

// Channel 0 of a pixel of the residual (null where there is none), and the block's first channel of the same one of y.
struct Ends {
  char* y;
  const char* residual;
};

// Made once a block.
template <class V, Dtype dtype>
struct Finish {
  using f32 = typename V::f32;
  static constexpr int64_t VALUE_BYTES = dtype == Dtype::f32 ? 4 : 2;

  const Block& block;
  const float* params;
  const void* bias;
  Limits limits;
  Curve curve;
  bool residual_before, residual_after;

  Finish(const ConvArgs& args, const Block& of_block)
      : block(of_block),
        params(args.params),
        bias(args.bias),
        limits(limits_of(args)),
        curve(curve_of<V>(args.activation)),
        residual_before(block.residual.data && !args.residual_after),
        residual_after(block.residual.data && args.residual_after) {}

  Ends ends(int64_t p, int64_t q) const {
    const Pixels& r = block.residual;
    return {block.y + ((p - block.p.begin) * block.y_stride_h + q * block.y_stride_w) * VALUE_BYTES,
            r.data ? r.data + ((p - r.h_begin) * r.stride_h + q * r.stride_w) * VALUE_BYTES : nullptr};
  }

  // Sums of channels [f, f + channels) of several pixels; ends_of(i): of the i-th one. Vectors past `channels` are
  // left.
  template <int pixels, int vectors, class EndsOf>
  [[gnu::always_inline]] void tile(const f32 (&sums)[pixels][vectors], int64_t f, int64_t channels,
                                   const EndsOf& ends_of) const {
    if (curve) {
      alignas(64) float scratch[pixels * vectors * V::LANES];
      Ends places[pixels];
      DSF_UNROLL
      for (int i = 0; i < pixels; ++i) {
        places[i] = ends_of(i);
        DSF_UNROLL
        for (int v = 0; v < vectors; ++v) V::store(scratch + (i * vectors + v) * V::LANES, sums[i][v]);
      }
      return curved(scratch, places, pixels, vectors, f, channels);
    }
    if (channels >= vectors * V::LANES) {
      limited<true>(sums, f, channels, ends_of);
    } else {
      limited<false>(sums, f, channels, ends_of);
    }
  }
  // Of pixels side by side, from (p, q) on.
  template <int pixels, int vectors>
  [[gnu::always_inline]] void tile(const f32 (&sums)[pixels][vectors], int64_t f, int64_t channels, int64_t p,
                                   int64_t q) const {
    const Ends first = ends(p, q);
    const int64_t y_step = block.y_stride_w * VALUE_BYTES, residual_step = block.residual.stride_w * VALUE_BYTES;
    tile(sums, f, channels, [&](int i) __attribute__((always_inline)) {
      return Ends{first.y + i * y_step, first.residual ? first.residual + i * residual_step : nullptr};
    });
  }

 private:
  f32 before_activation(f32 z, const Ends& at, int64_t f, int n) const {
    if (bias) z = V::add(z, load_value<V, dtype>(bias, f, n));
    if (residual_before) z = V::add(z, load_value<V, dtype>(at.residual, f, n));
    return z;
  }
  void after_activation(f32 z, const Ends& at, int64_t f, int n) const {
    if (residual_after) z = V::add(z, load_value<V, dtype>(at.residual, f, n));
    store_value<V, dtype>(at.y, f - block.f.begin, z, n);
  }

  template <bool whole, int pixels, int vectors, class EndsOf>
  [[gnu::always_inline]] void limited(const f32 (&sums)[pixels][vectors], int64_t f, int64_t channels,
                                      const EndsOf& ends_of) const {
    const f32 lowest = V::set1(limits.lowest), highest = V::set1(limits.highest);
    DSF_UNROLL
    for (int v = 0; v < vectors; ++v) {
      const int64_t left = channels - v * V::LANES;
      if (!whole && left <= 0) return;
      const int n = whole || left > V::LANES ? V::LANES : int(left);
      DSF_UNROLL
      for (int i = 0; i < pixels; ++i) {
        const Ends at = ends_of(i);
        const f32 z = before_activation(sums[i][v], at, f + v * V::LANES, n);
        after_activation(V::at_most(V::at_least(z, lowest), highest), at, f + v * V::LANES, n);
      }
    }
  }

  [[gnu::noinline]] void curved(float* z, const Ends* places, int pixels, int vectors, int64_t f,
                                int64_t channels) const {
    const auto each = [&](const auto& step) __attribute__((always_inline)) {
      for (int i = 0; i < pixels; ++i)
        for (int64_t c = 0; c < channels && c < vectors * V::LANES; c += V::LANES) {
          const int n = channels - c < V::LANES ? int(channels - c) : V::LANES;
          step(z + i * vectors * V::LANES + c, places[i], f + c, n);
        }
    };
    each([&](float* at, const Ends& pixel, int64_t channel, int n) {
      V::store(at, before_activation(V::load(at), pixel, channel, n));
    });
    curve(z, int64_t(pixels) * vectors * V::LANES, params);
    each([&](float* at, const Ends& pixel, int64_t channel, int n) {
      after_activation(V::load(at), pixel, channel, n);
    });
  }
};

}  // namespace
}  // namespace dsf::fused_conv
