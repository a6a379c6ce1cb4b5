// Symmetric int8 quantization of one row, the first step of int8_matmul (its contract: kernels/int8_matmul/cpu.h).
#pragma once
#include <cstdint>
#include <cstring>

#include "csrc/gemm/epilogue.h"

namespace dsf {
namespace {

inline constexpr float INT8_LIMIT = 127.0f;
inline constexpr float SMALLEST_AMAX = 0x1p-100f;  // below it 127 / amax could overflow: the row counts as zeros

inline void store_code(uint8_t* p, Vec::i32 code, int n) { Vec::store_low8(p, code, n); }
inline void store_code(int8_t* p, Vec::i32 code, int n) { Vec::store_low8(reinterpret_cast<uint8_t*>(p), code, n); }
inline void store_code(int16_t* p, Vec::i32 code, int n) { Vec::store_low16(p, code, n); }

// codes[k] = round_half_even(x[k] * inverse) + offset; returns the row's scale. Fills [K, padded_K) with offset.
template <Dtype dtype, int32_t offset, class Code>
inline float quantize_row(const void* x, int64_t K, int64_t padded_K, Code* codes) {
  using V = Vec;
  constexpr int64_t BLOCK = 4 * V::LANES;
  const auto value = [&](int64_t k) { return load_value<V, dtype>(x, k, V::LANES); };
  auto bits = V::zero_i32();
  int64_t k = 0;
  for (; k + BLOCK <= K; k += BLOCK)  // amax = x.abs().max()
    for (int v = 0; v < 4; ++v) bits = V::max_magnitude(bits, value(k + v * V::LANES));
  for (; k < K; k += V::LANES)
    bits = V::max_magnitude(bits, load_value<V, dtype>(x, k, K - k < V::LANES ? int(K - k) : V::LANES));
  const uint32_t amax_bits = V::largest(bits);
  float amax;
  std::memcpy(&amax, &amax_bits, 4);
  const bool finite = amax_bits < 0x7F800000u;
  // A scale of NaN makes the whole row NaN, whatever its codes are.
  const float scale = finite ? amax / INT8_LIMIT : __builtin_nanf("");
  const float inverse = finite && amax >= SMALLEST_AMAX ? INT8_LIMIT / amax : 0.0f;
  if (inverse == 0.0f) {
    for (k = 0; k < padded_K; ++k) codes[k] = Code(offset);
    return scale;
  }
  const auto inverse_f32 = V::set1(inverse);
  const auto code = [&](int64_t at) { return V::round_to_i32(V::mul(value(at), inverse_f32)); };
  k = 0;
  if constexpr (sizeof(Code) == 1)
    for (; k + BLOCK <= K; k += BLOCK)
      V::template store_codes<offset>(codes + k, code(k), code(k + V::LANES), code(k + 2 * V::LANES),
                                      code(k + 3 * V::LANES));
  for (; k < K; k += V::LANES) {
    const int n = K - k < V::LANES ? int(K - k) : V::LANES;
    const auto last = V::round_to_i32(V::mul(load_value<V, dtype>(x, k, n), inverse_f32));
    store_code(codes + k, V::add_i32(last, offset), n);
  }
  for (k = K; k < padded_K; ++k) codes[k] = Code(offset);
  return scale;
}

}  // namespace
}  // namespace dsf
