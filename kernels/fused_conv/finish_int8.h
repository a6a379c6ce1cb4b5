// The end of a convolution of bytes: sums -> numbers of y's unit -> + residual -> activation -> + residual -> a byte.
// The sums hold bias and zero points already.
#pragma once
#include <cstdint>
#include <type_traits>

#include "kernels/fused_conv/finish.h"

namespace dsf::fused_conv {
namespace {

// LANES bytes, or n.
template <class V, bool is_signed>
[[gnu::always_inline]] inline typename V::i32 load_bytes(const char* p, int n) {
  if (n >= V::LANES) return is_signed ? V::load_s8(p) : V::load_u8(p);
  return is_signed ? V::load_s8_n(p, n) : V::load_u8_n(p, n);
}

// Made once a block; as Finish of floats.
template <class V>
struct FinishInt8 {
  using f32 = typename V::f32;
  using Sum = typename V::i32;
  static constexpr int64_t VALUE_BYTES = 1;

  const Block& block;
  const float* params;
  Limits limits, bytes, both;  // of the activation, of what a byte holds, less y_zero_point, and one after the other
  Curve curve;
  float y_scale, residual_scale;  // the residual's in y's unit
  int32_t residual_zero_point, y_zero_point;
  bool is_signed, residual_before, residual_after;

  FinishInt8(const ConvArgs& args, const Block& of_block)
      : block(of_block),
        params(args.params),
        limits(limits_of(args)),
        curve(curve_of<V>(args.activation)),
        y_scale(args.y_scale),
        residual_scale(args.residual_scale / args.y_scale),
        residual_zero_point(args.residual_zero_point),
        y_zero_point(args.y_zero_point),
        is_signed(args.y_dtype == Dtype::i8),
        residual_before(block.residual.data && !args.residual_after),
        residual_after(block.residual.data && args.residual_after) {
    limits = {limits.lowest / y_scale, limits.highest / y_scale};
    const int32_t lowest = is_signed ? -128 : 0;
    bytes = {float(lowest - y_zero_point), float(lowest + 255 - y_zero_point)};
    const auto in_bytes = [&](float z) {
      return z < bytes.lowest ? bytes.lowest : z > bytes.highest ? bytes.highest : z;
    };
    both = {in_bytes(limits.lowest), in_bytes(limits.highest)};
  }

  Ends ends(int64_t p, int64_t q) const {
    const Pixels& r = block.residual;
    return {block.y + (p - block.p.begin) * block.y_stride_h + q * block.y_stride_w,
            r.data ? r.data + (p - r.h_begin) * r.stride_h + q * r.stride_w : nullptr};
  }

  // As Finish::tile.
  template <int pixels, int vectors, class EndsOf>
  [[gnu::always_inline]] void tile(const typename V::i32 (&sums)[pixels][vectors], int64_t f, int64_t channels,
                                   int count, const EndsOf& ends_of) const {
    if (channels >= vectors * V::LANES && !curve && !residual_after) {
      if (residual_before) return limited<true>(sums, f, count, ends_of);
      return limited<false>(sums, f, count, ends_of);
    }
    alignas(64) int32_t scratch[pixels * vectors * V::LANES];
    Ends places[pixels];
    DSF_UNROLL
    for (int i = 0; i < pixels; ++i) {
      if (i < count) places[i] = ends_of(i);
      DSF_UNROLL
      for (int v = 0; v < vectors; ++v) V::store_i32(scratch + (i * vectors + v) * V::LANES, sums[i][v]);
    }
    any(scratch, vectors * V::LANES, places, count, f, channels);
  }

 private:
  // What every vector of a block needs, in registers: a store of bytes may change anything in memory.
  struct Constants {
    f32 lowest, highest, residual_scale;
    typename V::i32 residual_shift, y_zero_point;
    bool is_signed;

    Constants(const FinishInt8& of, const Limits& limits)
        : lowest(V::set1(limits.lowest)),
          highest(V::set1(limits.highest)),
          residual_scale(V::set1(of.residual_scale)),
          residual_shift(V::set1_i32(-of.residual_zero_point)),
          y_zero_point(V::set1_i32(of.y_zero_point)),
          is_signed(of.is_signed) {}

    [[gnu::always_inline]] f32 residual(const char* p, int n) const {
      const auto v = is_signed ? load_bytes<V, true>(p, n) : load_bytes<V, false>(p, n);
      return V::mul(V::to_f32(V::plus_i32(v, residual_shift)), residual_scale);
    }
    [[gnu::always_inline]] f32 within(f32 z) const { return V::at_most(V::at_least(z, lowest), highest); }
    // z is within what a byte holds.
    [[gnu::always_inline]] void store(char* p, f32 z, int n) const {
      V::store_low8(reinterpret_cast<uint8_t*>(p), V::plus_i32(V::round_to_i32(z), y_zero_point), n);
    }
  };

  // Whole vectors, a residual before the activation or none, from registers.
  template <bool with_residual, int pixels, int vectors, class EndsOf>
  [[gnu::always_inline]] void limited(const typename V::i32 (&sums)[pixels][vectors], int64_t f, int count,
                                      const EndsOf& ends_of) const {
    const Constants constants(*this, both);
    const int64_t y_channel = f - block.f.begin;
    f32 multipliers[vectors];
    DSF_UNROLL
    for (int v = 0; v < vectors; ++v) multipliers[v] = V::load(block.multipliers + f + v * V::LANES);
    DSF_UNROLL
    for (int i = 0; i < pixels; ++i) {
      if (i >= count) break;
      const Ends at = ends_of(i);
      DSF_UNROLL
      for (int v = 0; v < vectors; ++v) {
        f32 z = V::mul(V::to_f32(sums[i][v]), multipliers[v]);
        if (with_residual) z = V::add(z, constants.residual(at.residual + f + v * V::LANES, V::LANES));
        constants.store(at.y + y_channel + v * V::LANES, constants.within(z), V::LANES);
      }
    }
  }

  // Sums in memory, `stride` from pixel to pixel, a multiple of LANES.
  [[gnu::noinline]] void any(int32_t* sums, int64_t stride, const Ends* places, int count, int64_t f,
                             int64_t channels) const {
    if (channels > stride) channels = stride;
    const Constants of_activation(*this, limits), of_bytes(*this, bytes);
    const int64_t y_channel = f - block.f.begin;
    alignas(64) float z[V::LANES];
    for (int i = 0; i < count; ++i)
      for (int64_t c = 0; c < channels; c += V::LANES) {
        const int n = channels - c < V::LANES ? int(channels - c) : V::LANES;
        f32 v = V::mul(V::to_f32(V::load_i32(sums + i * stride + c)), V::load_n(block.multipliers + f + c, n));
        if (residual_before) v = V::add(v, of_bytes.residual(places[i].residual + f + c, n));
        if (curve) {
          V::store(z, V::mul(v, V::set1(y_scale)));
          curve(z, V::LANES, params);
          v = V::div(V::load(z), V::set1(y_scale));
        }
        v = of_activation.within(v);
        if (residual_after) v = V::add(v, of_bytes.residual(places[i].residual + f + c, n));
        of_bytes.store(places[i].y + y_channel + c, of_bytes.within(v), n);
      }
  }
};

template <class V, Dtype dtype>
using FinishOf = std::conditional_t<is_8_bits(dtype), FinishInt8<V>, Finish<V, dtype>>;

}  // namespace
}  // namespace dsf::fused_conv
