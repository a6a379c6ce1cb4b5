// Integer tiles: exact sums of x_q * q over all of K on every level.
//   with VPDPBUSD    x_q + 128 as u8 against s8 quads; sums start at the packed -128 * sum_k q[n, k]. The instruction
//                    that does not saturate wraps modulo 2^32, and the true sum fits int32, so the result is exact.
//   with SDOT        x_q as s8, sums start at zero.
//   without          both widened to s16, VPMADDWD: |x_q * q| <= 127 * 128, two of them fit s32 with no saturation.
#pragma once
#include <cstdint>
#include <cstring>

#include "csrc/gemm/tile.h"

namespace dsf {
namespace {

template <class V, class Code = uint8_t>
struct TileInt8Dot {
  using X = Code;  // u8: x_q + 128; s8: x_q
  using Sum = int32_t;
  using Start = int32_t;
  using Store = StoreSums<V>;
  static constexpr bool SUMS_ARE_COLUMNS = true;
  static constexpr int MR = V::TILE_M, NV = V::TILE_NV, COLUMNS = V::LANES;
  static constexpr int64_t GROUP_BYTES = PANEL_N * 4;  // bytes of one quad of k in a panel
  static constexpr int32_t OFFSET = Code(-1) < 0 ? 0 : 128;

  template <int rows, int vectors, class End>
  [[gnu::noinline]] static void run(int64_t K, const X* x, int64_t x_stride, const char* panel, const int32_t* excess,
                                    const End& end) {
    typename V::i32 acc[rows][vectors];
    DSF_UNROLL
    for (int v = 0; v < vectors; ++v) {
      const auto start = OFFSET ? V::load_i32(excess + v * V::LANES) : V::zero_i32();
      DSF_UNROLL
      for (int r = 0; r < rows; ++r) acc[r][v] = start;
    }
    for (int64_t k = 0; k < K; k += 4, panel += GROUP_BYTES) {
      typename V::i32 w[vectors];
      DSF_UNROLL
      for (int v = 0; v < vectors; ++v) w[v] = V::load_i32(reinterpret_cast<const int32_t*>(panel) + v * V::LANES);
      DSF_UNROLL
      for (int r = 0; r < rows; ++r) {
        const auto a = V::set1_quad(x + r * x_stride + k);
        DSF_UNROLL
        for (int v = 0; v < vectors; ++v) acc[r][v] = V::dot_quad(acc[r][v], a, w[v]);
      }
    }
    keep_in_registers<V>(acc);
    end.template take<rows, vectors>(acc);
  }
};

template <class V>
struct StorePairSums {
  int32_t* rows;  // PANEL_N sums each

  template <int rows_, int vectors>
  [[gnu::always_inline]] void take(const typename V::i32 (&acc)[rows_][vectors]) const {
    DSF_UNROLL
    for (int r = 0; r < rows_; ++r) {
      DSF_UNROLL
      for (int v = 0; v < vectors; ++v) V::store_pair_sums(rows + r * PANEL_N + v * (V::LANES / 2), acc[r][v]);
    }
  }
};

// Each vector of sums holds LANES / 2 columns, two partial sums a column.
template <class V>
struct TileInt8Widen {
  using X = int16_t;  // x_q
  using Sum = int32_t;
  using Start = int32_t;
  using Store = StorePairSums<V>;
  static constexpr bool SUMS_ARE_COLUMNS = false;
  static constexpr int MR = V::TILE_M, NV = V::TILE_NV, COLUMNS = V::LANES / 2;
  static constexpr int64_t GROUP_BYTES = PANEL_N * 4;
  static constexpr int32_t OFFSET = 0;

  template <int rows, int vectors, class End>
  [[gnu::noinline]] static void run(int64_t K, const X* x, int64_t x_stride, const char* panel, const int32_t*,
                                    const End& end) {
    typename V::i32 acc[rows][vectors];
    DSF_UNROLL
    for (int r = 0; r < rows; ++r) {
      DSF_UNROLL
      for (int v = 0; v < vectors; ++v) acc[r][v] = V::zero_i32();
    }
    for (int64_t k = 0; k < K; k += 4, panel += GROUP_BYTES) {
      typename V::i32 w[vectors];
      DSF_UNROLL
      for (int v = 0; v < vectors; ++v) w[v] = V::load_quads_s16(panel + v * V::LANES * 2);
      DSF_UNROLL
      for (int r = 0; r < rows; ++r) {
        const auto a = V::set1_quad_s16(x + r * x_stride + k);
        DSF_UNROLL
        for (int v = 0; v < vectors; ++v) acc[r][v] = V::madd_s16(acc[r][v], a, w[v]);
      }
    }
    keep_in_registers<V>(acc);
    end.template take<rows, vectors>(acc);
  }
};

}  // namespace
}  // namespace dsf
