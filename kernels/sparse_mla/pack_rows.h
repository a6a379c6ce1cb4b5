// Rows of a step into the panels that the tiles of csrc/gemm read: keys as columns, values as rows.
//   keys    f32: panel[d][j]                bf16: panel[d / 2][j][d % 2]          j an entry of the step
//   values  f32: panel[c / 64][j][c % 64]   bf16: panel[c / 64][j / 2][c % 64][j % 2]
// What lies beyond a row's end is 0.
#pragma once
#include "csrc/gemm/epilogue.h"
#include "csrc/gemm/tile.h"
#include "kernels/sparse_mla/cpu_kernels.h"

namespace dsf::sparse_mla {
namespace {

inline const char* byte_of(const void* p) { return static_cast<const char*>(p); }
inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

inline constexpr int64_t panel_row_bytes(Dtype panel) { return PANEL_N * (panel == Dtype::bf16 ? 2 : 4); }
inline constexpr int64_t key_panel_bytes(Dtype panel, int64_t d) { return round_up(d, 2) * panel_row_bytes(panel); }
// n rows of values, padded to whole pairs.
inline constexpr int64_t value_panel_bytes(Dtype panel, int64_t n, int64_t d_v) {
  return padded_v(d_v) / PANEL_N * round_up(n, 2) * panel_row_bytes(panel);
}

// LANES rows from a place on: 32 bits of each, f32 numbers or pairs of bf16, as LANES columns of a panel.
template <class V, Dtype from, Dtype panel>
[[gnu::always_inline]] inline void pack_square(const void* const* rows, int64_t d, int64_t left, char* to) {
  typename V::i32 square[V::LANES];
  DSF_UNROLL
  for (int j = 0; j < V::LANES; ++j) {
    if constexpr (panel == Dtype::bf16) {
      const int64_t bytes = least(left * 2, V::LANES * 4);
      square[j] = V::load_bytes_n(static_cast<const char*>(rows[j]) + d * 2, int(bytes));
    } else {
      square[j] = V::bits_of(load_value<V, from>(rows[j], d, int(least(left, V::LANES))));
    }
  }
  V::transpose(square);
  constexpr int64_t NUMBERS = panel == Dtype::bf16 ? 2 : 1;  // in 32 bits
  const int64_t count = least(V::LANES, (left + NUMBERS - 1) / NUMBERS);
  for (int64_t i = 0; i < count; ++i)
    V::store_i32(reinterpret_cast<int32_t*>(to + i * PANEL_N * 4), square[i]);
}

// All STEP rows, d numbers of each.
template <class V, Dtype from, Dtype panel>
inline void pack_keys(const void* const* rows, int64_t d, char* to) {
  constexpr int64_t NUMBERS = V::LANES * (panel == Dtype::bf16 ? 2 : 1), GROUP = panel == Dtype::bf16 ? 2 : 1;
  for (int64_t j = 0; j < STEP; j += V::LANES)
    for (int64_t i = 0; i < d; i += NUMBERS)
      pack_square<V, from, panel>(rows + j, i, d - i, to + i / GROUP * PANEL_N * 4 + j * 4);
}

// Two rows of 16-bit numbers side by side, 2 LANES of each.
template <class V>
[[gnu::always_inline]] inline void interleave(typename V::i32 a, typename V::i32 b, char* to) {
#if defined(__AVX512BW__)
  const __m512i low = _mm512_unpacklo_epi16(a, b), high = _mm512_unpackhi_epi16(a, b);
  const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
  _mm512_storeu_si512(to, _mm512_permutex2var_epi64(low, first, high));
  _mm512_storeu_si512(to + 64, _mm512_permutex2var_epi64(low, second, high));
#elif defined(__AVX2__)
  const __m256i low = _mm256_unpacklo_epi16(a, b), high = _mm256_unpackhi_epi16(a, b);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permute2x128_si256(low, high, 0x20));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 32), _mm256_permute2x128_si256(low, high, 0x31));
#elif defined(__aarch64__)
  if constexpr (V::LANES == 4 && sizeof(a) == sizeof(int32x4_t)) {
    const uint16x8_t x = vreinterpretq_u16_s32(int32x4_t(a)), y = vreinterpretq_u16_s32(int32x4_t(b));
    vst1q_u16(reinterpret_cast<uint16_t*>(to), vzip1q_u16(x, y));
    vst1q_u16(reinterpret_cast<uint16_t*>(to) + 8, vzip2q_u16(x, y));
  }
#else
  uint16_t x[2 * V::LANES], y[2 * V::LANES], both[4 * V::LANES];
  std::memcpy(x, &a, sizeof x);
  std::memcpy(y, &b, sizeof y);
  for (int i = 0; i < 2 * V::LANES; ++i) {
    both[2 * i] = x[i];
    both[2 * i + 1] = y[i];
  }
  std::memcpy(to, both, sizeof both);
#endif
}

// Rows at one distance.
struct EvenRows {
  const void* first;
  int64_t stride;  // bytes
  const char* operator[](int64_t j) const { return static_cast<const char*>(first) + j * stride; }
};

// n rows, d_v numbers of each.
template <class V, Dtype from, Dtype panel, class Rows>
inline void pack_values(const Rows& rows, int64_t n, int64_t d_v, char* to) {
  const int64_t padded = round_up(n, 2), width = panel_row_bytes(panel) * padded;  // bytes of a panel
  if constexpr (panel == Dtype::bf16) {
    constexpr int64_t NUMBERS = 2 * V::LANES;
    for (int64_t j = 0; j < n; j += 2)
      for (int64_t c = 0; c < padded_v(d_v); c += NUMBERS) {
        const int64_t bytes = least((d_v - c) * 2, NUMBERS * 2);
        auto a = V::zero_i32(), b = V::zero_i32();
        if (bytes > 0) {
          a = V::load_bytes_n(byte_of(rows[j]) + c * 2, int(bytes));
          if (j + 1 < n) b = V::load_bytes_n(byte_of(rows[j + 1]) + c * 2, int(bytes));
        }
        interleave<V>(a, b, to + c / PANEL_N * width + j / 2 * PANEL_N * 4 + c % PANEL_N * 4);
      }
  } else {
    for (int64_t j = 0; j < n; ++j)
      for (int64_t c = 0; c < padded_v(d_v); c += V::LANES) {
        const int64_t left = least(d_v - c, V::LANES);
        const auto v = left > 0 ? load_value<V, from>(rows[j], c, int(left)) : V::zero();
        V::store(reinterpret_cast<float*>(to + c / PANEL_N * width + j * PANEL_N * 4) + c % PANEL_N, v);
      }
  }
}

}  // namespace
}  // namespace dsf::sparse_mla
