// Which taps of a window lie inside x.
#pragma once
#include <cstdint>

#include "kernels/fused_conv/cpu_kernels.h"

namespace dsf::fused_conv {
namespace {

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Taps of a window of `taps`, the first one at `first` and then every `dilation`, that lie in [0, size).
inline Range taps_inside(int64_t first, int64_t taps, int64_t dilation, int64_t size) {
  if (first >= 0 && first + (taps - 1) * dilation < size) return {0, taps};
  const int64_t begin = first >= 0 ? 0 : divide_up(-first, dilation);
  const int64_t end = first >= size ? 0 : divide_up(size - first, dilation);
  return {begin, end < begin ? begin : end > taps ? taps : end};
}

}  // namespace
}  // namespace dsf::fused_conv
