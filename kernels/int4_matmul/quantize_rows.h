// Rows of x to int8 tiles, block by block: the rule of csrc/gemm/quantize.h, for many short blocks.
#pragma once
#include <cstdint>
#include <cstring>

#include "csrc/gemm/quantize.h"
#include "kernels/int4_matmul/cpu_kernels.h"

namespace dsf::int4_matmul {
namespace {

// Bits of the largest magnitude of n values.
template <class V, Dtype dtype>
[[gnu::always_inline]] inline uint32_t largest_magnitude(const void* x, int64_t k, int64_t n) {
  auto bits = V::zero_i32();
  int64_t i = 0;
  for (; i + V::LANES <= n; i += V::LANES) bits = V::max_magnitude(bits, load_value<V, dtype>(x, k + i, V::LANES));
  if (i < n) bits = V::max_magnitude(bits, load_value<V, dtype>(x, k + i, int(n - i)));
  return V::largest(bits);
}

// x_q = round_half_even(x * inverse) of n values to codes, which are zero so far; returns their sum.
template <class V, Dtype dtype>
[[gnu::always_inline]] inline int32_t quantize_values(const void* x, int64_t k, int64_t n, float inverse,
                                                      int8_t* codes) {
  auto sum = V::zero_i32();
  const auto quantize = [&](int64_t i, int count) __attribute__((always_inline)) {
    const auto code = V::round_to_i32(V::mul(load_value<V, dtype>(x, k + i, count), V::set1(inverse)));
    store_code(codes + i, code, count);
    sum = V::plus_i32(sum, code);
  };
  int64_t i = 0;
  for (; i + V::LANES <= n; i += V::LANES) quantize(i, V::LANES);
  if (i < n) quantize(i, int(n - i));
  return V::total(sum);
}

// Row r of a tile of `rows` rows. zero_point: of a weight without zero points, else 1.
template <class V, Dtype dtype>
inline void quantize_row_of_tile(const void* x, int64_t K, int64_t block_k, int32_t zero_point, int rows, int r,
                                 char* tile) {
  constexpr int64_t MAX_BLOCK_K = 128;
  constexpr int32_t FIRST_NOT_FINITE = 0x7F800000;
  int32_t smallest_bits;
  std::memcpy(&smallest_bits, &SMALLEST_AMAX, 4);
  for (int64_t begin = 0; begin < K; begin += V::LANES * block_k) {
    // LANES blocks at a time, so that one division serves them all.
    alignas(64) int32_t amax[V::LANES] = {};
    alignas(64) float scale[V::LANES], inverse[V::LANES];
    const int64_t left = K - begin;
    const int blocks = int(left < V::LANES * block_k ? (left + block_k - 1) / block_k : V::LANES);
    const auto values_in = [&](int b) { return left - b * block_k < block_k ? left - b * block_k : block_k; };
    for (int b = 0; b < blocks; ++b)
      amax[b] = int32_t(largest_magnitude<V, dtype>(x, begin + b * block_k, values_in(b)));
    const auto bits = V::load_i32(amax);
    const auto most = V::f32_of_bits(bits), limit = V::set1(INT8_LIMIT);
    const auto inverses = V::select_below(bits, smallest_bits, V::zero_i32(), V::bits_of(V::div(limit, most)));
    V::store(inverse, V::f32_of_bits(V::select_below(bits, FIRST_NOT_FINITE, inverses, V::zero_i32())));
    const auto nan = V::bits_of(V::set1(__builtin_nanf("")));
    V::store(scale, V::f32_of_bits(V::select_below(bits, FIRST_NOT_FINITE, V::bits_of(V::div(most, limit)), nan)));
    for (int b = 0; b < blocks; ++b) {
      alignas(64) int8_t codes[MAX_BLOCK_K];
      const int64_t n = values_in(b), padded_n = round_up(n, STEP_K);
      std::memset(codes + padded_n - STEP_K, 0, STEP_K);
      // What NaN and inf become does not matter: their block's scale is NaN.
      const int32_t sum = quantize_values<V, dtype>(x, begin + b * block_k, n, inverse[b], codes);
      const int32_t start = -zero_point * sum;
      std::memcpy(tile + r * 4, scale + b, 4);
      std::memcpy(tile + (rows + r) * 4, &start, 4);
      tile += rows * BLOCK_HEAD_BYTES;
      for (int64_t i = 0; i < padded_n; i += STEP_K, tile += rows * STEP_K)
        std::memcpy(tile + r * STEP_K, codes + i, STEP_K);
    }
  }
}

}  // namespace
}  // namespace dsf::int4_matmul
