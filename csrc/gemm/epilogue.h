// The end of a tile: sums -> scales -> + bias -> activation -> + residual -> y, one row of at most PANEL_N columns.
// Of a gated product: the gate's half ends with the activation, in f32, the other one is multiplied by it before the
// residual is added.
#pragma once
#include <cstdint>

#include "csrc/gemm/activation.h"
#include "csrc/gemm/linear.h"
#include "csrc/gemm/packed.h"
#include "csrc/gemm/tile.h"

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
    if constexpr (dtype == Dtype::f16)
      return n >= V::LANES ? V::load_f16(p) : V::load_f16_n(p, n);
    else
      return n >= V::LANES ? V::load_bf16(p) : V::load_bf16_n(p, n);
  }
}

template <class V, Dtype dtype>
inline void store_value(void* base, int64_t i, typename V::f32 z, int n) {
  if constexpr (dtype == Dtype::f32) {
    float* p = static_cast<float*>(base) + i;
    n >= V::LANES ? V::store(p, z) : V::store_n(p, z, n);
  } else if constexpr (dtype == Dtype::f16) {
    V::store_f16_n(static_cast<uint16_t*>(base) + i, z, n);
  } else {
    V::store_bf16_n(static_cast<uint16_t*>(base) + i, z, n);
  }
}

// An absent bias or residual is +0, and is added: the bits are those of the ONNX function body, which has no -0.
template <class V, Dtype dtype, Sums sums>
[[gnu::always_inline]] inline typename V::f32 before_activation(const RowEnd& row, int c, int n) {
  typename V::f32 z;
  if constexpr (sums == Sums::i32_scaled) {
    z = V::to_f32(V::load_i32(static_cast<const int32_t*>(row.sums) + c));
    z = V::mul(z, V::set1(row.x_scale));                        // acc.float() * x_scale
    z = V::mul(z, load_value<V, Dtype::f32>(row.scale, c, n));  // * scale
  } else {
    z = V::load(static_cast<const float*>(row.sums) + c);
    if constexpr (sums == Sums::f32_scaled) z = V::mul(z, load_value<V, Dtype::f32>(row.scale, c, n));
  }
  return V::add(z, row.bias ? load_value<V, dtype>(row.bias, c, n) : V::zero());
}

template <class V, Dtype dtype>
[[gnu::always_inline]] inline void store_with_residual(const RowEnd& row, int c, int n, typename V::f32 z) {
  z = V::add(z, row.residual ? load_value<V, dtype>(row.residual, c, n) : V::set1(row.residual_constant));
  store_value<V, dtype>(row.y, c, z, n);
}

template <class V, Dtype dtype, Sums sums, Activation activation>
inline void finish_row(const RowEnd& row) {
  for (int c = 0; c < row.columns; c += V::LANES) {
    const int n = row.columns - c < V::LANES ? row.columns - c : V::LANES;
    const auto z = before_activation<V, dtype, sums>(row, c, n);
    store_with_residual<V, dtype>(row, c, n, activate<V, activation>(z));
  }
}

// finish_row for rows of a whole panel, column by column: what a column's rows share stays in registers, and there are
// no tails.
template <class V, Dtype dtype, Sums sums, Activation activation>
[[gnu::noinline]] void finish_whole_rows(const LinearArgs& args, const void* tile, const float* x_scale, int64_t m,
                                         int rows, int64_t n) {
  constexpr int64_t value_bytes = dtype == Dtype::f32 ? 4 : 2;
  for (int64_t c = 0; c < PANEL_N; c += V::LANES) {
    const int64_t column = n + c;
    const auto scale = sums == Sums::f32 ? V::zero() : V::load(args.scale + column);
    const auto bias = args.bias ? load_value<V, dtype>(args.bias, column, V::LANES) : V::zero();
    const auto constant = V::set1(args.residual_constant);
    const char* row_sums = static_cast<const char*>(tile) + c * 4;
    char* y = static_cast<char*>(args.y) + (m * args.y_stride + column) * value_bytes;
    for (int r = 0; r < rows; ++r, row_sums += PANEL_N * 4, y += args.y_stride * value_bytes) {
      typename V::f32 z;
      if constexpr (sums == Sums::i32_scaled)
        z = V::mul(V::mul(V::to_f32(V::load_i32(reinterpret_cast<const int32_t*>(row_sums))), V::set1(x_scale[m + r])),
                   scale);
      else if constexpr (sums == Sums::f32_scaled)
        z = V::mul(V::load(reinterpret_cast<const float*>(row_sums)), scale);
      else
        z = V::load(reinterpret_cast<const float*>(row_sums));
      z = activate<V, activation>(V::add(z, bias));
      z = V::add(z, args.residual
                        ? load_value<V, dtype>(args.residual, (m + r) * args.residual_stride + column, V::LANES)
                        : constant);
      store_value<V, dtype>(y, 0, z, V::LANES);
    }
  }
}

// Columns of y that a panel gives, and how many of them: a gated weight has two panels for the same ones.
inline int64_t first_column(const LinearArgs& args, int64_t panel) { return (panel >> args.gated) * PANEL_N; }
inline int columns_of(const LinearArgs& args, int64_t panel) {
  const int64_t left = args.N - first_column(args, panel);
  return int(left < PANEL_N ? left : PANEL_N);
}

// Row m of y, its sums at `sums`. n, row_n: the panel's first column of y and row of the weight.
template <Dtype dtype, Sums sums>
[[gnu::always_inline]] inline RowEnd row_end(const LinearArgs& args, const void* row_sums, const float* x_scale,
                                             int64_t m, int64_t n, int64_t row_n) {
  constexpr int64_t value_bytes = dtype == Dtype::f32 ? 4 : 2;
  const auto at = [](const void* base, int64_t i) -> const void* {
    return base ? static_cast<const char*>(base) + i * value_bytes : nullptr;
  };
  RowEnd row;
  row.sums = row_sums;
  row.x_scale = sums == Sums::i32_scaled ? x_scale[m] : 1;
  row.scale = sums == Sums::f32 ? nullptr : args.scale + row_n;
  row.bias = at(args.bias, row_n);
  row.residual = at(args.residual, m * args.residual_stride + n);
  row.residual_constant = args.residual_constant;
  row.y = static_cast<char*>(args.y) + (m * args.y_stride + n) * value_bytes;
  row.columns = int(args.N - n < PANEL_N ? args.N - n : PANEL_N);
  return row;
}

template <class V, Dtype dtype, Sums sums, Activation activation>
[[gnu::noinline]] void finish_rows(const LinearArgs& args, const void* tile, const float* x_scale, int64_t m, int rows,
                                   int64_t panel) {
  const int64_t n = panel * PANEL_N;
  if (args.N - n >= PANEL_N) return finish_whole_rows<V, dtype, sums, activation>(args, tile, x_scale, m, rows, n);
  const char* row_sums = static_cast<const char*>(tile);
  for (int r = 0; r < rows; ++r, row_sums += PANEL_N * 4)
    finish_row<V, dtype, sums, activation>(row_end<dtype, sums>(args, row_sums, x_scale, m + r, n, n));
}

template <class V, Activation activation>
[[gnu::noinline]] void activate_rows(float* z, int rows, int columns) {
  for (int r = 0; r < rows; ++r, z += PANEL_N)
    for (int c = 0; c < columns; c += V::LANES) V::store(z + c, activate<V, activation>(V::load(z + c)));
}

template <class V>
inline void activate_gate(Activation activation, float* z, int rows, int columns) {
  switch (activation) {
#define DSF_ENTRY(name)  \
  case Activation::name: \
    return activate_rows<V, Activation::name>(z, rows, columns);
    DSF_ACTIVATIONS(DSF_ENTRY)
#undef DSF_ENTRY
  }
}

// The tile of rows [m, m + rows) and one panel of a gated product.
template <class V, Dtype dtype, Sums sums>
[[gnu::noinline]] void finish_half(const LinearArgs& args, const void* tile, const float* x_scale, int64_t m, int rows,
                                   int64_t panel) {
  const bool is_gate = panel % 2 == 0;
  const int columns = columns_of(args, panel);
  const int64_t n = first_column(args, panel), row_n = is_gate ? n : args.N + n;
  const char* row_sums = static_cast<const char*>(tile);
  float* const gate = args.gate + (m - args.gate_m) * PANEL_N;
  for (int r = 0; r < rows; ++r, row_sums += PANEL_N * 4) {
    const RowEnd row = row_end<dtype, sums>(args, row_sums, x_scale, m + r, n, row_n);
    for (int c = 0; c < columns; c += V::LANES) {
      const int count = columns - c < V::LANES ? columns - c : V::LANES;
      const auto z = before_activation<V, dtype, sums>(row, c, count);
      float* const at = gate + r * PANEL_N + c;
      if (is_gate)
        V::store(at, z);
      else
        store_with_residual<V, dtype>(row, c, count, V::mul(V::load(at), z));
    }
  }
  if (is_gate) activate_gate<V>(args.activation, gate, rows, columns);
}

template <class V, Sums sums>
void finish_f16(const LinearArgs& args, const void* tile, const float* x_scale, int64_t m, int rows, int64_t panel);

// The tile of rows [m, m + rows) and one panel, finished with the call's activation. f32 stands for f16 too: the sums
// of both come from x in f32.
template <class V, Dtype dtype, Sums sums>
inline void finish_tile(const LinearArgs& args, const void* tile, const float* x_scale, int64_t m, int rows,
                        int64_t panel) {
  if constexpr (dtype == Dtype::f32)
    if (args.dtype == Dtype::f16)
      return args.gate ? finish_half<V, Dtype::f16, sums>(args, tile, x_scale, m, rows, panel)
                       : finish_f16<V, sums>(args, tile, x_scale, m, rows, panel);
  if (args.gate) return finish_half<V, dtype, sums>(args, tile, x_scale, m, rows, panel);
  switch (args.activation) {
#define DSF_ENTRY(name)  \
  case Activation::name: \
    return finish_rows<V, dtype, sums, Activation::name>(args, tile, x_scale, m, rows, panel);
    DSF_ACTIVATIONS(DSF_ENTRY)
#undef DSF_ENTRY
  }
}

// The same for y in f16, by way of f32 in L1: a third set of activations would cost more code than this costs time.
template <class V, Sums sums>
[[gnu::noinline]] void finish_f16(const LinearArgs& args, const void* tile, const float* x_scale, int64_t m, int rows,
                                  int64_t panel) {
  constexpr int ROWS = 8;                              // 2 KiB
  alignas(64) float bias[PANEL_N], y[ROWS * PANEL_N];  // y holds the residual first
  const int64_t n = panel * PANEL_N;
  const int columns = int(args.N - n < PANEL_N ? args.N - n : PANEL_N);
  const auto each = [&](const auto& at) {
    for (int c = 0; c < columns; c += V::LANES) at(c, columns - c < V::LANES ? columns - c : V::LANES);
  };
  const auto widen = [&](const void* from, int64_t i, float* to) {
    each([&](int c, int count) { V::store(to + c, load_value<V, Dtype::f16>(from, i + c, count)); });
  };
  if (args.bias) widen(args.bias, n, bias);
  LinearArgs f32 = args;
  f32.dtype = Dtype::f32;
  f32.N = columns;
  f32.scale = args.scale ? args.scale + n : nullptr;
  f32.bias = args.bias ? bias : nullptr;
  f32.residual = args.residual ? y : nullptr;
  f32.y = y;
  f32.residual_stride = f32.y_stride = PANEL_N;
  for (int r = 0; r < rows; r += ROWS) {
    const int count = rows - r < ROWS ? rows - r : ROWS;
    if (args.residual)
      for (int i = 0; i < count; ++i) widen(args.residual, (m + r + i) * args.residual_stride + n, y + i * PANEL_N);
    finish_tile<V, Dtype::f32, sums>(f32, static_cast<const char*>(tile) + r * PANEL_N * 4,
                                     x_scale ? x_scale + m + r : nullptr, 0, count, 0);
    for (int i = 0; i < count; ++i)
      each([&](int c, int left) {
        const int64_t at = (m + r + i) * args.y_stride + n + c;
        store_value<V, Dtype::f16>(args.y, at, V::load(y + i * PANEL_N + c), left);
      });
  }
}

// Rows [m_begin, m_end) of x, f16, as K f32 each, row m at rows + m * K.
template <class V>
inline void widen_x(const LinearArgs& args, int64_t m_begin, int64_t m_end, float* rows) {
  for (int64_t m = m_begin; m < m_end; ++m)
    for (int64_t k = 0; k < args.K; k += V::LANES) {
      const int n = args.K - k < V::LANES ? int(args.K - k) : V::LANES;
      const auto v = load_value<V, Dtype::f16>(args.x, m * args.x_stride + k, n);
      store_value<V, Dtype::f32>(rows, m * args.K + k, v, n);
    }
}

// The End of a whole register tile without an activation: the same steps as finish_row, from registers.
template <class V, Dtype dtype, Sums sums>
struct StoreOutput {
  const LinearArgs& args;
  const float* x_scale;
  int64_t m, n;  // the tile's first row and column

  template <int rows, int vectors, class Sum>
  [[gnu::always_inline]] void take(const Sum (&acc)[rows][vectors]) const {
    // Column by column: beside the sums, few values are alive.
    DSF_UNROLL
    for (int v = 0; v < vectors; ++v) {
      const int64_t column = n + v * V::LANES;
      const auto scale = sums == Sums::f32 ? V::zero() : V::load(args.scale + column);
      const auto bias = args.bias ? load_value<V, dtype>(args.bias, column, V::LANES) : V::zero();
      DSF_UNROLL
      for (int r = 0; r < rows; ++r) {
        typename V::f32 z;
        if constexpr (sums == Sums::i32_scaled)
          z = V::mul(V::mul(V::to_f32(acc[r][v]), V::set1(x_scale[m + r])), scale);
        else if constexpr (sums == Sums::f32_scaled)
          z = V::mul(acc[r][v], scale);
        else
          z = acc[r][v];
        z = V::add(z, bias);
        z = V::add(z, args.residual
                          ? load_value<V, dtype>(args.residual, (m + r) * args.residual_stride + column, V::LANES)
                          : V::set1(args.residual_constant));
        store_value<V, dtype>(args.y, (m + r) * args.y_stride + column, z, V::LANES);
      }
    }
  }
};

// What walk_panel asks for, for one panel.
template <class V, Dtype dtype, Sums sums, bool direct_>
struct Finish {
  static constexpr bool DIRECT = direct_;
  const LinearArgs& args;
  const float* x_scale;
  int64_t panel;

  void operator()(const void* tile, int64_t m, int rows) const {
    constexpr Dtype of_sums = dtype == Dtype::f16 ? Dtype::f32 : dtype;
    finish_tile<V, of_sums, sums>(args, tile, x_scale, m, rows, panel);
  }
  StoreOutput<V, dtype, sums> direct(int64_t m, int column) const {
    return {args, x_scale, m, panel * PANEL_N + column};
  }
};

// walk_panel with the panel's finish; whole tiles without an activation skip the scratch rows.
template <class Tile, class V, Dtype dtype, Sums sums>
inline void walk_and_finish(const LinearArgs& args, int64_t K, const typename Tile::X* x, int64_t x_stride,
                            const char* weights, const typename Tile::Start* start, const float* x_scale,
                            int64_t m_begin, int64_t m_end, int64_t panel) {
  const int columns = columns_of(args, panel);
  if constexpr (sums != Sums::i32_scaled)
    if (m_end - m_begin > Tile::MR && K / Tile::K_GROUP * Tile::GROUP_BYTES > WHOLE_BYTES) {
      const auto at = [&](int64_t k, int64_t) { return weights + k / Tile::K_GROUP * Tile::GROUP_BYTES; };
      return walk_panel_in_steps<Tile, typename FromMemory<Tile>::First>(
          K, STEP_BYTES / Tile::GROUP_BYTES * Tile::K_GROUP, x, x_stride, at, columns, m_begin, m_end,
          Finish<V, dtype, sums, false>{args, x_scale, panel});
    }
  if (args.activation == Activation::none && args.dtype == dtype && !args.gate)
    walk_panel<Tile>(K, x, x_stride, weights, start, columns, m_begin, m_end,
                     Finish<V, dtype, sums, true>{args, x_scale, panel});
  else
    walk_panel<Tile>(K, x, x_stride, weights, start, columns, m_begin, m_end,
                     Finish<V, dtype, sums, false>{args, x_scale, panel});
}

}  // namespace
}  // namespace dsf
