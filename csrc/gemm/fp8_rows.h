// Few rows of bf16 against fp8: the weight streams by once, decoded in registers, never stored.
// Every sum is the chain of dots that TileBf16 makes, so that a row has the same bits whatever the number of rows is.
#pragma once
#if defined(__AVX512VBMI__) && defined(__AVX512BF16__)
#include "csrc/gemm/blocked.h"
#include "csrc/gemm/fp8.h"

namespace dsf {
namespace {

inline constexpr int64_t PREFETCH = 2048;  // bytes ahead: 70 GB/s without, 88 with, of 120 (L3, Zen 5, 2026-11)
inline constexpr int64_t FEW_ROWS = 4;     // above, decoding into L1 and running whole tiles is faster

// `blocks` whole blocks of k side by side, for more dots in flight than one block's dependent sums allow: a dot takes
// about six cycles, two may start in each.
template <class V, Dtype weight, int rows, int blocks>
inline void few_rows_step(const PackedPanels& packed, const char* block, const BlockedX<uint16_t>& x, int64_t m,
                          int64_t k, float* z) {
  const Fp8Decoder<V, weight> decoder;
  constexpr int VECTORS = PANEL_N / V::LANES;
  typename V::f32 acc[blocks][rows][VECTORS];
  DSF_UNROLL
  for (int b = 0; b < blocks; ++b) {
    DSF_UNROLL
    for (int r = 0; r < rows; ++r) {
      DSF_UNROLL
      for (int v = 0; v < VECTORS; ++v) acc[b][r][v] = V::zero();
    }
  }
  const char* codes = block + PackedPanels::SCALE_BYTES;
  const uint16_t* values = x.values + m * x.stride + k;
  for (int64_t q = 0; q < packed.block_k; q += 4, codes += PANEL_N * 4) {
    DSF_UNROLL
    for (int b = 0; b < blocks; ++b) {
      DSF_UNROLL
      for (int v = 0; v < VECTORS; ++v) {
        __m512i first, second;
        __builtin_prefetch(codes + b * packed.block_bytes + v * 64 + PREFETCH);
        decoder.pairs(codes + b * packed.block_bytes + v * 64, &first, &second);
        DSF_UNROLL
        for (int r = 0; r < rows; ++r) {
          uint32_t pair[2];
          __builtin_memcpy(pair, values + r * x.stride + b * packed.block_k + q, 8);
          acc[b][r][v] = V::dot_pair(acc[b][r][v], V::set1_pair(pair[0]), __m512bh(first));
          acc[b][r][v] = V::dot_pair(acc[b][r][v], V::set1_pair(pair[1]), __m512bh(second));
        }
      }
    }
  }
  DSF_UNROLL
  for (int b = 0; b < blocks; ++b) {
    const auto* scale = reinterpret_cast<const float*>(block + b * packed.block_bytes);
    const float* x_scale = x.scale ? x.scale + m * x.scale_stride + (k + b * packed.block_k) / MAX_BLOCK_K : nullptr;
    AddScaled<V>{z, scale, x_scale, x.scale_stride}.template take<rows, VECTORS>(acc[b]);
  }
}

template <class V, Dtype dtype, Dtype weight, int rows>
[[gnu::noinline]] void few_rows(const LinearArgs& args, const PackedPanels& packed, const BlockedX<uint16_t>& x,
                                int64_t m, int64_t panel) {
  constexpr int SIDE_BY_SIDE = rows <= 2 ? 2 : 1;
  alignas(64) float z[rows * PANEL_N] = {};
  const char* block = packed.panel(panel);
  int64_t k = 0;
  for (; k + SIDE_BY_SIDE * packed.block_k <= args.K; k += SIDE_BY_SIDE * packed.block_k) {
    few_rows_step<V, weight, rows, SIDE_BY_SIDE>(packed, block, x, m, k, z);
    block += SIDE_BY_SIDE * packed.block_bytes;
  }
  for (; k < args.K; k += packed.block_k, block += packed.block_bytes) {
    const int64_t block_K = args.K - k < packed.block_k ? args.K - k : packed.block_k;
    if (block_K == packed.block_k) {
      few_rows_step<V, weight, rows, 1>(packed, block, x, m, k, z);
      continue;
    }
    alignas(64) char weights[MAX_BLOCK_K * PANEL_N * 2];
    decode_fp8_bf16<V, weight>(block + PackedPanels::SCALE_BYTES, (block_K + 3) / 4, weights);
    const float* x_scale = x.scale ? x.scale + m * x.scale_stride + k / MAX_BLOCK_K : nullptr;
    TileBf16<V>::template run<rows, PANEL_N / V::LANES>(
        block_K, x.values + m * x.stride + k, x.stride, weights, nullptr,
        AddScaled<V>{z, reinterpret_cast<const float*>(block), x_scale, x.scale_stride});
  }
  finish_tile<V, dtype, Sums::f32>(args, z, nullptr, m, rows, panel);
}

// False where there are more rows than this is for.
template <class V, Dtype dtype, Dtype weight>
inline bool walk_few_rows(const LinearArgs& args, const PackedPanels& packed, const BlockedX<uint16_t>& x,
                          int64_t m_begin, int64_t m_end, int64_t panel) {
  switch (m_end - m_begin) {
    case 1:
      few_rows<V, dtype, weight, 1>(args, packed, x, m_begin, panel);
      return true;
    case 2:
      few_rows<V, dtype, weight, 2>(args, packed, x, m_begin, panel);
      return true;
    case 3:
      few_rows<V, dtype, weight, 3>(args, packed, x, m_begin, panel);
      return true;
    case FEW_ROWS:
      few_rows<V, dtype, weight, 4>(args, packed, x, m_begin, panel);
      return true;
    default:
      return false;
  }
}

}  // namespace
}  // namespace dsf
#endif
