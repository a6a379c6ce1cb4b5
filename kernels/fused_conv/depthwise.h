// One channel a group: vectors over channels, a run of output pixels of two rows at a time. A value of x is loaded once
// for all the taps that read it; sums are in registers, in the order r, s.
#pragma once
#include "csrc/gemm/unroll.h"
#include "kernels/fused_conv/depthwise_strips.h"
#include "kernels/fused_conv/lanes.h"
#include "kernels/fused_conv/windows.h"

namespace dsf::fused_conv {
namespace {

// Where the sums of a run of output pixels come from, two rows of it; strides in bytes. Rows and columns of x count
// from where the first pixel's window begins.
struct DepthwiseRun {
  const char* x;  // row and column 0, the first channel
  int64_t x_row, x_column;
  const char* weight;   // the first channel of tap (0, 0)
  Range rows, columns;  // of x that the run needs
  int64_t R, S, lower;  // lower: the row where the second output row's windows begin
  int64_t stride, dilation;
  Ends above, below;  // of the first pixel of each output row
  int count, n;       // pixels and channels
  bool two;           // output rows
};

// What one row of x adds to the sums of the output rows above and below, without dilation.
template <class V, Dtype dtype, int S, int stride, bool whole, bool above, bool below, int pixels>
[[gnu::always_inline]] inline void add_row(const DepthwiseRun& run, const Lanes<V, dtype>& lanes, int64_t row,
                                           typename Lanes<V, dtype>::Vector (&sums)[2][pixels][1]) {
  using L = Lanes<V, dtype>;
  typename L::Vector w[2][S];
  const auto weight = [&](int64_t r, int s) __attribute__((always_inline)) {
    return L::weight(run.weight + (r * S + s) * lanes.weight_step, V::LANES);
  };
  DSF_UNROLL
  for (int s = 0; s < S; ++s) {
    if (above) w[0][s] = weight(row, s);
    if (below) w[1][s] = weight(row - run.lower, s);
  }
  const char* x = run.x + row * run.x_row;
  DSF_UNROLL_32
  for (int j = 0; j < (pixels - 1) * stride + S; ++j) {
    if (j >= run.columns.end) break;
    if (j >= S - 1 || j >= run.columns.begin) {
      auto v = lanes.load(x, whole ? V::LANES : run.n);
      V::keep(v);  // else GCC loads it once a tap
      DSF_UNROLL
      for (int s = 0; s < S; ++s) {
        const int i = (j - s) / stride;
        if (j >= s && (j - s) % stride == 0 && i < pixels) {
          if (above) sums[0][i][0] = L::madd(v, w[0][s], sums[0][i][0]);
          if (below) sums[1][i][0] = L::madd(v, w[1][s], sums[1][i][0]);
        }
      }
    }
    x += run.x_column;
    asm("" : "+r"(x));  // one pointer, not an offset in memory for every column
  }
  DSF_UNROLL
  for (int i = 0; i < pixels; ++i) {
    if (above) V::keep(sums[0][i][0]);
    if (below) V::keep(sums[1][i][0]);
  }
}

// The same of one output row and any window.
template <class V, Dtype dtype, bool whole, int pixels>
[[gnu::always_inline]] inline void add_any_row(const DepthwiseRun& run, const Lanes<V, dtype>& lanes, int64_t row,
                                               typename Lanes<V, dtype>::Vector (&sums)[pixels][1]) {
  using L = Lanes<V, dtype>;
  const char* x = run.x + row * run.x_row;
  for (int64_t s = 0; s < run.S; ++s) {
    const auto w = L::weight(run.weight + (row * run.S + s) * lanes.weight_step, V::LANES);
    DSF_UNROLL
    for (int i = 0; i < pixels; ++i) {
      const int64_t j = i * run.stride + s * run.dilation;
      if (j >= run.columns.begin && j < run.columns.end)
        sums[i][0] = L::madd(lanes.load(x + j * run.x_column, whole ? V::LANES : run.n), w, sums[i][0]);
    }
  }
}

// S, stride: of windows without dilation that begin less than S before x; 0: whatever the run says.
template <class V, Dtype dtype, int S, int stride, bool whole, int rows, int pixels>
[[gnu::always_inline]] inline void depthwise_tile(const DepthwiseRun& run, const Lanes<V, dtype>& lanes,
                                                  const typename Lanes<V, dtype>::AnyFinish& finish, int64_t f) {
  using L = Lanes<V, dtype>;
  typename L::Vector sums[2][pixels][1];
  const int n = whole ? V::LANES : run.n;
  const auto start = lanes.start(f, n);
  DSF_UNROLL
  for (int i = 0; i < pixels; ++i) sums[0][i][0] = sums[1][i][0] = start;
  for (int64_t row = run.rows.begin; row < run.rows.end; ++row) {
    if constexpr (S == 0) {
      add_any_row<V, dtype, whole>(run, lanes, row, sums[0]);
    } else if (rows == 1) {
      add_row<V, dtype, S, stride, whole, true, false>(run, lanes, row, sums);
    } else if (row < run.R) {
      if (row >= run.lower)
        add_row<V, dtype, S, stride, whole, true, true>(run, lanes, row, sums);
      else
        add_row<V, dtype, S, stride, whole, true, false>(run, lanes, row, sums);
    } else if (row >= run.lower) {
      add_row<V, dtype, S, stride, whole, false, true>(run, lanes, row, sums);
    }
  }
  L::finish_tile(finish, sums[0], f, n, run.count, run.above);
  if (rows == 2 && run.two) L::finish_tile(finish, sums[1], f, n, run.count, run.below);
}

// A function of its own: GCC keeps all sums in registers here.
template <class V, Dtype dtype, int S, int stride, bool whole, int rows, int pixels>
[[gnu::noinline]] void depthwise_channels(DepthwiseRun run, const Lanes<V, dtype>& lanes,
                                          const typename Lanes<V, dtype>::AnyFinish& finish, Range f) {
  using L = Lanes<V, dtype>;
  for (; f.begin < f.end; f.begin += V::LANES) {
    depthwise_tile<V, dtype, S, stride, whole, rows, pixels>(run, lanes, finish, f.begin);
    run.x += V::LANES * L::VALUE_BYTES;
    run.weight += V::LANES * L::WEIGHT_BYTES;
  }
}

// Runs of up to `pixels` of `rows` output rows.
template <class V, Dtype dtype, int S, int stride, int rows, int pixels>
[[gnu::noinline]] void depthwise_runs(const ConvArgs& args, const Block& block) {
  using L = Lanes<V, dtype>;
  constexpr int64_t VALUE_BYTES = L::VALUE_BYTES;
  const L lanes(args);
  const typename L::AnyFinish finish(args, block);
  const char* weight = lanes.packed + block.f.begin * L::WEIGHT_BYTES;
  const int64_t channels = block.f.end - block.f.begin;
  DepthwiseRun run;
  run.x_row = args.dilation.h * block.x.stride_h * VALUE_BYTES;
  run.x_column = block.x.stride_w * VALUE_BYTES;
  run.R = args.R;
  run.S = args.S;
  run.stride = args.stride.w;
  run.dilation = args.dilation.w;
  // Runs of equal lengths, or one less. A run goes down the image, so that what two rows share is in L1.
  const int64_t runs = divide_up(args.Q, pixels);
  for (int64_t i = 0; i < runs; ++i) {
    const int64_t q = args.Q * i / runs;
    run.count = int(args.Q * (i + 1) / runs - q);
    const int64_t column = q * args.stride.w - args.padding.left;
    run.columns = taps_inside(column, (run.count - 1) * args.stride.w + (args.S - 1) * args.dilation.w + 1, 1, args.W);
    for (int64_t p = block.p.begin; p < block.p.end; p += rows) {
      run.two = rows == 2 && block.p.end - p > 1;
      const int64_t h = p * args.stride.h - args.padding.top;
      run.rows = taps_inside(h, args.R + (run.two ? args.stride.h : 0), args.dilation.h, args.H);
      run.lower = run.two ? args.stride.h : run.rows.end;
      run.x = block.x.data +
              ((h - block.x.h_begin) * block.x.stride_h + column * block.x.stride_w + block.f.begin) * VALUE_BYTES;
      run.weight = weight;
      run.above = finish.ends(p, q);
      run.below = finish.ends(p + run.two, q);
      run.n = int(channels % V::LANES);
      const int64_t whole = channels - run.n;
      depthwise_channels<V, dtype, S, stride, true, rows, pixels>(run, lanes, finish,
                                                                  {block.f.begin, block.f.begin + whole});
      if (run.n > 0) {
        run.x += whole * VALUE_BYTES;
        run.weight += whole * L::WEIGHT_BYTES;
        depthwise_channels<V, dtype, S, stride, false, rows, pixels>(run, lanes, finish,
                                                                     {block.f.begin + whole, block.f.end});
      }
    }
  }
}

// Wide images take one row at a time, which reads fewer columns twice; narrow ones two, which read fewer rows twice.
// (3x3 of 56x56x128 f32: 7.3 cycles a vector against 9.7; of 14x14x512: 11.9 against 9.3; Zen 5, November 2026.)
template <class V, Dtype dtype, int S, int stride>
void depthwise_of(const ConvArgs& args, const Block& block) {
  constexpr int SUMS = V::TILE_M * V::TILE_NV >= 24 ? 14 : 8;  // what the registers hold beside weights
  if constexpr (S == 0)
    depthwise_runs<V, dtype, S, stride, 1, SUMS>(args, block);
  else if (S == 3 && args.Q > 14)
    depthwise_runs<V, dtype, S, stride, 1, SUMS>(args, block);
  else
    depthwise_runs<V, dtype, S, stride, 2, SUMS / 2>(args, block);
}

// block.f begins at a multiple of DEPTHWISE_LANES.
template <class V, Dtype dtype>
void depthwise(const ConvArgs& args, const Block& block) {
  if constexpr (V::LANES == 16 && !is_8_bits(dtype))
    if (strips_serve<V>(args, block))
      return args.stride.w == 1 ? depthwise_strips<V, dtype, 1>(args, block)
                                : depthwise_strips<V, dtype, 2>(args, block);
  const bool plain = args.dilation.h == 1 && args.dilation.w == 1 && args.padding.left < args.S;
  const int64_t stride = plain ? args.stride.w : 0;
  if (args.S == 3 && stride == 1) return depthwise_of<V, dtype, 3, 1>(args, block);
  if (args.S == 3 && stride == 2) return depthwise_of<V, dtype, 3, 2>(args, block);
  if (args.S == 5 && stride == 1) return depthwise_of<V, dtype, 5, 1>(args, block);
  if (args.S == 5 && stride == 2) return depthwise_of<V, dtype, 5, 2>(args, block);
  if (args.S == 7 && stride == 1) return depthwise_of<V, dtype, 7, 1>(args, block);
  depthwise_of<V, dtype, 0, 0>(args, block);
}

}  // namespace
}  // namespace dsf::fused_conv
