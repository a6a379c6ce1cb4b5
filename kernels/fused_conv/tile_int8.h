// The register tile of a convolution of bytes: four channels of x against four of s8 weights in one step. Where the
// level multiplies u8 with s8 (VPDPBUSD), s8 has its sign bit turned, as u8 has where it multiplies s8 with s8 (SDOT):
// 128 more or less, which the zero point takes up. Sums wrap modulo 2^32, and the true ones fit.
#pragma once
#include <cstring>

#include "csrc/gemm/tile.h"
#include "kernels/fused_conv/finish_int8.h"
#include "kernels/fused_conv/runs.h"

namespace dsf::fused_conv {
namespace {

// What the sums start with: bias - zero point * the weight's sum, of every channel.
template <class V, Dtype dtype>
struct StartInt8 {
  static constexpr bool FLIPS = (dtype == Dtype::i8) != V::X_IS_SIGNED;
  const int32_t* bias;  // or null
  const int32_t* weight_sums;
  int32_t zero_point;

  StartInt8(const ConvArgs& args, const void* sums)
      : bias(static_cast<const int32_t*>(args.bias)),
        weight_sums(static_cast<const int32_t*>(sums)),
        zero_point(args.x_zero_point + (!FLIPS               ? 0
                                        : dtype == Dtype::i8 ? 128
                                                             : -128)) {}

  // Whether a tap outside x, whose value is x's zero point, adds nothing to the sums.
  bool adds_zero_outside() const { return zero_point == 0; }
  typename V::i32 of(int64_t f, int n) const {
    const auto load = [&](const int32_t* p) {
      return V::bits_of(load_value<V, Dtype::f32>(p, f, n));  // bits only
    };
    const auto shift = V::mul_i32(load(weight_sums), V::set1_i32(-zero_point));
    return bias ? V::plus_i32(shift, load(bias)) : shift;
  }
};

// The last `count` bytes, fewer than four, of a run of `length` that ends at `end`, and zeros.
inline uint32_t last_quad(const char* end, int64_t count, int64_t length) {
  uint32_t quad = 0;
  if (length >= 4) {
    std::memcpy(&quad, end - 4, 4);
    return quad >> (4 - count) * 8;  // the first byte is the lowest one
  }
  for (int64_t j = count; j > 0; --j) quad = quad << 8 | uint8_t(end[-1 - (count - j)]);
  return quad;
}

template <class V, Dtype dtype, int MR>
struct ConvTileInt8 {
  static constexpr int64_t C_GROUP = 4;

  template <int rows, int vectors, class End>
  [[gnu::noinline]] static void run(const TileRuns& x, const char* panel, const End& end) {
    typename V::i32 acc[rows][vectors];
    DSF_UNROLL
    for (int v = 0; v < vectors; ++v) {
      const auto start = end.start(v);
      DSF_UNROLL
      for (int r = 0; r < rows; ++r) acc[r][v] = start;
    }
    const char* const* runs = x.runs;
    const char* ahead = x.ahead;
    const auto step = [&](const auto& x_quad) __attribute__((always_inline)) {
      typename V::bytes w[vectors];
      DSF_UNROLL
      for (int v = 0; v < vectors; ++v)
        w[v] = V::weight_bytes(V::load_i32(reinterpret_cast<const int32_t*>(panel) + v * V::LANES));
      DSF_UNROLL
      for (int r = 0; r < rows; ++r) {
        auto quads = V::set1_quad(x_quad(r));
        if constexpr (StartInt8<V, dtype>::FLIPS) quads = V::xor_bits(quads, 0x80808080);
        const auto a = V::x_bytes(quads);
        DSF_UNROLL
        for (int v = 0; v < vectors; ++v) acc[r][v] = V::dot_bytes(acc[r][v], a, w[v]);
      }
      panel += PANEL_F * 4;
      read_weights_ahead(&ahead, x.ahead_step);
    };
    for (int64_t i = 0; i < x.count; ++i, runs += MR) {
      int64_t c = x.first;
      const int64_t last = x.first + x.length;
      for (; c + 4 <= last; c += 4) step([&](int r) __attribute__((always_inline)) { return runs[r] + c; });
      if (c < last) {  // the weights behind are zero, but nothing behind a run may be read
        uint32_t quads[rows];
        DSF_UNROLL
        for (int r = 0; r < rows; ++r) quads[r] = last_quad(runs[r] + last, last - c, last - x.first);
        step([&](int r) __attribute__((always_inline)) { return reinterpret_cast<const char*>(&quads[r]); });
      }
    }
    keep_in_registers<V>(acc);
    end.template take<rows, vectors>(acc);
  }
};

}  // namespace
}  // namespace dsf::fused_conv
