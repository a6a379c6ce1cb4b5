// The kernels' bodies, compiled once per ISA level by cpu_<isa>.cc after its vec_<isa>.h.
#pragma once
#include "csrc/gemm/blocked.h"
#include "kernels/int4_matmul/decode_u4.h"
#include "kernels/int4_matmul/quantize_rows.h"
#include "kernels/int4_matmul/tile_float.h"
#include "kernels/int4_matmul/tile_u4.h"

namespace dsf::int4_matmul {
namespace {

// x_q, x_scale = quantize_blocks(x);  start = -zero * x_q.sum(), but for the weight's zero points
inline void quantize(const LinearArgs& args, int64_t m_begin, int64_t m_end, const QuantizedRows& rows) {
  constexpr int MR = TileU4<Vec>::MR;
  const PackedPanels packed(args.packed);
  const int32_t zero_point = packed.zeros ? 1 : NO_ZERO_POINT;
  const auto tile = args.dtype == Dtype::f32    ? quantize_tile<Vec, Dtype::f32>
                    : args.dtype == Dtype::bf16 ? quantize_tile<Vec, Dtype::bf16>
                                                : quantize_tile<Vec, Dtype::f16>;
  for (int64_t m = m_begin; m < m_end; m += MR)
    tile(args, m, int(m_end - m < MR ? m_end - m : MR), packed.block_k, zero_point, rows.tile(m));
}

// z = 0; for b: z = z + (acc[b] * x_scale[:, b]) * scale[:, b];  y = act(z + bias) + residual
template <bool zeros>
void run_panel(const LinearArgs& args, const PackedPanels& packed, const QuantizedRows& rows, int64_t m_begin,
               int64_t m_end, int64_t panel) {
  using Tile = TileU4<Vec>;
  constexpr int BLOCK = Tile::NV * Vec::LANES;  // columns of a register tile
  alignas(64) float z[Tile::MR * PANEL_N];
  const int columns = columns_of(args, panel);
  for (int64_t m = m_begin; m < m_end; m += Tile::MR) {
    const int count = int(m_end - m < Tile::MR ? m_end - m : Tile::MR);
    for (int i = 0; i < count * PANEL_N; i += Vec::LANES) Vec::store(z + i, Vec::zero());
    for (int column = 0; column < columns; column += BLOCK)
      run_sum_blocks<Vec, zeros, Tile::MR, Tile::NV>(count, packed, packed.panel(panel), round_up(args.K, STEP_K),
                                                     rows.tile(m), column, z);
    if (args.dtype == Dtype::bf16)
      finish_tile<Vec, Dtype::bf16, Sums::f32>(args, z, nullptr, m, count, panel);
    else
      finish_tile<Vec, Dtype::f32, Sums::f32>(args, z, nullptr, m, count, panel);
  }
}

inline void run(const LinearArgs& args, const QuantizedRows& rows, int64_t m_begin, int64_t m_end, int64_t panel) {
  const PackedPanels packed(args.packed);
  const auto run = packed.zeros ? run_panel<true> : run_panel<false>;
  run(args, packed, rows, m_begin, m_end, panel);
}

// z = sum_b (x[:, b] @ (q - zero)[:, b].T) * scale[:, b];  y = act(z + bias) + residual
inline void run_float(const LinearArgs& args, int64_t m_begin, int64_t m_end, int64_t panel) {
  const PackedPanels packed(args.packed);
#ifdef __AVX512BW__
  const auto walk =
      args.dtype == Dtype::bf16
          ? (packed.zeros ? walk_float_tiles<Vec, Dtype::bf16, true> : walk_float_tiles<Vec, Dtype::bf16, false>)
          : (packed.zeros ? walk_float_tiles<Vec, Dtype::f32, true> : walk_float_tiles<Vec, Dtype::f32, false>);
  walk(args, packed, m_begin, m_end, panel);
#else
  if (args.dtype != Dtype::bf16)
    walk_blocks<TileF32<Vec>, Vec, Dtype::f32>(args, packed,
                                               {static_cast<const float*>(args.x), args.x_stride, nullptr, 0},
                                               DecodeF32<Vec>{packed.zeros}, m_begin, m_end, panel);
  else
    walk_blocks<TileBf16<Vec>, Vec, Dtype::bf16>(args, packed,
                                                 {static_cast<const uint16_t*>(args.x), args.x_stride, nullptr, 0},
                                                 DecodeBf16<Vec>{packed.zeros}, m_begin, m_end, panel);
#endif
}

constexpr Kernel KERNEL = {TileU4<Vec>::MR, quantize, run, run_float, widen_x<Vec>};

}  // namespace
}  // namespace dsf::int4_matmul
