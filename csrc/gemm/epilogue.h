// The end of a tile: sums -> scales -> + bias -> activation -> + residual -> y, one row of at most PANEL_N columns.
#pragma once
#include <cstdint>

#include "csrc/gemm/activation.h"
#include "csrc/gemm/linear.h"
#include "csrc/gemm/packed.h"

namespace dsf {
namespace {

// How the sums of a tile become numbers; the line of ref.py is beside each.
enum class Sums { f32, f32_scaled, i32_scaled };

struct RowEnd {
  const void* sums;      // PANEL_N f32 or int32
  float x_scale;         // i32_scaled
  const float* scale;    // scaled: of the panel's columns
  const void* bias;      // of the panel's columns, or null
  const void* residual;  // of this row and the panel's columns, or null
  float residual_constant;
  void* y;
  int columns;
};

template <class V, Dtype dtype>
inline typename V::f32 load_value(const void* base, int64_t i, int n) {
  if constexpr (dtype == Dtype::f32) {
    const float* p = static_cast<const float*>(base) + i;
    return n >= V::LANES ? V::load(p) : V::load_n(p, n);
  } else {
    const uint16_t* p = static_cast<const uint16_t*>(base) + i;
    return n >= V::LANES ? V::load_bf16(p) : V::load_bf16_n(p, n);
  }
}

template <class V, Dtype dtype, Sums sums, Activation activation>
inline void finish_row(const RowEnd& row) {
  for (int c = 0; c < row.columns; c += V::LANES) {
    const int n = row.columns - c < V::LANES ? row.columns - c : V::LANES;
    typename V::f32 z;
    if constexpr (sums == Sums::i32_scaled) {
      z = V::to_f32(V::load_i32(static_cast<const int32_t*>(row.sums) + c));
      z = V::mul(z, V::set1(row.x_scale));                        // acc.float() * x_scale
      z = V::mul(z, load_value<V, Dtype::f32>(row.scale, c, n));  // * scale
    } else {
      z = V::load(static_cast<const float*>(row.sums) + c);
      if constexpr (sums == Sums::f32_scaled) z = V::mul(z, load_value<V, Dtype::f32>(row.scale, c, n));
    }
    if (row.bias) z = V::add(z, load_value<V, dtype>(row.bias, c, n));  // + bias
    z = activate<V, activation>(z);
    if (row.residual) z = V::add(z, load_value<V, dtype>(row.residual, c, n));
    if (row.residual_constant != 0) z = V::add(z, V::set1(row.residual_constant));
    if constexpr (dtype == Dtype::f32) {
      float* p = static_cast<float*>(row.y) + c;
      n >= V::LANES ? V::store(p, z) : V::store_n(p, z, n);
    } else {
      V::store_bf16_n(static_cast<uint16_t*>(row.y) + c, z, n);
    }
  }
}

template <class V, Dtype dtype, Sums sums, Activation activation>
[[gnu::noinline]] void finish_rows(const LinearArgs& args, const void* tile, const float* x_scale, int64_t m, int rows,
                                   int64_t panel) {
  constexpr int64_t value_bytes = dtype == Dtype::f32 ? 4 : 2;
  const int64_t n = panel * PANEL_N;
  const auto at = [](const void* base, int64_t i) -> const void* {
    return base ? static_cast<const char*>(base) + i * value_bytes : nullptr;
  };
  for (int r = 0; r < rows; ++r) {
    RowEnd row;
    row.sums = static_cast<const char*>(tile) + r * PANEL_N * 4;
    row.x_scale = sums == Sums::i32_scaled ? x_scale[m + r] : 1;
    row.scale = sums == Sums::f32 ? nullptr : args.scale + n;
    row.bias = at(args.bias, n);
    row.residual = at(args.residual, (m + r) * args.residual_stride + n);
    row.residual_constant = args.residual_constant;
    row.y = static_cast<char*>(args.y) + ((m + r) * args.y_stride + n) * value_bytes;
    row.columns = int(args.N - n < PANEL_N ? args.N - n : PANEL_N);
    finish_row<V, dtype, sums, activation>(row);
  }
}

// The tile of rows [m, m + rows) and one panel, finished with the call's activation.
template <class V, Dtype dtype, Sums sums>
inline void finish_tile(const LinearArgs& args, const void* tile, const float* x_scale, int64_t m, int rows,
                        int64_t panel) {
  switch (args.activation) {
    case Activation::none:
      return finish_rows<V, dtype, sums, Activation::none>(args, tile, x_scale, m, rows, panel);
    case Activation::relu:
      return finish_rows<V, dtype, sums, Activation::relu>(args, tile, x_scale, m, rows, panel);
    case Activation::gelu:
      return finish_rows<V, dtype, sums, Activation::gelu>(args, tile, x_scale, m, rows, panel);
    case Activation::gelu_tanh:
      return finish_rows<V, dtype, sums, Activation::gelu_tanh>(args, tile, x_scale, m, rows, panel);
    case Activation::silu:
      return finish_rows<V, dtype, sums, Activation::silu>(args, tile, x_scale, m, rows, panel);
  }
}

}  // namespace
}  // namespace dsf
