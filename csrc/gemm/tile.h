// Register tiles: MR rows of x against NV vectors of a panel, sums kept in registers over all of K, then handed to an
// End: StoreSums writes them to scratch rows of PANEL_N, StoreOutput (epilogue.h) finishes them on the spot.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

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

// Sums of an earlier part of K, rows of PANEL_N, or none: zeros.
template <class V, int rows, int vectors>
[[gnu::always_inline]] inline void start_sums(typename V::f32 (&acc)[rows][vectors], const float* start) {
  DSF_UNROLL
  for (int r = 0; r < rows; ++r) {
    DSF_UNROLL
    for (int v = 0; v < vectors; ++v) acc[r][v] = start ? V::load(start + r * PANEL_N + v * V::LANES) : V::zero();
  }
}

// Bytes that the first tile of a panel asks for ahead of its loads, of weights that come from L3 or memory: x1.3 for 6
// rows of bf16, x1.14 for 16 (Zen 5, 2026-11, L3; 4 KiB give x1.06, and beyond 24 KiB L1 loses what it was sent). One
// row waits for the stream whatever it asks for. Tiles of fewer columns than a panel's would ask for lines of others.
template <class V>
inline constexpr int64_t STREAM_AHEAD = V::LANES * V::PAIR_TILE_NV == PANEL_N ? 16 << 10 : 0;

template <int64_t ahead, int rows, int vectors>
[[gnu::always_inline]] inline void read_ahead(const char* panel) {
  if constexpr (ahead > 0 && rows > 1) {
    DSF_UNROLL
    for (int v = 0; v < vectors; ++v) __builtin_prefetch(panel + ahead + v * CACHE_LINE);
  }
}

// sums[r][c] = start[r][c] + sum_k x[r, k] * panel[k][c]
template <class V, int64_t ahead = 0>
struct TileF32 {
  using X = float;
  using Sum = float;
  using Start = float;
  using Store = StoreSums<V>;
  static constexpr bool SUMS_ARE_COLUMNS = true;  // a vector of sums is a vector of columns
  static constexpr int MR = V::TILE_M, NV = V::TILE_NV, COLUMNS = V::LANES;
  static constexpr int64_t GROUP_BYTES = PANEL_N * 4;  // bytes of one k in a panel
  static constexpr int64_t K_GROUP = 1;

  template <int rows, int vectors, class End>
  [[gnu::noinline]] static void run(int64_t K, const X* x, int64_t x_stride, const char* panel, const float* start,
                                    const End& end) {
    typename V::f32 acc[rows][vectors];
    start_sums<V>(acc, start);
    for (int64_t k = 0; k < K; ++k, panel += GROUP_BYTES) {
      read_ahead<ahead, rows, vectors>(panel);
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
template <class V, int64_t ahead = 0>
struct TileBf16 {
  using X = uint16_t;
  using Sum = float;
  using Start = float;
  using Store = StoreSums<V>;
  static constexpr bool SUMS_ARE_COLUMNS = true;  // a vector of sums is a vector of columns
  static constexpr int MR = V::PAIR_TILE_M, NV = V::PAIR_TILE_NV, COLUMNS = V::LANES;
  static constexpr int64_t GROUP_BYTES = PANEL_N * 4;  // bytes of one pair of k in a panel
  static constexpr int64_t K_GROUP = 2;

  template <int rows, int vectors, class End>
  [[gnu::noinline]] static void run(int64_t K, const X* x, int64_t x_stride, const char* panel, const float* start,
                                    const End& end) {
    typename V::f32 acc[rows][vectors];
    start_sums<V>(acc, start);
    const auto step = [&](const auto& x_pair) __attribute__((always_inline)) {
      read_ahead<ahead, rows, vectors>(panel);
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

// A tile whose run takes the numbers of rows and vectors, and keeps its sums in memory.
template <class Tile>
concept SizedByArguments = requires { Tile::SIZED_BY_ARGUMENTS; };
// The tile that reads a panel first, where others of these rows' tiles find it in L2.
template <class Tile>
struct FromMemory {
  using First = Tile;  // int8: its stream keeps up as it is
};
template <class V>
struct FromMemory<TileF32<V>> {
  using First = TileF32<V, STREAM_AHEAD<V>>;
};
template <class V>
struct FromMemory<TileBf16<V>> {
  using First = TileBf16<V, STREAM_AHEAD<V>>;
};

// Runs the tile with the row and vector counts as constants.
template <class Tile, int rows, int vectors, class End>
  requires(!SizedByArguments<Tile>)
inline void run_tile(int row_count, int vector_count, int64_t K, const typename Tile::X* x, int64_t x_stride,
                     const char* panel, const typename Tile::Start* start, const End& end) {
  if constexpr (rows > 1)
    if (row_count < rows)
      return run_tile<Tile, rows - 1, vectors>(row_count, vector_count, K, x, x_stride, panel, start, end);
  if constexpr (vectors > 1)
    if (vector_count < vectors)
      return run_tile<Tile, rows, vectors - 1>(row_count, vector_count, K, x, x_stride, panel, start, end);
  Tile::template run<rows, vectors>(K, x, x_stride, panel, start, end);
}

// The same on all vectors of the tile.
template <class Tile, int rows, class End>
inline void run_whole_rows(int row_count, int64_t K, const typename Tile::X* x, int64_t x_stride, const char* panel,
                           const typename Tile::Start* start, const End& end) {
  if constexpr (rows > 1)
    if (row_count < rows) return run_whole_rows<Tile, rows - 1>(row_count, K, x, x_stride, panel, start, end);
  Tile::template run<rows, Tile::NV>(K, x, x_stride, panel, start, end);
}

// Cuts rows into the fewest tiles, as even as can be: 9 rows are 5 + 4, as 3 alone have too few sums to fill the
// multipliers. Where the first tile waits for memory it is a whole one, which hides most of that: 13 are 6 + 4 + 3.
template <class Tile, class First>
struct RowTiles {
  static constexpr bool WHOLE_FIRST = !std::is_same_v<Tile, First>;
  int64_t left, tiles;

  [[gnu::always_inline]] explicit RowTiles(int64_t rows) : left(rows), tiles((rows + Tile::MR - 1) / Tile::MR) {}
  [[gnu::always_inline]] int next(bool first) {
    const bool whole = WHOLE_FIRST && first && left > Tile::MR;
    const int64_t rows = whole ? Tile::MR : (left + tiles - 1) / tiles;
    left -= rows;
    --tiles;
    return int(rows);
  }
};

template <class Tile, int rows, int vectors, class End>
  requires SizedByArguments<Tile>
inline void run_tile(int row_count, int vector_count, int64_t K, const typename Tile::X* x, int64_t x_stride,
                     const char* panel, const typename Tile::Start* start, const End& end) {
  Tile::run(row_count, vector_count, K, x, x_stride, panel, start, end);
}

// A panel above WHOLE_BYTES would leave L2 between one row tile and the next: it is walked in steps of STEP_BYTES, the
// sums waiting in L1 and L2. They are the same sums, in the same order.
inline constexpr int64_t WHOLE_BYTES = 512 << 10, STEP_BYTES = 256 << 10;
inline constexpr int64_t STEP_ROWS = 192;  // 48 KiB of waiting sums

// Rows [m_begin, m_end) of x against one panel. finish.direct(m, column) is the End of a register tile on whole
// vectors, taken where finish.DIRECT says so; finish(sums, m, rows) takes any other block of rows.
template <class Tile, class Finish>
inline void walk_panel(int64_t K, const typename Tile::X* x, int64_t x_stride, const char* panel,
                       const typename Tile::Start* start, int columns, int64_t m_begin, int64_t m_end,
                       const Finish& finish) {
  constexpr int BLOCK = Tile::NV * Tile::COLUMNS;  // columns a register tile covers
  alignas(64) typename Tile::Sum sums[Tile::MR * PANEL_N];
  const auto rows_of = [&]<class Rows>(int64_t m, int rows) {
    const typename Tile::X* x_rows = x + m * x_stride;
    const auto weights = [&](int c) { return panel + c * (Tile::GROUP_BYTES / PANEL_N); };
    const auto start_of = [&](int c) { return start ? start + c : nullptr; };
    if constexpr (Finish::DIRECT && Tile::SUMS_ARE_COLUMNS && !SizedByArguments<Tile>)
      if (columns == PANEL_N) {
        for (int c = 0; c < columns; c += BLOCK)
          run_whole_rows<Rows, Tile::MR>(rows, K, x_rows, x_stride, weights(c), start_of(c), finish.direct(m, c));
        return;
      }
    for (int c = 0; c < columns; c += BLOCK) {
      const int left = (columns - c + Tile::COLUMNS - 1) / Tile::COLUMNS;
      run_tile<Rows, Tile::MR, Tile::NV>(rows, left < Tile::NV ? left : Tile::NV, K, x_rows, x_stride, weights(c),
                                         start_of(c), typename Tile::Store{sums + c});
    }
    finish(sums, m, rows);
  };
  using First = typename FromMemory<Tile>::First;
  RowTiles<Tile, First> tiles(m_end - m_begin);
  for (int64_t m = m_begin; m < m_end;) {
    const int rows = tiles.next(m == m_begin);
    if (m == m_begin)
      rows_of.template operator()<First>(m, rows);
    else
      rows_of.template operator()<Tile>(m, rows);
    m += rows;
  }
}

// The same in steps of K, for float tiles. weights_of(k, count) gives the panel's values [k, k + count): where they
// are, or unpacked into L1. First: the tile that reads them first.
template <class Tile, class First = Tile, class Weights, class Finish>
inline void walk_panel_in_steps(int64_t K, int64_t step_K, const typename Tile::X* x, int64_t x_stride,
                                const Weights& weights_of, int columns, int64_t m_begin, int64_t m_end,
                                const Finish& finish) {
  constexpr int BLOCK = Tile::NV * Tile::COLUMNS;
  alignas(64) float sums[STEP_ROWS * PANEL_N];
  for (int64_t m_step = m_begin; m_step < m_end; m_step += STEP_ROWS) {
    const int64_t step_end = m_end - m_step < STEP_ROWS ? m_end : m_step + STEP_ROWS;
    int64_t k = 0;
    do {  // K = 0 stores zeros
      const int64_t count = K - k < step_K ? K - k : step_K;
      const char* weights = weights_of(k, count);
      RowTiles<Tile, First> tiles(step_end - m_step);
      for (int64_t m = m_step; m < step_end;) {
        const int rows = tiles.next(m == m_step);
        const auto run = m == m_step ? run_tile<First, Tile::MR, Tile::NV, typename Tile::Store>
                                     : run_tile<Tile, Tile::MR, Tile::NV, typename Tile::Store>;
        for (int c = 0; c < columns; c += BLOCK) {
          const int left = (columns - c + Tile::COLUMNS - 1) / Tile::COLUMNS;
          float* at = sums + (m - m_step) * PANEL_N + c;
          run(rows, left < Tile::NV ? left : Tile::NV, count, x + m * x_stride + k, x_stride,
              weights + c * (Tile::GROUP_BYTES / PANEL_N), k ? at : nullptr, {at});
        }
        m += rows;
      }
      k += step_K;
    } while (k < K);
    finish(sums, m_step, int(step_end - m_step));
  }
}

}  // namespace
}  // namespace dsf
