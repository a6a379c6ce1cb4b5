// The end of a convolution, shared by every path: sums -> + bias -> + residual -> activation -> + residual -> y.
// The usual is finished in registers; curved activations, and a residual after the activation by way of memory.
// An absent bias is +0, and is added: -0 becomes +0 with or without one.
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
  using Sum = f32;
  static constexpr int64_t VALUE_BYTES = dtype == Dtype::f32 ? 4 : 2;
  // AVX-512's, at no cost to whole vectors; elsewhere parts of vectors end by way of memory.
  static constexpr bool MASKS = V::LANES == 16 && dtype == Dtype::f32;

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

  // Sums of channels [f, f + channels) of several pixels, of which the first `count` are wanted; ends_of(i): of the
  // i-th one, asked for in their order. Vectors past `channels` are left out.
  template <int pixels, int vectors, class EndsOf>
  [[gnu::always_inline]] void tile(const f32 (&sums)[pixels][vectors], int64_t f, int64_t channels, int count,
                                   const EndsOf& ends_of) const {
    if ((MASKS || channels >= vectors * V::LANES) && !curve && !residual_after) {
      const int64_t y_channel = f - block.f.begin, left = channels - (vectors - 1) * V::LANES;
      const int last = left < V::LANES ? int(left) : V::LANES;
      if (residual_before) return limited<true>(sums, f, y_channel, last, count, ends_of);
      return limited<false>(sums, f, y_channel, last, count, ends_of);
    }
    alignas(64) float scratch[pixels * vectors * V::LANES];
    Ends places[pixels];
    DSF_UNROLL
    for (int i = 0; i < pixels; ++i) {
      if (i < count) places[i] = ends_of(i);
      DSF_UNROLL
      for (int v = 0; v < vectors; ++v) V::store(scratch + (i * vectors + v) * V::LANES, sums[i][v]);
    }
    any(scratch, vectors * V::LANES, places, count, f, channels);
  }
  // Of pixels side by side in a row.
  template <int pixels, int vectors>
  [[gnu::always_inline]] void tile(const f32 (&sums)[pixels][vectors], int64_t f, int64_t channels, int count,
                                   const Ends& first) const {
    const int64_t y_step = block.y_stride_w * VALUE_BYTES,
                  residual_step = first.residual ? block.residual.stride_w * VALUE_BYTES : 0;
    Ends next = first;
    tile(sums, f, channels, count, [&](int) __attribute__((always_inline)) {
      const Ends at = next;
      next.y += y_step;
      next.residual += residual_step;
      asm("" : "+r"(next.y));  // a pointer, not an address in memory for every pixel
      return at;
    });
  }

  // What almost every layer is: no curve, a residual before the activation or none. y_channel: f, counted from where
  // the ends' y is; last: channels of the last vector, LANES unless MASKS.
  template <bool with_residual, int pixels, int vectors, class EndsOf>
  [[gnu::always_inline]] void limited(const f32 (&sums)[pixels][vectors], int64_t f, int64_t y_channel, int last,
                                      int count, const EndsOf& ends_of) const {
    const auto channels_of = [&](int v) { return MASKS && v + 1 == vectors ? last : V::LANES; };
    const f32 lowest = V::set1(limits.lowest), highest = V::set1(limits.highest);
    f32 biases[vectors];
    DSF_UNROLL
    for (int v = 0; v < vectors; ++v)
      biases[v] = bias ? load_value<V, dtype>(bias, f + v * V::LANES, channels_of(v)) : V::zero();
    DSF_UNROLL
    for (int i = 0; i < pixels; ++i) {
      if (i >= count) break;
      const Ends at = ends_of(i);
      f32 z[vectors];
      DSF_UNROLL
      for (int v = 0; v < vectors; ++v) {
        z[v] = V::add(sums[i][v], biases[v]);
        if (with_residual) z[v] = V::add(z[v], load_value<V, dtype>(at.residual, f + v * V::LANES, channels_of(v)));
        z[v] = V::at_most(V::at_least(z[v], lowest), highest);
        if constexpr (MASKS)  // whatever n: no test of it
          V::store_n(reinterpret_cast<float*>(at.y) + y_channel + v * V::LANES, z[v], channels_of(v));
        else if (dtype != Dtype::bf16 || vectors != 2)
          store_value<V, dtype>(at.y, y_channel + v * V::LANES, z[v], channels_of(v));
      }
      if constexpr (dtype == Dtype::bf16 && vectors == 2)
        V::store_bf16_pair(reinterpret_cast<uint16_t*>(at.y) + y_channel, z[0], z[1]);
    }
  }

 private:
  // Sums in memory, `stride` from pixel to pixel, a multiple of LANES.
  [[gnu::noinline]] void any(float* sums, int64_t stride, const Ends* places, int count, int64_t f,
                             int64_t channels) const {
    if (channels > stride) channels = stride;
    for (int64_t c = 0; c < channels; c += V::LANES) {
      const int n = channels - c < V::LANES ? int(channels - c) : V::LANES;
      const f32 shift = bias ? load_value<V, dtype>(bias, f + c, n) : V::zero();
      const f32 lowest = V::set1(limits.lowest), highest = V::set1(limits.highest);
      for (int i = 0; i < count; ++i) {
        float* at = sums + i * stride + c;
        f32 z = V::add(V::load(at), shift);
        if (residual_before) z = V::add(z, load_value<V, dtype>(places[i].residual, f + c, n));
        z = V::at_most(V::at_least(z, lowest), highest);
        if (curve)
          V::store(at, z);
        else
          end(z, places[i], f + c, n);
      }
    }
    if (!curve) return;
    curve(sums, count * stride, params);
    for (int i = 0; i < count; ++i)
      for (int64_t c = 0; c < channels; c += V::LANES)
        end(V::load(sums + i * stride + c), places[i], f + c, channels - c < V::LANES ? int(channels - c) : V::LANES);
  }
  [[gnu::always_inline]] void end(f32 z, const Ends& place, int64_t channel, int n) const {
    if (residual_after) z = V::add(z, load_value<V, dtype>(place.residual, channel, n));
    store_value<V, dtype>(place.y, channel - block.f.begin, z, n);
  }
};

}  // namespace
}  // namespace dsf::fused_conv
