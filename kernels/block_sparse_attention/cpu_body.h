// The kernels' bodies, compiled once per ISA level by cpu_<isa>.cc after its vec_<isa>.h.
#pragma once
#include "csrc/attention/tiles.h"
#include "kernels/block_sparse_attention/cpu_kernels.h"

namespace dsf::block_sparse_attention {
namespace {

template <Dtype dtype>
struct Memory {
  using X = typename attention::RowOf<dtype>::Value;

  static constexpr int64_t row_values(int64_t D) { return round_up(D, 32); }
  static int64_t q_bytes(int64_t D) { return TILE_ROWS * row_values(D) * int64_t(sizeof(X)); }
  static int64_t bytes(int64_t D, int64_t D_v) {
    return q_bytes(D) + attention::key_panel_bytes(dtype, D) + attention::value_panels_bytes(dtype, D_v) +
           attention::TileSums::bytes(D_v);
  }

  Memory(int64_t D, int64_t D_v, char* tile)
      : q(reinterpret_cast<X*>(tile)),
        q_stride(row_values(D)),
        keys(tile + q_bytes(D)),
        values(keys + attention::key_panel_bytes(dtype, D)),
        sums(values + attention::value_panels_bytes(dtype, D_v)) {}

  X* q;
  int64_t q_stride;
  char *keys, *values;
  attention::TileSums sums;
};

template <Dtype dtype>
void begin(const Shape& shape, const char* const* q, char* tile) {
  const Memory<dtype> memory(shape.D, shape.D_v, tile);
  for (int64_t row = 0; row < shape.rows; ++row) {
    auto* target = memory.q + row * memory.q_stride;
    if constexpr (dtype == Dtype::f16) {
      for (int64_t d = 0; d < shape.D; d += Vec::LANES)
        Vec::store_i32(reinterpret_cast<int32_t*>(target + d), attention::load_words<Vec, dtype>(q[row], d, shape.D));
    } else {
      __builtin_memcpy(target, q[row], size_t(shape.D) * sizeof *target);
    }
  }
  attention::Tile<Vec, dtype>::begin(memory.sums, shape.rows, shape.D_v);
}

template <Dtype dtype>
void step(const Shape& shape, const KeyStep& keys, char* tile) {
  const Memory<dtype> memory(shape.D, shape.D_v, tile);
  attention::pack_keys<Vec, dtype>(keys.k, keys.n, shape.D, memory.keys);
  attention::pack_values<Vec, dtype>(keys.v, keys.n, shape.D_v, memory.values);
  attention::Tile<Vec, dtype>::step({keys.n, keys.seen, keys.bias, keys.bias_stride}, memory.q, memory.q_stride,
                                    shape.rows, shape.D, shape.D_v, shape.scale, memory.keys, memory.values,
                                    memory.sums);
}

template <Dtype dtype>
void finish(const Shape& shape, char* const* out, const float* const* sink, float* const* lse, char* tile) {
  const Memory<dtype> memory(shape.D, shape.D_v, tile);
  for (int64_t row = 0; row < shape.rows; ++row)
    attention::Tile<Vec, dtype>::finish(memory.sums, row, shape.D_v, sink ? sink[row] : nullptr, out[row],
                                        lse ? lse[row] : nullptr);
}

template <Dtype dtype>
constexpr Kernel KERNEL = {Memory<dtype>::bytes, begin<dtype>, step<dtype>, finish<dtype>};

}  // namespace
}  // namespace dsf::block_sparse_attention
