// The table of runs of a tile of pixels, and where its pixels end: what tiles.h makes once for all panels.
#pragma once
#include "kernels/fused_conv/finish.h"

namespace dsf::fused_conv {
namespace {

// What a tile reads of x: runs[i * MR + r] is where the i-th run of pixel r begins.
struct TileRuns {
  const char* const* runs;
  int64_t count;       // runs a pixel
  int64_t first;       // value of each run that is the first to be read: of a group
  int64_t length;      // values
  const char* ahead;   // weights that will be read after this panel, and how far a step of x goes in them
  int64_t ahead_step;  // bytes
};

// Asked for in L2 while the tiles of this panel run: else the first tile of a panel waits for memory, and the others
// leave it idle.
[[gnu::always_inline]] inline void read_weights_ahead(const char** ahead, int64_t step) {
  __builtin_prefetch(*ahead, 0, 2);
  *ahead += step;
}

// The pixels of a tile: where each one's first tap is, and where it ends. Those past `rows` are the last one, so that
// loops over a tile's pixels have no end of their own.
template <int MR>
struct TilePixels {
  int rows;
  int64_t h[MR], w[MR];         // of x, under the first tap: outside x perhaps
  int64_t at[MR];               // its address
  int64_t y[MR], residual[MR];  // addresses; 0 without a residual

  Ends ends(int i) const { return {reinterpret_cast<char*>(y[i]), reinterpret_cast<const char*>(residual[i])}; }
};

// Takes the pixels of a block one after the other, row by row.
template <class AnyFinish, int64_t bytes, int MR>
class PixelWalk {
 public:
  PixelWalk(const ConvArgs& args, const Block& block, const AnyFinish& finish, bool stem)
      : Q_(args.Q),
        h_(block.p.begin * args.stride.h - args.padding.top),
        w_begin_(stem ? 0 : -args.padding.left),
        h_step_(args.stride.h),
        w_step_(stem ? 1 : args.stride.w),
        x_step_(w_step_ * block.x.stride_w * bytes),
        x_row_step_(h_step_ * block.x.stride_h * bytes),
        y_step_(block.y_stride_w * AnyFinish::VALUE_BYTES),
        residual_step_(block.residual.data ? block.residual.stride_w * AnyFinish::VALUE_BYTES : 0),
        row_(reinterpret_cast<int64_t>(block.x.data) +
             ((h_ - block.x.h_begin) * block.x.stride_h + w_begin_ * block.x.stride_w) * bytes),
        p_(block.p.begin),
        finish_(finish) {
    begin_row();
  }

  // The next `rows` pixels.
  void take(int rows, TilePixels<MR>* pixels) {
    pixels->rows = rows;
    if (q_ == Q_) next_row();
    if (q_ + rows <= Q_) [[likely]] {
      for (int i = 0; i < MR; ++i) put(pixels, i, i < rows ? i : rows - 1);
      q_ += rows;
      return;
    }
    for (int i = 0; i < rows; ++i) {
      if (q_ == Q_) next_row();
      put(pixels, i, 0);
      ++q_;
    }
    for (int i = rows; i < MR; ++i) {
      pixels->h[i] = pixels->h[rows - 1];
      pixels->w[i] = pixels->w[rows - 1];
      pixels->at[i] = pixels->at[rows - 1];
      pixels->y[i] = pixels->y[rows - 1];
      pixels->residual[i] = pixels->residual[rows - 1];
    }
  }

 private:
  // The i-th pixel of a tile is `more` pixels on.
  [[gnu::always_inline]] void put(TilePixels<MR>* pixels, int i, int64_t more) const {
    const int64_t q = q_ + more;
    pixels->h[i] = h_;
    pixels->w[i] = w_begin_ + q * w_step_;
    pixels->at[i] = row_ + q * x_step_;
    pixels->y[i] = y_row_ + q * y_step_;
    pixels->residual[i] = residual_row_ + q * residual_step_;
  }
  void next_row() {
    ++p_;
    h_ += h_step_;
    row_ += x_row_step_;
    begin_row();
  }
  void begin_row() {
    q_ = 0;
    const Ends first = finish_.ends(p_, 0);
    y_row_ = reinterpret_cast<int64_t>(first.y);
    residual_row_ = reinterpret_cast<int64_t>(first.residual);
  }

  const int64_t Q_;
  int64_t h_;
  const int64_t w_begin_, h_step_, w_step_;
  const int64_t x_step_, x_row_step_, y_step_, residual_step_;  // bytes
  int64_t row_, p_, q_, y_row_, residual_row_;
  const AnyFinish& finish_;
};

// The table of one tile under rows `taps` of the weight: runs[((r - taps.begin) * S + s) * MR + i] of pixel i. A stem's
// row of taps is one run, which begins in the padding that its copy of x has: S is 1 there.
template <int MR, int64_t bytes>
inline void fill_runs(const ConvArgs& args, const Block& block, const TilePixels<MR>& pixels, bool stem, Range taps,
                      const char** runs) {
  const int64_t S = stem ? 1 : args.S, W = stem ? args.Q : args.W;
  const int64_t tap_w = args.dilation.w * block.x.stride_w * bytes;
  const int64_t tap_h = args.dilation.h * block.x.stride_h * bytes;
  const int64_t first_h = taps.begin * args.dilation.h, last_h = (taps.end - 1) * args.dilation.h;
  const int64_t last_w = (S - 1) * args.dilation.w;
  int64_t outside_taps = 0;
  for (int i = 0; i < MR; ++i)  // negative: outside
    outside_taps |=
        (pixels.h[i] + first_h) | pixels.w[i] | (args.H - 1 - last_h - pixels.h[i]) | (W - 1 - last_w - pixels.w[i]);
  auto* table = reinterpret_cast<int64_t*>(runs);
  for (int64_t r = taps.begin; r < taps.end; ++r)
    for (int64_t s = 0; s < S; ++s, table += MR) {
      const int64_t offset = r * tap_h + s * tap_w;
      if (outside_taps >= 0) [[likely]] {
        for (int i = 0; i < MR; ++i) table[i] = pixels.at[i] + offset;
        continue;
      }
      const int64_t h = r * args.dilation.h, w = s * args.dilation.w;
      for (int i = 0; i < MR; ++i) {
        const int64_t tap_outside =
            (pixels.h[i] + h) | (pixels.w[i] + w) | (args.H - 1 - h - pixels.h[i]) | (W - 1 - w - pixels.w[i]);
        table[i] = tap_outside < 0 ? reinterpret_cast<int64_t>(block.outside) : pixels.at[i] + offset;
      }
    }
}

// The lines that the end of a tile reads and writes arrive while it runs: they are too far apart for the hardware.
template <int64_t tile_bytes, int MR>
inline void ask_for_ends(const TilePixels<MR>& pixels, int64_t f_bytes, int64_t y_f_bytes) {
  const auto ask = [](int64_t address, bool writes) __attribute__((always_inline)) {
    for (int64_t line = 0; line < tile_bytes; line += CACHE_LINE) {
      if (writes)
        __builtin_prefetch(reinterpret_cast<const char*>(address + line), 1);
      else
        __builtin_prefetch(reinterpret_cast<const char*>(address + line));
    }
  };
  DSF_UNROLL
  for (int i = 0; i < MR; ++i) ask(pixels.y[i] + y_f_bytes, true);
  if (!pixels.residual[0]) return;
  DSF_UNROLL
  for (int i = 0; i < MR; ++i) ask(pixels.residual[i] + f_bytes, false);
}

}  // namespace
}  // namespace dsf::fused_conv
