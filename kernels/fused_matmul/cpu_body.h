// The kernel's body, compiled once per ISA level by cpu_<isa>.cc after its vec_<isa>.h.
#pragma once
#include "csrc/gemm/epilogue.h"
#include "csrc/gemm/tile_dot.h"
#include "csrc/gemm/tile_f16.h"
#include "kernels/fused_matmul/cpu_kernels.h"

namespace dsf::fused_matmul {
namespace {

template <class Tile, Dtype dtype>
void run(const LinearArgs& args, int64_t m_begin, int64_t m_end, int64_t panel) {
  const DotScope scope;
  // y = act(x @ weight.T + bias) + residual
  walk_and_finish<Tile, Vec, dtype, Sums::f32>(args, args.K, static_cast<const typename Tile::X*>(args.x),
                                               args.x_stride, PackedPanels(args.packed).panel(panel), nullptr, nullptr,
                                               m_begin, m_end, panel);
}

// The same, from x in f32.
inline void run_f16_panel(const LinearArgs& args, int64_t m_begin, int64_t m_end, int64_t panel) {
  const char* weights = PackedPanels(args.packed).panel(panel);
  walk_f16_panel<Vec>(args, weights, m_begin, m_end, panel);
}

constexpr Kernel run_f32 = {run<TileF32<Vec>, Dtype::f32>, nullptr};
constexpr Kernel run_bf16 = {run<DotTileBf16, Dtype::bf16>, nullptr};
constexpr Kernel run_f16 = {run_f16_panel, widen_x<Vec>};

}  // namespace
}  // namespace dsf::fused_matmul
