// Which taps of a window lie inside x, and what windows need of it.
#pragma once
#include <cstdint>

#include "kernels/fused_conv/cpu_kernels.h"

namespace dsf::fused_conv {
namespace {

constexpr int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Taps of a window of `taps`, the first one at `first` and then every `dilation`, that lie in [0, size).
inline Range taps_inside(int64_t first, int64_t taps, int64_t dilation, int64_t size) {
  if (first >= 0 && first + (taps - 1) * dilation < size) return {0, taps};
  const int64_t begin = first >= 0 ? 0 : divide_up(-first, dilation);
  const int64_t end = first >= size ? 0 : divide_up(size - first, dilation);
  return {begin, end < begin ? begin : end > taps ? taps : end};
}

// Rows from the first one under places `out` of a window to the last one, inside or outside x.
inline Range rows_under(Range out, int64_t kernel, int64_t stride, int64_t dilation, int64_t before) {
  return {out.begin * stride - before, (out.end - 1) * stride - before + (kernel - 1) * dilation + 1};
}
// Those of them in [0, size).
inline Range inside(Range rows, int64_t size) {
  const int64_t first = least(most(0, rows.begin), size);
  return {first, most(first, least(size, rows.end))};
}

}  // namespace
}  // namespace dsf::fused_conv
