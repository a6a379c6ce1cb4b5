// Rows of x to int8 tiles, block by block: the rule of csrc/gemm/quantize.h, for many short blocks.
#pragma once
#include <cstdint>
#include <cstring>

#include "kernels/int4_matmul/block_scales.h"
#include "kernels/int4_matmul/cpu_kernels.h"
#ifdef __AVX512BW__
#include "kernels/int4_matmul/quantize_avx512.h"
#endif

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

// The codes of a step, bytes in the order of byte_of: the middle two of each quad change places.
[[gnu::always_inline]] inline void store_step(const int8_t* codes, char* target) {
  uint64_t bytes;
  std::memcpy(&bytes, codes, STEP_K);
  constexpr uint64_t SECOND = 0x0000FF000000FF00;
  bytes = (bytes & ~(SECOND | SECOND << 8)) | (bytes >> 8 & SECOND) | (bytes & SECOND) << 8;
  std::memcpy(target, &bytes, STEP_K);
}

// Values [begin, K) of row r of a tile of `rows` rows, begin on a block; the tile starts there. zero_point: of a weight
// without zero points, else 1.
template <class V, Dtype dtype>
inline void quantize_row_of_tile(const void* x, int64_t begin, int64_t K, int64_t block_k, int32_t zero_point, int rows,
                                 int r, char* tile) {
  constexpr int64_t MAX_BLOCK_K = 128;
  for (; begin < K; begin += V::LANES * block_k) {
    // LANES blocks at a time, so that one division serves them all.
    alignas(64) int32_t amax[V::LANES] = {};
    alignas(64) float scale[V::LANES], inverse[V::LANES];
    const int64_t left = K - begin;
    const int blocks = int(left < V::LANES * block_k ? (left + block_k - 1) / block_k : V::LANES);
    const auto values_in = [&](int b) { return left - b * block_k < block_k ? left - b * block_k : block_k; };
    for (int b = 0; b < blocks; ++b)
      amax[b] = int32_t(largest_magnitude<V, dtype>(x, begin + b * block_k, values_in(b)));
    scales_of_blocks<V>(V::load_i32(amax), scale, inverse);
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
      for (int64_t i = 0; i < padded_n; i += STEP_K, tile += rows * STEP_K) store_step(codes + i, tile + r * STEP_K);
    }
  }
}

// Rows [m, m + rows) of x to their tile.
template <class V, Dtype dtype>
inline void quantize_tile(const LinearArgs& args, int64_t m, int rows, int64_t block_k, int32_t zero_point,
                          char* tile) {
  const auto row = [&](int r) {
    return static_cast<const char*>(args.x) + (m + r) * args.x_stride * value_bytes(dtype);
  };
  int64_t begin = 0;
#ifdef __AVX512BW__
  for (; begin + RUN_K <= args.K; begin += RUN_K) {
    for (int r = 0; r < rows; ++r) quantize_run<V, dtype>(row(r), begin, block_k, zero_point, rows, r, tile);
    tile += rows * (RUN_K + RUN_K / block_k * BLOCK_HEAD_BYTES);
  }
#endif
  for (int r = 0; r < rows; ++r)
    quantize_row_of_tile<V, dtype>(row(r), begin, args.K, block_k, zero_point, rows, r, tile);
}

}  // namespace
}  // namespace dsf::int4_matmul
