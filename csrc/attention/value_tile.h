// Register tiles of sums of weights * values: what they add to, where their values are, and the tile itself.
#pragma once
#include <cstdint>

#include "csrc/attention/panels.h"
#include "csrc/gemm/tile.h"

namespace dsf::attention {
namespace {

template <Dtype dtype>
struct RowOf {
  using Value = float;  // f16 is widened
};
template <>
struct RowOf<Dtype::bf16> {
  using Value = uint16_t;
};

// Rows of sums that a value tile adds to: those of a tile, or a step's keys wherever they are.
struct TileRows {
  float* first;
  const float* factors;  // of each row

  static constexpr bool SCALED = true;
  float* at(int r) const { return first + r * PANEL_N; }
};
struct KeyRows {
  float* const* rows;
  int64_t column;

  static constexpr bool SCALED = false;
  float* at(int r) const { return rows[r] + column; }
};

// Where a value tile's columns are: in a panel, or in the rows themselves, whose pairs are made on the way.
template <class V, Dtype dtype>
struct PanelColumns {
  const char* first;

  template <int vectors, class Words>
  [[gnu::always_inline]] void load(int64_t key, Words (&words)[vectors]) const {
    const char* at = first + key * (dtype == Dtype::bf16 ? PANEL_N * 2 : PANEL_N * 4);
    DSF_UNROLL
    for (int v = 0; v < vectors; ++v) {
      if constexpr (dtype == Dtype::bf16)
        words[v] = V::load_pair(reinterpret_cast<const uint16_t*>(at) + v * V::LANES * 2);
      else
        words[v] = V::load(reinterpret_cast<const float*>(at) + v * V::LANES);
    }
  }
};
template <class V, Dtype dtype>
struct RowColumns {
  const char* const* rows;  // none is null; of an even number of keys
  int64_t first;            // bytes

  template <int vectors, class Words>
  [[gnu::always_inline]] void load(int64_t key, Words (&words)[vectors]) const {
    const char* at = rows[key] + first;
    if constexpr (dtype == Dtype::bf16) {
      static_assert(vectors % 2 == 0);
      const char* partner = rows[key + 1] + first;
      DSF_UNROLL
      for (int v = 0; v < vectors; v += 2) {
        typename V::i32 a, b;
        V::interleave_halves(at + v * V::LANES * 2, partner + v * V::LANES * 2, a, b);
        words[v] = V::pair_of_words(a);
        words[v + 1] = V::pair_of_words(b);
      }
    } else {
      DSF_UNROLL
      for (int v = 0; v < vectors; ++v)
        words[v] = V::f32_of_bits(load_words<V, dtype, true>(at + v * V::LANES * value_bytes(dtype), 0, 0));
    }
  }
};

// sums[r][c] = sums[r][c] * factors[r], then + sum_key weights[r, key] * value[key][c]
template <class V, Dtype dtype>
struct ValueTile {
  using X = typename RowOf<dtype>::Value;
  static constexpr int MR = dtype == Dtype::bf16 ? V::PAIR_TILE_M : V::TILE_M;
  static constexpr int NV = dtype == Dtype::bf16 ? V::PAIR_TILE_NV : V::TILE_NV;

  template <int rows, int vectors, class Columns, class Sums>
  [[gnu::noinline]] static void run(int64_t n, const X* weights, const Columns& columns, const Sums& sums) {
    typename V::f32 acc[rows][vectors];
    DSF_UNROLL
    for (int r = 0; r < rows; ++r) {
      DSF_UNROLL
      for (int v = 0; v < vectors; ++v) acc[r][v] = V::load(sums.at(r) + v * V::LANES);
      if constexpr (Sums::SCALED) {
        const auto factor = V::set1(sums.factors[r]);
        DSF_UNROLL
        for (int v = 0; v < vectors; ++v) acc[r][v] = V::mul(acc[r][v], factor);
      }
    }
    if constexpr (dtype == Dtype::bf16) {
      for (int64_t key = 0; key < n; key += 2) {
        typename V::pair w[vectors];
        columns.load(key, w);
        DSF_UNROLL
        for (int r = 0; r < rows; ++r) {
          uint32_t bits;
          __builtin_memcpy(&bits, weights + r * STEP_KEYS + key, 4);
          const auto a = V::set1_pair(bits);
          DSF_UNROLL
          for (int v = 0; v < vectors; ++v) acc[r][v] = V::dot_pair(acc[r][v], a, w[v]);
        }
      }
    } else {
      for (int64_t key = 0; key < n; ++key) {
        typename V::f32 w[vectors];
        columns.load(key, w);
        DSF_UNROLL
        for (int r = 0; r < rows; ++r) {
          const auto a = V::set1(weights[r * STEP_KEYS + key]);
          DSF_UNROLL
          for (int v = 0; v < vectors; ++v) acc[r][v] = V::madd(a, w[v], acc[r][v]);
        }
      }
    }
    keep_in_registers<V>(acc);
    DSF_UNROLL
    for (int r = 0; r < rows; ++r) {
      DSF_UNROLL
      for (int v = 0; v < vectors; ++v) V::store(sums.at(r) + v * V::LANES, acc[r][v]);
    }
  }
};

template <class Tile, int rows, int vectors, class... Args>
inline void run_value_tile(int row_count, int vector_count, const Args&... args) {
  if constexpr (rows > 1)
    if (row_count < rows) return run_value_tile<Tile, rows - 1, vectors>(row_count, vector_count, args...);
  if constexpr (vectors > 1)
    if (vector_count < vectors) return run_value_tile<Tile, rows, vectors - 1>(row_count, vector_count, args...);
  Tile::template run<rows, vectors>(args...);
}

// The same on all vectors of the tile.
template <class Tile, int rows, class... Args>
inline void run_whole_value_tile(int row_count, const Args&... args) {
  if constexpr (rows > 1)
    if (row_count < rows) return run_whole_value_tile<Tile, rows - 1>(row_count, args...);
  Tile::template run<rows, Tile::NV>(args...);
}

}  // namespace
}  // namespace dsf::attention
