// Few channels a group: vectors over the output channels of several groups, a run of output pixels at a time. The c-th
// channel of every lane's group comes out of the loaded values of x by a permutation; sums are in registers, in the
// order r, s, c.
#pragma once
#include "csrc/gemm/unroll.h"
#include "kernels/fused_conv/lanes.h"
#include "kernels/fused_conv/steps.h"
#include "kernels/fused_conv/windows.h"

namespace dsf::fused_conv {
namespace {

// A run of output pixels of one row, a vector of output channels; strides in bytes.
struct GroupedRun {
  const char* x;  // the first input channel of the vector at the first row of taps inside x, the first pixel's column 0
  int64_t x_row, x_column, x_pixel;  // from a row of taps, a tap and a pixel to the next
  const char* weight;                // tap (first row, 0), channel 0, the vector's first output channel
  int64_t weight_step;               // from one channel to the next
  int64_t rows, R, S, C;             // rows of taps inside x; C: of a group
  int64_t column, W, stride, dilation;
  int64_t span;          // values of x that the vector needs
  const int32_t* first;  // of them, what each lane's group begins with
  int count, n;          // pixels and output channels
  int readable;          // lanes of a vector of the weight
};

// The values of x under one tap that a vector of outputs needs.
enum class Spread {
  one,    // of one group, or a part of it: each value is all lanes'
  whole,  // of several groups, as many as outputs, and whole vectors of both
  near,   // of several groups, up to a vector
  far     // of several groups, up to two vectors
};

// sum + the products of one tap of one pixel. C_: the group's channels; 0: whatever the run says.
template <class V, Dtype dtype, Spread spread, int C_>
[[gnu::always_inline]] inline typename Lanes<V, dtype>::Vector add_tap(const GroupedRun& run,
                                                                       const Lanes<V, dtype>& lanes,
                                                                       const typename V::i32* lane, const char* x,
                                                                       const char* weight,
                                                                       typename Lanes<V, dtype>::Vector sum) {
  using L = Lanes<V, dtype>;
  const auto add = [&](typename L::Vector value) __attribute__((always_inline)) {
    sum = L::madd(value, L::weight(weight, spread == Spread::whole ? V::LANES : run.readable), sum);
    weight += run.weight_step;
  };
  if constexpr (spread == Spread::one) {
    for (int64_t c = 0; c < run.C; ++c) add(lanes.broadcast(x + c * L::VALUE_BYTES));
  } else if constexpr (spread == Spread::whole) {
    const auto values = lanes.load(x, V::LANES);
    DSF_UNROLL
    for (int c = 0; c < C_; ++c) add(L::permute(values, lane[c]));
  } else {
    const int left = int(run.span) - V::LANES;
    const auto near = lanes.load(x, left < 0 ? int(run.span) : V::LANES);
    const auto far = spread == Spread::far ? lanes.load(x + V::LANES * L::VALUE_BYTES, left) : near;
    for (int64_t c = 0; c < run.C; ++c) {
      const auto at = V::add_i32(lane[0], int32_t(c));
      auto value = L::permute(near, at);
      if (spread == Spread::far) value = L::select_below(at, V::LANES, value, L::permute(far, at));
      add(value);
    }
  }
  return sum;
}

// The sums of any window: tap by tap.
template <class V, Dtype dtype, Spread spread, int C_, int pixels>
[[gnu::always_inline]] inline void add_taps(const GroupedRun& run, const Lanes<V, dtype>& lanes,
                                            typename Lanes<V, dtype>::Vector (&sums)[pixels][1]) {
  constexpr int INDICES = spread == Spread::whole ? C_ : 1;
  typename V::i32 lane[INDICES];
  DSF_UNROLL
  for (int c = 0; c < INDICES; ++c) lane[c] = V::add_i32(V::load_i32(run.first), c);
  const char* row = run.x;
  const char* weight = run.weight;
  for (int64_t r = run.rows; r > 0; --r, row += run.x_row) {
    const char* x = row;
    int64_t column = run.column;
    for (int64_t s = run.S; s > 0; --s, x += run.x_column, column += run.dilation, weight += run.C * run.weight_step) {
      DSF_UNROLL
      for (int i = 0; i < pixels; ++i) {
        if (i >= run.count) break;
        if (uint64_t(column + i * run.stride) < uint64_t(run.W))
          sums[i][0] = add_tap<V, dtype, spread, C_>(run, lanes, lane, x + i * run.x_pixel, weight, sums[i][0]);
      }
    }
  }
}

// How a run's windows are added up: tap by tap, or column by column, of a whole run of pixels without a test of those
// between the first and the last column.
enum class Walk { taps, columns, whole };

// The sums of windows of S columns without dilation that begin less than S before x, in a whole run at most one before
// or behind it: what is loaded and permuted once serves all taps that read it. Its weights are vectors side by side.
template <class V, Dtype dtype, int C, int S, int stride, bool whole, int pixels>
[[gnu::always_inline]] inline void add_columns(const GroupedRun& run, const Lanes<V, dtype>& lanes,
                                               typename Lanes<V, dtype>::Vector (&sums)[pixels][1]) {
  using L = Lanes<V, dtype>;
  constexpr int64_t STEP = V::LANES * 4;
  constexpr int COLUMNS = (pixels - 1) * stride + S;
  const int64_t begin = -run.column, end = least(run.W - run.column, (run.count - 1) * stride + S);
  typename V::i32 lane[C];
  DSF_UNROLL
  for (int c = 0; c < C; ++c) {
    lane[c] = V::add_i32(V::load_i32(run.first), c);
    V::keep(lane[c]);  // else GCC adds it up every time
  }
  const char* row = run.x;
  const char* weight = run.weight;
  for (int64_t r = run.rows; r > 0; --r, row += run.x_row, weight += S * C * STEP) {
    Steps<const char> columns(row, run.x_column);
    DSF_UNROLL
    for (int j = 0; j < COLUMNS; ++j) {
      const bool may_be_outside = !whole || j == 0 || j == COLUMNS - 1;
      const char* column = columns.at(j);
      if (may_be_outside && j >= end) break;
      if (may_be_outside && j < S - 1 && j < begin) continue;
      const auto values = lanes.load(column, V::LANES);
      DSF_UNROLL
      for (int c = 0; c < C; ++c) {
        auto v = L::permute(values, lane[c]);
        V::keep(v);
        DSF_UNROLL
        for (int s = 0; s < S; ++s) {
          const int i = (j - s) / stride;
          if (j >= s && (j - s) % stride == 0 && i < pixels)
            sums[i][0] = L::madd(v, L::load_ready(weight + (s * C + c) * STEP), sums[i][0]);
        }
      }
    }
    DSF_UNROLL
    for (int i = 0; i < pixels; ++i) V::keep(sums[i][0]);
  }
}

template <class V, Dtype dtype, Spread spread, int C_, Walk walk, int stride, int pixels>
[[gnu::noinline]] void grouped_run(const GroupedRun& run, const Lanes<V, dtype>& lanes,
                                   const typename Lanes<V, dtype>::AnyFinish& finish, int64_t f, const Ends& ends) {
  using L = Lanes<V, dtype>;
  typename L::Vector sums[pixels][1];
  const int n = spread == Spread::whole ? V::LANES : run.n;
  const auto start = lanes.start(f, n);
  DSF_UNROLL
  for (int i = 0; i < pixels; ++i) sums[i][0] = start;
  if constexpr (walk == Walk::taps)
    add_taps<V, dtype, spread, C_>(run, lanes, sums);
  else
    add_columns<V, dtype, C_, 3, stride, walk == Walk::whole>(run, lanes, sums);
  L::finish_tile(finish, sums, f, n, walk == Walk::whole ? pixels : run.count, ends);
}

template <class V, Dtype dtype, Spread spread, int C_>
[[gnu::noinline]] void grouped_vector(const ConvArgs& args, const Block& block, const Lanes<V, dtype>& lanes,
                                      const typename Lanes<V, dtype>::AnyFinish& finish, int64_t f, GroupedRun run) {
  using L = Lanes<V, dtype>;
  constexpr int PIXELS = V::TILE_M * V::TILE_NV >= 24 ? 7 : 4;
  constexpr int64_t VALUE_BYTES = L::VALUE_BYTES, STEP = V::LANES * 4;
  constexpr bool MAY_COLUMNS = spread == Spread::whole;
  const int64_t runs = divide_up(args.Q, PIXELS);                                 // of equal lengths, or one less
  const int64_t end = (args.Q - 1) * args.stride.w - args.padding.left + args.S;  // of the last window
  const bool columns =
      MAY_COLUMNS && args.S == 3 && args.R <= 3 && args.dilation.w == 1 && args.stride.w <= 2 && args.padding.left < 3;
  const bool whole = columns && args.Q % PIXELS == 0 && args.padding.left <= 1 && end <= args.W + 1;
  alignas(64) char side_by_side[MAY_COLUMNS ? 9 * C_ * STEP : 1];
  if (columns) {
    for (int64_t tap = 0; tap < args.R * 3 * C_; ++tap)
      L::store_ready(side_by_side + tap * STEP, L::weight(run.weight + tap * run.weight_step, V::LANES));
    run.weight = side_by_side;
    run.weight_step = STEP;
  }
  const char* channel = block.x.data + f / (args.F / args.groups) * run.C * VALUE_BYTES;
  const char* weight = run.weight;
  for (int64_t p = block.p.begin; p < block.p.end; ++p) {
    const int64_t h = p * args.stride.h - args.padding.top;
    const Range taps = taps_inside(h, args.R, args.dilation.h, args.H);
    const int64_t first_row = h + taps.begin * args.dilation.h - block.x.h_begin;
    run.rows = taps.end - taps.begin;
    run.weight = weight + taps.begin * args.S * run.C * run.weight_step;
    for (int64_t i = 0; i < runs; ++i) {
      const int64_t q = args.Q * i / runs;
      run.count = int(args.Q * (i + 1) / runs - q);
      run.column = q * args.stride.w - args.padding.left;
      run.x = channel + (first_row * block.x.stride_h + run.column * block.x.stride_w) * VALUE_BYTES;
      const Ends ends = finish.ends(p, q);
      if constexpr (MAY_COLUMNS) {
        const bool one = args.stride.w == 1;
        if (whole) {
          one ? grouped_run<V, dtype, spread, C_, Walk::whole, 1, PIXELS>(run, lanes, finish, f, ends)
              : grouped_run<V, dtype, spread, C_, Walk::whole, 2, PIXELS>(run, lanes, finish, f, ends);
          continue;
        }
        if (columns) {
          one ? grouped_run<V, dtype, spread, C_, Walk::columns, 1, PIXELS>(run, lanes, finish, f, ends)
              : grouped_run<V, dtype, spread, C_, Walk::columns, 2, PIXELS>(run, lanes, finish, f, ends);
          continue;
        }
      }
      grouped_run<V, dtype, spread, C_, Walk::taps, 0, PIXELS>(run, lanes, finish, f, ends);
    }
  }
}

// Whole groups a vector, as many as their outputs and two vectors of inputs hold; else a part of one.
template <class V, Dtype dtype>
void grouped(const ConvArgs& args, const Block& block) {
  using L = Lanes<V, dtype>;
  if (block.f.begin >= block.f.end) return;
  const L lanes(args);
  const typename L::AnyFinish finish(args, block);
  const int64_t group_F = args.F / args.groups, group_C = args.C / args.groups;
  const int64_t by_outputs = V::LANES / group_F, by_inputs = 2 * V::LANES / (group_C > 0 ? group_C : 1);
  const int64_t groups = by_outputs < by_inputs ? by_outputs : by_inputs;
  alignas(64) int32_t first[V::LANES];
  GroupedRun run;
  run.x_row = args.dilation.h * block.x.stride_h * L::VALUE_BYTES;
  run.x_column = args.dilation.w * block.x.stride_w * L::VALUE_BYTES;
  run.x_pixel = args.stride.w * block.x.stride_w * L::VALUE_BYTES;
  run.weight_step = lanes.weight_step;
  run.S = args.S;
  run.C = group_C;
  run.W = args.W;
  run.stride = args.stride.w;
  run.dilation = args.dilation.w;
  run.first = first;
  for (int64_t f = block.f.begin; f < block.f.end; f += run.n) {
    int64_t n = (groups > 1 ? groups : 1) * group_F - f % group_F;
    if (n > V::LANES) n = V::LANES;
    run.n = int(n < block.f.end - f ? n : block.f.end - f);
    for (int l = 0; l < V::LANES; ++l)
      first[l] = int32_t(((f + (l < run.n ? l : 0)) / group_F - f / group_F) * group_C);
    run.span = first[run.n - 1] + group_C;
    run.readable = (f + V::LANES) * L::WEIGHT_BYTES <= lanes.weight_step ? V::LANES : run.n;
    run.weight = lanes.packed + f * L::WEIGHT_BYTES;
    const bool whole = run.span == V::LANES && run.n == V::LANES;
    if (groups <= 1)
      grouped_vector<V, dtype, Spread::one, 0>(args, block, lanes, finish, f, run);
    else if (whole && group_C == 2)
      grouped_vector<V, dtype, Spread::whole, 2>(args, block, lanes, finish, f, run);
    else if (whole && group_C == 4)
      grouped_vector<V, dtype, Spread::whole, 4>(args, block, lanes, finish, f, run);
    else if (whole && group_C == 8)
      grouped_vector<V, dtype, Spread::whole, 8>(args, block, lanes, finish, f, run);
    else if (run.span <= V::LANES)
      grouped_vector<V, dtype, Spread::near, 0>(args, block, lanes, finish, f, run);
    else
      grouped_vector<V, dtype, Spread::far, 0>(args, block, lanes, finish, f, run);
  }
}

}  // namespace
}  // namespace dsf::fused_conv
