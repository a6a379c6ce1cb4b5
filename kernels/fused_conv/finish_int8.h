// The end of a convolution of bytes: sums -> numbers of y's unit -> + residual -> activation -> + residual -> a byte.
// The sums hold bias and zero points already.
#pragma once
#include <cstdint>
#include <cstring>

#include "kernels/fused_conv/finish.h"

namespace dsf::fused_conv {
namespace {

// LANES bytes, or n, as what they are above zero_point.
template <class V>
inline typename V::f32 load_bytes(const char* p, int n, bool is_signed, int32_t zero_point) {
  alignas(16) char bytes[16] = {};
  if (n < V::LANES) p = static_cast<const char*>(std::memcpy(bytes, p, size_t(n)));
  const auto v = V::load_u8(p);
  return V::to_f32(is_signed ? V::add_i32(V::xor_bits(v, 0x80), -128 - zero_point) : V::add_i32(v, -zero_point));
}

// Made once a block; as Finish of floats.
template <class V>
struct FinishInt8 {
  using f32 = typename V::f32;
  static constexpr int64_t VALUE_BYTES = 1;

  const Block& block;
  const float* params;
  Limits limits, bytes;  // of the activation, and of what a byte holds, less y_zero_point
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
  }

  Ends ends(int64_t p, int64_t q) const {
    const Pixels& r = block.residual;
    return {block.y + (p - block.p.begin) * block.y_stride_h + q * block.y_stride_w,
            r.data ? r.data + (p - r.h_begin) * r.stride_h + q * r.stride_w : nullptr};
  }

  // From a pixel to the next one of its row.
  void next(Ends* ends) const {
    ends->y += block.y_stride_w;
    if (ends->residual) ends->residual += block.residual.stride_w;
  }

  // As Finish::tile.
  template <int pixels, int vectors, class EndsOf>
  [[gnu::always_inline]] void tile(const typename V::i32 (&sums)[pixels][vectors], int64_t f, int64_t channels,
                                   int count, const EndsOf& ends_of) const {
    if (channels >= vectors * V::LANES && !curve && !block.residual.data) return limited(sums, f, count, ends_of);
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
  f32 residual_of(const Ends& at, int64_t f, int n) const {
    return V::mul(load_bytes<V>(at.residual + f, n, is_signed, residual_zero_point), V::set1(residual_scale));
  }
  void store(const Ends& at, int64_t f, f32 z, int n) const {
    z = V::at_most(V::at_least(z, V::set1(bytes.lowest)), V::set1(bytes.highest));
    V::store_low8(reinterpret_cast<uint8_t*>(at.y + f - block.f.begin), V::add_i32(V::round_to_i32(z), y_zero_point),
                  n);
  }

  // Whole vectors without a residual, from registers.
  template <int pixels, int vectors, class EndsOf>
  [[gnu::always_inline]] void limited(const typename V::i32 (&sums)[pixels][vectors], int64_t f, int count,
                                      const EndsOf& ends_of) const {
    const f32 lowest = V::set1(limits.lowest), highest = V::set1(limits.highest);
    f32 multipliers[vectors];
    DSF_UNROLL
    for (int v = 0; v < vectors; ++v) multipliers[v] = V::load(block.multipliers + f + v * V::LANES);
    DSF_UNROLL
    for (int i = 0; i < pixels; ++i) {
      if (i >= count) break;
      const Ends at = ends_of(i);
      DSF_UNROLL
      for (int v = 0; v < vectors; ++v) {
        const f32 z = V::mul(V::to_f32(sums[i][v]), multipliers[v]);
        store(at, f + v * V::LANES, V::at_most(V::at_least(z, lowest), highest), V::LANES);
      }
    }
  }

  // Sums in memory, `stride` from pixel to pixel, a multiple of LANES.
  [[gnu::noinline]] void any(int32_t* sums, int64_t stride, const Ends* places, int count, int64_t f,
                             int64_t channels) const {
    if (channels > stride) channels = stride;
    const f32 lowest = V::set1(limits.lowest), highest = V::set1(limits.highest);
    alignas(64) float z[V::LANES];
    for (int i = 0; i < count; ++i)
      for (int64_t c = 0; c < channels; c += V::LANES) {
        const int n = channels - c < V::LANES ? int(channels - c) : V::LANES;
        f32 v = V::mul(V::to_f32(V::load_i32(sums + i * stride + c)), V::load_n(block.multipliers + f + c, n));
        if (residual_before) v = V::add(v, residual_of(places[i], f + c, n));
        if (curve) {
          V::store(z, V::mul(v, V::set1(y_scale)));
          curve(z, V::LANES, params);
          v = V::div(V::load(z), V::set1(y_scale));
        }
        v = V::at_most(V::at_least(v, lowest), highest);
        if (residual_after) v = V::add(v, residual_of(places[i], f + c, n));
        store(places[i], f + c, v, n);
      }
  }
};

}  // namespace
}  // namespace dsf::fused_conv
