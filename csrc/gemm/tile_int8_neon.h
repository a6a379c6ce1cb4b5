// Integer tiles of Advanced SIMD without SDOT, and with SMMLA: exact sums of x_q * q over all of K, as in tile_int8.h.
//   without SDOT     SMULL, SMLAL: two products to an s16, |x_q * q| <= 127 * 128 each; SADALP adds pairs of those.
//   SMMLA            (2 rows x 8 k) times (8 k x 2 columns). Two quads of k of four columns are zipped into two such
//                    operands; no packed layout of its own.
// A row's padded_K is a multiple of 4, so that half a step of 8 k may be left: its second half counts as zeros.
#pragma once
#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#include "csrc/gemm/tile.h"

namespace dsf {
namespace {

// The quads of k of four columns, for one vector of columns.
[[gnu::always_inline]] inline int8x16_t load_quads(const char* panel, int v) {
  return vld1q_s8(reinterpret_cast<const int8_t*>(panel) + v * 16);
}

template <class V>
struct TileInt8Pairs {
  using X = int8_t;  // x_q
  using Sum = int32_t;
  using Start = int32_t;
  using Store = StoreSums<V>;
  static constexpr bool SUMS_ARE_COLUMNS = true;
  static constexpr int MR = 4, NV = 2, COLUMNS = V::LANES;  // 16 half sums, 4 weights, 2 x, products: 24 of 32
  static constexpr int64_t GROUP_BYTES = PANEL_N * 4;       // bytes of one quad of k in a panel
  static constexpr int32_t OFFSET = 0;

  template <int rows, int vectors, class End>
  [[gnu::noinline]] static void run(int64_t K, const X* x, int64_t x_stride, const char* panel, const int32_t*,
                                    const End& end) {
    int32x4_t half[rows][vectors][2];  // columns 0 and 1, 2 and 3: two sums each
    DSF_UNROLL
    for (int r = 0; r < rows; ++r) {
      DSF_UNROLL
      for (int v = 0; v < vectors; ++v) half[r][v][0] = half[r][v][1] = vdupq_n_s32(0);
    }
    const auto step = [&](int64_t k, const char* second_quads, auto second) __attribute__((always_inline)) {
      int8x16_t w0[vectors], w1[vectors];
      DSF_UNROLL
      for (int v = 0; v < vectors; ++v) {
        w0[v] = load_quads(panel, v);
        w1[v] = load_quads(second_quads, v);
      }
      DSF_UNROLL
      for (int r = 0; r < rows; ++r) {
        const X* codes = x + r * x_stride + k;
        const int8x16_t a = vreinterpretq_s8_s32(V::set1_quad(codes)), b = second(codes);
        DSF_UNROLL
        for (int v = 0; v < vectors; ++v) {
          const int16x8_t low =
              vmlal_s8(vmull_s8(vget_low_s8(w0[v]), vget_low_s8(a)), vget_low_s8(w1[v]), vget_low_s8(b));
          const int16x8_t high = vmlal_high_s8(vmull_high_s8(w0[v], a), w1[v], b);
          half[r][v][0] = vpadalq_s16(half[r][v][0], low);
          half[r][v][1] = vpadalq_s16(half[r][v][1], high);
        }
      }
    };
    int64_t k = 0;
    for (; k + 8 <= K; k += 8, panel += 2 * GROUP_BYTES)
      step(k, panel + GROUP_BYTES, [](const X* codes) { return vreinterpretq_s8_s32(V::set1_quad(codes + 4)); });
    if (k < K) step(k, panel, [](const X*) { return vdupq_n_s8(0); });
    int32x4_t acc[rows][vectors];
    DSF_UNROLL
    for (int r = 0; r < rows; ++r) {
      DSF_UNROLL
      for (int v = 0; v < vectors; ++v) acc[r][v] = vpaddq_s32(half[r][v][0], half[r][v][1]);
    }
    end.template take<rows, vectors>(acc);
  }
};

#ifdef __ARM_FEATURE_MATMUL_INT8
template <class V>
struct TileInt8Matrix {
  using X = int8_t;  // x_q
  using Sum = int32_t;
  using Start = int32_t;
  using Store = StoreSums<V>;
  static constexpr bool SUMS_ARE_COLUMNS = true;
  static constexpr int MR = 8, NV = 2, COLUMNS = V::LANES;  // 16 blocks of 2 x 2 sums, 4 weights, 1 x: 21 of 32
  static constexpr int64_t GROUP_BYTES = PANEL_N * 4;       // bytes of one quad of k in a panel
  static constexpr int32_t OFFSET = 0;

  template <int rows, int vectors, class End>
  [[gnu::noinline]] static void run(int64_t K, const X* x, int64_t x_stride, const char* panel, const int32_t*,
                                    const End& end) {
    constexpr int PAIRS = (rows + 1) / 2;  // of rows; the last may be one row and zeros
    int32x4_t block[PAIRS][2 * vectors];   // 2 rows x 2 columns
    DSF_UNROLL
    for (int p = 0; p < PAIRS; ++p) {
      DSF_UNROLL
      for (int c = 0; c < 2 * vectors; ++c) block[p][c] = vdupq_n_s32(0);
    }
    // eight_codes gives a row's 8 values of k.
    const auto step = [&](int64_t k, const char* second_quads, auto eight_codes) __attribute__((always_inline)) {
      int8x16_t w[2 * vectors];  // 8 k of two columns
      DSF_UNROLL
      for (int v = 0; v < vectors; ++v) {
        const int32x4_t first = vreinterpretq_s32_s8(load_quads(panel, v));
        const int32x4_t second = vreinterpretq_s32_s8(load_quads(second_quads, v));
        w[2 * v] = vreinterpretq_s8_s32(vzip1q_s32(first, second));
        w[2 * v + 1] = vreinterpretq_s8_s32(vzip2q_s32(first, second));
      }
      DSF_UNROLL
      for (int p = 0; p < PAIRS; ++p) {
        const int8x8_t upper = eight_codes(x + 2 * p * x_stride + k);
        const int8x8_t lower = 2 * p + 1 < rows ? eight_codes(x + (2 * p + 1) * x_stride + k) : vdup_n_s8(0);
        const int8x16_t a = vcombine_s8(upper, lower);
        DSF_UNROLL
        for (int c = 0; c < 2 * vectors; ++c) block[p][c] = vmmlaq_s32(block[p][c], a, w[c]);
      }
    };
    int64_t k = 0;
    for (; k + 8 <= K; k += 8, panel += 2 * GROUP_BYTES)
      step(k, panel + GROUP_BYTES, [](const X* codes) { return vld1_s8(codes); });
    if (k < K)
      step(k, panel, [](const X* codes) {
        uint32_t quad;
        std::memcpy(&quad, codes, 4);
        return vreinterpret_s8_u64(vcreate_u64(quad));
      });
    int32x4_t acc[rows][vectors];
    DSF_UNROLL
    for (int r = 0; r < rows; ++r) {
      DSF_UNROLL
      for (int v = 0; v < vectors; ++v) {
        const int64x2_t left = vreinterpretq_s64_s32(block[r / 2][2 * v]);
        const int64x2_t right = vreinterpretq_s64_s32(block[r / 2][2 * v + 1]);
        acc[r][v] = vreinterpretq_s32_s64(r % 2 ? vzip2q_s64(left, right) : vzip1q_s64(left, right));
      }
    }
    end.template take<rows, vectors>(acc);
  }
};
#endif

}  // namespace
}  // namespace dsf
