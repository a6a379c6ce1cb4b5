// A tensor of fewer dimensions as (N, C, H, W), and the memory order that torch gives a convolution's result.
#pragma once
#include "kernels/fused_conv/cpu.h"

namespace dsf::fused_conv {

struct View4 {
  int64_t sizes[4], strides[4];
};

// Dimensions that a view lacks, of size 1 and with the stride that a tensor with them would have: rows where spatial is
// 1, then N where it still has less than 4. A weight's (F, C, R, S) has no N to lack.
inline View4 view4(const TensorView& view, int64_t spatial) {
  View4 full{};
  int64_t contiguous[4] = {};
  const int64_t* strides = view.strides;
  if (!strides) {
    int64_t stride = 1;
    for (int64_t d = view.ndim - 1; d >= 0; --d) {
      contiguous[d] = stride;
      stride *= view.sizes[d] > 0 ? view.sizes[d] : 1;
    }
    strides = contiguous;
  }
  int64_t from = view.ndim;
  for (int64_t d = 3; d >= 0; --d) {
    const bool lacks_it = d == 2 ? spatial == 1 : d == 0 && from == 0;
    if (lacks_it) {
      const int64_t inner = d == 2 ? 3 : 1;
      full.sizes[d] = 1;
      full.strides[d] = full.sizes[inner] * full.strides[inner];
    } else {
      --from;
      full.sizes[d] = view.sizes[from];
      full.strides[d] = strides[from];
    }
  }
  return full;
}

inline TensorView view_of(const View4& full, const TensorView& of) {
  return {of.data, of.dtype, of.dtype_name, 4, full.sizes, full.strides};
}

// Whether torch takes a tensor for one in channels_last order: is_channels_last_strides_2d of c10/core/MemoryFormat.h.
// An N that was put in has no say.
inline bool is_channels_last(const View4& view, bool has_n) {
  constexpr int64_t INSIDE_OUT[] = {1, 3, 2, 0};
  int64_t least = 0;
  if (view.strides[1] == 0) return false;
  for (int64_t i = 0; i < 4; ++i) {
    const int64_t d = INSIDE_OUT[i];
    if (view.sizes[d] == 0) return false;
    if (d == 0 && least == view.strides[1]) return false;
    if (d == 0 && !has_n) break;
    if (view.strides[d] < least) return false;
    least = view.strides[d];
    if (view.sizes[d] > 1) least *= view.sizes[d];
  }
  return true;
}

// How a new (N, C, H, W) without an empty dimension but N lies in memory, as torch lays it out.
inline Strides strides_of(Layout layout, int64_t C, int64_t H, int64_t W) {
  if (layout == Layout::pixels) return {H * W * C, 1, W * C, C};
  return {C * H * W, H * W, W, 1};
}

}  // namespace dsf::fused_conv
