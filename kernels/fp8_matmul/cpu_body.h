// The kernels' bodies, compiled once per ISA level by cpu_<isa>.cc after its vec_<isa>.h.
#pragma once
#include <cstring>

#include "csrc/gemm/blocked.h"
#include "csrc/gemm/fp8.h"
#include "csrc/gemm/fp8_rows.h"
#include "csrc/gemm/tile_dot.h"
#include "kernels/fp8_matmul/cpu_kernels.h"

namespace dsf::fp8_matmul {
namespace {

// z = sum_b (x[:, b] @ weight[:, b].T) * scale[:, b];  y = act(z + bias) + residual
template <Dtype dtype, Dtype weight>
void run_bf16(const LinearArgs& args, const PackedPanels& packed, const BlockedX<uint16_t>& x, int64_t m_begin,
              int64_t m_end, int64_t panel) {
#if defined(DSF_FP8_ROWS) && !defined(__AMX_BF16__)
  walk_fp8<Vec, dtype, weight>(args, packed, x, m_begin, m_end, panel);
#else
  const DotScope scope;
  walk_blocks<DotTileBf16, Vec, dtype>(args, packed, x, decode_fp8_bf16<Vec, weight>, m_begin, m_end, panel);
#endif
}

template <Dtype weight>
void run_f32(const LinearArgs& args, const PackedPanels& packed, int64_t m_begin, int64_t m_end, int64_t panel) {
  const BlockedX<float> x{static_cast<const float*>(args.x), args.x_stride, nullptr, 0};
#ifdef DSF_FP8_ROWS
  walk_fp8<Vec, Dtype::f32, weight>(args, packed, x, m_begin, m_end, panel);
#else
  walk_blocks<TileF32<Vec>, Vec, Dtype::f32>(args, packed, x, decode_fp8_f32<Vec, weight>, m_begin, m_end, panel);
#endif
}

template <Dtype weight>
void run_weight(const LinearArgs& args, const PackedPanels& packed, int64_t m_begin, int64_t m_end, int64_t panel) {
  if (args.dtype != Dtype::bf16)
    run_f32<weight>(args, packed, m_begin, m_end, panel);
  else
    run_bf16<Dtype::bf16, weight>(args, packed, {static_cast<const uint16_t*>(args.x), args.x_stride, nullptr, 0},
                                  m_begin, m_end, panel);
}

inline void run(const LinearArgs& args, int64_t m_begin, int64_t m_end, int64_t panel) {
  const PackedPanels packed(args.packed);
  if (packed.dtype == Dtype::f8e4m3)
    run_weight<Dtype::f8e4m3>(args, packed, m_begin, m_end, panel);
  else
    run_weight<Dtype::f8e5m2>(args, packed, m_begin, m_end, panel);
}

// max(amax, 1e-4) / largest, from the bits of amax; NaN stays.
template <Dtype dtype>
float scale_of(uint32_t amax_bits) {
  float amax;
  std::memcpy(&amax, &amax_bits, 4);
  if (amax < FP8_SMALLEST_AMAX) amax = FP8_SMALLEST_AMAX;
  return amax / Fp8<dtype>::LARGEST;
}

template <Dtype dtype>
Vec::i32 largest_so_far(Vec::i32 most, const void* row, int64_t begin, int64_t end) {
  for (int64_t k = begin; k < end; k += Vec::LANES)
    most = Vec::max_magnitude(most, load_value<Vec, dtype>(row, k, end - k < Vec::LANES ? int(end - k) : Vec::LANES));
  return most;
}

// x_scale = max(amax, 1e-4) / 448;  x_q = e4m3fn(x * (1 / x_scale)) as bf16
template <Dtype dtype>
void cast_row(const void* x, int64_t K, uint16_t* values, float* scale) {
  using V = Vec;
  for (int64_t begin = 0; begin < K; begin += MAX_BLOCK_K) {
    const int64_t end = K - begin < MAX_BLOCK_K ? K : begin + MAX_BLOCK_K;
    const float s = scale_of<Dtype::f8e4m3>(V::largest(largest_so_far<dtype>(V::zero_i32(), x, begin, end)));
    const auto inverse = V::set1(1.0f / s);
    scale[begin / MAX_BLOCK_K] = s;
    for (int64_t k = begin; k < end; k += V::LANES) {
      const int n = end - k < V::LANES ? int(end - k) : V::LANES;
      const auto value = V::mul(load_value<V, dtype>(x, k, n), inverse);
      V::store_bf16_n(values + k, round_to_fp8<V, Dtype::f8e4m3>(value), n);
    }
  }
}

inline void cast(const LinearArgs& args, int64_t m_begin, int64_t m_end, const CastRows& rows) {
  for (int64_t m = m_begin; m < m_end; ++m) {
    uint16_t* values = rows.values + m * args.K;
    float* scale = rows.scale + m * rows.scale_stride;
    const auto row = args.dtype == Dtype::f32    ? cast_row<Dtype::f32>
                     : args.dtype == Dtype::bf16 ? cast_row<Dtype::bf16>
                                                 : cast_row<Dtype::f16>;
    const int64_t x_bytes = args.x_stride * value_bytes(args.dtype);
    row(static_cast<const char*>(args.x) + m * x_bytes, args.K, values, scale);
  }
}

template <Dtype weight>
void run_cast_weight(const LinearArgs& args, const PackedPanels& packed, const CastRows& rows, int64_t m_begin,
                     int64_t m_end, int64_t panel) {
  const auto run = args.dtype == Dtype::bf16 ? run_bf16<Dtype::bf16, weight> : run_bf16<Dtype::f32, weight>;
  run(args, packed, {rows.values, args.K, rows.scale, rows.scale_stride}, m_begin, m_end, panel);
}

inline void run_cast(const LinearArgs& args, const CastRows& rows, int64_t m_begin, int64_t m_end, int64_t panel) {
  const PackedPanels packed(args.packed);
  if (packed.dtype == Dtype::f8e4m3)
    run_cast_weight<Dtype::f8e4m3>(args, packed, rows, m_begin, m_end, panel);
  else
    run_cast_weight<Dtype::f8e5m2>(args, packed, rows, m_begin, m_end, panel);
}

constexpr Kernel KERNEL = {run, widen_x<Vec>, cast, run_cast};

}  // namespace
}  // namespace dsf::fp8_matmul
