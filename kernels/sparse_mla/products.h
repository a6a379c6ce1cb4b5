// A step's two products, by the register tiles of csrc/gemm/tile.h.
#pragma once
#include "csrc/gemm/tile.h"
#include "kernels/sparse_mla/cpu_kernels.h"

namespace dsf::sparse_mla {
namespace {

template <class V, Dtype panel>
struct TileOf {
  using Tile = TileF32<V>;
};
template <class V>
struct TileOf<V, Dtype::bf16> {
  using Tile = TileBf16<V>;
};

// Rows of x against one panel of PANEL_N columns; sums and start are rows of PANEL_N.
template <class Tile>
inline void multiply_panel(int64_t rows, int64_t K, const void* x, int64_t x_stride, const char* panel,
                           const float* start, float* sums) {
  constexpr int BLOCK = Tile::NV * Tile::COLUMNS;
  RowTiles<Tile, Tile> tiles(rows);
  for (int64_t m = 0; m < rows;) {
    const int count = tiles.next(m == 0);
    const auto* x_rows = static_cast<const typename Tile::X*>(x) + m * x_stride;
    for (int c = 0; c < PANEL_N; c += BLOCK)
      run_whole_rows<Tile, Tile::MR>(count, K, x_rows, x_stride, panel + c * (Tile::GROUP_BYTES / PANEL_N),
                                     start ? start + m * PANEL_N + c : nullptr,
                                     typename Tile::Store{sums + m * PANEL_N + c});
    m += count;
  }
}

// scores[h][j] = dot(q[h], key j)
template <class V, Dtype panel>
inline void multiply_keys(int64_t heads, int64_t d, const void* q, int64_t head_stride, const char* keys,
                          float* scores) {
  multiply_panel<typename TileOf<V, panel>::Tile>(heads, d, q, head_stride, keys, nullptr, scores);
}

// acc[p][h] += sum over n entries of weights[h][j] * values[p][j]; weights are rows of n.
template <class V, Dtype panel>
inline void add_values(int64_t heads, int64_t n, int64_t d_v, const void* weights, const char* values, float* acc) {
  const int64_t panel_bytes = PANEL_N * round_up(n, 2) * (panel == Dtype::bf16 ? 2 : 4);
  for (int64_t p = 0; p < padded_v(d_v) / PANEL_N; ++p) {
    float* sums = acc + p * heads * PANEL_N;
    multiply_panel<typename TileOf<V, panel>::Tile>(heads, n, weights, n, values + p * panel_bytes, sums, sums);
  }
}

// acc[p][h] *= r, of all panels.
template <class V>
inline void scale_head(int64_t heads, int64_t d_v, int64_t h, float r, float* acc) {
  const auto factor = V::set1(r);
  for (int64_t p = 0; p < padded_v(d_v) / PANEL_N; ++p)
    for (int64_t c = 0; c < PANEL_N; c += V::LANES) {
      float* at = acc + (p * heads + h) * PANEL_N + c;
      V::store(at, V::mul(V::load(at), factor));
    }
}

}  // namespace
}  // namespace dsf::sparse_mla
