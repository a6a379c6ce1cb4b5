// Register tiles: MR rows of x against NV vectors of a panel, sums kept in registers over all of K.
// A tile writes its raw sums to scratch rows of PANEL_N; epilogue.h finishes them.
#pragma once
#include <cstdint>
#include <cstring>

#include "csrc/gemm/packed.h"

#define DSF_UNROLL _Pragma("GCC unroll 16")

namespace dsf {
namespace {

// sums[r][c] = sum_k x[r, k] * panel[k][c]
template <class V>
struct TileF32 {
  using X = float;
  using Sum = float;
  static constexpr int MR = V::TILE_M, NV = V::TILE_NV, COLUMNS = V::LANES;
  static constexpr int64_t GROUP_BYTES = PANEL_N * 4;  // bytes of one k in a panel

  template <int rows, int vectors>
  [[gnu::noinline]] static void run(int64_t K, const X* x, int64_t x_stride, const char* panel, Sum* sums,
                                    const int32_t*) {
    typename V::f32 acc[rows][vectors];
    DSF_UNROLL
    for (int r = 0; r < rows; ++r) DSF_UNROLL
    for (int v = 0; v < vectors; ++v) acc[r][v] = V::zero();
    for (int64_t k = 0; k < K; ++k, panel += GROUP_BYTES) {
      typename V::f32 w[vectors];
      DSF_UNROLL
      for (int v = 0; v < vectors; ++v) w[v] = V::load(reinterpret_cast<const float*>(panel) + v * V::LANES);
      DSF_UNROLL
      for (int r = 0; r < rows; ++r) {
        const auto a = V::set1(x[r * x_stride + k]);
        DSF_UNROLL
        for (int v = 0; v < vectors; ++v) acc[r][v] = V::madd(a, w[v], acc[r][v]);
      }
    }
    DSF_UNROLL
    for (int r = 0; r < rows; ++r) DSF_UNROLL
    for (int v = 0; v < vectors; ++v) V::store(sums + r * PANEL_N + v * V::LANES, acc[r][v]);
  }
};

// The same in bf16, two k at a time.
template <class V>
struct TileBf16 {
  using X = uint16_t;
  using Sum = float;
  static constexpr int MR = V::PAIR_TILE_M, NV = V::PAIR_TILE_NV, COLUMNS = V::LANES;
  static constexpr int64_t GROUP_BYTES = PANEL_N * 4;  // bytes of one pair of k in a panel

  template <int rows, int vectors>
  [[gnu::noinline]] static void run(int64_t K, const X* x, int64_t x_stride, const char* panel, Sum* sums,
                                    const int32_t*) {
    typename V::f32 acc[rows][vectors];
    DSF_UNROLL
    for (int r = 0; r < rows; ++r) DSF_UNROLL
    for (int v = 0; v < vectors; ++v) acc[r][v] = V::zero();
    const auto step = [&](const auto& x_pair) __attribute__((always_inline)) {
      typename V::pair w[vectors];
      DSF_UNROLL
      for (int v = 0; v < vectors; ++v)
        w[v] = V::load_pair(reinterpret_cast<const uint16_t*>(panel) + v * V::LANES * 2);
      DSF_UNROLL
      for (int r = 0; r < rows; ++r) {
        const auto a = V::set1_pair(x_pair(r));
        DSF_UNROLL
        for (int v = 0; v < vectors; ++v) acc[r][v] = V::dot_pair(acc[r][v], a, w[v]);
      }
      panel += GROUP_BYTES;
    };
    int64_t k = 0;
    for (; k + 2 <= K; k += 2)
      step([&](int r) __attribute__((always_inline)) {
        uint32_t bits;
        std::memcpy(&bits, x + r * x_stride + k, 4);
        return bits;
      });
    if (k < K) step([&](int r) __attribute__((always_inline)) { return uint32_t(x[r * x_stride + k]); });
    DSF_UNROLL
    for (int r = 0; r < rows; ++r) DSF_UNROLL
    for (int v = 0; v < vectors; ++v) V::store(sums + r * PANEL_N + v * V::LANES, acc[r][v]);
  }
};

// Runs the tile with the row and vector counts as constants.
template <class Tile, int rows, int vectors>
inline void run_tile(int row_count, int vector_count, int64_t K, const typename Tile::X* x, int64_t x_stride,
                     const char* panel, typename Tile::Sum* sums, const int32_t* excess) {
  if constexpr (rows > 1)
    if (row_count < rows)
      return run_tile<Tile, rows - 1, vectors>(row_count, vector_count, K, x, x_stride, panel, sums, excess);
  if constexpr (vectors > 1)
    if (vector_count < vectors)
      return run_tile<Tile, rows, vectors - 1>(row_count, vector_count, K, x, x_stride, panel, sums, excess);
  Tile::template run<rows, vectors>(K, x, x_stride, panel, sums, excess);
}

// Rows [m_begin, m_end) of x against one panel; finish(sums, m, rows) takes each block of MR rows.
template <class Tile, class Finish>
inline void walk_panel(int64_t K, const typename Tile::X* x, int64_t x_stride, const char* panel, const int32_t* excess,
                       int columns, int64_t m_begin, int64_t m_end, const Finish& finish) {
  constexpr int BLOCK = Tile::NV * Tile::COLUMNS;  // columns a register tile covers
  alignas(64) typename Tile::Sum sums[Tile::MR * PANEL_N];
  for (int64_t m = m_begin; m < m_end; m += Tile::MR) {
    const int rows = int(m_end - m < Tile::MR ? m_end - m : Tile::MR);
    for (int c = 0; c < columns; c += BLOCK) {
      const int left = (columns - c + Tile::COLUMNS - 1) / Tile::COLUMNS;
      run_tile<Tile, Tile::MR, Tile::NV>(rows, left < Tile::NV ? left : Tile::NV, K, x + m * x_stride, x_stride,
                                         panel + c * (Tile::GROUP_BYTES / PANEL_N), sums + c,
                                         excess ? excess + c : nullptr);
    }
    finish(sums, m, rows);
  }
}

}  // namespace
}  // namespace dsf
