// The integer tile: rows of int8 against a panel of u4, its scales applied block by block.
#pragma once
#include <cstdint>

#include "csrc/gemm/packed.h"
#include "csrc/gemm/tile.h"
#include "kernels/int4_matmul/cpu_kernels.h"

namespace dsf::int4_matmul {
namespace {

inline constexpr int64_t STEP_K = 8;                            // values of k in the bytes of one quad
inline constexpr int64_t STEP_BYTES_U4 = PANEL_N * STEP_K / 2;  // of a panel
inline constexpr int32_t LOW_NIBBLES = 0x0F0F0F0F;

// A register tile: what fits beside the weights of one nibble and the mask, or of both nibbles where two dots are one
// step. Of 16 registers, TILE_M rows would leave one too few: a sum that is spilled is a chain of loads and stores.
template <class V>
struct TileU4 {
  static constexpr bool WHOLE = V::HAS_DOT_QUAD && V::LANES == 16;
  static constexpr int MR = WHOLE ? V::TILE_M : V::PAIR_TILE_M;
  static constexpr int NV = WHOLE ? V::TILE_NV : V::PAIR_TILE_NV;
};

// Up to this many rows, a panel is read faster than it arrives from L3. Above, looking ahead costs more than it brings.
inline constexpr int PREFETCH_ROWS = 4;
inline constexpr int64_t PREFETCH =
    1024;  // bytes ahead: 25.6 bytes a cycle without, 27.4 with, of 31 (L3, Zen 5, 2026-11)
template <int64_t bytes>
[[gnu::always_inline]] inline void prefetch(const char* from, int64_t ahead) {
  constexpr int64_t LINE = 64;
  DSF_UNROLL
  for (int64_t i = 0; i < bytes; i += LINE) __builtin_prefetch(from + ahead + i);
}

// The codes of the first or second quad of a step, for one vector of columns.
template <class V>
[[gnu::always_inline]] inline typename V::i32 first_quad(const char* codes, int v) {
  return V::and_bits(V::load_i32(reinterpret_cast<const int32_t*>(codes) + v * V::LANES), LOW_NIBBLES);
}
template <class V>
[[gnu::always_inline]] inline typename V::i32 second_quad(const char* codes, int v) {
  const auto bytes = V::load_i32(reinterpret_cast<const int32_t*>(codes) + v * V::LANES);
  return V::and_bits(V::template shift_right<4>(bytes), LOW_NIBBLES);
}

// What is done to these sums stays on its side of this point.
template <class V, int vectors>
[[gnu::always_inline]] inline void pin(typename V::i32 (&acc)[vectors]) {
  DSF_UNROLL
  for (int v = 0; v < vectors; ++v) V::pin(acc[v]);
}

// What happens to a row between two blocks: its sums so far go to z, and start anew.
template <class V, bool zeros>
struct BlockEnd {
  float* z;              // rows of PANEL_N
  const float* scale;    // of the block that ends
  const float* x_scale;  // of the block that ends
  const int32_t* start;  // of the block that begins
  const char* zero;      // of the block that begins

  // z = z + (float(acc) * x_scale) * scale
  template <int vectors>
  [[gnu::always_inline]] void finish(typename V::i32 (&acc)[vectors], int r) const {
    const auto row_scale = V::set1(x_scale[r]);
    DSF_UNROLL
    for (int v = 0; v < vectors; ++v) {
      float* at = z + r * PANEL_N + v * V::LANES;
      const auto term = V::mul(V::mul(V::to_f32(acc[v]), row_scale), V::load(scale + v * V::LANES));
      V::store(at, V::add(V::load(at), term));
    }
  }
  template <int vectors>
  [[gnu::always_inline]] void after(typename V::i32 (&acc)[vectors]) const {
    pin<V>(acc);
  }
  template <int vectors>
  [[gnu::always_inline]] void operator()(typename V::i32 (&acc)[vectors], int r) const {
    pin<V>(acc);
    finish(acc, r);
    const auto from = V::set1_i32(start[r]);
    DSF_UNROLL
    for (int v = 0; v < vectors; ++v) acc[v] = zeros ? V::mul_s16(V::load_u8(zero + v * V::LANES), from) : from;
  }
};
struct WithinBlock {
  template <class Row>
  [[gnu::always_inline]] void after(Row&) const {}
  template <class Row>
  [[gnu::always_inline]] void operator()(Row&, int) const {}
};

// acc += the dots of STEP_K values of k. before(acc[r], r) comes ahead of row r's first dot.
template <class V, int rows, int vectors, class Before>
[[gnu::always_inline]] inline void step_u4(typename V::i32 (&acc)[rows][vectors], const char* codes, const char* x,
                                           const Before& before) {
  typename V::i32 first[vectors], second[vectors];
  if constexpr (rows <= PREFETCH_ROWS) prefetch<vectors * V::LANES * 4>(codes, PREFETCH);
  DSF_UNROLL
  for (int v = 0; v < vectors; ++v) first[v] = first_quad<V>(codes, v);
  if constexpr (V::HAS_DOT_QUAD) {
    DSF_UNROLL
    for (int r = 0; r < rows; ++r) {
      before(acc[r], r);
      const auto a = V::set1_quad(x + r * STEP_K);
      DSF_UNROLL
      for (int v = 0; v < vectors; ++v) acc[r][v] = V::dot_quad(acc[r][v], first[v], a);
      before.after(acc[r]);
    }
    DSF_UNROLL
    for (int v = 0; v < vectors; ++v) second[v] = second_quad<V>(codes, v);
    DSF_UNROLL
    for (int r = 0; r < rows; ++r) {
      const auto b = V::set1_quad(x + r * STEP_K + STEP_K / 2);
      DSF_UNROLL
      for (int v = 0; v < vectors; ++v) acc[r][v] = V::dot_quad(acc[r][v], second[v], b);
    }
  } else {
    DSF_UNROLL
    for (int v = 0; v < vectors; ++v) second[v] = second_quad<V>(codes, v);
    DSF_UNROLL
    for (int r = 0; r < rows; ++r) {
      before(acc[r], r);
      const auto a = V::set1_quad(x + r * STEP_K), b = V::set1_quad(x + r * STEP_K + STEP_K / 2);
      DSF_UNROLL
      for (int v = 0; v < vectors; ++v) acc[r][v] = V::dot_u4_quads(acc[r][v], first[v], a, second[v], b);
    }
  }
}

// z[r][column + c] += the sums of all blocks, in their order, of a tile of x (cpu_kernels.h) and `vectors` vectors of
// columns of a panel. z: rows of PANEL_N.
// A block's sums are finished row by row between the first dots of the next block: in one piece they would leave the
// units that multiply waiting for what has to be converted first (6 x 64 sums of 32: 134 cycles so, 127 now, of 120).
template <class V, bool zeros, int rows, int vectors>
[[gnu::noinline]] void sum_blocks(const PackedPanels& packed, const char* block, int64_t padded_K, const char* x,
                                  int column, float* z) {
  alignas(64) static constexpr float NO_SCALE[PANEL_N] = {};                 // of what is there before the first block
  const int64_t block_k = packed.block_k, block_bytes = packed.block_bytes;  // copies, which a store cannot change
  BlockEnd<V, zeros> end{z + column, NO_SCALE, NO_SCALE, nullptr, nullptr};
  typename V::i32 acc[rows][vectors];
  DSF_UNROLL
  for (int r = 0; r < rows; ++r) {
    DSF_UNROLL
    for (int v = 0; v < vectors; ++v) acc[r][v] = V::zero_i32();
  }
  for (int64_t left = padded_K; left > 0; left -= block_k, block += block_bytes) {
    if constexpr (rows <= PREFETCH_ROWS) prefetch<vectors * V::LANES * 4>(block + column * 4, PREFETCH);
    const char* codes = block + PackedPanels::SCALE_BYTES;
    end.zero = codes + column;
    end.start = reinterpret_cast<const int32_t*>(x) + rows;
    codes += (zeros ? PANEL_N : 0) + column * 4;
    const auto* x_scale = reinterpret_cast<const float*>(x);
    x += rows * BLOCK_HEAD_BYTES;
    step_u4<V>(acc, codes, x, end);
    end.scale = reinterpret_cast<const float*>(block) + column;
    end.x_scale = x_scale;
    const int64_t steps = (left < block_k ? left : block_k) / STEP_K;
    for (int64_t step = 1; step < steps; ++step)
      step_u4<V>(acc, codes + step * STEP_BYTES_U4, x + step * rows * STEP_K, WithinBlock{});
    x += steps * rows * STEP_K;
    keep_in_registers<V>(acc);
    asm(""
        : "+m"(*reinterpret_cast<float (*)[(rows - 1) * PANEL_N + vectors * V::LANES]>(end.z)));  // z stays in memory
  }
  DSF_UNROLL
  for (int r = 0; r < rows; ++r) end.finish(acc[r], r);
}

template <class V, bool zeros, int rows, int vectors>
inline void run_sum_blocks(int row_count, const PackedPanels& packed, const char* panel, int64_t padded_K,
                           const char* x, int column, float* z) {
  if constexpr (rows > 1)
    if (row_count < rows)
      return run_sum_blocks<V, zeros, rows - 1, vectors>(row_count, packed, panel, padded_K, x, column, z);
  sum_blocks<V, zeros, rows, vectors>(packed, panel, padded_K, x, column, z);
}

}  // namespace
}  // namespace dsf::int4_matmul
