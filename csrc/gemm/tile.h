// Register tiles: MR rows of x against NV vectors of a panel, sums kept in registers over all of K, then handed to an
// End: StoreSums writes them to scratch rows of PANEL_N, StoreOutput (epilogue.h) finishes them on the spot.
#pragma once
#include <cstdint>
#include <cstring>

#include "csrc/gemm/packed.h"
#include "csrc/gemm/unroll.h"

namespace dsf {
namespace {

// Between the loop and the End: without it GCC 12 lets the End's need for registers spill sums inside the loop.
template <class V, int rows, int vectors, class Sum>
[[gnu::always_inline]] inline void keep_in_registers(Sum (&acc)[rows][vectors]) {
  DSF_UNROLL
  for (int r = 0; r < rows; ++r) {
    DSF_UNROLL
    for (int v = 0; v < vectors; ++v) V::keep(acc[r][v]);
  }
}

template <class V>
struct StoreSums {
  void* rows;  // PANEL_N sums each

  template <int rows_, int vectors>
  [[gnu::always_inline]] void take(const typename V::f32 (&acc)[rows_][vectors]) const {
    DSF_UNROLL
    for (int r = 0; r < rows_; ++r) {
      DSF_UNROLL
      for (int v = 0; v < vectors; ++v) V::store(static_cast<float*>(rows) + r * PANEL_N + v * V::LANES, acc[r][v]);
    }
  }
  template <int rows_, int vectors>
  [[gnu::always_inline]] void take(const typename V::i32 (&acc)[rows_][vectors]) const {
    DSF_UNROLL
    for (int r = 0; r < rows_; ++r) {
      DSF_UNROLL
      for (int v = 0; v < vectors; ++v)
        V::store_i32(static_cast<int32_t*>(rows) + r * PANEL_N + v * V::LANES, acc[r][v]);
    }
  }
};

// sums[r][c] = sum_k x[r, k] * panel[k][c]
template <class V>
struct TileF32 {
  using X = float;
  using Sum = float;
  using Store = StoreSums<V>;
  static constexpr bool SUMS_ARE_COLUMNS = true;  // a vector of sums is a vector of columns
  static constexpr int MR = V::TILE_M, NV = V::TILE_NV, COLUMNS = V::LANES;
  static constexpr int64_t GROUP_BYTES = PANEL_N * 4;  // bytes of one k in a panel

  template <int rows, int vectors, class End>
  [[gnu::noinline]] static void run(int64_t K, const X* x, int64_t x_stride, const char* panel, const int32_t*,
                                    const End& end) {
    typename V::f32 acc[rows][vectors];
    DSF_UNROLL
    for (int r = 0; r < rows; ++r) {
      DSF_UNROLL
      for (int v = 0; v < vectors; ++v) acc[r][v] = V::zero();
    }
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
    keep_in_registers<V>(acc);
    end.template take<rows, vectors>(acc);
  }
};

// The same in bf16, two k at a time.
template <class V>
struct TileBf16 {
  using X = uint16_t;
  using Sum = float;
  using Store = StoreSums<V>;
  static constexpr bool SUMS_ARE_COLUMNS = true;  // a vector of sums is a vector of columns
  static constexpr int MR = V::PAIR_TILE_M, NV = V::PAIR_TILE_NV, COLUMNS = V::LANES;
  static constexpr int64_t GROUP_BYTES = PANEL_N * 4;  // bytes of one pair of k in a panel

  template <int rows, int vectors, class End>
  [[gnu::noinline]] static void run(int64_t K, const X* x, int64_t x_stride, const char* panel, const int32_t*,
                                    const End& end) {
    typename V::f32 acc[rows][vectors];
    DSF_UNROLL
    for (int r = 0; r < rows; ++r) {
      DSF_UNROLL
      for (int v = 0; v < vectors; ++v) acc[r][v] = V::zero();
    }
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
    keep_in_registers<V>(acc);
    end.template take<rows, vectors>(acc);
  }
};

// Runs the tile with the row and vector counts as constants.
template <class Tile, int rows, int vectors>
inline void run_tile(int row_count, int vector_count, int64_t K, const typename Tile::X* x, int64_t x_stride,
                     const char* panel, const int32_t* excess, const typename Tile::Store& end) {
  if constexpr (rows > 1)
    if (row_count < rows)
      return run_tile<Tile, rows - 1, vectors>(row_count, vector_count, K, x, x_stride, panel, excess, end);
  if constexpr (vectors > 1)
    if (vector_count < vectors)
      return run_tile<Tile, rows, vectors - 1>(row_count, vector_count, K, x, x_stride, panel, excess, end);
  Tile::template run<rows, vectors>(K, x, x_stride, panel, excess, end);
}

// Rows [m_begin, m_end) of x against one panel. finish.direct(m, column) is the End of a whole register tile, taken
// where finish.DIRECT says so; finish(sums, m, rows) takes any other block of at most MR rows.
template <class Tile, class Finish>
inline void walk_panel(int64_t K, const typename Tile::X* x, int64_t x_stride, const char* panel, const int32_t* excess,
                       int columns, int64_t m_begin, int64_t m_end, const Finish& finish) {
  constexpr int BLOCK = Tile::NV * Tile::COLUMNS;  // columns a register tile covers
  alignas(64) typename Tile::Sum sums[Tile::MR * PANEL_N];
  for (int64_t m = m_begin; m < m_end; m += Tile::MR) {
    const int rows = int(m_end - m < Tile::MR ? m_end - m : Tile::MR);
    const typename Tile::X* x_rows = x + m * x_stride;
    const auto weights = [&](int c) { return panel + c * (Tile::GROUP_BYTES / PANEL_N); };
    const auto start = [&](int c) { return excess ? excess + c : nullptr; };
    if constexpr (Finish::DIRECT && Tile::SUMS_ARE_COLUMNS)
      if (rows == Tile::MR && columns == PANEL_N) {
        for (int c = 0; c < columns; c += BLOCK)
          Tile::template run<Tile::MR, Tile::NV>(K, x_rows, x_stride, weights(c), start(c), finish.direct(m, c));
        continue;
      }
    for (int c = 0; c < columns; c += BLOCK) {
      const int left = (columns - c + Tile::COLUMNS - 1) / Tile::COLUMNS;
      run_tile<Tile, Tile::MR, Tile::NV>(rows, left < Tile::NV ? left : Tile::NV, K, x_rows, x_stride, weights(c),
                                         start(c), {sums + c});
    }
    finish(sums, m, rows);
  }
}

}  // namespace
}  // namespace dsf
