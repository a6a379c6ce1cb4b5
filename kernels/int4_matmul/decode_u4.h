// A packed block of u4 to the rows that the float tiles read: q - zero, exact in bf16 and f32.
#pragma once
#include <cstdint>

#include "csrc/gemm/packed.h"
#include "csrc/gemm/unroll.h"
#include "kernels/int4_matmul/tile_u4.h"

namespace dsf::int4_matmul {
namespace {

inline constexpr int32_t NO_ZERO_POINT = 8;

// Calls store(row, n, value) with q - zero as f32 for the columns from n on of each row of a step.
template <class V, class Store>
[[gnu::always_inline]] inline void decode_step(typename V::i32 raw, typename V::i32 zero, const Store& store) {
  const auto low = V::and_bits(raw, LOW_NIBBLES), high = V::and_bits(V::template shift_right<4>(raw), LOW_NIBBLES);
  const auto number = [&](typename V::i32 byte)
                          __attribute__((always_inline)) { return V::to_f32(V::minus_i32(byte, zero)); };
  store(0, number(V::template byte_of_quad<0>(low)), number(V::template byte_of_quad<2>(low)));
  store(2, number(V::template byte_of_quad<1>(low)), number(V::template byte_of_quad<3>(low)));
  store(4, number(V::template byte_of_quad<0>(high)), number(V::template byte_of_quad<2>(high)));
  store(6, number(V::template byte_of_quad<1>(high)), number(V::template byte_of_quad<3>(high)));
}

// body(codes of a step and columns from n, zero points of the columns, step, n)
template <class V, class Body>
[[gnu::always_inline]] inline void decode_block(const char* block, bool zeros, int64_t quads, const Body& body) {
  const char* codes = block + (zeros ? PANEL_N : 0);
  for (int n = 0; n < PANEL_N; n += V::LANES) {
    const auto zero = zeros ? V::load_u8(block + n) : V::set1_i32(NO_ZERO_POINT);
    for (int64_t step = 0; step < (quads + 1) / 2; ++step)
      body(V::load_i32(reinterpret_cast<const int32_t*>(codes + step * STEP_BYTES_U4) + n), zero, step, n);
  }
}

// Both are what walk_blocks calls: block is what lies behind a block's scales.
template <class V>
struct DecodeF32 {
  bool zeros;
  void operator()(const char* block, int64_t quads, char* weights) const {
    decode_block<V>(block, zeros, quads, [&](auto raw, auto zero, int64_t step, int n) {
      float* row = reinterpret_cast<float*>(weights) + step * STEP_K * PANEL_N + n;
      decode_step<V>(raw, zero, [&](int k, typename V::f32 even, typename V::f32 odd) {
        V::store(row + k * PANEL_N, even);
        V::store(row + (k + 1) * PANEL_N, odd);
      });
    });
  }
};

template <class V>
struct DecodeBf16 {
  bool zeros;
  void operator()(const char* block, int64_t quads, char* weights) const {
    decode_block<V>(block, zeros, quads, [&](auto raw, auto zero, int64_t step, int n) {
      int32_t* row = reinterpret_cast<int32_t*>(weights) + step * (STEP_K / 2) * PANEL_N + n;
      decode_step<V>(raw, zero, [&](int k, typename V::f32 even, typename V::f32 odd) {
        const auto low = V::template shift_right<16>(V::bits_of(even));
        const auto high = V::and_bits(V::bits_of(odd), int32_t(0xFFFF0000));
        V::store_i32(row + k / 2 * PANEL_N, V::or_bits(low, high));
      });
    });
  }
};

}  // namespace
}  // namespace dsf::int4_matmul
