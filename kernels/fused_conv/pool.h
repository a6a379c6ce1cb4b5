// Pooling of pixels: vectors over channels.
#pragma once
#include "kernels/fused_conv/finish.h"
#include "kernels/fused_conv/windows.h"

namespace dsf::fused_conv {
namespace {

template <class V, Dtype dtype>
void pool(const PoolRule& rule, const PoolBlock& block) {
  const Window& window = rule.window;
  for (int64_t p = block.out.begin; p < block.out.end; ++p)
    for (int64_t q = 0; q < rule.out_w; ++q) {
      const int64_t h = p * window.stride.h - window.padding.top, w = q * window.stride.w - window.padding.left;
      const Range r = taps_inside(h, window.kernel.h, window.dilation.h, rule.H);
      const Range s = taps_inside(w, window.kernel.w, window.dilation.w, rule.W);
      const auto with_padding = [](int64_t first, int64_t size, int64_t limit) {
        return (first + size < limit ? first + size : limit) - first;
      };
      const int64_t count = rule.count_include_pad
                                ? with_padding(h, window.kernel.h, rule.H + window.padding.bottom) *
                                      with_padding(w, window.kernel.w, rule.W + window.padding.right)
                                : (r.end - r.begin) * (s.end - s.begin);
      for (int64_t c = 0; c < block.channels; c += V::LANES) {
        const int n = block.channels - c < V::LANES ? int(block.channels - c) : V::LANES;
        auto result = rule.average ? V::zero() : V::set1(-__builtin_inff());
        for (int64_t i = r.begin; i < r.end; ++i)
          for (int64_t j = s.begin; j < s.end; ++j) {
            const auto x = load_value<V, dtype>(block.x.data,
                                                (h + i * window.dilation.h - block.x.h_begin) * block.x.stride_h +
                                                    (w + j * window.dilation.w) * block.x.stride_w + c,
                                                n);
            result = rule.average ? V::add(result, x) : V::at_least(x, result);
          }
        if (rule.average) result = V::div(result, V::set1(float(count)));
        store_value<V, dtype>(block.y, (p - block.out.begin) * block.y_stride_h + q * block.y_stride_w + c, result, n);
      }
    }
}

}  // namespace
}  // namespace dsf::fused_conv
