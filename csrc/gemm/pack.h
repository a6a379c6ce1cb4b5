// Packing: rows of a weight as a model holds it -> the columns of a panel (packed.h), with what the baseline has.
#pragma once
#include <cstdint>
#include <cstring>

#include "csrc/gemm/packed.h"

namespace dsf {
namespace {

typedef uint16_t u16x8 __attribute__((vector_size(16)));
typedef uint32_t u32x4 __attribute__((vector_size(16)));

inline constexpr int64_t PACK_BYTES = 16;       // of four rows each, in one step: a register
inline constexpr int64_t PACK_ROW_BYTES = 128;  // of a row at a time: its lines are used up before they are evicted
// Of a row, asked for in L2: the rows of a power of two of bytes share few places of L1, and are too many streams for
// the hardware's own reading ahead (f32, K = 4096: 24 GB/s against 18 without; Zen 5, 2026-11).
inline constexpr int64_t PACK_AHEAD_BYTES = 128;

// Quad g of the four rows (4 bytes each) to target + g * PANEL_N * 4.
struct TransposeQuads {
  static constexpr int64_t GROUP_BYTES = 4;  // of a row that lie side by side in a panel
  static void store(const u32x4 (&rows)[4], char* target) {
    const auto low = [](u32x4 a, u32x4 b) { return __builtin_shuffle(a, b, u32x4{0, 4, 1, 5}); };
    const auto high = [](u32x4 a, u32x4 b) { return __builtin_shuffle(a, b, u32x4{2, 6, 3, 7}); };
    const u32x4 first[2] = {low(rows[0], rows[1]), low(rows[2], rows[3])};
    const u32x4 second[2] = {high(rows[0], rows[1]), high(rows[2], rows[3])};
    const auto join = [](const u32x4(&half)[2], bool upper) {
      return upper ? __builtin_shuffle(half[0], half[1], u32x4{2, 3, 6, 7})
                   : __builtin_shuffle(half[0], half[1], u32x4{0, 1, 4, 5});
    };
    const u32x4 quads[4] = {join(first, false), join(first, true), join(second, false), join(second, true)};
    for (int g = 0; g < 4; ++g) std::memcpy(target + g * PANEL_N * 4, &quads[g], PACK_BYTES);
  }
};

// The same with the quads' halves apart: the pairs (0, 1) of the four rows, then their pairs (2, 3).
struct TransposePairs {
  static constexpr int64_t GROUP_BYTES = 4;
  static void store(const u32x4 (&rows)[4], char* target) {
    const auto low = [](u32x4 a, u32x4 b) {
      return u32x4(__builtin_shuffle(u16x8(a), u16x8(b), u16x8{0, 8, 1, 9, 2, 10, 3, 11}));
    };
    const auto high = [](u32x4 a, u32x4 b) {
      return u32x4(__builtin_shuffle(u16x8(a), u16x8(b), u16x8{4, 12, 5, 13, 6, 14, 7, 15}));
    };
    const u32x4 first[2] = {low(rows[0], rows[1]), low(rows[2], rows[3])};
    const u32x4 second[2] = {high(rows[0], rows[1]), high(rows[2], rows[3])};
    const u32x4 quads[4] = {__builtin_shuffle(first[0], first[1], u32x4{0, 4, 1, 5}),
                            __builtin_shuffle(first[0], first[1], u32x4{2, 6, 3, 7}),
                            __builtin_shuffle(second[0], second[1], u32x4{0, 4, 1, 5}),
                            __builtin_shuffle(second[0], second[1], u32x4{2, 6, 3, 7})};
    for (int g = 0; g < 4; ++g) std::memcpy(target + g * PANEL_N * 4, &quads[g], PACK_BYTES);
  }
};

// Value g of the four rows (2 bytes each) to target + g * PANEL_N * 2.
struct TransposeHalves {
  static constexpr int64_t GROUP_BYTES = 2;
  static void store(const u32x4 (&rows)[4], char* target) {
    const auto low = [](u32x4 a, u32x4 b) {
      return u32x4(__builtin_shuffle(u16x8(a), u16x8(b), u16x8{0, 8, 1, 9, 2, 10, 3, 11}));
    };
    const auto high = [](u32x4 a, u32x4 b) {
      return u32x4(__builtin_shuffle(u16x8(a), u16x8(b), u16x8{4, 12, 5, 13, 6, 14, 7, 15}));
    };
    const u32x4 first[2] = {low(rows[0], rows[1]), low(rows[2], rows[3])};
    const u32x4 second[2] = {high(rows[0], rows[1]), high(rows[2], rows[3])};
    const u32x4 groups[4] = {__builtin_shuffle(first[0], first[1], u32x4{0, 4, 1, 5}),
                             __builtin_shuffle(first[0], first[1], u32x4{2, 6, 3, 7}),
                             __builtin_shuffle(second[0], second[1], u32x4{0, 4, 1, 5}),
                             __builtin_shuffle(second[0], second[1], u32x4{2, 6, 3, 7})};  // two groups each
    for (int g = 0; g < 8; ++g)
      std::memcpy(target + g * PANEL_N * 2, reinterpret_cast<const char*>(&groups[g / 2]) + g % 2 * 8, 8);
  }
};

// `bytes` bytes of each of `columns` rows -> groups of PANEL_N columns; zeros after the end of a row in its last group
// and of the last row in its four. The columns past those are left as they are.
template <class Transpose>
inline void pack_columns(const char* rows, int64_t stride_bytes, int64_t columns, int64_t bytes, char* target) {
  constexpr int64_t GROUP_BYTES = Transpose::GROUP_BYTES;
  for (int64_t begin = 0; begin < bytes; begin += PACK_ROW_BYTES) {
    const int64_t end = bytes - begin < PACK_ROW_BYTES ? bytes : begin + PACK_ROW_BYTES;
    for (int64_t c = 0; c < columns; c += 4) {
      const char* source = rows + c * stride_bytes;
      const int64_t height = columns - c < 4 ? columns - c : 4;
      for (int64_t r = 0; r < height; ++r) {
        const char* next = source + r * stride_bytes + begin + PACK_AHEAD_BYTES;
        for (int64_t line = 0; line < PACK_ROW_BYTES; line += CACHE_LINE) __builtin_prefetch(next + line, 0, 2);
      }
      for (int64_t i = begin; i < end; i += PACK_BYTES) {
        const int64_t width = end - i < PACK_BYTES ? end - i : PACK_BYTES;
        u32x4 four[4] = {};
        char* groups = target + i * PANEL_N + c * GROUP_BYTES;
        if (width == PACK_BYTES && height == 4) {
          for (int r = 0; r < 4; ++r) std::memcpy(&four[r], source + r * stride_bytes + i, PACK_BYTES);
          Transpose::store(four, groups);
          continue;
        }
        for (int64_t r = 0; r < height; ++r) std::memcpy(&four[r], source + r * stride_bytes + i, size_t(width));
        char edge[PACK_BYTES * PANEL_N];  // groups past the end are not the panel's
        Transpose::store(four, edge);
        for (int64_t g = 0; g * GROUP_BYTES < width; ++g)
          std::memcpy(groups + g * PANEL_N * GROUP_BYTES, edge + g * PANEL_N * GROUP_BYTES, 4 * GROUP_BYTES);
      }
    }
  }
}

}  // namespace
}  // namespace dsf
