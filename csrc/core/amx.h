// AMX: eight tile registers of 16 rows of 64 bytes, and products of two of them.
//   tmm0..tmm3  sums: tmm0 and tmm1 rows 0 to 15, tmm2 and tmm3 the rows after them; even left, odd right
//   tmm4, tmm5  x: 16 rows of 64 bytes of k each
//   tmm6, tmm7  weights: 16 groups of k of 16 columns each, left and right
// A thread's tiles are configured before use and released after it, so that its context stays small.
// DSF_EMULATE_AMX puts a model of the instructions in their place, for CPUs without them.
#pragma once
#include <cstdint>
#include <cstring>

#ifdef DSF_EMULATE_AMX
#include "csrc/core/amx_model.h"
#endif

namespace dsf {
namespace {

inline constexpr int AMX_ROWS = 16;         // of a tile
inline constexpr int AMX_ROW_BYTES = 64;    // of a tile
inline constexpr int AMX_SUM_COLUMNS = 16;  // 32-bit sums in a row

// What LDTILECFG reads (Intel SDM, volume 1, 18.2).
struct alignas(64) AmxConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(AmxConfig) == 64);

#ifndef DSF_EMULATE_AMX
// Own assembly: GCC's intrinsics do not say that a load reads memory.
inline void amx_configure(const AmxConfig& config) { asm volatile("ldtilecfg %0" : : "m"(config)); }
inline void amx_release() { asm volatile("tilerelease"); }
template <int tile>
[[gnu::always_inline]] inline void amx_zero() {
  asm volatile("tilezero %%tmm%c0" : : "i"(tile));
}
template <int tile>
[[gnu::always_inline]] inline void amx_load(const void* base, int64_t stride_bytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(base), "r"(stride_bytes), "i"(tile) : "memory");
}
template <int tile>
[[gnu::always_inline]] inline void amx_store(void* base, int64_t stride_bytes) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(base), "r"(stride_bytes), "i"(tile) : "memory");
}
// sums += x * weights
template <int sums, int x, int weights>
[[gnu::always_inline]] inline void amx_dot_bf16() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sums), "i"(x), "i"(weights));
}
template <int sums, int x, int weights>
[[gnu::always_inline]] inline void amx_dot_s8() {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sums), "i"(x), "i"(weights));
}
#endif

}  // namespace
}  // namespace dsf
