// Few channels a group: one output channel of a pixel after the other.
#pragma once
#include "kernels/fused_conv/finish.h"
#include "kernels/fused_conv/packed.h"
#include "kernels/fused_conv/windows.h"

namespace dsf::fused_conv {
namespace {

template <class V, Dtype dtype>
void grouped(const ConvArgs& args, const Block& block) {
  const Finish<V, dtype> finish(args, block);
  const auto* weight = reinterpret_cast<const float*>(static_cast<const char*>(args.packed) + sizeof(PackedHeader));
  const int64_t group_F = args.F / args.groups, group_C = args.C / args.groups;
  const int64_t lanes = round_up(args.F, DEPTHWISE_LANES);
  for (int64_t p = block.p.begin; p < block.p.end; ++p)
    for (int64_t q = 0; q < args.Q; ++q) {
      const int64_t h = p * args.stride.h - args.padding.top, w = q * args.stride.w - args.padding.left;
      const Range r = taps_inside(h, args.R, args.dilation.h, args.H);
      const Range s = taps_inside(w, args.S, args.dilation.w, args.W);
      for (int64_t f = block.f.begin; f < block.f.end; f += V::LANES) {
        const int n = block.f.end - f < V::LANES ? int(block.f.end - f) : V::LANES;
        alignas(64) float sums[V::LANES] = {};
        for (int64_t i = r.begin; i < r.end; ++i)
          for (int64_t j = s.begin; j < s.end; ++j) {
            const int64_t at = (h + i * args.dilation.h - block.x.h_begin) * block.x.stride_h +
                               (w + j * args.dilation.w) * block.x.stride_w;
            for (int64_t c = 0; c < group_C; ++c)
              for (int lane = 0; lane < n; ++lane) {
                const auto x = load_value<V, dtype>(block.x.data, at + (f + lane) / group_F * group_C + c, 1);
                alignas(64) float values[V::LANES];
                V::store(values, x);
                sums[lane] =
                    __builtin_fmaf(values[0], weight[((i * args.S + j) * group_C + c) * lanes + f + lane], sums[lane]);
              }
          }
        const typename V::f32 result[1][1] = {{V::load(sums)}};
        finish.tile(result, f, n, 1, finish.ends(p, q));
      }
    }
}

}  // namespace
}  // namespace dsf::fused_conv
