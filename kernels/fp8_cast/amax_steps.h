// The largest sizes of whole blocks and of whole vectors; cpu_body.h takes what is left.
#pragma once
#include "csrc/gemm/epilogue.h"
#include "csrc/gemm/quantize.h"
#include "kernels/fp8_cast/encode.h"

namespace dsf::fp8_cast {
namespace {

// Lanes whose largest is that of |x| over [*i, the last whole step of the block), as bits; *i moves there. NaN counts.
template <class V, Dtype dtype>
inline typename V::i32 amax_of_whole_vectors(const void* x, int64_t* i, int64_t end) {
  typename V::i32 most[4] = {V::zero_i32(), V::zero_i32(), V::zero_i32(), V::zero_i32()};
  for (; *i + 4 * V::LANES <= end; *i += 4 * V::LANES) {
    DSF_UNROLL
    for (int v = 0; v < 4; ++v)
      most[v] = V::max_magnitude(most[v], load_value<V, dtype>(x, *i + v * V::LANES, V::LANES));
  }
  const auto pair = [](typename V::i32 a, typename V::i32 b) { return V::max_magnitude(a, V::f32_of_bits(b)); };
  return pair(pair(most[0], most[1]), pair(most[2], most[3]));
}

#ifdef __AVX512BW__
inline constexpr int TREE = 16;  // blocks whose lanes one tree reduces

// The largest lane of each of 16 vectors: two vectors become one of half as many candidates each, four times.
[[gnu::always_inline]] inline __m512i largest_of_each(__m512i (&v)[TREE]) {
  DSF_UNROLL
  for (int i = 0; i < 8; ++i)
    v[i] = _mm512_max_epu32(_mm512_unpacklo_epi32(v[i], v[i + 8]), _mm512_unpackhi_epi32(v[i], v[i + 8]));
  DSF_UNROLL
  for (int i = 0; i < 4; ++i)
    v[i] = _mm512_max_epu32(_mm512_unpacklo_epi64(v[i], v[i + 4]), _mm512_unpackhi_epi64(v[i], v[i + 4]));
  DSF_UNROLL
  for (int i = 0; i < 2; ++i)
    v[i] = _mm512_max_epu32(_mm512_shuffle_i64x2(v[i], v[i + 2], 0x88), _mm512_shuffle_i64x2(v[i], v[i + 2], 0xDD));
  v[0] = _mm512_max_epu32(_mm512_shuffle_i64x2(v[0], v[1], 0x88), _mm512_shuffle_i64x2(v[0], v[1], 0xDD));
  // A lane's place says by its bits, the highest first, which of v[1], v[2], v[4] and v[8] it came from.
  return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15), v[0]);
}

// Lanes whose largest is that of |x|, as the bits of f32, or of f16; n is a multiple of 32, of 16 where x is f32.
template <Dtype dtype>
[[gnu::always_inline]] inline __m512i amax_lanes(const void* x, const int64_t n) {
  __m512i most[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
  int64_t i = 0;
  if constexpr (dtype == Dtype::f32) {
    const auto* p = static_cast<const float*>(x);
    const __m512i size = _mm512_set1_epi32(0x7FFFFFFF);
    const auto add = [&](int v, int64_t at) __attribute__((always_inline)) {
      most[v] = _mm512_max_epu32(most[v], _mm512_and_si512(size, _mm512_loadu_si512(p + at)));
    };
    for (; i + 32 <= n; i += 32) add(0, i), add(1, i + 16);
    if (i < n) add(0, i);
    return _mm512_max_epu32(most[0], most[1]);
  } else {
    // |x| of two bytes orders as its bits do: 32 at a time.
    const auto* p = static_cast<const uint16_t*>(x);
    const __m512i size = _mm512_set1_epi16(0x7FFF);
    const auto add = [&](int v, int64_t at) __attribute__((always_inline)) {
      most[v] = _mm512_max_epu16(most[v], _mm512_and_si512(size, _mm512_loadu_si512(p + at)));
    };
    for (; i + 64 <= n; i += 64) add(0, i), add(1, i + 32);
    if (i < n) add(0, i);
    const __m512i both = _mm512_max_epu16(most[0], most[1]);
    if constexpr (dtype == Dtype::bf16)
      return _mm512_max_epu32(_mm512_slli_epi32(both, 16), _mm512_and_si512(both, _mm512_set1_epi32(int(0xFFFF0000))));
    return _mm512_max_epu32(_mm512_srli_epi32(both, 16), _mm512_and_si512(both, _mm512_set1_epi32(0xFFFF)));
  }
}

template <Dtype dtype>
[[gnu::always_inline]] inline __m512i amax_of_tree(const void* x, int count, const int64_t block) {
  __m512i lanes[TREE];
  DSF_UNROLL
  for (int b = 0; b < TREE; ++b) {
    const char* from = static_cast<const char*>(x) + b * block * (dtype == Dtype::f32 ? 4 : 2);
    lanes[b] = b < count ? amax_lanes<dtype>(from, block) : _mm512_setzero_si512();
  }
  return largest_of_each(lanes);
}

// bits[b] = max(bits[b], amax) of at most 16 whole blocks. False, and nothing done, where the block has no whole
// vectors or holds NaN that is to be ignored.
template <Dtype dtype>
inline bool amax_of_blocks(const void* x, int count, int64_t block, bool ignore_nan, uint32_t* bits) {
  constexpr int64_t DEEPSEEK = 128, MX = 32;  // unrolled
  if (block % (dtype == Dtype::f32 ? 16 : 32)) return false;
  __m512i most;
  if (block == DEEPSEEK && count == TREE)
    most = amax_of_tree<dtype>(x, TREE, DEEPSEEK);
  else if (block == DEEPSEEK && count == TREE / 2)  // of a tile of 128 rows
    most = amax_of_tree<dtype>(x, TREE / 2, DEEPSEEK);
  else if (block == MX && count == TREE)
    most = amax_of_tree<dtype>(x, TREE, MX);
  else
    most = amax_of_tree<dtype>(x, count, block);
  if constexpr (dtype == Dtype::f16) most = _mm512_castps_si512(_mm512_cvtph_ps(_mm512_cvtepi32_epi16(most)));
  if (ignore_nan && _mm512_cmpgt_epu32_mask(most, _mm512_set1_epi32(F32_EXPONENT))) return false;
  const __mmask16 mask = Vec::mask_of(count);
  _mm512_mask_storeu_epi32(bits, mask, _mm512_max_epu32(most, _mm512_maskz_loadu_epi32(mask, bits)));
  return true;
}
#else
inline constexpr int TREE = 16;
template <Dtype dtype>
inline bool amax_of_blocks(const void*, int, int64_t, bool, uint32_t*) {
  return false;
}
#endif

}  // namespace
}  // namespace dsf::fp8_cast
