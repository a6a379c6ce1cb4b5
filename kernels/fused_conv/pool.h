// The largest value or the mean of every window: one output pixel and several vectors of channels at a time, over the
// taps that lie inside x.
#pragma once
#include <cstdint>

#include "csrc/gemm/epilogue.h"
#include "csrc/gemm/unroll.h"
#include "kernels/fused_conv/windows.h"

namespace dsf::fused_conv {
namespace {

// Vectors of channels of one dtype.
template <class V, Dtype dtype>
struct PoolLanes {
  using Value = typename V::f32;
  static constexpr int LANES = V::LANES, BYTES = dtype == Dtype::f32 ? 4 : 2;
  static Value lowest() { return V::set1(-__builtin_inff()); }
  static Value load(const char* p, int n) { return load_value<V, dtype>(p, 0, n); }
  static void store(char* p, Value v, int n) { store_value<V, dtype>(p, 0, v, n); }

  // The larger ones so far, and where no NaN was met.
  struct Most {
    Value value = lowest();
    typename V::ordered ordered = V::all_ordered();
    void take(Value v) {
      ordered = V::and_ordered(ordered, v, v);
      value = V::max(v, value);
    }
    void take(Value v, Value next) {
      ordered = V::and_ordered(ordered, v, next);
      value = V::max(V::max(next, v), value);
    }
    Value result() const { return V::nan_unless(ordered, value); }
  };
};

template <class V, bool is_signed>
struct PoolBytes {
  using Value = typename V::i32;
  static constexpr int LANES = V::LANES * 4, BYTES = 1;
  static Value load(const char* p, int n) {
    return n >= LANES ? V::load_i32(reinterpret_cast<const int32_t*>(p)) : V::load_bytes_n(p, n);
  }
  static void store(char* p, Value v, int n) { V::store_bytes_n(p, v, n); }

  struct Most {
    Value value = V::set1_i32(is_signed ? int32_t(0x80808080) : 0);
    void take(Value v) { value = V::template max_bytes<is_signed>(v, value); }
    void take(Value v, Value next) { take(V::template max_bytes<is_signed>(v, next)); }
    Value result() const { return value; }
  };
};
template <class V>
struct PoolLanes<V, Dtype::u8> : PoolBytes<V, false> {};
template <class V>
struct PoolLanes<V, Dtype::i8> : PoolBytes<V, true> {};

// Taps of one output pixel; strides in bytes.
struct PoolTaps {
  const char* x;  // the first tap inside x, channel 0
  int64_t row, column, rows, columns;
  float size;  // what a sum is divided by
};

// K: the taps are K x K; 0: any.
template <class Lanes, int K, int vectors, bool whole>
[[gnu::always_inline]] inline void largest(const PoolTaps& taps, int64_t c, int n, char* y) {
  constexpr int STEP = Lanes::LANES * Lanes::BYTES;
  typename Lanes::Most most[vectors];
  const char* row = taps.x + c * Lanes::BYTES;
  const auto load = [&](const char* at, int v)
                        __attribute__((always_inline)) { return Lanes::load(at + v * STEP, whole ? Lanes::LANES : n); };
  const int64_t rows = K ? K : taps.rows, columns = K ? K : taps.columns;
  DSF_UNROLL
  for (int64_t r = 0; r < rows; ++r, row += taps.row) {
    const char* at = row;
    DSF_UNROLL
    for (int64_t s = 0; s + 2 <= columns; s += 2, at += 2 * taps.column) {
      DSF_UNROLL
      for (int v = 0; v < vectors; ++v) most[v].take(load(at, v), load(at + taps.column, v));
    }
    if (columns % 2) {
      DSF_UNROLL
      for (int v = 0; v < vectors; ++v) most[v].take(load(at, v));
    }
  }
  DSF_UNROLL
  for (int v = 0; v < vectors; ++v)
    Lanes::store(y + c * Lanes::BYTES + v * STEP, most[v].result(), whole ? Lanes::LANES : n);
}

template <class V, class Lanes, int vectors, bool whole>
[[gnu::always_inline]] inline void mean(const PoolTaps& taps, int64_t c, int n, char* y) {
  constexpr int STEP = Lanes::LANES * Lanes::BYTES;
  typename V::f32 sums[vectors];
  DSF_UNROLL
  for (auto& sum : sums) sum = V::zero();
  const char* row = taps.x + c * Lanes::BYTES;
  for (int64_t r = 0; r < taps.rows; ++r, row += taps.row) {
    const char* at = row;
    for (int64_t s = 0; s < taps.columns; ++s, at += taps.column) {
      DSF_UNROLL
      for (int v = 0; v < vectors; ++v) sums[v] = V::add(sums[v], Lanes::load(at + v * STEP, whole ? Lanes::LANES : n));
    }
  }
  const auto size = V::set1(taps.size);
  DSF_UNROLL
  for (int v = 0; v < vectors; ++v)
    Lanes::store(y + c * Lanes::BYTES + v * STEP, V::div(sums[v], size), whole ? Lanes::LANES : n);
}

template <class V, Dtype dtype, bool average, int K>
[[gnu::noinline]] void pool_pixel(const PoolTaps& taps, int64_t channels, char* y) {
  using Lanes = PoolLanes<V, dtype>;
  constexpr int VECTORS = 4;
  const auto vectors = [&]<int count, bool whole>(int64_t c, int n) __attribute__((always_inline)) {
    if constexpr (average)
      mean<V, Lanes, count, whole>(taps, c, n, y);
    else
      largest<Lanes, K, count, whole>(taps, c, n, y);
  };
  int64_t c = 0;
  for (; c + VECTORS * Lanes::LANES <= channels; c += VECTORS * Lanes::LANES)
    vectors.template operator()<VECTORS, true>(c, Lanes::LANES);
  for (; c + Lanes::LANES <= channels; c += Lanes::LANES) vectors.template operator()<1, true>(c, Lanes::LANES);
  if (c < channels) vectors.template operator()<1, false>(c, int(channels - c));
}

// What counts of a window of `taps` that begins at `first`: all of it up to the far padding.
inline int64_t taps_padded(int64_t first, int64_t taps, int64_t size, int64_t far_padding) {
  return first + taps <= size + far_padding ? taps : size + far_padding - first;
}

template <class V, Dtype dtype, bool average>
[[gnu::noinline]] void pool_rows(const PoolRule& rule, const PoolBlock& block) {
  constexpr int64_t BYTES = PoolLanes<V, dtype>::BYTES;
  const Window& window = rule.window;
  const Padding& padding = window.padding;
  PoolTaps taps;
  taps.row = window.dilation.h * block.x.stride_h * BYTES;
  taps.column = window.dilation.w * block.x.stride_w * BYTES;
  for (int64_t p = block.out.begin; p < block.out.end; ++p) {
    const int64_t h = p * window.stride.h - padding.top;
    const Range rows = taps_inside(h, window.kernel.h, window.dilation.h, rule.H);
    const int64_t padded_rows = taps_padded(h, window.kernel.h, rule.H, padding.bottom);
    const int64_t first_row = (h + rows.begin * window.dilation.h - block.x.h_begin) * block.x.stride_h;
    taps.rows = rows.end - rows.begin;
    char* y = block.y + (p - block.out.begin) * block.y_stride_h * BYTES;
    for (int64_t q = 0; q < rule.out_w; ++q, y += block.y_stride_w * BYTES) {
      const int64_t w = q * window.stride.w - padding.left;
      const Range columns = taps_inside(w, window.kernel.w, window.dilation.w, rule.W);
      const int64_t padded_columns = taps_padded(w, window.kernel.w, rule.W, padding.right);
      taps.columns = columns.end - columns.begin;
      taps.x = block.x.data + (first_row + (w + columns.begin * window.dilation.w) * block.x.stride_w) * BYTES;
      taps.size = float(rule.count_include_pad ? padded_rows * padded_columns : taps.rows * taps.columns);
      const bool square = !average && taps.rows == taps.columns;
      if (square && taps.rows == 3)
        pool_pixel<V, dtype, false, 3>(taps, block.channels, y);
      else if (square && taps.rows == 2)
        pool_pixel<V, dtype, false, 2>(taps, block.channels, y);
      else
        pool_pixel<V, dtype, average, 0>(taps, block.channels, y);
    }
  }
}

// average: f32 and bf16, without dilation.
template <class V, Dtype dtype>
void pool(const PoolRule& rule, const PoolBlock& block) {
  if constexpr (dtype == Dtype::f32 || dtype == Dtype::bf16)
    if (rule.average) return pool_rows<V, dtype, true>(rule, block);
  pool_rows<V, dtype, false>(rule, block);
}

}  // namespace
}  // namespace dsf::fused_conv
