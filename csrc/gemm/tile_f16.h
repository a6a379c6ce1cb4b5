// Panels of f16 against x in f32, which holds every f16: products are exact, sums those of TileF32, in the same order.
#pragma once
#include <cstdint>

#include "csrc/gemm/epilogue.h"
#include "csrc/gemm/tile.h"

namespace dsf {
namespace {

// sums[r][c] = start[r][c] + sum_k x[r, k] * panel[k][c], for a level that widens f16 in one instruction. It runs
// beside the multiply-adds: at M = 256, 3 % above TileF32 on panels of f32, twice as large (Zen 5, 2026-11).
template <class V>
struct TileF16 : TileF32<V> {
  using X = float;
  static constexpr int64_t GROUP_BYTES = PANEL_N * 2;  // bytes of one k in a panel
  static constexpr int64_t LINE = 64;                  // bytes
  // Bytes ahead: one to six rows take 0.85 of the time of 4096, 0.8 of none; a sixth of L1 (Zen 5, 2026-11).
  static constexpr int64_t PREFETCH = 8192;

  template <int rows, int vectors, class End>
  [[gnu::noinline]] static void run(int64_t K, const X* x, int64_t x_stride, const char* panel, const float* start,
                                    const End& end) {
    typename V::f32 acc[rows][vectors];
    start_sums<V>(acc, start);
    for (int64_t k = 0; k < K; ++k, panel += GROUP_BYTES) {
      typename V::f32 w[vectors];
      DSF_UNROLL
      for (int i = 0; i < vectors * V::LANES * 2; i += LINE) __builtin_prefetch(panel + i + PREFETCH);
      DSF_UNROLL
      for (int v = 0; v < vectors; ++v) w[v] = V::load_f16(reinterpret_cast<const uint16_t*>(panel) + v * V::LANES);
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

inline constexpr int64_t WIDEN_F16_K = 128;  // values of k that are widened at a time: 32 KiB of f32, within L1

// y = act(x @ weight.T + bias) + residual for one panel: args.x is f32, args.dtype f16.
template <class V>
inline void walk_f16_panel(const LinearArgs& args, const char* weights, int64_t m_begin, int64_t m_end, int64_t panel) {
  const auto* x = static_cast<const float*>(args.x);
  if constexpr (V::WIDENS_F16) {
    walk_and_finish<TileF16<V>, V, Dtype::f16, Sums::f32>(args, args.K, x, args.x_stride, weights, nullptr, nullptr,
                                                          m_begin, m_end, panel);
  } else {
    alignas(64) float widened[WIDEN_F16_K * PANEL_N];
    const auto widen = [&](int64_t k, int64_t count) {
      for (int64_t i = 0; i < count * PANEL_N; i += V::LANES)
        V::store(widened + i, load_value<V, Dtype::f16>(weights, k * PANEL_N + i, V::LANES));
      return reinterpret_cast<const char*>(widened);
    };
    walk_panel_in_steps<TileF32<V>>(args.K, WIDEN_F16_K, x, args.x_stride, widen, columns_of(args, panel), m_begin,
                                    m_end, Finish<V, Dtype::f16, Sums::f32, false>{args, nullptr, panel});
  }
}

}  // namespace
}  // namespace dsf
