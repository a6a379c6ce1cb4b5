// A scale tensor of any dtype and layout, read and written a value at a time: at most one for some values of x.
#pragma once
#include <cstring>

#include "csrc/core/check.h"
#include "kernels/fp8_cast/scale_rules.h"

namespace dsf::fp8_cast {
namespace {

struct ScaleView {
  char* data;
  Dtype dtype;                     // f32, f8e8m0, f8e4m3, or i32: four e8m0 bytes, those of columns 4c to 4c + 3
  int64_t row_stride, col_stride;  // elements

  float value(int64_t row, int64_t column) const {
    if (dtype == Dtype::f32) {
      float found;
      std::memcpy(&found, data + (row * row_stride + column * col_stride) * 4, 4);
      return found;
    }
    const auto byte = uint8_t(*at(row, column));
    if (dtype != Dtype::f8e4m3) return power_of(byte);
    static constexpr Fp8Bytes<Dtype::f8e4m3> NUMBERS{};
    return f32_from(uint32_t(NUMBERS.bf16(byte)) << 16);
  }
  void store(int64_t row, int64_t column, float scale, uint8_t code) const {
    if (dtype == Dtype::f32)
      std::memcpy(data + (row * row_stride + column * col_stride) * 4, &scale, 4);
    else
      *at(row, column) = char(code);
  }
  // n of a row, from column on.
  void store(int64_t row, int64_t column, int n, const float* scales, const uint8_t* codes) const {
    if (dtype != Dtype::i32 && col_stride == 1) {
      const bool f32 = dtype == Dtype::f32;
      const void* from = f32 ? static_cast<const void*>(scales) : codes;
      const int64_t bytes = f32 ? 4 : 1;
      std::memcpy(data + (row * row_stride + column) * bytes, from, size_t(n * bytes));
      return;
    }
    for (int i = 0; i < n; ++i) store(row, column + i, scales[i], codes[i]);
  }

 private:
  char* at(int64_t row, int64_t column) const {
    if (dtype == Dtype::i32) return data + (row * row_stride + column / 4 * col_stride) * 4 + column % 4;
    return data + row * row_stride + column * col_stride;
  }
};

// Two dimensions at any strides; more are rows of contiguous values, one: a single row.
inline ScaleView view_of_scale(const TensorView& scale) {
  const bool matrix = scale.ndim == 2 && scale.strides;
  return {static_cast<char*>(scale.data), scale.dtype, matrix ? scale.strides[0] : dsf_row_stride(&scale),
          matrix ? scale.strides[1] : 1};
}

}  // namespace
}  // namespace dsf::fp8_cast
