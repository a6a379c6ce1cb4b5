// Rows of x to int8 tiles, RUN_K values at a time: what quantize_rows.h does block by block, the largest magnitudes and
// the sums of sixteen blocks in one register. The same operations on every value, hence the same bits.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "kernels/int4_matmul/block_scales.h"
#include "kernels/int4_matmul/cpu_kernels.h"

namespace dsf::int4_matmul {
namespace {

inline constexpr int64_t PART_K = 32;          // the smallest block: two vectors of f32
inline constexpr int64_t RUN_K = 16 * PART_K;  // a lane for each part; a multiple of every block

// Lane i of the result: combine() of the sixteen lanes of v[i].
template <class Combine>
[[gnu::always_inline]] inline __m512i across(__m512i (&v)[16], const Combine& combine) {
  DSF_UNROLL
  for (int i = 0; i < 8; ++i)  // lanes (2 i, 2 i + 1) of each 64 bits
    v[i] = combine(_mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]));
  DSF_UNROLL
  for (int i = 0; i < 4; ++i)  // 4 i to 4 i + 3 of each 128
    v[i] = combine(_mm512_unpacklo_epi64(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_epi64(v[2 * i], v[2 * i + 1]));
  DSF_UNROLL
  for (int i = 0; i < 2; ++i)  // 8 i to 8 i + 7 of each 256, in two ways
    v[i] =
        combine(_mm512_shuffle_i32x4(v[2 * i], v[2 * i + 1], 0x88), _mm512_shuffle_i32x4(v[2 * i], v[2 * i + 1], 0xDD));
  return combine(_mm512_shuffle_i32x4(v[0], v[1], 0x88), _mm512_shuffle_i32x4(v[0], v[1], 0xDD));
}

// combine() of the lanes that are one block, in each of them.
template <class Combine>
[[gnu::always_inline]] inline __m512i across_block(__m512i parts, int64_t block_k, const Combine& combine) {
  if (block_k > PART_K) parts = combine(parts, _mm512_shuffle_epi32(parts, _MM_PERM_CDAB));
  if (block_k > 2 * PART_K) parts = combine(parts, _mm512_shuffle_epi32(parts, _MM_PERM_BADC));
  return parts;
}

// The codes of four steps of a row; codes goes on.
[[gnu::always_inline]] inline void store_steps(__m256i steps, int rows, char*& codes) {
  const auto store = [&](__m128i two) __attribute__((always_inline)) {
    _mm_storel_epi64(reinterpret_cast<__m128i*>(codes), two);
    _mm_storeh_pd(reinterpret_cast<double*>(codes + rows * STEP_K), _mm_castsi128_pd(two));
    codes += 2 * rows * STEP_K;
  };
  store(_mm256_castsi256_si128(steps));
  store(_mm256_extracti128_si256(steps, 1));
}

// Values [k, k + RUN_K) of row r of a tile of `rows` rows; the tile starts there.
template <class V, Dtype dtype>
[[gnu::noinline]] void quantize_run(const void* x, int64_t k, int64_t block_k, int32_t zero_point, int rows, int r,
                                    char* tile) {
  const auto value = [&](int64_t i) __attribute__((always_inline)) { return load_value<V, dtype>(x, k + i, V::LANES); };
  __m512i parts[16];
  DSF_UNROLL
  for (int p = 0; p < 16; ++p)  // amax = x.abs().max()
    parts[p] = V::max_magnitude(V::max_magnitude(V::zero_i32(), value(p * PART_K)), value(p * PART_K + V::LANES));
  const auto larger = [](__m512i a, __m512i b) { return _mm512_max_epu32(a, b); };
  alignas(64) float scale[16], inverse[16];
  scales_of_blocks<V>(across_block(across(parts, larger), block_k, larger), scale, inverse);

  char* codes = tile + rows * BLOCK_HEAD_BYTES + r * STEP_K;
  const __m512i in_order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i of_bytes = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15));
  DSF_UNROLL
  for (int p = 0; p < 16; p += 2) {  // x_q = round_half_even(x * inverse), 64 at a time
    __m512i code[4];
    DSF_UNROLL
    for (int v = 0; v < 4; ++v)
      code[v] = V::round_to_i32(V::mul(value(p * PART_K + v * V::LANES), V::set1(inverse[p + v / 2])));
    parts[p] = _mm512_add_epi32(code[0], code[1]);
    parts[p + 1] = _mm512_add_epi32(code[2], code[3]);
    const __m512i bytes =
        _mm512_packs_epi16(_mm512_packs_epi32(code[0], code[1]), _mm512_packs_epi32(code[2], code[3]));
    const __m512i ordered = _mm512_shuffle_epi8(_mm512_permutexvar_epi32(in_order, bytes), of_bytes);
    store_steps(_mm512_castsi512_si256(ordered), rows, codes);
    if (block_k == PART_K) codes += rows * BLOCK_HEAD_BYTES;
    store_steps(_mm512_extracti64x4_epi64(ordered, 1), rows, codes);
    if ((p + 2) * PART_K % block_k == 0) codes += rows * BLOCK_HEAD_BYTES;
  }
  const auto plus = [](__m512i a, __m512i b) { return _mm512_add_epi32(a, b); };
  alignas(64) int32_t start[16];  // -zero * x_q.sum()
  _mm512_store_si512(
      start, _mm512_mullo_epi32(across_block(across(parts, plus), block_k, plus), _mm512_set1_epi32(-zero_point)));

  for (int64_t b = 0; b < RUN_K / block_k; ++b) {
    const int64_t part = b * (block_k / PART_K);
    std::memcpy(tile + r * 4, scale + part, 4);
    std::memcpy(tile + (rows + r) * 4, start + part, 4);
    tile += rows * BLOCK_HEAD_BYTES + block_k * rows;
  }
}

}  // namespace
}  // namespace dsf::int4_matmul
