// One channel a group: vectors over channels, a run of output pixels of one row at a time. A column of x is loaded once
// for all the taps that read it; sums are in registers, started at zero, in the order r, s.
#pragma once
#include <utility>

#include "kernels/fused_conv/finish.h"
#include "kernels/fused_conv/packed.h"
#include "kernels/fused_conv/windows.h"

namespace dsf::fused_conv {
namespace {

// step(integral_constant) for 0 to n - 1: indices are constants, so that arrays live in registers.
template <int n, class Step>
[[gnu::always_inline]] inline void unrolled(const Step& step) {
  [&]<int... i>(std::integer_sequence<int, i...>) __attribute__((always_inline)) {
    (step(std::integral_constant<int, i>{}), ...);
  }
  (std::make_integer_sequence<int, n>{});
}

// Where the sums of one row of output pixels come from; strides in bytes.
struct DepthwiseRow {
  const char* x;  // tap row taps.begin, column 0, channel 0
  int64_t x_row;  // from one tap row to the next
  int64_t x_column, W;
  const char* weight;  // tap row taps.begin, channel 0
  int64_t weight_tap;
  Range taps;  // rows of taps inside x
  int64_t S, stride, dilation;
};

// Sums of n channels of output pixels whose window begins at `column` of x, and of those that follow; x, weight: the
// row's, at the first of these channels, x at `column`.
// S_ and stride_: the row's, and no dilation; 0: whatever the row says.
// inside: all columns are inside x, and n is a whole vector.
template <class V, Dtype dtype, int S_, int stride_, bool inside, int pixels>
[[gnu::always_inline]] inline void depthwise_sums(const DepthwiseRow& row, const char* x, const char* weight,
                                                  int64_t column, int n, typename V::f32 (&sums)[pixels][1]) {
  for (auto& sum : sums) sum[0] = V::zero();
  const auto load_x = [&](const char* at) __attribute__((always_inline)) {
    auto v = load_value<V, dtype>(at, 0, inside ? V::LANES : n);
    V::keep(v);  // else GCC loads it once a tap
    return v;
  };
  const auto is_inside = [&](int64_t at) __attribute__((always_inline)) {
    return inside || uint64_t(at) < uint64_t(row.W);
  };
  const int64_t x_column = row.x_column, x_row = row.x_row, weight_tap = row.weight_tap, S = S_ ? S_ : row.S;
  for (int64_t r = row.taps.end - row.taps.begin; r > 0; --r, x += x_row) {
    if constexpr (S_ == 0) {
      for (int64_t s = 0; s < S; ++s, weight += weight_tap) {
        const auto w = V::load(reinterpret_cast<const float*>(weight));
        unrolled<pixels>([&](auto i) __attribute__((always_inline)) {
          const int64_t j = i * row.stride + s * row.dilation;
          if (is_inside(column + j)) sums[i][0] = V::madd(load_x(x + j * x_column), w, sums[i][0]);
        });
      }
    } else {
      typename V::f32 w[S_];
      unrolled<S_>([&](auto s) __attribute__((always_inline)) {
        w[s] = V::load(reinterpret_cast<const float*>(weight));
        weight += weight_tap;
      });
      const char* at = x;
      unrolled<(pixels - 1) * stride_ + S_>([&](auto j) __attribute__((always_inline)) {
        if (is_inside(column + j)) {
          const auto v = load_x(at);
          unrolled<S_>([&](auto s) __attribute__((always_inline)) {
            constexpr int i = (j - s) / stride_;
            if constexpr (j >= s && (j - s) % stride_ == 0 && i < pixels) sums[i][0] = V::madd(v, w[s], sums[i][0]);
          });
        }
        at += x_column;
        asm("" : "+r"(at));  // one pointer, not an offset in memory for every column
      });
    }
  }
}

template <class V, Dtype dtype, int S, int stride>
[[gnu::noinline]] void depthwise_rows(const ConvArgs& args, const Block& block) {
  constexpr int PIXELS = 8;  // chains of multiply-adds: two a cycle of latency four
  constexpr int64_t VALUE_BYTES = dtype == Dtype::f32 ? 4 : 2;
  const Finish<V, dtype> finish(args, block);
  const char* packed = static_cast<const char*>(args.packed) + sizeof(PackedHeader);
  DepthwiseRow row;
  row.x_row = args.dilation.h * block.x.stride_h * VALUE_BYTES;
  row.x_column = block.x.stride_w * VALUE_BYTES;
  row.W = args.W;
  row.weight_tap = divide_up(args.F, DEPTHWISE_LANES) * DEPTHWISE_LANES * 4;
  row.S = args.S;
  row.stride = args.stride.w;
  row.dilation = args.dilation.w;
  const int64_t columns = (PIXELS - 1) * args.stride.w + (args.S - 1) * args.dilation.w + 1;
  const int64_t runs = divide_up(args.Q, PIXELS);  // of equal lengths, or one less
  for (int64_t p = block.p.begin; p < block.p.end; ++p) {
    const int64_t h = p * args.stride.h - args.padding.top;
    row.taps = taps_inside(h, args.R, args.dilation.h, args.H);
    row.x = block.x.data + (h + row.taps.begin * args.dilation.h - block.x.h_begin) * block.x.stride_h * VALUE_BYTES;
    row.weight = packed + row.taps.begin * args.S * row.weight_tap;
    for (int64_t run = 0; run < runs; ++run) {
      const int64_t q = args.Q * run / runs;
      const int count = int(args.Q * (run + 1) / runs - q);
      const int64_t column = q * args.stride.w - args.padding.left;
      const bool inside = column >= 0 && column + columns <= args.W;
      const char* x = row.x + column * row.x_column + block.f.begin * VALUE_BYTES;
      const char* weight = row.weight + block.f.begin * 4;
      const Ends ends = finish.ends(p, q);
      for (int64_t f = block.f.begin; f < block.f.end;
           f += V::LANES, x += V::LANES * VALUE_BYTES, weight += V::LANES * 4) {
        const int n = block.f.end - f < V::LANES ? int(block.f.end - f) : V::LANES;
        typename V::f32 sums[PIXELS][1];
        if (inside && n == V::LANES)
          depthwise_sums<V, dtype, S, stride, true>(row, x, weight, column, n, sums);
        else
          depthwise_sums<V, dtype, S, stride, false>(row, x, weight, column, n, sums);
        finish.tile(sums, f, n, count, ends);
      }
    }
  }
}

// block.f begins at a multiple of DEPTHWISE_LANES.
template <class V, Dtype dtype>
void depthwise(const ConvArgs& args, const Block& block) {
  const int64_t stride = args.dilation.w == 1 ? args.stride.w : 0;
  if (args.S == 3 && stride == 1) return depthwise_rows<V, dtype, 3, 1>(args, block);
  if (args.S == 3 && stride == 2) return depthwise_rows<V, dtype, 3, 2>(args, block);
  if (args.S == 5 && stride == 1) return depthwise_rows<V, dtype, 5, 1>(args, block);
  if (args.S == 5 && stride == 2) return depthwise_rows<V, dtype, 5, 2>(args, block);
  if (args.S == 7 && stride == 1) return depthwise_rows<V, dtype, 7, 1>(args, block);
  depthwise_rows<V, dtype, 0, 0>(args, block);
}

}  // namespace
}  // namespace dsf::fused_conv
