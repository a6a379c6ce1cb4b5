// The kernels' bodies, compiled once per ISA level by cpu_<isa>.cc after its vec_<isa>.h.
#pragma once
#include "csrc/attention/gradients.h"
#include "kernels/block_sparse_attention/cpu_kernels.h"

namespace dsf::block_sparse_attention {
namespace {

constexpr int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// Parts of a tile's memory, one after the other: pointers to them, or their bytes in all.
struct Parts {
  mutable char* at;
  char* operator()(int64_t bytes) const { return (at += round_up(bytes, 64)) - round_up(bytes, 64); }
};
struct PartsBytes {
  mutable int64_t total = 0;
  char* operator()(int64_t bytes) const {
    total += round_up(bytes, 64);
    return nullptr;
  }
};

template <class M>
int64_t bytes_of(int64_t D, int64_t D_v) {
  const PartsBytes parts;
  const M memory(D, D_v, parts);
  return parts.total;
}

template <Dtype dtype>
struct Memory {
  using X = typename attention::RowOf<dtype>::Value;

  static constexpr int64_t row_values(int64_t D) { return round_up(D, 32); }

  // Calls take(bytes) for every part, in order.
  template <class Take>
  Memory(int64_t D, int64_t D_v, const Take& take)
      : q_stride(row_values(D)),
        q(reinterpret_cast<X*>(take(TILE_ROWS * row_values(D) * int64_t(sizeof(X))))),
        panels(take(most(attention::key_panel_bytes(dtype, D), attention::value_panels_bytes(dtype, D_v)))),
        weights(reinterpret_cast<X*>(take(TILE_ROWS * KEY_STEP * int64_t(sizeof(X))))),
        factors(reinterpret_cast<float*>(take((TILE_ROWS + 16) * 4))),
        sums(take(attention::TileSums::bytes(D_v))) {}
  Memory(int64_t D, int64_t D_v, char* tile) : Memory(D, D_v, Parts{tile}) {}

  int64_t q_stride;
  X* q;
  char* panels;  // a step's keys, then its values: one place for both stays in L1
  X* weights;
  float* factors;
  attention::TileSums sums;
};

// Rows that the panels' format has for queries: f16 is widened. A row that is null is zeros.
template <Dtype dtype>
void copy_rows(const char* const* rows, int64_t count, int64_t D, typename attention::RowOf<dtype>::Value* target,
               int64_t stride) {
  for (int64_t row = 0; row < count; ++row, target += stride) {
    const char* source = attention::row_or_zeros(rows[row]);
    if constexpr (dtype == Dtype::f16) {
      for (int64_t d = 0; d < D; d += Vec::LANES)
        Vec::store_i32(reinterpret_cast<int32_t*>(target + d), attention::load_words<Vec, dtype, false>(source, d, D));
    } else {
      __builtin_memcpy(target, source, size_t(D) * sizeof *target);
    }
  }
}

template <Dtype dtype>
void begin(const Shape& shape, const char* const* q, char* tile) {
  const Memory<dtype> memory(shape.D, shape.D_v, tile);
  copy_rows<dtype>(q, shape.rows, shape.D, memory.q, memory.q_stride);
  attention::Tile<Vec, dtype>::begin(memory.sums, shape.rows);
}

template <Dtype dtype>
void step(const Shape& shape, const KeyStep& keys, char* tile) {
  const Memory<dtype> memory(shape.D, shape.D_v, tile);
  using Tile = attention::Tile<Vec, dtype>;
  const attention::StepMask mask{keys.n, keys.seen, keys.bias, keys.bias_stride};
  attention::pack_keys<Vec, dtype>(keys.k, keys.n, shape.D, memory.panels);
  Tile::weigh(mask, memory.q, memory.q_stride, shape.rows, shape.D, shape.scale, memory.panels, memory.sums,
              memory.weights, memory.factors);
  if (Tile::takes_rows(shape.rows, shape.D_v))
    return Tile::add_rows(mask, memory.weights, memory.factors, shape.rows, shape.D_v, keys.v, memory.sums, keys.first);
  attention::pack_values<Vec, dtype>(keys.v, keys.n, shape.D_v, memory.panels);
  Tile::add(mask, memory.weights, memory.factors, shape.rows, shape.D_v, memory.panels, memory.sums, keys.first);
}

struct Results {
  char* const* outs;
  const float* const* sinks;
  float* const* lses;

  char* out(int64_t row) const { return outs[row]; }
  const float* sink(int64_t row) const { return sinks ? sinks[row] : nullptr; }
  void lse(int64_t row, float value) const {
    if (lses) *lses[row] = value;
  }
};

template <Dtype dtype>
void finish(const Shape& shape, char* const* out, const float* const* sink, float* const* lse, char* tile) {
  const Memory<dtype> memory(shape.D, shape.D_v, tile);
  attention::Tile<Vec, dtype>::finish(memory.sums, shape.rows, shape.D_v, Results{out, sink, lse});
}

template <Dtype dtype>
struct BackwardMemory {
  using X = typename attention::RowOf<dtype>::Value;
  using Tile = attention::BackwardTile<Vec, dtype>;

  // Calls take(bytes) for every part, in order.
  template <class Take>
  BackwardMemory(int64_t D, int64_t D_v, const Take& take) {
    const auto row_values = [](int64_t width) { return round_up(width, 32); };
    const auto rows = [&](int64_t width) {
      return reinterpret_cast<X*>(take(TILE_ROWS * row_values(width) * int64_t(sizeof(X))));
    };
    q_stride = row_values(D);
    dout_stride = row_values(D_v);
    q = rows(D);
    dout = rows(D_v);
    q_panels = take(attention::value_panels_bytes(dtype, D));
    dout_panels = take(attention::value_panels_bytes(dtype, D_v));
    k_keys = take(attention::key_panel_bytes(dtype, D));
    v_keys = take(attention::key_panel_bytes(dtype, D_v));
    k_values = take(attention::value_panels_bytes(dtype, D));
    lse = reinterpret_cast<float*>(take(3 * TILE_ROWS * 4));
    scratch = reinterpret_cast<typename Tile::Scratch*>(take(sizeof(typename Tile::Scratch)));
    dq = take(attention::TileSums::bytes(D));
  }
  BackwardMemory(int64_t D, int64_t D_v, char* tile) : BackwardMemory(D, D_v, Parts{tile}) {}

  X *q, *dout;
  int64_t q_stride, dout_stride;
  char *q_panels, *dout_panels, *k_keys, *v_keys, *k_values, *dq;
  float* lse;  // then f, then shift
  typename Tile::Scratch* scratch;
};

template <Dtype dtype>
void begin_backward(const Shape& shape, const RowsBackward& rows, char* tile) {
  const BackwardMemory<dtype> memory(shape.D, shape.D_v, tile);
  const char *q[TILE_ROWS], *dout[TILE_ROWS];
  for (int64_t row = 0; row < shape.rows; ++row) {
    const bool nothing = rows.lse[row] == attention::NEGATIVE_INFINITY;  // such a query gives no gradient
    q[row] = nothing ? nullptr : rows.q[row];
    dout[row] = nothing ? nullptr : rows.dout[row];
    const float f = attention::share_of_keys<Vec>(rows.lse[row], rows.sink[row]);
    memory.lse[row] = nothing ? 0.0f : rows.lse[row];
    memory.lse[TILE_ROWS + row] = f;
    memory.lse[2 * TILE_ROWS + row] = nothing ? 0.0f : f * rows.delta[row] - rows.dlse[row];
  }
  copy_rows<dtype>(q, shape.rows, shape.D, memory.q, memory.q_stride);
  copy_rows<dtype>(dout, shape.rows, shape.D_v, memory.dout, memory.dout_stride);
  attention::pack_values<Vec, dtype>(q, shape.rows, shape.D, memory.q_panels);
  attention::pack_values<Vec, dtype>(dout, shape.rows, shape.D_v, memory.dout_panels);
  attention::Tile<Vec, dtype>::clear_values(attention::TileSums(memory.dq), shape.rows, shape.D);
}

template <Dtype dtype>
void step_backward(const Shape& shape, const KeyStep& keys, bool wants_dq, float* const* dk, float* const* dv,
                   char* tile) {
  const BackwardMemory<dtype> memory(shape.D, shape.D_v, tile);
  attention::pack_keys<Vec, dtype>(keys.k, keys.n, shape.D, memory.k_keys);
  attention::pack_keys<Vec, dtype>(keys.v, keys.n, shape.D_v, memory.v_keys);
  if (wants_dq) attention::pack_values<Vec, dtype>(keys.k, keys.n, shape.D, memory.k_values);
  const attention::TileSums dq(memory.dq);
  const attention::KeySums sums{dk, dv};
  attention::BackwardTile<Vec, dtype>::step(
      {keys.n, keys.seen, keys.bias, keys.bias_stride}, memory.q, memory.q_stride, memory.dout, memory.dout_stride,
      shape.rows, shape.D, shape.D_v, shape.scale, {memory.lse, memory.lse + TILE_ROWS, memory.lse + 2 * TILE_ROWS},
      {memory.k_keys, memory.v_keys, memory.k_values}, {memory.q_panels, memory.dout_panels}, wants_dq ? &dq : nullptr,
      dk ? &sums : nullptr, *memory.scratch);
}

template <Dtype dtype>
void finish_backward(const Shape& shape, const RowsBackward& rows, char* tile) {
  const BackwardMemory<dtype> memory(shape.D, shape.D_v, tile);
  const attention::TileSums dq(memory.dq);
  for (int64_t p = 0; p < attention::num_value_panels(shape.D); ++p)
    for (int64_t row = 0; row < shape.rows; ++row) {
      const int64_t left = shape.D - p * PANEL_N;
      attention::store_scaled<Vec, dtype>(dq.values + (p * attention::MAX_ROWS + row) * PANEL_N, shape.scale,
                                          left < PANEL_N ? left : PANEL_N,
                                          rows.dq[row] + p * PANEL_N * value_bytes(dtype));
    }
}

template <Dtype dtype>
void delta(const char* dout, int64_t dout_stride, const char* out, int64_t D_v, int64_t count, float* delta) {
  for (int64_t i = 0; i < count; ++i)
    delta[i] = attention::dot_of_rows<Vec, dtype>(dout + i * dout_stride * value_bytes(dtype),
                                                  out + i * D_v * value_bytes(dtype), D_v);
}

inline float sink_gradient(const float* lse, float sink, const float* delta, int64_t count, float sum) {
  for (int64_t i = 0; i < count; ++i) {
    const float of_sink = 1.0f - attention::share_of_keys<Vec>(lse[i], sink);
    sum = sum - of_sink * delta[i];
  }
  return sum;
}

template <Dtype dtype>
void store_row(const float* sums, float factor, int64_t D, char* out) {
  attention::store_scaled<Vec, dtype>(sums, factor, D, out);
}

template <Dtype dtype>
constexpr Kernel KERNEL = {bytes_of<Memory<dtype>>,
                           begin<dtype>,
                           step<dtype>,
                           finish<dtype>,
                           bytes_of<BackwardMemory<dtype>>,
                           begin_backward<dtype>,
                           step_backward<dtype>,
                           finish_backward<dtype>,
                           delta<dtype>,
                           sink_gradient,
                           store_row<dtype>};

}  // namespace
}  // namespace dsf::block_sparse_attention
