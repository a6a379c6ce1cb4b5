// Tiles of AMX: up to 32 rows of x against 32 columns of a panel, two by two tile registers of sums.
//   bf16   TDPBF16PS: within each 32 values of k the even and the odd products are summed apart, in the order of k, by
//          fused multiply-adds; subnormal operands and results count as zero
//   int8   TDPBSSD: x_q as it is, exact
// Every number of rows runs the same instructions, so a row's bits depend neither on M nor on its neighbours.
// Operations a byte: 64 bytes of each of 2 + 2 tiles feed 4 products, as many loads as products (Intel's optimization
// manual, chapter 20, takes the same blocking).
#pragma once
#include <cstdint>
#include <cstring>

#include "csrc/core/amx.h"
#include "csrc/gemm/blocked.h"
#include "csrc/gemm/tile.h"

namespace dsf {
namespace {

// Products [k, k + 64 bytes) of x's and the panel's groups.
template <bool two_rows, bool two_columns, class Tile>
[[gnu::always_inline]] inline void amx_step(const void* x, int64_t x_bytes, const char* panel, int64_t group_bytes) {
  const char* second = static_cast<const char*>(x) + AMX_ROWS * x_bytes;
  amx_load<4>(x, x_bytes);
  amx_load<6>(panel, group_bytes);
  Tile::template dot<0, 4, 6>();
  if constexpr (two_columns) {
    amx_load<7>(panel + AMX_ROW_BYTES, group_bytes);
    Tile::template dot<1, 4, 7>();
  }
  if constexpr (two_rows) {
    amx_load<5>(second, x_bytes);
    Tile::template dot<2, 5, 6>();
    if constexpr (two_columns) Tile::template dot<3, 5, 7>();
  }
}

// sums[r][c] = start + sum_k x[r, k] * panel[k][c]; rows and columns as far as the configuration says.
template <bool two_rows, bool two_columns, class Tile>
[[gnu::noinline]] void amx_run(int rows, int64_t K, const typename Tile::X* x, int64_t x_stride, const char* panel,
                               const void* start, void* sums, int64_t sums_bytes) {
  constexpr int64_t GROUP_BYTES = Tile::GROUP_BYTES;
  constexpr int64_t VALUES = AMX_ROW_BYTES / int64_t(sizeof(typename Tile::X));  // of k, a step
  const auto at = [=](auto* base, int r, int c) { return base + r * AMX_ROWS * sums_bytes + c * AMX_ROW_BYTES; };
  if (start) {
    const char* from = static_cast<const char*>(start);
    amx_load<0>(at(from, 0, 0), sums_bytes);
    if constexpr (two_columns) amx_load<1>(at(from, 0, 1), sums_bytes);
    if constexpr (two_rows) amx_load<2>(at(from, 1, 0), sums_bytes);
    if constexpr (two_rows && two_columns) amx_load<3>(at(from, 1, 1), sums_bytes);
  } else {
    amx_zero<0>();
    amx_zero<1>();
    amx_zero<2>();
    amx_zero<3>();
  }
  int64_t k = 0;
  for (; k + VALUES <= K; k += VALUES, panel += AMX_ROWS * GROUP_BYTES)
    amx_step<two_rows, two_columns, Tile>(x + k, x_stride * int64_t(sizeof *x), panel, GROUP_BYTES);
  if (k < K) {  // the last step in copies, zeros behind K: a load takes whole tiles
    alignas(64) char x_rows[2 * AMX_ROWS][AMX_ROW_BYTES] = {};
    alignas(64) char groups[AMX_ROWS][2 * AMX_ROW_BYTES] = {};
    for (int r = 0; r < rows; ++r) std::memcpy(x_rows[r], x + r * x_stride + k, size_t(K - k) * sizeof *x);
    for (int64_t g = 0; g * Tile::K_GROUP < K - k; ++g)
      std::memcpy(groups[g], panel + g * GROUP_BYTES, two_columns ? 2 * AMX_ROW_BYTES : AMX_ROW_BYTES);
    amx_step<two_rows, two_columns, Tile>(x_rows, AMX_ROW_BYTES, groups[0], 2 * AMX_ROW_BYTES);
  }
  char* to = static_cast<char*>(sums);
  amx_store<0>(at(to, 0, 0), sums_bytes);
  if constexpr (two_columns) amx_store<1>(at(to, 0, 1), sums_bytes);
  if constexpr (two_rows) amx_store<2>(at(to, 1, 0), sums_bytes);
  if constexpr (two_rows && two_columns) amx_store<3>(at(to, 1, 1), sums_bytes);
}

// The End of sums in memory, rows of PANEL_N.
template <class V>
inline void* sums_of(const StoreSums<V>& end, float*) {
  return end.rows;
}
template <class V>
inline void finish_sums(const StoreSums<V>&, const float*, int, int) {}

template <class V>
inline void* sums_of(const AddScaled<V>&, float* scratch) {
  return scratch;
}
template <class V>
inline void finish_sums(const AddScaled<V>& end, const float* sums, int rows, int vectors) {
  for (int r = 0; r < rows; ++r) {
    const float* x_scale = end.x_scale ? end.x_scale + r * end.x_scale_stride : nullptr;
    for (int v = 0; v < vectors; ++v) {
      const int64_t at = v * V::LANES;
      const typename V::f32 acc[1][1] = {{V::load(sums + r * PANEL_N + at)}};
      AddScaled<V>{end.z + r * PANEL_N + at, end.scale + at, x_scale, 0}.take(acc);
    }
  }
}

// The tiles' sizes: `rows` of x, 16 columns of every group of the panel.
inline void amx_configure_rows(int rows) {
  AmxConfig config;
  const int first = rows < AMX_ROWS ? rows : AMX_ROWS, second = rows > AMX_ROWS ? rows - AMX_ROWS : 1;
  for (int t = 0; t < 8; ++t) {
    config.rows[t] = uint8_t(t >= 6 ? AMX_ROWS : t == 2 || t == 3 || t == 5 ? second : first);
    config.row_bytes[t] = AMX_ROW_BYTES;
  }
  amx_configure(config);
}

// A kernel's use of the tiles: whole ones from its begin to its end.
struct AmxScope {
  AmxScope() { amx_configure_rows(2 * AMX_ROWS); }
  ~AmxScope() { amx_release(); }
  AmxScope(const AmxScope&) = delete;
};

template <class V, class Tile, class Number>
struct AmxTile {
  using Sum = Number;
  using Start = Number;
  using Store = StoreSums<V>;
  static constexpr bool SUMS_ARE_COLUMNS = true;
  static constexpr bool SIZED_BY_ARGUMENTS = true;
  static constexpr int MR = 2 * AMX_ROWS, NV = 2, COLUMNS = AMX_SUM_COLUMNS;
  static constexpr int64_t GROUP_BYTES = PANEL_N * 4;  // bytes of one group of k in a panel: four of every column
  static_assert(V::LANES == AMX_SUM_COLUMNS);

  // Within an AmxScope.
  template <class X, class End>
  static void run(int rows, int vectors, int64_t K, const X* x, int64_t x_stride, const char* panel, const Sum* start,
                  const End& end) {
    if (rows < MR) amx_configure_rows(rows);
    alignas(64) float scratch[MR * PANEL_N];
    const bool two_rows = rows > AMX_ROWS;
    const auto run_sized = two_rows ? (vectors > 1 ? amx_run<true, true, Tile> : amx_run<true, false, Tile>)
                                    : (vectors > 1 ? amx_run<false, true, Tile> : amx_run<false, false, Tile>);
    run_sized(rows, K, x, x_stride, panel, start, sums_of(end, scratch), PANEL_N * 4);
    if (rows < MR) amx_configure_rows(MR);
    finish_sums(end, scratch, rows, vectors);
  }
};

template <class V>
struct AmxTileBf16 : AmxTile<V, AmxTileBf16<V>, float> {
  using X = uint16_t;
  static constexpr int64_t K_GROUP = 2;
  template <int sums, int x, int weights>
  [[gnu::always_inline]] static void dot() {
    amx_dot_bf16<sums, x, weights>();
  }
};

template <class V>
struct AmxTileInt8 : AmxTile<V, AmxTileInt8<V>, int32_t> {
  using X = int8_t;  // x_q
  static constexpr int64_t K_GROUP = 4;
  static constexpr int32_t OFFSET = 0;
  template <int sums, int x, int weights>
  [[gnu::always_inline]] static void dot() {
    amx_dot_s8<sums, x, weights>();
  }
};

}  // namespace
}  // namespace dsf
