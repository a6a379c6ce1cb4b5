// Weights that are stored in fewer bits than they are multiplied in, with a scale per block of k: a block is decoded
// into L1 once for up to CHUNK_ROWS rows, the plain register tile runs over it, and its sums are added to z, scaled.
//   z[m, n] = sum over blocks, in their order, of (sum_k in block x[m, k] * w[n, k]) * scale[n]
#pragma once
#include <cstdint>

#include "csrc/gemm/epilogue.h"
#include "csrc/gemm/tile.h"

namespace dsf {
namespace {

inline constexpr int64_t MAX_BLOCK_K = 128;  // a decoded block of f32 is 32 KiB, of bf16 16 KiB: within L1
// 64 KiB of z, of which a tile touches 1.5: L2 is near enough. Decoding a block costs as much as two to three rows of
// tiles (measured, Zen 5, 2026-11), so that a higher chunk would gain less than 1 %.
inline constexpr int64_t CHUNK_ROWS = 256;

// End of a tile: z += sums * scale, and * x_scale where x has scales of its own.
template <class V>
struct AddScaled {
  float* z;                // rows of PANEL_N
  const float* scale;      // of the tile's columns
  const float* x_scale;    // of the tile's first row, or null
  int64_t x_scale_stride;  // from row to row

  template <int rows, int vectors>
  [[gnu::always_inline]] void take(const typename V::f32 (&acc)[rows][vectors]) const {
    DSF_UNROLL
    for (int v = 0; v < vectors; ++v) {
      const auto s = V::load(scale + v * V::LANES);
      DSF_UNROLL
      for (int r = 0; r < rows; ++r) {
        float* at = z + r * PANEL_N + v * V::LANES;
        const auto row_s = x_scale ? V::mul(s, V::set1(x_scale[r * x_scale_stride])) : s;
        V::store(at, V::madd(acc[r][v], row_s, V::load(at)));
      }
    }
  }
};

// x as the tile reads it, with a scale per row and MAX_BLOCK_K values where it was quantized.
template <class X>
struct BlockedX {
  const X* values;
  int64_t stride;
  const float* scale;  // or null
  int64_t scale_stride;

  const float* scale_of(int64_t m, int64_t k) const {
    return scale ? scale + m * scale_stride + k / MAX_BLOCK_K : nullptr;
  }
};

// Rows [m_begin, m_end) of one panel. decode(codes, quads, weights) unpacks quads * 4 values of k.
template <class Tile, class V, Dtype dtype, class Decode>
void walk_blocks(const LinearArgs& args, const PackedPanels& packed, const BlockedX<typename Tile::X>& x,
                 const Decode& decode, int64_t m_begin, int64_t m_end, int64_t panel) {
  static_assert(Tile::SUMS_ARE_COLUMNS && Tile::COLUMNS == V::LANES);
  constexpr int BLOCK = Tile::NV * Tile::COLUMNS;  // columns a register tile covers
  alignas(64) char weights[Tile::GROUP_BYTES * MAX_BLOCK_K / Tile::K_GROUP];
  alignas(64) float z[CHUNK_ROWS * PANEL_N];
  const int columns = columns_of(args, panel);
  for (int64_t m_chunk = m_begin; m_chunk < m_end; m_chunk += CHUNK_ROWS) {
    const int64_t chunk_end = m_end - m_chunk < CHUNK_ROWS ? m_end : m_chunk + CHUNK_ROWS;
    for (int64_t i = 0; i < (chunk_end - m_chunk) * PANEL_N; i += V::LANES) V::store(z + i, V::zero());
    const char* block = packed.panel(panel);
    for (int64_t k = 0; k < args.K; k += packed.block_k, block += packed.block_bytes) {
      const int64_t block_K = args.K - k < packed.block_k ? args.K - k : packed.block_k;
      const auto* scale = reinterpret_cast<const float*>(block);
      decode(block + PackedPanels::SCALE_BYTES, (block_K + 3) / 4, weights);
      for (int64_t m = m_chunk; m < chunk_end; m += Tile::MR) {
        const int rows = int(chunk_end - m < Tile::MR ? chunk_end - m : Tile::MR);
        const float* x_scale = x.scale ? x.scale + m * x.scale_stride + k / MAX_BLOCK_K : nullptr;
        for (int c = 0; c < columns; c += BLOCK) {
          const int vectors = (columns - c + Tile::COLUMNS - 1) / Tile::COLUMNS;
          const AddScaled<V> end{z + (m - m_chunk) * PANEL_N + c, scale + c, x_scale, x.scale_stride};
          run_tile<Tile, Tile::MR, Tile::NV>(rows, vectors < Tile::NV ? vectors : Tile::NV, block_K,
                                             x.values + m * x.stride + k, x.stride,
                                             weights + c * (Tile::GROUP_BYTES / PANEL_N), nullptr, end);
        }
      }
    }
    finish_tile<V, dtype, Sums::f32>(args, z, nullptr, m_chunk, int(chunk_end - m_chunk), panel);
  }
}

}  // namespace
}  // namespace dsf
