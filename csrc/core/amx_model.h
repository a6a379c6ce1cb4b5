// A model of the AMX instructions that amx.h uses, one thread's tiles in memory: what Intel's SDM, volume 2, says they
// compute. For tests on CPUs without them.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace dsf {
namespace {

struct AmxRegister {
  int rows, row_bytes;
  alignas(64) char data[16][64];
};

inline AmxRegister* amx_tiles() {
  static thread_local AmxRegister tiles[8];
  return tiles;
}

inline void amx_release() { std::memset(amx_tiles(), 0, 8 * sizeof(AmxRegister)); }

template <class Config>
inline void amx_configure(const Config& config) {
  amx_release();
  for (int t = 0; t < 8; ++t) {
    amx_tiles()[t].rows = config.rows[t];
    amx_tiles()[t].row_bytes = config.row_bytes[t];
  }
}

template <int tile>
inline void amx_zero() {
  std::memset(amx_tiles()[tile].data, 0, sizeof amx_tiles()[tile].data);
}

template <int tile>
inline void amx_load(const void* base, int64_t stride_bytes) {
  AmxRegister& t = amx_tiles()[tile];
  amx_zero<tile>();
  for (int r = 0; r < t.rows; ++r)
    std::memcpy(t.data[r], static_cast<const char*>(base) + r * stride_bytes, size_t(t.row_bytes));
}

template <int tile>
inline void amx_store(void* base, int64_t stride_bytes) {
  const AmxRegister& t = amx_tiles()[tile];
  for (int r = 0; r < t.rows; ++r)
    std::memcpy(static_cast<char*>(base) + r * stride_bytes, t.data[r], size_t(t.row_bytes));
}

template <class T>
inline T amx_element(const AmxRegister& tile, int row, int i) {
  T value;
  std::memcpy(&value, tile.data[row] + i * int(sizeof(T)), sizeof(T));
  return value;
}

// Subnormal operands count as zero, subnormal results become zero.
inline float amx_flush(float value) { return std::fabs(value) < 0x1p-126f ? std::copysign(0.0f, value) : value; }

inline float amx_bf16(const AmxRegister& tile, int row, int i) {
  const uint32_t bits = uint32_t(amx_element<uint16_t>(tile, row, i)) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return amx_flush(value);
}

// TDPBF16PS: the even and the odd products of a tile's k are two chains of fused multiply-adds; their sum is added.
template <int sums, int x, int weights>
inline void amx_dot_bf16() {
  AmxRegister *c = amx_tiles() + sums, *a = amx_tiles() + x, *b = amx_tiles() + weights;
  for (int m = 0; m < c->rows; ++m)
    for (int n = 0; n < c->row_bytes / 4; ++n) {
      float even = 0, odd = 0;
      for (int k = 0; k < a->row_bytes / 4; ++k) {
        even = amx_flush(std::fma(amx_bf16(*a, m, 2 * k), amx_bf16(*b, k, 2 * n), even));
        odd = amx_flush(std::fma(amx_bf16(*a, m, 2 * k + 1), amx_bf16(*b, k, 2 * n + 1), odd));
      }
      const float sum = amx_flush(amx_flush(amx_element<float>(*c, m, n)) + amx_flush(even + odd));
      std::memcpy(c->data[m] + n * 4, &sum, 4);
    }
}

// TDPBSSD: exact sums modulo 2^32.
template <int sums, int x, int weights>
inline void amx_dot_s8() {
  AmxRegister *c = amx_tiles() + sums, *a = amx_tiles() + x, *b = amx_tiles() + weights;
  for (int m = 0; m < c->rows; ++m)
    for (int n = 0; n < c->row_bytes / 4; ++n) {
      auto sum = amx_element<uint32_t>(*c, m, n);
      for (int k = 0; k < a->row_bytes / 4; ++k)
        for (int i = 0; i < 4; ++i)
          sum += uint32_t(amx_element<int8_t>(*a, m, 4 * k + i) * amx_element<int8_t>(*b, k, 4 * n + i));
      std::memcpy(c->data[m] + n * 4, &sum, 4);
    }
}

}  // namespace
}  // namespace dsf
