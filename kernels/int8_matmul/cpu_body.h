// The kernels' bodies, compiled once per ISA level by cpu_<isa>.cc after its vec_<isa>.h.
#pragma once
#include "csrc/gemm/epilogue.h"
#include "csrc/gemm/quantize.h"
#include "csrc/gemm/tile_dot.h"
#include "csrc/gemm/tile_int8.h"
#include "kernels/int8_matmul/cpu_kernels.h"

namespace dsf::int8_matmul {
namespace {

inline const char* row_of_x(const LinearArgs& args, int64_t m) {
  return static_cast<const char*>(args.x) + m * args.x_stride * value_bytes(args.dtype);
}

template <int32_t offset, class Code>
inline float quantize_row_of(Dtype dtype, const void* x, int64_t K, int64_t padded_K, Code* codes) {
  const auto quantize = dtype == Dtype::f32    ? quantize_row<Dtype::f32, offset, Code>
                        : dtype == Dtype::bf16 ? quantize_row<Dtype::bf16, offset, Code>
                                               : quantize_row<Dtype::f16, offset, Code>;
  return quantize(x, K, padded_K, codes);
}

// x_scale, x_q = quantize_rows(x)
template <class Tile>
void quantize(const LinearArgs& args, int64_t m_begin, int64_t m_end, const QuantizedRows& rows) {
  using Code = typename Tile::X;
  for (int64_t m = m_begin; m < m_end; ++m) {
    Code* codes = static_cast<Code*>(rows.codes) + m * rows.padded_K;
    rows.scale[m] = quantize_row_of<Tile::OFFSET>(args.dtype, row_of_x(args, m), args.K, rows.padded_K, codes);
  }
}

template <class Tile>
void run(const LinearArgs& args, const QuantizedRows& rows, int64_t m_begin, int64_t m_end, int64_t panel) {
  const PackedPanels packed(args.packed);
  const auto* codes = static_cast<const typename Tile::X*>(rows.codes);
  const auto walk = args.dtype == Dtype::bf16 ? walk_and_finish<Tile, Vec, Dtype::bf16, Sums::i32_scaled>
                                              : walk_and_finish<Tile, Vec, Dtype::f32, Sums::i32_scaled>;
  const int32_t* excess = Tile::OFFSET ? packed.excess + panel * PANEL_N : nullptr;
  const DotScope scope;
  // acc = x_q.int() @ q.int().T;  y = act(acc.float() * x_scale * scale + bias) + residual
  walk(args, rows.padded_K, codes, rows.padded_K, packed.panel(panel), excess, rows.scale, m_begin, m_end, panel);
}

inline constexpr int64_t WIDEN_K = 128;  // values of k that are widened at a time: 32 KiB of f32, within L1

// Quads of int8 -> rows of f32.
inline void widen_f32(const char* quads, int64_t K, float* weights) {
  for (int64_t k = 0; k < K; k += 4, quads += PANEL_N * 4, weights += PANEL_N * 4)
    for (int64_t n = 0; n < PANEL_N; n += Vec::LANES) {
      const auto v = Vec::load_i32(reinterpret_cast<const int32_t*>(quads) + n);
      Vec::store(weights + n, Vec::quad_to_f32<0>(v));
      Vec::store(weights + PANEL_N + n, Vec::quad_to_f32<1>(v));
      Vec::store(weights + 2 * PANEL_N + n, Vec::quad_to_f32<2>(v));
      Vec::store(weights + 3 * PANEL_N + n, Vec::quad_to_f32<3>(v));
    }
}

// Quads of int8 -> rows of bf16 pairs; every int8 is a bf16, the upper half of its f32.
inline void widen_bf16(const char* quads, int64_t K, int32_t* weights) {
  const auto pair = [](Vec::f32 even, Vec::f32 odd) {
    return Vec::or_bits(Vec::shift_right<16>(Vec::bits_of(even)),
                        Vec::and_bits(Vec::bits_of(odd), int32_t(0xFFFF0000)));
  };
  for (int64_t k = 0; k < K; k += 4, quads += PANEL_N * 4, weights += PANEL_N * 2)
    for (int64_t n = 0; n < PANEL_N; n += Vec::LANES) {
      const auto v = Vec::load_i32(reinterpret_cast<const int32_t*>(quads) + n);
      Vec::store_i32(weights + n, pair(Vec::quad_to_f32<0>(v), Vec::quad_to_f32<1>(v)));
      Vec::store_i32(weights + PANEL_N + n, pair(Vec::quad_to_f32<2>(v), Vec::quad_to_f32<3>(v)));
    }
}

template <class Tile, Dtype dtype>
void run_widened(const LinearArgs& args, int64_t m_begin, int64_t m_end, int64_t panel) {
  alignas(64) char weights[WIDEN_K / Tile::K_GROUP * Tile::GROUP_BYTES];
  const char* quads = PackedPanels(args.packed).panel(panel);
  const auto widened = [&](int64_t k, int64_t count) -> const char* {
    if constexpr (dtype == Dtype::f32)
      widen_f32(quads + k * PANEL_N, count, reinterpret_cast<float*>(weights));
    else
      widen_bf16(quads + k * PANEL_N, count, reinterpret_cast<int32_t*>(weights));
    return weights;
  };
  const DotScope scope;
  // y = act(x @ q.float().T * scale + bias) + residual
  walk_panel_in_steps<Tile>(args.K, WIDEN_K, static_cast<const typename Tile::X*>(args.x), args.x_stride, widened,
                            columns_of(args, panel), m_begin, m_end,
                            Finish<Vec, dtype, Sums::f32_scaled, false>{args, nullptr, panel});
}

inline void run_float(const LinearArgs& args, int64_t m_begin, int64_t m_end, int64_t panel) {
  if (args.dtype == Dtype::bf16)
    run_widened<DotTileBf16, Dtype::bf16>(args, m_begin, m_end, panel);
  else
    run_widened<TileF32<Vec>, Dtype::f32>(args, m_begin, m_end, panel);
}

inline float quantize_weight_row(Dtype dtype, const void* row, int64_t K, int8_t* codes) {
  return quantize_row_of<0>(dtype, row, K, K, codes);
}

template <class Tile>
constexpr Kernel kernel_of = {sizeof(typename Tile::X), quantize<Tile>, run<Tile>, run_float, widen_x<Vec>,
                              quantize_weight_row};

}  // namespace
}  // namespace dsf::int8_matmul
