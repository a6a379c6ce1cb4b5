// One channel a group, 3 x 3 taps, floats, where vectors have 16 lanes and registers are 32: a strip of output columns
// goes down the image, a vector of channels at a time. Its nine weights and the sums of two output rows stay in
// registers; a row of x ends the sums of one output row, goes on with those of the next and begins those of the one
// after. So x comes from beyond L1 once, and an output takes 27 instructions where the tile of depthwise.h takes 42
// (3x3 of 14x14x272 f32: 5.5 cycles a vector against 7.5, of which the FMAs are 4.2; Zen 5, November 2026).
#pragma once
#include "csrc/gemm/unroll.h"
#include "kernels/fused_conv/lanes.h"
#include "kernels/fused_conv/steps.h"
#include "kernels/fused_conv/windows.h"

namespace dsf::fused_conv {
namespace {

constexpr int STRIP_TAPS = 3;    // of a row and of a column
constexpr int STRIP_PIXELS = 7;  // which leaves no remainder of 7, 14, 28, 56 and 112

// Rows and columns of x count from where the window of the strip's first pixel begins; strides in bytes.
struct DepthwiseStrip {
  const char* x;  // row and column 0, channel 0
  int64_t x_row, x_column;
  Range inside;              // rows of x
  bool has_first, has_last;  // columns; all between them are inside x
  Ends ends;                 // of the first pixel
  int64_t y_row, out_rows;
};

// Sums of a row of the strip.
template <class V, Dtype dtype>
using StripSums = typename Lanes<V, dtype>::Vector[STRIP_PIXELS][1];
template <class V, Dtype dtype>
using StripWeights = typename Lanes<V, dtype>::Vector[STRIP_TAPS][STRIP_TAPS];
// What a visit of some rows leaves for the next one, of a vector of channels.
constexpr int64_t STRIP_STATE_BYTES = 2 * STRIP_PIXELS * 64;

// An output row to which a row of x is tap row r.
template <class V, Dtype dtype, int r>
struct StripPart {
  static constexpr int R = r;
  StripSums<V, dtype>& sums;
};

// How a row of x is read: its values become sums' type once, for a copy of the row in L1.
enum class Row { as_it_is, copied, copy };

// What a row of x adds to output rows.
template <class V, Dtype dtype, int stride, Row how, class... Parts>
[[gnu::always_inline]] inline void add_strip_row(const DepthwiseStrip& strip, const Lanes<V, dtype>& lanes,
                                                 const char* x, char* copy, const StripWeights<V, dtype>& w,
                                                 Parts... parts) {
  using L = Lanes<V, dtype>;
  constexpr int COLUMNS = (STRIP_PIXELS - 1) * stride + STRIP_TAPS;
  Steps<const char> columns(x, strip.x_column);
  DSF_UNROLL
  for (int j = 0; j < COLUMNS; ++j) {
    const char* column = how == Row::copy ? nullptr : columns.at(j);
    if (j == 0 && !strip.has_first) continue;
    if (j == COLUMNS - 1 && !strip.has_last) continue;
    auto v = how == Row::copy ? L::load_ready(copy + j * 64) : lanes.load(column, V::LANES);
    V::keep(v);  // else GCC loads it once a tap
    if (how == Row::copied) L::store_ready(copy + j * 64, v);
    [[maybe_unused]] const auto add = [&](auto part) __attribute__((always_inline)) {
      DSF_UNROLL
      for (int s = 0; s < STRIP_TAPS; ++s) {
        const int i = (j - s) / stride;
        if (j >= s && (j - s) % stride == 0 && i < STRIP_PIXELS)
          part.sums[i][0] = L::madd(v, w[part.R][s], part.sums[i][0]);
      }
    };
    (add(parts), ...);
  }
  [[maybe_unused]] const auto keep = [&](auto part) __attribute__((always_inline)) {
    DSF_UNROLL
    for (int i = 0; i < STRIP_PIXELS; ++i) V::keep(part.sums[i][0]);
  };
  (keep(parts), ...);
}

// Ends a row of LANES channels, without a residual or a curve.
template <class V, Dtype dtype>
[[gnu::always_inline]] inline void finish_in_registers(const Finish<V, dtype>& finish, const StripSums<V, dtype>& sums,
                                                       int64_t f, char* y) {
  constexpr int64_t VALUE_BYTES = Finish<V, dtype>::VALUE_BYTES;
  Steps<char> places(y + (f - finish.block.f.begin) * VALUE_BYTES, finish.block.y_stride_w * VALUE_BYTES);
  finish.template limited<false>(sums, f, 0, V::LANES, STRIP_PIXELS,
                                 [&](int i) __attribute__((always_inline)) { return Ends{places.at(i), nullptr}; });
}

// A visit: rows `rows` of x and the vectors of channels that begin at f.begin to f.end - 1. in_registers: no curve.
template <class V, Dtype dtype, int stride, bool in_registers>
[[gnu::noinline]] void visit_strip(const DepthwiseStrip& strip, const Lanes<V, dtype>& lanes,
                                   const typename Lanes<V, dtype>::AnyFinish& finish, Range f, Range rows,
                                   char* state) {
  using L = Lanes<V, dtype>;
  using Sums = StripSums<V, dtype>;
  constexpr bool COPIES = dtype != Dtype::f32;
  constexpr std::integral_constant<Row, COPIES ? Row::copied : Row::as_it_is> first_time;
  constexpr std::integral_constant<Row, COPIES ? Row::copy : Row::as_it_is> again;
  constexpr std::integral_constant<Row, Row::as_it_is> as_it_is;
  alignas(64) char copy[(STRIP_PIXELS + STRIP_TAPS - 1) * 64];
  constexpr bool TWO_ROWS = stride == 1;  // of sums between two rows of x
  const int64_t last_row = stride * (strip.out_rows - 1) + STRIP_TAPS - 1;
  const int64_t first_out = most(0, divide_up(rows.begin - (STRIP_TAPS - 1), stride));
  for (; f.begin < f.end; f.begin += V::LANES, state += STRIP_STATE_BYTES) {
    StripWeights<V, dtype> w;
    const char* weight = lanes.packed + f.begin * L::WEIGHT_BYTES;
    DSF_UNROLL
    for (int tap = 0; tap < STRIP_TAPS * STRIP_TAPS; ++tap) {
      w[tap / STRIP_TAPS][tap % STRIP_TAPS] = L::weight(weight + tap * lanes.weight_step, V::LANES);
      V::keep(w[tap / STRIP_TAPS][tap % STRIP_TAPS]);
    }
    const char* x = strip.x + rows.begin * strip.x_row + f.begin * L::VALUE_BYTES;
    Ends ends{strip.ends.y + first_out * strip.y_row, nullptr};
    Sums sums, next;
    const auto start = [&](Sums& these) __attribute__((always_inline)) {
      const auto value = lanes.start(f.begin, V::LANES);
      DSF_UNROLL
      for (int i = 0; i < STRIP_PIXELS; ++i) these[i][0] = value;
    };
    const auto add = [&](auto how, int64_t row, auto... parts) __attribute__((always_inline)) {
      if (row >= strip.inside.begin && row < strip.inside.end)
        add_strip_row<V, dtype, stride, how.value>(strip, lanes, x, copy, w, parts...);
    };
    const auto finish_sums = [&]() __attribute__((always_inline)) {
      if constexpr (in_registers)
        finish_in_registers<V, dtype>(finish, sums, f.begin, ends.y);
      else
        L::finish_tile(finish, sums, f.begin, V::LANES, STRIP_PIXELS, ends);
      ends.y += strip.y_row;
    };
    const auto next_is_sums = [&]() __attribute__((always_inline)) {
      DSF_UNROLL
      for (int i = 0; i < STRIP_PIXELS; ++i) sums[i][0] = next[i][0];
    };
    start(next);
    start(sums);
    if (rows.begin > 0) {
      DSF_UNROLL
      for (int i = 0; i < STRIP_PIXELS; ++i) {
        sums[i][0] = L::load_ready(state + i * 64);
        if (TWO_ROWS) next[i][0] = L::load_ready(state + (STRIP_PIXELS + i) * 64);
      }
    }
    for (int64_t row = rows.begin; row < rows.end; ++row, x += strip.x_row) {
      if constexpr (stride == 1) {
        if (COPIES && row < 2) add(first_time, row);
        if (row >= 2) {
          add(first_time, row, StripPart<V, dtype, 2>{sums});
          finish_sums();
        }
        next_is_sums();
        start(next);
        if (row < last_row - 1)
          add(again, row, StripPart<V, dtype, 1>{sums}, StripPart<V, dtype, 0>{next});
        else if (row < last_row)
          add(again, row, StripPart<V, dtype, 1>{sums});
      } else if (row % 2) {
        add(as_it_is, row, StripPart<V, dtype, 1>{sums});
      } else {
        start(next);
        if (row < last_row)
          add(as_it_is, row, StripPart<V, dtype, 2>{sums}, StripPart<V, dtype, 0>{next});
        else
          add(as_it_is, row, StripPart<V, dtype, 2>{sums});
        if (row > 0) finish_sums();
        next_is_sums();
      }
    }
    if (rows.end <= last_row) {
      DSF_UNROLL
      for (int i = 0; i < STRIP_PIXELS; ++i) {
        L::store_ready(state + i * 64, sums[i][0]);
        if (TWO_ROWS) L::store_ready(state + (STRIP_PIXELS + i) * 64, next[i][0]);
      }
    }
  }
}

// The most cache lines, of those that an output row reads and writes, which share one of L1's 64 sets of 12.
inline int lines_of_a_set(const DepthwiseStrip& strip, int stride, int64_t y_column) {
  constexpr uintptr_t LINE = 64, SETS = 64;
  uint8_t lines[SETS] = {};
  int most_lines = 0;
  const auto count = [&](const char* first, int64_t step, int n) {
    for (int i = 0; i < n; ++i) {
      const int here = ++lines[(uintptr_t(first) + uintptr_t(i * step)) / LINE % SETS];
      if (here > most_lines) most_lines = here;
    }
  };
  for (int row = 0; row < stride; ++row)
    count(strip.x + row * strip.x_row, strip.x_column, (STRIP_PIXELS - 1) * stride + STRIP_TAPS);
  count(strip.ends.y, y_column, STRIP_PIXELS);
  return most_lines;
}

// Output rows of a visit: best are all of them, unless so many lines share a set of L1 that those which the CPU asks
// for ahead drive out each other, as with powers of two of channels. Then all channels take few rows before the next.
// (All rows, three, one of 14x14x512 f32: 23, 11 and 12 us; of 7x7x1024 16, 10, 6; of 28x28x256 54, 30, 27 where y and
// x share sets, 20, 26, 26 where not; Zen 5, November 2026.)
inline int64_t rows_of_visit(int lines, int stride, int64_t out_rows) {
  constexpr int FEW = 3, SOME = 6;
  return lines <= FEW ? out_rows : stride == 1 && lines <= SOME ? 3 : 1;
}

// What depthwise_strips serves: whole vectors of channels and strips, of which the last ones may begin in those
// before, and which miss the first or last column of x at most. No residual: y may be the same. Beyond a fifth of
// columns computed twice the tiles of depthwise.h take less time (8x8x512 f32: 1.7 times less; of 12x12 as much).
template <class V>
bool strips_serve(const ConvArgs& args, const Block& block) {
  if (args.R != STRIP_TAPS || args.S != STRIP_TAPS || block.residual.data) return false;
  if (args.dilation.h != 1 || args.dilation.w != 1 || args.stride.h != args.stride.w || args.stride.w > 2) return false;
  const int64_t end = (args.Q - 1) * args.stride.w - args.padding.left + STRIP_TAPS;
  const int64_t computed = divide_up(args.Q, STRIP_PIXELS) * STRIP_PIXELS;
  return args.Q >= STRIP_PIXELS && computed * 5 <= args.Q * 6 && args.padding.left <= 1 && end <= args.W + 1 &&
         block.f.end - block.f.begin >= V::LANES;
}

template <class V, Dtype dtype, int stride>
void depthwise_strips(const ConvArgs& args, const Block& block) {
  using L = Lanes<V, dtype>;
  constexpr int64_t VALUE_BYTES = L::VALUE_BYTES, LANES = V::LANES;
  constexpr int64_t VECTORS = 8;  // of channels that take turns: their states are 7 KiB of L1
  alignas(64) char state[VECTORS * STRIP_STATE_BYTES];
  const L lanes(args);
  const typename L::AnyFinish finish(args, block);
  const auto visit = finish.curve ? visit_strip<V, dtype, stride, false> : visit_strip<V, dtype, stride, true>;
  const int64_t first_row = block.p.begin * stride - args.padding.top;
  DepthwiseStrip strip;
  strip.x_row = block.x.stride_h * VALUE_BYTES;
  strip.x_column = block.x.stride_w * VALUE_BYTES;
  strip.inside = {-first_row, args.H - first_row};
  strip.y_row = block.y_stride_h * VALUE_BYTES;
  strip.out_rows = block.p.end - block.p.begin;
  const int64_t rows = stride * (strip.out_rows - 1) + STRIP_TAPS;
  int64_t step = 0;  // rows of x from visit to visit
  for (int64_t i = 0; i < args.Q; i += STRIP_PIXELS) {
    const int64_t q = least(i, args.Q - STRIP_PIXELS);
    const int64_t column = q * stride - args.padding.left;
    strip.has_first = column >= 0;
    strip.has_last = column + (STRIP_PIXELS - 1) * stride + STRIP_TAPS <= args.W;
    strip.x =
        block.x.data + ((first_row - block.x.h_begin) * block.x.stride_h + column * block.x.stride_w) * VALUE_BYTES;
    strip.ends = finish.ends(block.p.begin, q);
    if (i == 0)
      step =
          stride * rows_of_visit(lines_of_a_set(strip, stride, block.y_stride_w * VALUE_BYTES), stride, strip.out_rows);
    for (Range f{block.f.begin, 0}; f.begin < block.f.end; f.begin = f.end) {
      f.end = least(block.f.end, f.begin + VECTORS * LANES);
      const int64_t last = f.end - LANES, whole = f.begin + (f.end - f.begin) / LANES * LANES;
      for (Range visited{0, STRIP_TAPS - stride + step}; visited.begin < rows;
           visited = {visited.end, visited.end + step}) {
        visited.end = least(visited.end, rows);
        if (whole > f.begin) visit(strip, lanes, finish, {f.begin, whole}, visited, state);
        if (whole < f.end)
          visit(strip, lanes, finish, {last, f.end}, visited, state + (whole - f.begin) / LANES * STRIP_STATE_BYTES);
      }
    }
  }
}

}  // namespace
}  // namespace dsf::fused_conv
